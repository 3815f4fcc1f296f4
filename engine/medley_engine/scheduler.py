"""Continuous batching with chunked prefill over a paged KV cache. Pure: it decides, others compute.

Each step every running sequence past its prompt gets one token, then prompts get chunks until the token budget is
spent. Two rules make the numbers of a sequence independent of its company, and of where it runs:

- chunks end at multiples of ``chunk_tokens`` of the prompt, or at its end, whatever the budget is;
- tokens after the prompt are computed one by one, also when they are known already and only replayed into a new cache
(after a
  preemption or a crash).
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length", "abort"]

DECODE_ROWS = 3
"""Tokens after the prompt that are computed for the price of one: see docs/engine/numerics.md."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens and when to stop. ``temperature`` 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()


@dataclass(slots=True)
class Sequence:
    """One request on one rank. ``computed`` tokens have their keys and values in ``blocks``."""

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    generated: list[int] = field(default_factory=list)
    computed: int = 0
    blocks: list[int] = field(default_factory=list)

    def token(self, index: int) -> int:
        """Token at a position of prompt + generated."""
        return self.prompt[index] if index < len(self.prompt) else self.generated[index - len(self.prompt)]

    @property
    def length(self) -> int:
        """Tokens known so far."""
        return len(self.prompt) + len(self.generated)

    def dump(self) -> dict[str, Any]:
        """As JSON, to hand the sequence to another rank."""
        return {
            "id": self.id,
            "prompt": list(self.prompt),
            "params": {name: getattr(self.params, name) for name in SamplingParams.__slots__},
            "generated": list(self.generated),
            "computed": self.computed,
            "blocks": list(self.blocks),
        }

    @classmethod
    def parse(cls, raw: dict[str, Any]) -> Sequence:
        """From :meth:`dump`."""
        params = dict(raw["params"])
        params["stop_token_ids"] = tuple(params.get("stop_token_ids", ()))
        return cls(
            id=str(raw["id"]),
            prompt=tuple(raw["prompt"]),
            params=SamplingParams(**params),
            generated=list(raw.get("generated", ())),
            computed=int(raw.get("computed", 0)),
            blocks=list(raw.get("blocks", ())),
        )


@dataclass(frozen=True, slots=True)
class Slice:
    """Part of a step: tokens ``[start, start + count)`` of a sequence. ``sample`` tells that the last one yields a
    new token, ``decoding`` that they come after the prompt.
    """

    id: str
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    sample: bool
    decoding: bool = False

    @property
    def count(self) -> int:
        """Tokens to compute."""
        return len(self.tokens)


