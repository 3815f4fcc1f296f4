"""The requests that a replica decodes: who ends when, how many tokens they hold, and when they need blocks.

All get a token in each step, so that one clock, the steps so far, says everything about all of them. A request that
held h tokens at step s began, in a manner of speaking, at step s − h with none; it holds step − (s − h) tokens ever
after, and takes a block of b tokens at steps that are s − h modulo b, its *phase*. Counts of requests by phase tell how
many blocks any number of steps take.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

_REQUEST_BITS = 32
"""The heap of ends holds step · 2³² + request: one integer compares faster than a pair."""
_REQUEST_MASK = (1 << _REQUEST_BITS) - 1


class Decoding:
    """The decoding requests of one replica, in the order in which they began to decode.

    Args:
        block_tokens: Tokens of a block.
    """

    __slots__ = ("_begun", "_block_tokens", "_by_phase", "_ends", "cached", "size", "step")

    def __init__(self, block_tokens: int) -> None:
        self.size = 0
        """Requests."""
        self.cached = 0
        """Tokens that they hold."""
        self.step = 0
        """Steps so far."""
        self._block_tokens = block_tokens
        self._begun: dict[int, int] = {}
        self._by_phase = [0] * block_tokens
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[int]:
        return iter(self._begun)

    @property
    def wanted_blocks(self) -> int:
        """Blocks that the next step takes."""
        return self._by_phase[self.step % self._block_tokens]

    @property
    def steps_to_first_end(self) -> int:
        """Steps until a request has its last token; there must be a request."""
        return (self._ends[0] >> _REQUEST_BITS) - self.step

    def new_blocks(self, steps: int) -> int:
        """Blocks that so many steps take."""
        rounds, rest = divmod(steps, self._block_tokens)
        taken = rounds * self.size
        if rest:
            first = self.step % self._block_tokens
            last = first + rest
            taken += sum(self._by_phase[first:last])
            if last > self._block_tokens:
                taken += sum(self._by_phase[: last - self._block_tokens])
        return taken

    def join(self, request: int, held: int, left: int) -> None:
        """From the next step on, decode a request that holds so many tokens and has so many to go."""
        began = self.step - held
        self._begun[request] = began
        self._by_phase[began % self._block_tokens] += 1
        self.size += 1
        self.cached += held
        heappush(self._ends, (self.step + left) << _REQUEST_BITS | request)

    def advance(self, steps: int) -> None:
        """So many steps were computed; none may have gone beyond the first end."""
        self.step += steps
        self.cached += self.size * steps

    def pop_ended(self) -> Iterator[tuple[int, int]]:
        """Take out the requests that have their last token: (request, tokens that it held)."""
        while self._ends and self._ends[0] >> _REQUEST_BITS == self.step:
            request = heappop(self._ends) & _REQUEST_MASK
            yield request, self._release(request)

    def pop_last(self) -> tuple[int, int]:
        """Take out the request that began to decode last: (request, tokens that it held)."""
        request = next(reversed(self._begun))
        self._ends = [end for end in self._ends if end & _REQUEST_MASK != request]
        heapify(self._ends)
        return request, self._release(request)

    def clear(self) -> None:
        """Forget all requests."""
        self._begun.clear()
        self._ends.clear()
        self._by_phase = [0] * self._block_tokens
        self.size = self.cached = 0

    def _release(self, request: int) -> int:
        began = self._begun.pop(request)
        held = self.step - began
        self._by_phase[began % self._block_tokens] -= 1
        self.size -= 1
        self.cached -= held
        return held
