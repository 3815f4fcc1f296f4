"""Matrix products whose bits do not depend on what else is computed in the same step.

The bits of a matrix product depend on its shape (and, with several threads, on how the library cuts it), but not on
which row of it a token is (measured; see docs/engine/numerics.md). So each row is computed in a call whose shape
follows from its own sequence alone:

- tokens after the prompt, in calls of exactly :data:`DECODE_ROWS` rows: as fast as one row, since reading the weight
  decides;
- tokens of a prompt, chunk by chunk, as ``weight @ columns`` with the chunk's rows rounded up to
  :data:`PROMPT_ROWS`: this form is twice as fast as ``rows @ weight.T`` for few rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from medley_engine.scheduler import DECODE_ROWS, Slice

PROMPT_ROWS = 16
_SERIAL_ELEMENTS = 32768
"""torch cuts elementwise work that is larger among its threads, anywhere in a row."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows of a step that share calls: one chunk of a prompt, or tokens that follow their prompts."""

    start: int
    rows: int
    decoding: bool


def segments_of(batch: Sequence[Slice]) -> list[Segment]:
    """Segments of a step's rows, in their order; neighbours that decode become one."""
    found: list[Segment] = []
    at = 0
    for piece in batch:
        if piece.decoding and found and found[-1].decoding:
            found[-1] = Segment(found[-1].start, found[-1].rows + piece.count, decoding=True)
        else:
            found.append(Segment(at, piece.count, piece.decoding))
        at += piece.count
    return found


def fixed_rows(x: torch.Tensor, weight: torch.Tensor, tile: int, out: torch.Tensor) -> None:
    """``x @ weight.T`` in calls of exactly ``tile`` rows; the last one is padded with zeros."""
    for start in range(0, x.shape[0], tile):
        part = x[start : start + tile]
        rows = part.shape[0]
        if rows < tile:
            part = functional.pad(part, (0, 0, 0, tile - rows))
        out[start : start + rows] = functional.linear(part, weight)[:rows]


def fixed_columns(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> None:
    """``x @ weight.T`` in one call, as ``weight @ x.T`` with columns rounded up to :data:`PROMPT_ROWS`."""
    rows = x.shape[0]
    columns = x.new_zeros((x.shape[1], -(-rows // PROMPT_ROWS) * PROMPT_ROWS))
    columns[:, :rows] = x.T
    out[:] = (weight @ columns)[:, :rows].T


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of rows [gate, up]. A row's last elements may take another path through the library than
    its first: cutting by rows keeps that the same for every row.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    step = max(1, _SERIAL_ELEMENTS // gate.shape[1])
    parts = [functional.silu(gate[at : at + step]) * up[at : at + step] for at in range(0, max(1, len(gate)), step)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Products:
    """Products over the rows of one step. ``invariant`` False computes all rows in one call, for speed."""

    def __init__(self, segments: Sequence[Segment], *, invariant: bool) -> None:
        self._segments, self._invariant = segments, invariant

    def linear(
        self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``x @ weight.T + bias`` for x (rows, inputs), into ``out`` (rows, outputs) where given."""
        if not self._invariant:
            result = functional.linear(x, weight, bias)
            return result if out is None else out.copy_(result)
        made = x.new_empty((x.shape[0], weight.shape[0])) if out is None else out
        for segment in self._segments:
            rows = slice(segment.start, segment.start + segment.rows)
            if segment.decoding:
                fixed_rows(x[rows], weight, DECODE_ROWS, made[rows])
            else:
                fixed_columns(x[rows], weight, made[rows])
        return made if bias is None else made.add_(bias)

    def gated_mlp(self, x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        """``(silu(x @ gate.T) * (x @ up.T)) @ down.T``."""
        width = gate.shape[0]
        both = x.new_empty((x.shape[0], 2 * width))
        self.linear(x, gate, out=both[:, :width])
        self.linear(x, up, out=both[:, width:])
        return self.linear(gated(both), down)

    def each(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """``x @ weight.T`` for rows that are each the last of a sequence, whatever its kind."""
        if not self._invariant:
            return functional.linear(x, weight)
        out = x.new_empty((x.shape[0], weight.shape[0]))
        fixed_rows(x, weight, DECODE_ROWS, out)
        return out
