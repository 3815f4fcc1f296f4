"""From measured operating points to the rate that a replica sustains within the objectives, at any request size.

At a measured size the points form a curve of latency over rate, and the answer lies on it, never beyond its last point.
Between measured sizes the logarithm of the rate is interpolated over the logarithms of the sizes,
in the smallest rectangle of measured sizes around the size asked for.
Elsewhere the nearest measured size is carried over by the roofline's shape:

    rate(size) = rate(nearest) · roofline(size) / roofline(nearest)

with rooflines free of objectives, so that a looser objective never lowers the answer.
It is then bounded by what was measured:
no more than a measured size that is smaller in both respects, no less than one that is larger in both.

Points carry mean latencies. For an objective at a percentile each is multiplied by how much longer than the mean the
roofline says that percentile is, for as large a batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medley_planner.capacities.estimate import Size
from medley_planner.capacities.latency import Latency
from medley_planner.capacities.load_curve import LoadCurve
from medley_planner.capacities.percentiles import PromptMix
from medley_planner.capacities.roofline import percentile_ratios, sustained_rates
from medley_planner.capacities.step_time import StepTime
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture, ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism


@dataclass(frozen=True)
class MeasuredRate:
    """A rate that follows from measurements.

    Args:
        requests_per_second: The largest rate within the objectives; 0 where there is none.
        scaled: Whether it was carried over from another size by the roofline's shape.
        concurrency: Requests in the replica at that rate, by Little's law.
        detail: Why there is none, with figures; empty where there is one.
    """

    requests_per_second: float
    scaled: bool
    detail: str = ""
    concurrency: float = 0.0


def points_of(
    measurements: Sequence[ThroughputPoint], *, engine: str, gpu: GPUType, parallelism: Parallelism
) -> list[ThroughputPoint]:
    """The measured points that tell about a variant.

    Points that name the engine count alone where there are any; else those that name none. The GPU's name is matched
    whatever its case.
    """
    here = [
        point
        for point in measurements
        if point.gpu.casefold() == gpu.name.casefold() and _parallelism(point) == parallelism
    ]
    return [point for point in here if point.engine == engine] or [point for point in here if point.engine is None]


def load_curves(
    measurements: Sequence[ThroughputPoint], *, engine: str, gpu: GPUType, parallelism: Parallelism
) -> Mapping[Size, LoadCurve]:
    """The measured curves for a variant by size, sorted; empty where nothing was measured."""
    chosen = points_of(measurements, engine=engine, gpu=gpu, parallelism=parallelism)
    by_size: dict[Size, list[ThroughputPoint]] = {}
    for point in chosen:
        by_size.setdefault((point.input_tokens, point.output_tokens), []).append(point)
    return {size: LoadCurve.of(points) for size, points in sorted(by_size.items())}


def measured_rates(
    curves: Mapping[Size, LoadCurve],
    *,
    model: ModelArchitecture,
    gpu: GPUType,
    parallelism: Parallelism,
    sizes: Sequence[Size],
    objectives: Objectives,
    prompts: PromptMix | None = None,
) -> tuple[MeasuredRate, ...]:
    """The largest rate within the objectives at each size, from at least one measured curve."""
    means = curves
    if objectives.at_percentiles:
        times = StepTime(model, gpu, parallelism)
        curves = {size: _at_percentiles(curve, size, times, objectives, prompts) for size, curve in curves.items()}
    rates = {size: curve.rate_within(objectives) for size, curve in curves.items()}
    inside = {size: rates[size] * curve.residence_s(rates[size], size[1]) for size, curve in means.items()}
    outside = [size for size in sizes if size not in rates and _rectangle(size, rates) is None]
    carry = None
    if outside:
        shape = _shape(model, gpu, parallelism, (*rates, *outside))
        carry = _Carry(curves, rates, inside, shape, objectives)
    found: list[MeasuredRate] = []
    for size in sizes:
        if size in rates:
            missed = _missed(size, curves[size], objectives)
            found.append(MeasuredRate(rates[size], scaled=False, detail=missed, concurrency=inside[size]))
            continue
        corners = _rectangle(size, rates)
        if corners is not None:
            found.append(_interpolated(size, corners, curves=curves, rates=rates, inside=inside, objectives=objectives))
        else:
            assert carry is not None
            found.append(carry.rate(size))
    return tuple(found)


_Corners = tuple[int, int, int, int]


def _rectangle(size: Size, rates: Mapping[Size, float]) -> _Corners | None:
    """The smallest rectangle (inputs from, to, outputs from, to) around a size whose four corners were measured.

    "Smallest" is by the sum of its sides in logarithms, ties by its corners. A side may have no length.
    """
    inputs, outputs = size
    low = [known for known in rates if known[0] <= inputs and known[1] <= outputs]
    high = [known for known in rates if known[0] >= inputs and known[1] >= outputs]
    around = [
        (math.log(right / left) + math.log(top / bottom), (left, right, bottom, top))
        for left, bottom in low
        for right, top in high
        if (left, top) in rates and (right, bottom) in rates
    ]
    return min(around)[1] if around else None


def _interpolated(
    size: Size,
    corners: _Corners,
    *,
    curves: Mapping[Size, LoadCurve],
    rates: Mapping[Size, float],
    inside: Mapping[Size, float],
    objectives: Objectives,
) -> MeasuredRate:
    left, right, bottom, top = corners
    across = _share(size[0], left, right)
    up = _share(size[1], bottom, top)
    weights = (
        ((left, bottom), (1 - across) * (1 - up)),
        ((right, bottom), across * (1 - up)),
        ((left, top), (1 - across) * up),
        ((right, top), across * up),
    )
    used = [(corner, weight) for corner, weight in weights if weight > 0]
    for corner, _ in used:
        if rates[corner] == 0:
            return MeasuredRate(0.0, scaled=False, detail=_missed(corner, curves[corner], objectives))
    rate, concurrency = (
        math.exp(math.fsum(weight * math.log(values[corner]) for corner, weight in used)) for values in (rates, inside)
    )
    return MeasuredRate(rate, scaled=False, concurrency=concurrency)


def _share(value: int, start: int, end: int) -> float:
    return math.log(value / start) / math.log(end / start) if end > start else 0.0


@dataclass(frozen=True)
class _Shape:
    """The roofline at one size: the rate without objectives, and latencies with hardly any load."""

    requests_per_second: float
    concurrency: float
    idle: Latency


def _shape(
    model: ModelArchitecture, gpu: GPUType, parallelism: Parallelism, sizes: Sequence[Size]
) -> Mapping[Size, _Shape]:
    roofline = sustained_rates(model, gpu, parallelism, sizes, Objectives())
    columns = (roofline.requests_per_second.tolist(), roofline.concurrency.tolist(), roofline.idle)
    return {size: _Shape(*figures) for size, *figures in zip(sizes, *columns, strict=True)}


@dataclass(frozen=True)
class _Carry:
    """What it takes to carry measured rates over to sizes that lie outside of every measured rectangle."""

    curves: Mapping[Size, LoadCurve]
    rates: Mapping[Size, float]
    inside: Mapping[Size, float]
    shape: Mapping[Size, _Shape]
    objectives: Objectives

    def rate(self, size: Size) -> MeasuredRate:
        """The rate at a size, with the reason where it is 0."""
        near = min(self.rates, key=lambda known: (_distance(known, size), known))
        smaller = [known for known in self.rates if known[0] <= size[0] and known[1] <= size[1]]
        for known in (near, *sorted(smaller)):
            if self.rates[known] == 0:
                return MeasuredRate(0.0, scaled=True, detail=_missed(known, self.curves[known], self.objectives))
        missed = self._lightest(size, near).missed(
            self.objectives,
            f"for {_words(size)}, as estimated from {_words(near)} at the lightest load measured",
        )
        if missed:
            return MeasuredRate(0.0, scaled=True, detail=missed)
        larger = [known for known in self.rates if known[0] >= size[0] and known[1] >= size[1]]
        rate = self.rates[near] * self.shape[size].requests_per_second / self.shape[near].requests_per_second
        rate = max([rate, *(self.rates[known] for known in larger)])
        rate = min([rate, *(self.rates[known] for known in smaller)])
        inside = self.inside[near] * self.shape[size].concurrency / self.shape[near].concurrency
        return MeasuredRate(rate, scaled=True, concurrency=inside)

    def _lightest(self, size: Size, near: Size) -> Latency:
        """Latencies at a size under the lightest load measured nearby, carried over like the rate."""
        measured, here, there = self.curves[near].lightest, self.shape[size].idle, self.shape[near].idle
        per_token_s = here.time_per_output_token_s
        if there.time_per_output_token_s > 0:
            per_token_s *= measured.time_per_output_token_s / there.time_per_output_token_s
        first_token_s = measured.time_to_first_token_s * here.time_to_first_token_s / there.time_to_first_token_s
        return Latency(per_token_s, first_token_s)


def _parallelism(point: ThroughputPoint) -> Parallelism:
    return Parallelism(point.tensor_parallel, point.pipeline_parallel, point.data_parallel)


def _at_percentiles(
    curve: LoadCurve, size: Size, times: StepTime, objectives: Objectives, prompts: PromptMix | None
) -> LoadCurve:
    """A curve of means as one of percentiles, where the objectives are at some."""
    pairs = zip(curve.rates_rps, curve.time_per_output_token_s, strict=True)
    batches = [rate * (size[1] - 1) * per_token_s for rate, per_token_s in pairs]
    per_token, first_token = percentile_ratios(times, size, batches, objectives, prompts)
    return LoadCurve(
        curve.rates_rps,
        tuple(mean_s * ratio for mean_s, ratio in zip(curve.time_per_output_token_s, per_token, strict=True)),
        tuple(mean_s * ratio for mean_s, ratio in zip(curve.time_to_first_token_s, first_token, strict=True)),
    )


def _distance(one: Size, other: Size) -> float:
    return math.hypot(math.log(one[0] / other[0]), math.log(one[1] / other[1]))


def _missed(size: Size, curve: LoadCurve, objectives: Objectives) -> str:
    """Which objective the lightest measured load already misses; empty where it meets both."""
    circumstance = f"for {_words(size)} at {curve.rates_rps[0]:g} requests/s, the lightest load measured"
    return curve.lightest.missed(objectives, circumstance)


def _words(size: Size) -> str:
    return f"{size[0]} input and {size[1]} output tokens"
