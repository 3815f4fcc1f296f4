"""What holds of capacities whatever the model, GPU and objectives: better is never worse, more work never cheaper."""

import itertools
import math
from dataclasses import replace

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from medley_planner.capacities.capacity import Capacity, capacity
from medley_planner.capacities.percentiles import PromptMix
from medley_planner.catalogue.gpus import GPUType
from medley_planner.catalogue.models import ModelArchitecture, ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism, Role

CONTEXT = 32768

SLACK = 1 - 5e-4
"""Another size lies differently on the roofline's grid: what is monotone in the formulae is so to this precision."""

FIGURES = (
    "memory_bytes",
    "memory_bandwidth_bytes_per_s",
    "dense_flops_16bit",
    "dense_flops_8bit",
    "link_bandwidth_bytes_per_s",
)

many = settings(deadline=None, max_examples=200, print_blob=True)


@st.composite
def models(draw):
    heads = draw(st.sampled_from([8, 16, 32, 64]))
    experts = draw(st.sampled_from([0, 0, 8, 128]))
    parameters = draw(st.integers(10**8, 8 * 10**10))
    shares = {"active_parameters": round(parameters * 0.3), "experts": experts, "active_experts": 2} if experts else {}
    return ModelArchitecture(
        parameters=parameters,
        layers=draw(st.integers(8, 96)),
        hidden_size=heads * 128,
        attention_heads=heads,
        key_value_heads=draw(st.sampled_from([1, 2, 4, 8])),
        head_size=128,
        max_context_tokens=CONTEXT,
        weight_bytes_per_parameter=draw(st.sampled_from([2.0, 1.0, 0.53])),
        key_value_bytes_per_element=draw(st.sampled_from([2.0, 1.0])),
        **shares,
    )


@st.composite
def gpu_types(draw):
    flops = draw(st.floats(3e13, 3e15))
    return GPUType(
        name="Any",
        memory_bytes=draw(st.integers(15, 300)) * 2**30,
        memory_bandwidth_bytes_per_s=draw(st.floats(2e11, 1e13)),
        dense_flops_16bit=flops,
        dense_flops_8bit=draw(st.one_of(st.none(), st.just(2 * flops))),
        link_bandwidth_bytes_per_s=draw(st.floats(1.6e10, 1e12)),
    )


limits_s = st.one_of(st.none(), st.floats(0.003, 5))
percentiles = st.one_of(st.none(), st.sampled_from([50.0, 90.0, 95.0, 99.0, 99.9]))
objectives = st.builds(
    Objectives,
    time_per_output_token_s=limits_s,
    time_to_first_token_s=limits_s,
    time_per_output_token_percentile=percentiles,
    time_to_first_token_percentile=percentiles,
)
mixes = st.one_of(st.none(), st.builds(PromptMix, st.floats(1, 20000), st.floats(0, 4)))
lengths = st.floats(0, math.log(15000)).map(lambda log: round(math.exp(log)))
sizes = st.tuples(lengths, lengths)
parallelisms = st.builds(
    Parallelism, st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 1, 2, 4]), st.sampled_from([1, 1, 2, 8])
)
roles = st.sampled_from(Role)
factors = st.floats(1, 4)


@st.composite
def measurements(draw):
    """Points as a careful person measures them: latencies rise with the rate, and larger requests are never faster."""
    points = []
    for inputs in draw(st.lists(st.sampled_from([100, 400, 1600, 6400]), min_size=1, max_size=3, unique=True)):
        for outputs in draw(st.lists(st.sampled_from([20, 100, 500]), min_size=1, max_size=3, unique=True)):
            work = inputs / 10 + outputs
            for load in sorted(draw(st.sets(st.sampled_from([1, 2, 3, 5]), min_size=1))):
                points.append(
                    ThroughputPoint(
                        gpu="Any",
                        tensor_parallel=1,
                        input_tokens=inputs,
                        output_tokens=outputs,
                        requests_per_second=load * 100 / work,
                        time_per_output_token_s=0.01 + 0.01 * load,
                        time_to_first_token_s=inputs / 10000 + 0.05 * load,
                    )
                )
    return tuple(points)


