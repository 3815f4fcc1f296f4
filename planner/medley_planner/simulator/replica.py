"""One replica: continuous batching with chunked prefill in a paged cache, from event to event.

The engine computes in steps. What a step computes is decided at its start:

1. Every request that decodes gets one token, and a block of the cache where its last one is full. Where no block is
   free, the request that began to decode last is *preempted*: its blocks are freed, it goes back to the head of the
   queue, and its prompt and the tokens it had are computed anew when it is admitted again.
2. What is left of the step's tokens goes to prompts: first to the one that an earlier step left unfinished, then, first
   come first served, to requests that wait. One is admitted when a place in the batch is free, and blocks for
   its whole prompt, besides the watermark; who does not fit holds up those behind. Nobody is admitted in a step
   that preempted.

A request's first token comes at the end of the step that computes the last of its prompt, each other one at the end
of a step. Who arrives during a step, or at its very beginning, waits for its end. These are the rules of vLLM's
scheduler (V1, with `scheduler_reserve_full_isl`).

Nothing is computed step by step where nothing changes: a run of steps that only decode, up to the next end of a
request, the next arrival that can be admitted, or the cache's last block, is one event (see `engine.StepTimes`).
"""

from __future__ import annotations

import math
from collections import deque

from medley_planner.fleet import Role
from medley_planner.simulator.book import Book, Fate
from medley_planner.simulator.decoding import Decoding
from medley_planner.simulator.engine import EngineLimits, StepTimes
from medley_planner.simulator.gauges import Gauges


