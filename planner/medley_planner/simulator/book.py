"""What the simulation knows of every request of a service: what it asks for, and when it got it.

Columns are lists, not arrays: the replicas read and write single entries, which lists do several times faster.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from medley_planner.simulator.requests import Requests

NEVER = math.inf


class Fate(IntEnum):
    """How a request ended."""

    OPEN = 0
    """It waits or is computed."""
    SERVED = 1
    REJECTED = 2
    """Refused: no replica can ever hold it, or all queues that it may join are full."""
    LOST = 3
    """It was on a replica that went away, and is not tried again."""


@dataclass
class Book:
    """One row for each request, in order of arrival.

    Args:
        inputs: Tokens of the prompt.
        outputs: Tokens of the answer.
        arrived_s: When it arrived.
        admitted_s: When its first step began on the replica that computed (or computes) its prompt; NaN until then.
        first_token_s: When its first token came; NaN until then.
        finished_s: When its last token came; NaN until then.
        replica: Number of the replica that served it last; −1 until it was given to one.
        prefill_replica: The replica that computed its prompt for another one to decode; −1 where there is none.
        fate: How it ended.
        preemptions: How often it was put back because the cache was full.
        load: What the router takes it for: its part of the replica it was given to (see `routing`).
    """

    inputs: list[int]
    outputs: list[int]
    arrived_s: list[float]
    admitted_s: list[float] = field(init=False)
    first_token_s: list[float] = field(init=False)
    finished_s: list[float] = field(init=False)
    replica: list[int] = field(init=False)
    prefill_replica: list[int] = field(init=False)
    fate: list[Fate] = field(init=False)
    preemptions: dict[int, int] = field(default_factory=dict)
    load: list[float] = field(init=False)

    def __post_init__(self) -> None:
        requests = len(self.inputs)
        self.admitted_s = [math.nan] * requests
        self.first_token_s = [math.nan] * requests
        self.finished_s = [math.nan] * requests
        self.replica = [-1] * requests
        self.prefill_replica = [-1] * requests
        self.fate = [Fate.OPEN] * requests
        self.load = [0.0] * requests

    @classmethod
    def of(cls, requests: Requests) -> Book:
        """A book with nothing served yet."""
        return cls(requests.input_tokens.tolist(), requests.output_tokens.tolist(), requests.arrivals_s.tolist())

    def __len__(self) -> int:
        return len(self.inputs)

    def forget_progress(self, request: int) -> None:
        """The request begins anew: whatever it got is worth nothing."""
        self.admitted_s[request] = math.nan
        self.first_token_s[request] = math.nan