def find(model, gpu, parallel, size, goal, points=(), role=Role.SHARED, prompts=None, correction=1.0) -> Capacity:
    return capacity(
        model=model,
        measurements=points,
        engine="vllm",
        gpu=gpu,
        parallelism=parallel,
        role=role,
        input_tokens=size[0],
        output_tokens=size[1],
        objectives=goal,
        max_context_tokens=CONTEXT,
        prompts=prompts,
        correction=correction,
    )


ONE = Parallelism(1)


def loosened(goal: Objectives, per_token: float, first_token: float) -> Objectives:
    return replace(
        goal,
        time_per_output_token_s=goal.time_per_output_token_s and goal.time_per_output_token_s * per_token,
        time_to_first_token_s=goal.time_to_first_token_s and goal.time_to_first_token_s * first_token,
    )


def precision(goal: Objectives) -> float:
    """A queue depends on rates, which are not linear between the roofline's grid points."""
    return 0.99 if goal.time_to_first_token_percentile is not None else 1 - 1e-12


@many
@given(models(), gpu_types(), parallelisms, sizes, objectives, st.sampled_from(FIGURES), factors, mixes, roles)
def test_a_gpu_that_is_better_in_one_respect_is_never_worse(
    model, gpu, parallel, size, goal, respect, factor, mix, role
):
    value = getattr(gpu, respect)
    assume(value is not None)
    better = replace(gpu, **{respect: type(value)(value * factor)})
    if respect == "dense_flops_16bit" and gpu.dense_flops_8bit is not None:
        better = replace(better, dense_flops_8bit=gpu.dense_flops_8bit * factor)

    before = find(model, gpu, parallel, size, goal, (), role, mix).requests_per_second
    after = find(model, better, parallel, size, goal, (), role, mix).requests_per_second

    assert after >= before * precision(goal)


@many
@given(models(), gpu_types(), parallelisms, sizes, objectives, factors, factors, mixes, roles)
def test_a_looser_objective_never_lowers_the_rate(model, gpu, parallel, size, goal, per_token, first_token, mix, role):
    looser = loosened(goal, per_token, first_token)

    before = find(model, gpu, parallel, size, goal, (), role, mix).requests_per_second
    after = find(model, gpu, parallel, size, looser, (), role, mix).requests_per_second

    assert after >= before * (1 - 1e-12)


@many
@given(models(), gpu_types(), parallelisms, sizes, objectives, mixes, roles, st.sampled_from(["output", "first"]))
def test_a_stricter_percentile_never_raises_the_rate(model, gpu, parallel, size, goal, mix, role, which):
    field = {"output": "time_per_output_token_percentile", "first": "time_to_first_token_percentile"}[which]
    rates = [
        find(model, gpu, parallel, size, replace(goal, **{field: percentile}), (), role, mix).requests_per_second
        for percentile in (50.0, 75.0, 95.0, 99.9)
    ]

    for looser, stricter in itertools.pairwise(rates):
        assert stricter <= looser * (1 + 1e-12)


@many
@given(models(), gpu_types(), parallelisms, sizes, objectives, factors, roles)
def test_a_correction_multiplies_the_rate_and_what_is_inside(model, gpu, parallel, size, goal, factor, role):
    plain = find(model, gpu, parallel, size, goal, (), role)
    corrected = find(model, gpu, parallel, size, goal, (), role, correction=factor)

    assert corrected.requests_per_second == plain.requests_per_second * factor
    assert corrected.concurrency == plain.concurrency * factor
    assert (corrected.reason, corrected.source) == (plain.reason, plain.source)