class Replica:
    """An engine and its queue.

    The caller advances it to a moment before it offers a request at that moment; moments never go back.

    Args:
        number: Its number in the service.
        steps: How long its steps take.
        limits: What it holds.
        book: The service's requests; times are written there.
        gauges: Collects how busy it is.
        role: What it computes of a request. A prefill replica hands requests over after their first token, a decode
            replica gets them with their cache.

    Raises:
        ValueError: The batch can be larger than a step.
    """

    __slots__ = (
        "_block_tokens",
        "_blocks",
        "_blocks_used",
        "_book",
        "_chunked",
        "_decoding",
        "_emitted",
        "_fixed_s",
        "_limits",
        "_partial",
        "_partial_tokens",
        "_role",
        "_run",
        "_steps",
        "_waiting",
        "_watermark_blocks",
        "gauges",
        "handed_over",
        "load",
        "next_s",
        "now_s",
        "number",
    )

    def __init__(
        self,
        number: int,
        steps: StepTimes,
        limits: EngineLimits,
        book: Book,
        gauges: Gauges,
        *,
        role: Role = Role.SHARED,
    ) -> None:
        if limits.max_sequences > steps.max_step_tokens:
            raise ValueError(
                f"max_sequences: {limits.max_sequences} do not fit a step of {steps.max_step_tokens} tokens"
            )
        self.number = number
        self.gauges = gauges
        self.next_s = math.inf
        """End of the running step, or of the run of steps; infinite while nothing runs."""
        self.load = 0.0
        """What the router has given it and has not come back, in the router's own estimate; 1 is its capacity."""
        self.handed_over: list[tuple[float, int]] = []
        """Of a prefill replica: (when, request) that a decode replica should go on with."""
        self._steps = steps
        self._fixed_s = steps.fixed_s
        self._limits = limits
        self._book = book
        self._role = role
        self._blocks = limits.blocks
        self._block_tokens = limits.block_tokens
        self._watermark_blocks = math.floor(limits.watermark * limits.blocks)
        self.now_s = 0.0
        """Beginning of the running step, or of the run of steps; end of the last one while nothing runs."""
        self._decoding = Decoding(limits.block_tokens)
        self._run = 0  # steps in the run that is under way; 0 for a step with prompt tokens
        self._blocks_used = 0
        self._emitted: dict[int, int] = {}  # preempted request → tokens that it had
        self._waiting: deque[int] = deque()
        self._partial = -1  # the request whose prompt is computed in part, and how much of it
        self._partial_tokens = 0
        self._chunked: list[int] = []  # requests whose prompt ends in the running step

    @property
    def waiting(self) -> int:
        """Requests in its queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Requests that are computed, in whole or in part."""
        return self._decoding.size + len(self._chunked) + (self._partial >= 0)

    @property
    def blocks_used(self) -> int:
        """Blocks of the cache that are taken, at the end of the last event."""
        return self._blocks_used

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return self.next_s == math.inf

    def can_ever_hold(self, request: int) -> bool:
        """Whether it could compute this request with nothing else in the cache."""
        tokens = self._book.inputs[request] + (0 if self._role is Role.PREFILL else self._book.outputs[request] - 1)
        return tokens <= self._blocks * self._block_tokens

    def offer(self, request: int, now_s: float) -> bool:
        """Put a request into the queue, one that it can ever hold; False where the queue is full."""
        if self._limits.max_waiting is not None and len(self._waiting) >= self._limits.max_waiting and not self.idle:
            return False
        self._book.replica[request] = self.number
        self.load += self._book.load[request]
        self._waiting.append(request)
        if self.next_s == math.inf:
            self.gauges.idle_until(now_s)
            self.now_s = now_s
            self._begin()
        elif self._run > 1 and len(self._waiting) == 1 and self._fits(request):
            self._cut_run(now_s)
        return True

    def advance(self, until_s: float) -> None:
        """Compute everything that ends at this moment or before."""
        while self.next_s <= until_s:
            self._complete()
            self._begin()

    def abandon(self) -> list[int]:
        """Stop at once: nothing runs or waits any more; what did, in order of arrival."""
        begun = [self._partial] if self._partial >= 0 else []
        left = sorted({*self._decoding, *self._waiting, *self._chunked, *begun})
        self._waiting.clear()
        self._decoding.clear()
        self._chunked.clear()
        self._emitted.clear()
        self._partial, self._run, self._blocks_used = -1, 0, 0
        self.next_s, self.load = math.inf, 0.0
        return left

    # What a step computes

    def _begin(self) -> None:
        """Decide on the next step, or run of steps."""
        preempted = self._make_room()
        if self._waiting or self._partial >= 0:
            tokens, pairs = self._take_prompts(preempted)
            if tokens:
                decoding, steps = self._decoding, self._steps
                batch = decoding.size
                duration_s = (
                    self._fixed_s[batch + tokens]
                    + batch * steps.per_sequence_s
                    + decoding.cached * steps.per_cached_token_s
                    + tokens * steps.per_prompt_token_s
                    + pairs * steps.per_pair_s
                )
                self._blocks_used += decoding.wanted_blocks
                self._run = 0
                self.next_s = self.now_s + duration_s
                self.gauges.computed(
                    duration_s,
                    self.running,
                    self._blocks_used,
                    decoded_tokens=batch,
                    prompt_tokens=tokens,
                    steps=1,
                )
                return
        if self._decoding.size:
            self._begin_run()
        else:
            self.next_s = math.inf

    def _make_room(self) -> bool:
        """Preempt until every decoding request can have its next token; whether any was."""
        preempted = False
        while self._blocks_used + self._decoding.wanted_blocks > self._blocks:
            preempted = True
            self._preempt_last()
        return preempted

    def _take_prompts(self, preempted: bool) -> tuple[int, float]:
        """Share out what the decoding requests leave of a step: prompt tokens, and the pairs that they attend to."""
        left = self._steps.max_step_tokens - self._decoding.size
        taken, pairs = 0, 0.0
        while left > 0:
            request = self._partial
            if request < 0:
                if preempted or not self._waiting or not self._fits(self._waiting[0]):
                    break
                request = self._admit()
                if request < 0:
                    left -= 1
                    continue
            begin = self._partial_tokens
            prompt = self._book.inputs[request] + self._emitted.get(request, 0)
            end = min(prompt, begin + left)
            taken += end - begin
            left -= end - begin
            pairs += (end * end - begin * begin) / 2
            if end == prompt:
                self._chunked.append(request)
                self._partial, self._partial_tokens = -1, 0
            else:
                self._partial, self._partial_tokens = request, end
        return taken, pairs

    def _fits(self, request: int) -> bool:
        """Whether a request can be admitted to the step that is being put together."""
        running = self._decoding.size + len(self._chunked)
        if running >= self._limits.max_sequences:
            return False
        free = self._blocks - self._blocks_used - self._decoding.wanted_blocks
        if running:
            free -= self._watermark_blocks
        emitted = self._emitted.get(request, 0)
        decodes_at_once = self._role is Role.DECODE and not emitted
        return self._blocks_for(self._book.inputs[request] + emitted + decodes_at_once) <= free

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)

    def _admit(self) -> int:
        """Admit the first that waits: the request whose prompt is to be computed, −1 where it comes with its cache."""
        request = self._waiting.popleft()
        book = self._book
        emitted = self._emitted.get(request, 0)
        if math.isnan(book.admitted_s[request]):
            book.admitted_s[request] = self.now_s
        if self._role is Role.DECODE and not emitted:
            self._blocks_used += self._blocks_for(book.inputs[request])
            self._decoding.join(request, book.inputs[request], book.outputs[request] - 1)
            return -1
        self._blocks_used += self._blocks_for(book.inputs[request] + emitted)
        self._partial, self._partial_tokens = request, 0
        return request

    def _begin_run(self) -> None:
        """Decode until the first request ends, or the cache is full."""
        decoding = self._decoding
        steps = decoding.steps_to_first_end
        free = self._blocks - self._blocks_used
        if decoding.new_blocks(steps) > free:
            fit, too_many = 1, steps
            while too_many - fit > 1:
                middle = (fit + too_many) // 2
                fit, too_many = (middle, too_many) if decoding.new_blocks(middle) <= free else (fit, middle)
            steps = fit
        self._run = steps
        self.next_s = self.now_s + self._run_s(steps)

    def _run_s(self, steps: int) -> float:
        """Time of so many steps that only decode."""
        times, batch = self._steps, self._decoding.size
        first_s = self._fixed_s[batch] + batch * times.per_sequence_s + self._decoding.cached * times.per_cached_token_s
        return steps * first_s + batch * (steps * (steps - 1) // 2) * times.per_cached_token_s

    def _cut_run(self, now_s: float) -> None:
        """End the run of steps at the end of the step that runs at this moment."""
        wanted_s = now_s - self.now_s
        growth_s = self._decoding.size * self._steps.per_cached_token_s / 2
        linear_s = self._run_s(1) - growth_s
        root = math.sqrt(linear_s * linear_s + 4 * growth_s * wanted_s) if wanted_s > 0 else linear_s
        steps = max(1, math.ceil(2 * wanted_s / (linear_s + root)))
        while self.now_s + self._run_s(steps) <= now_s:
            steps += 1
        while steps > 1 and self.now_s + self._run_s(steps - 1) > now_s:
            steps -= 1
        if steps < self._run:
            self._run = steps
            self.next_s = self.now_s + self._run_s(steps)

    # What its end brings

    def _complete(self) -> None:
        """Take note of what the step, or the run of steps, has computed."""
        end_s = self.next_s
        steps = self._run
        decoding = self._decoding
        batch = decoding.size
        if steps:
            before = self._blocks_used
            self._blocks_used += decoding.new_blocks(steps)
            held = (before + self._blocks_used) / 2
            self.gauges.computed(
                end_s - self.now_s, batch, held, decoded_tokens=batch * steps, prompt_tokens=0, steps=steps
            )
        else:
            steps = 1
        self.now_s = end_s
        self.gauges.reach(end_s)
        decoding.advance(steps)
        if batch:
            for request, tokens in decoding.pop_ended():
                self._blocks_used -= self._blocks_for(tokens)
                self._leave(request, handed_over=False)
        if self._chunked:
            for request in self._chunked:
                self._finish_prompt(request)
            self._chunked.clear()

    def _finish_prompt(self, request: int) -> None:
        """The last of a prompt is computed: out comes a token, and the others are decoded."""
        book = self._book
        had = self._emitted.pop(request, 0)
        if not had:
            book.first_token_s[request] = self.now_s
        prompt = book.inputs[request] + had
        left = book.outputs[request] - had - 1
        if left and self._role is not Role.PREFILL:
            self._decoding.join(request, prompt, left)
            return
        self._blocks_used -= self._blocks_for(prompt)
        self._leave(request, handed_over=left > 0)

    def _leave(self, request: int, *, handed_over: bool) -> None:
        self.load -= self._book.load[request]
        self.gauges.served(request)
        if handed_over:
            self._book.prefill_replica[request] = self.number
            self.handed_over.append((self.now_s, request))
            return
        self._book.finished_s[request] = self.now_s
        self._book.fate[request] = Fate.SERVED

    def _preempt_last(self) -> None:
        """Put back the request whose prompt is being computed, or the one that began to decode last."""
        book = self._book
        if self._partial >= 0:
            request = self._partial
            self._blocks_used -= self._blocks_for(book.inputs[request] + self._emitted.get(request, 0))
            self._partial, self._partial_tokens = -1, 0
        else:
            request, held = self._decoding.pop_last()
            self._blocks_used -= self._blocks_for(held)
            self._emitted[request] = held - book.inputs[request] + 1
        book.preemptions[request] = book.preemptions.get(request, 0) + 1
        self._waiting.appendleft(request)
