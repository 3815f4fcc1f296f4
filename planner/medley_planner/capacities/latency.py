"""Mean latencies against objectives, and the words for a miss."""

from __future__ import annotations

from dataclasses import dataclass

from medley_planner.fleet import Objectives


@dataclass(frozen=True)
class Latency:
    """Mean latencies of a replica under some load.

    Args:
        time_per_output_token_s: Time between output tokens; 0 where requests have one output token only.
        time_to_first_token_s: Time from a request's arrival to its first token.
    """

    time_per_output_token_s: float
    time_to_first_token_s: float

    def missed(self, objectives: Objectives, circumstance: str) -> str:
        """Which objective these latencies miss, as a sentence that says under which circumstance; empty where none."""
        for what, latency_s, objective_s, percentile in (
            (
                "time per output token",
                self.time_per_output_token_s,
                objectives.time_per_output_token_s,
                objectives.time_per_output_token_percentile,
            ),
            (
                "time to first token",
                self.time_to_first_token_s,
                objectives.time_to_first_token_s,
                objectives.time_to_first_token_percentile,
            ),
        ):
            if objective_s is not None and latency_s > objective_s:
                of = "" if percentile is None else f" for {percentile:g} % of the requests"
                limit = f"the objective is {_milliseconds(objective_s)}{of}"
                return f"{what} is {_milliseconds(latency_s)} {circumstance}; {limit}"
        return ""


def _milliseconds(time_s: float) -> str:
    milliseconds = time_s * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 100 else f"{milliseconds:.3g} ms"