class Scheduler:
    """Sequences of one data-parallel group, its free blocks, and the choice of each step. ``skip_prompts_once`` keeps
    prompts out of the next step, so that sequences which were handed over get their next tokens as soon as can be.
    """

    def __init__(self, *, block_tokens: int, chunk_tokens: int, budget_tokens: int, max_running: int) -> None:
        if budget_tokens < chunk_tokens + max_running - 1:
            # A prompt must get on whatever else runs.
            raise ValueError(
                f"a budget of {budget_tokens} tokens is less than a chunk of {chunk_tokens} and one token for each of "
                f"{max_running - 1} other sequences"
            )
        self._block_tokens, self._chunk, self._budget = block_tokens, chunk_tokens, budget_tokens
        self._max_running = max_running
        self.running: list[Sequence] = []
        self.waiting: list[Sequence] = []
        self.free: list[int] = []
        self.preemptions = 0
        self.skip_prompts_once = False

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self.waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; one that brings its blocks along runs on at once."""
        if sequence.blocks:
            self.running.append(sequence)
        else:
            sequence.computed = 0
            self.waiting.append(sequence)

    def abort(self, sequence_id: str) -> bool:
        """Forget a sequence and free its blocks; False where it is unknown."""
        for queue in (self.running, self.waiting):
            for sequence in queue:
                if sequence.id == sequence_id:
                    queue.remove(sequence)
                    self._free_blocks(sequence)
                    return True
        return False

    def export(self) -> list[Sequence]:
        """Hand out all sequences with their blocks, which the caller now owns."""
        given = [*self.running, *self.waiting]
        self.running, self.waiting = [], []
        return given

    def wanted_blocks(self) -> int:
        """Blocks missing for the next step beyond those free: what to ask the manager for."""
        need = sum(self._missing(s, self._next_count(s)) for s in self.running)
        if self.waiting and len(self.running) < self._max_running:
            need += self._missing(self.waiting[0], self._next_count(self.waiting[0]))
        return max(0, need - len(self.free))

    def schedule(self) -> list[Slice]:
        """Choose the next step. Sequences that find no block wait; the youngest gives way to the oldest."""
        batch: list[Slice] = []
        budget, before = self._budget, self.preemptions
        decoding = [s for s in self.running if s.computed >= len(s.prompt)]
        filling = [s for s in self.running if s.computed < len(s.prompt)]
        if self.skip_prompts_once:
            self.skip_prompts_once, budget, filling = False, len(decoding), []
        for sequence in [*decoding, *filling]:
            if sequence not in self.running:
                continue
            count = self._next_count(sequence)
            if count <= budget and self._grow(sequence, count):
                batch.append(self._slice(sequence, count))
                budget -= count
        preempted = self.preemptions > before
        while self.waiting and len(self.running) < self._max_running and not preempted:
            sequence = self.waiting[0]
            count = self._next_count(sequence)
            if count > budget or self._missing(sequence, count) > len(self.free):
                break
            self.running.append(self.waiting.pop(0))
            self._grow(sequence, count)
            batch.append(self._slice(sequence, count))
            budget -= count
        # One that gave way after it was chosen has no blocks to compute into.
        still = {s.id for s in self.running}
        return [piece for piece in batch if piece.id in still]

    def complete(self, batch: Seq[Slice], sampled: dict[str, int]) -> list[tuple[Sequence, FinishReason | None]]:
        """Record a step: what was computed, and the tokens drawn. Returns the sequences that got one, and how they
        ended.
        """
        by_id = {s.id: s for s in self.running}
        results: list[tuple[Sequence, FinishReason | None]] = []
        for piece in batch:
            sequence = by_id.get(piece.id)
            if sequence is None:
                continue
            sequence.computed = piece.start + piece.count
            if piece.sample:
                sequence.generated.append(sampled[piece.id])
                reason = self._finish(sequence)
                results.append((sequence, reason))
                if reason:
                    self.running.remove(sequence)
                    self._free_blocks(sequence)
        return results

    def _finish(self, sequence: Sequence) -> FinishReason | None:
        if sequence.generated[-1] in sequence.params.stop_token_ids:
            return "stop"
        return "length" if len(sequence.generated) >= sequence.params.max_tokens else None

    def _next_count(self, sequence: Sequence) -> int:
        if sequence.computed >= len(sequence.prompt):
            return 1
        boundary = (sequence.computed // self._chunk + 1) * self._chunk
        return min(boundary, len(sequence.prompt)) - sequence.computed

    def _missing(self, sequence: Sequence, count: int) -> int:
        return max(0, -(-(sequence.computed + count) // self._block_tokens) - len(sequence.blocks))

    def _grow(self, sequence: Sequence, count: int) -> bool:
        """Give a sequence the blocks for its next tokens, preempting younger ones where there are none free."""
        missing = self._missing(sequence, count)
        while missing > len(self.free):
            youngest = self.running[-1]
            if youngest is sequence:
                return False
            self._preempt(youngest)
        for _ in range(missing):
            sequence.blocks.append(self.free.pop(0))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._free_blocks(sequence)
        sequence.computed = 0
        self.waiting.insert(0, sequence)
        self.preemptions += 1

    def _free_blocks(self, sequence: Sequence) -> None:
        self.free = sorted([*self.free, *sequence.blocks])
        sequence.blocks = []

    def _slice(self, sequence: Sequence, count: int) -> Slice:
        start = sequence.computed
        tokens = tuple(sequence.token(i) for i in range(start, start + count))
        return Slice(
            sequence.id,
            start,
            tokens,
            tuple(sequence.blocks),
            sample=start + count == sequence.length,
            decoding=start >= len(sequence.prompt),
        )
