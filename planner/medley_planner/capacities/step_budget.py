"""How many tokens an engine should compute in one step: as many as the time per output token objective allows.

With chunked prefill, prompts are computed beside the requests that decode, and each of these waits for the whole step.
More tokens in a step serve prompts faster; fewer keep the pauses between output tokens short.
"""

from __future__ import annotations

import numpy as np

from medley_planner.capacities.step_time import StepTime

DEFAULT_STEP_TOKENS = 2048
"""Tokens of a step, decoded and prefilled together, where no objective says otherwise."""
STEP_TOKENS = (512, 1024, 2048, 4096, 8192)
"""Budgets that are chosen from: below, prompts read the weights too often; above, engines run out of working memory."""


def step_budget_tokens(times: StepTime, time_per_output_token_s: float) -> int | None:
    """The largest budget whose step, full of prompt tokens, takes no longer than the objective for an output token.

    None where not even the smallest does. It depends on the replica and the objective alone, not on the sizes of
    requests or the load: it is a setting of the engine, and one that moved with the traffic would restart engines. A
    coarse choice for the same reason. The rule is Sarathi-Serve's (arXiv 2403.02310, section 4.3).

    Capacities are not computed with it, but with the default. Prompts of which a step holds fewer tokens ride along
    with decoding while weights are read, so that some sizes gain and others lose by a smaller budget: a budget that
    depends on the objective would let a looser objective, or a better GPU, sustain less.
    """
    tokens = np.asarray(STEP_TOKENS, dtype=np.float64)
    none = np.zeros_like(tokens)
    keeps = times.step_s(none, none, tokens, tokens) <= time_per_output_token_s
    return max((size for size, kept in zip(STEP_TOKENS, keeps.tolist(), strict=True) if kept), default=None)