@many
@given(models(), gpu_types(), parallelisms, sizes, objectives, lengths, lengths)
def test_longer_requests_never_come_faster(model, gpu, parallel, size, goal, more_input, more_output):
    short = find(model, gpu, parallel, size, goal).requests_per_second

    for longer in ((size[0] + more_input, size[1]), (size[0], size[1] + more_output)):
        assert find(model, gpu, parallel, longer, goal).requests_per_second * min(SLACK, precision(goal)) <= short


@many
@given(models(), gpu_types(), parallelisms, sizes, objectives, factors)
def test_lighter_weights_never_lower_the_rate(model, gpu, parallel, size, goal, factor):
    assume(not model.computes_in_8_bit)
    lighter = replace(model, weight_bytes_per_parameter=model.weight_bytes_per_parameter / factor)

    before = find(model, gpu, parallel, size, goal).requests_per_second
    after = find(lighter, gpu, parallel, size, goal).requests_per_second

    assert after >= before * precision(goal)


@many
@given(models(), gpu_types(), parallelisms, sizes, objectives)
def test_a_rate_or_a_reason(model, gpu, parallel, size, goal):
    found = find(model, gpu, parallel, size, goal)

    assert math.isfinite(found.requests_per_second)
    assert (found.requests_per_second > 0) == (found.reason == "") == (found.detail == "")
    assert found.requests_per_second >= 0


@many
@given(models(), gpu_types(), sizes, objectives, factors, factors, measurements())
def test_a_looser_objective_never_lowers_a_measured_rate(model, gpu, size, goal, per_token, first_token, points):
    looser = loosened(goal, per_token, first_token)

    before = find(model, gpu, ONE, size, goal, points)
    after = find(model, gpu, ONE, size, looser, points)

    assert after.requests_per_second >= before.requests_per_second * (1 - 1e-12)


@many
@given(models(), gpu_types(), objectives, measurements())
def test_a_measured_size_has_a_measured_rate(model, gpu, goal, points):
    for point in points:
        found = find(model, gpu, ONE, (point.input_tokens, point.output_tokens), goal, points)
        assume(found.reason != "MemoryTooSmall")

        highest = max(
            other.requests_per_second
            for other in points
            if (other.input_tokens, other.output_tokens) == (point.input_tokens, point.output_tokens)
        )
        assert found.source.startswith("measured")
        assert found.requests_per_second <= highest
        if goal.at_percentiles:
            continue
        if (goal.time_per_output_token_s or 99) >= point.time_per_output_token_s and (
            goal.time_to_first_token_s or 99
        ) >= point.time_to_first_token_s:
            assert found.requests_per_second >= point.requests_per_second


@many
@given(models(), gpu_types(), sizes, objectives, measurements())
def test_no_rate_contradicts_a_measured_one(model, gpu, size, goal, points):
    found = find(model, gpu, ONE, size, goal, points)
    assume(found.reason in {"", "ObjectiveNotMet"})
    measured = sorted({(point.input_tokens, point.output_tokens) for point in points})
    rates = {known: find(model, gpu, ONE, known, goal, points).requests_per_second for known in measured}
    # A size that was measured under more load than a smaller one contradicts it by itself.
    assume(all(rates[a] >= rates[b] for a in measured for b in measured if a[0] <= b[0] and a[1] <= b[1]))

    for known, rate in rates.items():
        if known[0] <= size[0] and known[1] <= size[1]:
            assert found.requests_per_second <= rate * (1 + 1e-12)
        if found.reason == "" and known[0] >= size[0] and known[1] >= size[1]:
            assert found.requests_per_second >= rate * (1 - 1e-12)


@many
@given(models(), gpu_types(), sizes, objectives, measurements(), st.randoms(use_true_random=False))
def test_the_order_of_measurements_does_not_matter(model, gpu, size, goal, points, rng):
    shuffled = tuple(rng.sample(points, len(points)))

    assert find(model, gpu, ONE, size, goal, shuffled) == find(model, gpu, ONE, size, goal, points)
