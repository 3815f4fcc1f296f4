"""The simulator's engine again, the slow way: every step is computed, every token and block counted one by one.

It shares nothing with `medley_planner.simulator.replica` but the rules in that module's docstring.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from medley_planner.fleet import Role
from medley_planner.simulator.engine import EngineLimits, StepTimes


@dataclass
class Request:
    number: int
    arrived_s: float
    inputs: int
    outputs: int
    computed: int = 0
    emitted: int = 0
    tokens_out_s: list[float] = field(default_factory=list)
    preemptions: int = 0

    @property
    def to_prefill(self) -> int:
        return self.inputs + self.emitted


@dataclass
class StepwiseEngine:
    steps: StepTimes
    limits: EngineLimits
    role: Role = Role.SHARED
    most_blocks: int = 0
    admitted: list[int] = field(default_factory=list)

    def serve(self, requests: list[tuple[float, int, int]]) -> list[Request]:
        """(arrival, input tokens, output tokens) of each, in order of arrival; with the time of every token."""
        made = [Request(number, *each) for number, each in enumerate(requests)]
        coming, waiting = list(made), []
        decoding: list[Request] = []
        partial: Request | None = None
        now_s = 0.0
        while coming or waiting or decoding or partial:
            if not (waiting or decoding or partial):
                now_s = coming[0].arrived_s
                waiting.append(coming.pop(0))
            preempted = False
            while self._used(decoding, partial) + self._wanted(decoding) > self.limits.blocks:
                preempted = True
                if partial is not None:
                    last, partial = partial, None
                else:
                    last = decoding.pop()
                last.computed = 0
                last.preemptions += 1
                waiting.insert(0, last)
            chunks: list[tuple[Request, int, int]] = []
            left = self.steps.max_step_tokens - len(decoding)
            while left > 0:
                if partial is None:
                    if preempted or not waiting or not self._fits(waiting[0], decoding, chunks):
                        break
                    request = waiting.pop(0)
                    if request.number not in self.admitted:
                        self.admitted.append(request.number)
                    if self.role is Role.DECODE and not request.emitted:
                        request.computed, request.emitted = request.inputs, 1
                        request.tokens_out_s.append(now_s)
                        decoding.append(request)
                        left -= 1
                        continue
                    partial = request
                begin = partial.computed
                end = min(partial.to_prefill, begin + left)
                partial.computed = end
                left -= end - begin
                chunks.append((partial, begin, end))
                if end == partial.to_prefill:
                    partial = None
            used = self._used(decoding, None) + self._wanted(decoding)
            used += sum(self._blocks(each.to_prefill) for each in {id(each): each for each, *_ in chunks}.values())
            self.most_blocks = max(self.most_blocks, used)
            assert used <= self.limits.blocks
            now_s += self._step_s(decoding, chunks)
            for each in decoding:
                each.computed += 1
                each.emitted += 1
                each.tokens_out_s.append(now_s)
            decoding = [each for each in decoding if each.emitted < each.outputs]
            for each, _, end in chunks:
                if end == each.to_prefill:
                    each.emitted += 1
                    each.tokens_out_s.append(now_s)
                    if each.emitted < each.outputs and self.role is not Role.PREFILL:
                        decoding.append(each)
            while coming and coming[0].arrived_s < now_s:
                waiting.append(coming.pop(0))
        return made

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.limits.block_tokens)

    def _used(self, decoding: list[Request], partial: Request | None) -> int:
        held = sum(self._blocks(each.computed) for each in decoding)
        return held + (self._blocks(partial.to_prefill) if partial else 0)

    def _wanted(self, decoding: list[Request]) -> int:
        return sum(each.computed % self.limits.block_tokens == 0 for each in decoding)

    def _fits(self, request: Request, decoding: list[Request], chunks: list[tuple[Request, int, int]]) -> bool:
        running = len(decoding) + len(chunks)
        if running >= self.limits.max_sequences:
            return False
        used = self._used(decoding, None) + self._wanted(decoding)
        used += sum(self._blocks(each.to_prefill) for each, *_ in chunks)
        free = self.limits.blocks - used
        if running:
            free -= int(self.limits.watermark * self.limits.blocks)
        first_decode = self.role is Role.DECODE and not request.emitted
        return self._blocks(request.to_prefill + first_decode) <= free

    def _step_s(self, decoding: list[Request], chunks: list[tuple[Request, int, int]]) -> float:
        times = self.steps
        prompt = sum(end - begin for _, begin, end in chunks)
        total = times.fixed_s[len(decoding) + prompt]
        for each in decoding:
            total += times.per_sequence_s + each.computed * times.per_cached_token_s
        for _, begin, end in chunks:
            for place in range(begin, end):
                total += times.per_prompt_token_s + (place + 0.5) * times.per_pair_s
        return total
