"""A simulated service: replicas that come and go, queues that refuse, prompts handed over, and that nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest

from medley_planner.fleet import Objectives
from medley_planner.simulator.book import Fate
from medley_planner.simulator.measures import measured
from medley_planner.simulator.requests import Requests
from medley_planner.simulator.routing import Balancing, Knowledge
from medley_planner.simulator.run import RunOptions, ServiceRun
from simulated_services import BIG, DECODE, LONG, PREFILL, SHORT, SIZES, SMALL, kind, requests, run_of, shares

NO_OBJECTIVES = Objectives()


def measures_of(run, objectives=NO_OBJECTIVES, horizon_s=200.0):
    return measured("chat", run.book, run.instances, objectives, horizon_s=horizon_s, bin_s=10.0)


def at_once(*sizes: tuple[int, int], at_s: float = 0.0) -> Requests:
    inputs, outputs = zip(*sizes, strict=True)
    return Requests(np.full(len(sizes), at_s), np.array(inputs), np.array(outputs))


@pytest.mark.parametrize("balancing", list(Balancing))
@pytest.mark.parametrize("knowledge", list(Knowledge))
def test_every_request_is_served_once_and_every_token_computed(balancing: Balancing, knowledge: Knowledge) -> None:
    asked = requests(3)
    run = run_of(asked, {SMALL: 2, BIG: 1}, balancing=balancing, knowledge=knowledge, keeps_order=True)
    run.finish()
    assert set(run.book.fate) == {Fate.SERVED}
    gauges = [unit.gauges for each in run.instances for unit in each.units]
    assert sorted(request for each in gauges for request in each.order) == list(range(len(asked)))
    readings = [each.reading() for each in gauges]
    assert sum(each.prompt_tokens for each in readings) == asked.input_tokens.sum()
    assert sum(each.decoded_tokens for each in readings) == (asked.output_tokens - 1).sum()


def test_the_split_is_realised() -> None:
    asked = requests(5, rate_rps=20.0)
    split = [
        *shares((SMALL, 0.75, 4.0), (BIG, 0.25, 4.0)),
    ]
    run = run_of(asked, {SMALL: 4, BIG: 4}, split, knowledge=Knowledge.ORACLE)
    run.finish()
    by_number = {each.number: each.kind.variant for each in run.instances}
    served_small = np.array([by_number[number] == SMALL for number in run.book.replica])
    assert served_small.mean() == pytest.approx(0.75, abs=0.02)


def test_a_router_that_knows_outputs_tells_sizes_apart() -> None:
    split = [*shares((SMALL, 1.0, 4.0))[:1], *shares((BIG, 1.0, 4.0))[1:]]
    run = run_of(requests(6), {SMALL: 1, BIG: 1}, split, knowledge=Knowledge.ORACLE)
    run.finish()
    by_number = {each.number: each.kind.variant for each in run.instances}
    for inputs, number in zip(run.book.inputs, run.book.replica, strict=True):
        assert by_number[number] == (SMALL if inputs == SHORT[0] else BIG)


def test_first_come_first_served_on_one_replica() -> None:
    run = run_of(requests(7, rate_rps=10.0), {SMALL: 1})
    run.finish()
    admitted = run.book.admitted_s
    assert admitted == sorted(admitted)
    assert max(np.array(admitted) - np.array(run.book.arrived_s)) > 1.0


def test_requests_wait_for_the_first_replica() -> None:
    run = run_of(at_once(SHORT, SHORT, at_s=1.0), {SMALL: 0})
    run.add(SMALL, asked_s=2.0)
    run.run_until(20.0)
    assert run.held == 2
    run.finish()
    assert set(run.book.fate) == {Fate.SERVED}
    assert min(run.book.admitted_s) == 32.0
    cost = measures_of(run, horizon_s=3602.0).cost_usd
    assert cost == pytest.approx(1.0)


def test_requests_without_any_replica_are_refused_in_the_end() -> None:
    run = run_of(at_once(SHORT), {SMALL: 0})
    run.finish()
    assert run.book.fate == [Fate.REJECTED]
    assert not measures_of(run).attained


def test_a_request_longer_than_any_cache_is_refused_at_once() -> None:
    run = run_of(at_once((50_000, 10), SHORT), {SMALL: 1})
    run.run_until(0.0)
    assert run.book.fate[0] is Fate.REJECTED
    run.finish()
    assert run.book.fate[1] is Fate.SERVED


def test_a_request_too_long_for_its_variant_goes_where_it_fits() -> None:
    kinds = [kind(SMALL, key_value_tokens=1000), kind(BIG)]
    run = run_of(at_once(LONG), {SMALL: 1, BIG: 1}, shares((SMALL, 1.0, 4.0)), kinds=kinds)
    run.finish()
    assert run.book.fate == [Fate.SERVED]
    assert run.instances[run.book.replica[0]].kind.variant == BIG


def test_full_queues_refuse() -> None:
    kinds = [kind(SMALL, max_sequences=1, max_waiting=2)]
    run = run_of(at_once(*[SHORT] * 6), {SMALL: 1}, kinds=kinds)
    run.finish()
    assert run.book.fate == [Fate.SERVED] * 3 + [Fate.REJECTED] * 3


def test_a_drained_replica_serves_what_it_has_and_goes() -> None:
    run = run_of(requests(8, rate_rps=6.0), {SMALL: 2})
    run.drain(0, 50.0)
    run.finish()
    first = run.instances[0]
    assert first.drained_s == 50.0
    mine = [place for place, number in enumerate(run.book.replica) if number == 0]
    assert mine
    assert max(run.book.arrived_s[place] for place in mine) <= 50.0
    assert first.gone_s == pytest.approx(max(run.book.finished_s[place] for place in mine))
    assert set(run.book.fate) == {Fate.SERVED}
    paid = measures_of(run).cost_usd
    assert paid == pytest.approx((200.0 + first.gone_s) / 3600.0)


@pytest.mark.parametrize("retry", [True, False])
def test_what_a_lost_replica_had_is_tried_again_or_lost(retry: bool) -> None:
    run = run_of(requests(9, rate_rps=6.0), {SMALL: 2}, retry_lost=retry)
    run.lose(1, 60.0)
    run.finish()
    book = run.book
    lost = [place for place, fate in enumerate(book.fate) if fate is Fate.LOST]
    again = [
        place
        for place, (arrived, admitted) in enumerate(zip(book.arrived_s, book.admitted_s, strict=True))
        if arrived < 60.0 <= admitted
    ]
    assert run.instances[1].gone_s == 60.0
    assert bool(lost) != retry
    assert not retry or again
    assert all(fate is Fate.SERVED for place, fate in enumerate(book.fate) if place not in lost)
    assert measures_of(run).lost == len(lost)


def test_a_replica_that_appears_takes_load_off_the_others() -> None:
    asked = requests(10, rate_rps=8.0)
    alone = run_of(asked, {SMALL: 1})
    alone.finish()
    helped = run_of(asked, {SMALL: 1})
    helped.add(SMALL, asked_s=20.0)
    helped.finish()
    assert helped.instances[1].ready_s == 50.0
    assert measures_of(helped).wait.mean_s < measures_of(alone).wait.mean_s / 2
    timeline = measures_of(helped).timeline
    assert timeline.replicas[0] == 1
    assert timeline.replicas[-1] == 2
    assert timeline.usd_per_hour[3] == pytest.approx(2.0)


def test_prompts_are_handed_over_to_decode_replicas() -> None:
    asked = requests(11)
    split = shares((PREFILL, 1.0, 8.0), (DECODE, 1.0, 8.0))
    run = run_of(asked, {PREFILL: 1, DECODE: 1}, split, keeps_order=True)
    run.run_until(100.0)
    run.finish()
    assert set(run.book.fate) == {Fate.SERVED}
    prefill, decode = (each.units[0].gauges.reading() for each in run.instances)
    assert prefill.prompt_tokens == asked.input_tokens.sum()
    assert prefill.decoded_tokens == decode.prompt_tokens == 0
    assert decode.decoded_tokens == (asked.output_tokens - 1).sum()


def test_stopping_on_the_way_changes_nothing() -> None:
    asked = requests(12)
    split = shares((PREFILL, 0.5, 8.0), (SMALL, 0.5, 8.0), (DECODE, 0.5, 8.0))
    ends = []
    for stops in ([], [10.0, 10.5, 77.0, 150.0]):
        run = run_of(asked, {PREFILL: 1, DECODE: 1, SMALL: 1}, split, seed=4)
        for stop_s in stops:
            run.run_until(stop_s)
        run.finish()
        ends.append((run.book.finished_s, run.book.replica))
    assert ends[0] == ends[1]


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    def ends(seed: int) -> list[float]:
        run = run_of(requests(13), {SMALL: 1, BIG: 1}, seed=seed)
        run.finish()
        return run.book.finished_s

    assert ends(1) == ends(1)
    assert ends(1) != ends(2)


def test_measures_of_a_run_written_down() -> None:
    """Two requests of 20 tokens; the second one waits for the first step, of 100 tokens, and then joins it (101)."""
    run = run_of(at_once(SHORT, SHORT), {SMALL: 1})
    run.finish()
    objectives = Objectives(0.0115, 0.015, None, 95.0)
    found = measures_of(run, objectives, horizon_s=3600.0)
    step_s = run.instances[0].kind.steps
    first_s = 0.01 + 5000 * step_s.per_pair_s
    assert found.time_to_first_token.max_s == pytest.approx(2 * first_s + 1e-4 + 100 * step_s.per_cached_token_s)
    assert found.time_to_first_token.p50_s == pytest.approx(first_s)
    assert found.wait.max_s == pytest.approx(first_s)
    first, per_token = found.objectives
    assert (first.within_percent, first.attained, first.percentile) == (50.0, False, 95.0)
    assert per_token.attained
    assert not found.attained
    assert found.cost_usd == pytest.approx(1.0)
    assert found.usd_per_million_tokens == pytest.approx(1e6 / 240)
    assert found.input_tokens == 200
    assert found.output_tokens == 40
    assert found.variants[0].requests == 2
    assert found.timeline.arrivals_rps.sum() * 10.0 == pytest.approx(2)
    assert found.timeline.in_system.sum() * 10.0 == pytest.approx(sum(run.book.finished_s))


def test_sizes_are_the_planned_ones() -> None:
    drawn = requests(1, rate_rps=50.0)
    short = (drawn.input_tokens == SHORT[0]).mean()
    assert short == pytest.approx(SIZES.buckets[0].weight, abs=0.02)


def test_a_variant_at_its_capacity_overflows_to_one_with_room() -> None:
    at_once_of = {SMALL: {SHORT: 2.0, LONG: 2.0}, BIG: {SHORT: 8.0, LONG: 8.0}}
    asked = at_once(*[SHORT] * 8)
    served = {}
    for overflow in (False, True):
        kinds = {variant: kind(variant) for variant in (SMALL, BIG)}
        options = RunOptions(overflow=overflow)
        run = ServiceRun(asked, SIZES, shares((SMALL, 1.0, 4.0)), kinds, options=options, at_once=at_once_of)
        run.start({SMALL: 1, BIG: 1})
        run.finish()
        variants = [run.instances[number].kind.variant for number in run.book.replica]
        served[overflow] = (variants.count(SMALL), variants.count(BIG))
    assert served == {False: (8, 0), True: (2, 6)}


def test_nothing_overflows_to_a_variant_that_cannot_serve_the_size() -> None:
    at_once_of = {SMALL: {SHORT: 2.0, LONG: 2.0}, BIG: {LONG: 8.0}}
    kinds = {variant: kind(variant) for variant in (SMALL, BIG)}
    run = ServiceRun(at_once(*[SHORT] * 8), SIZES, shares((SMALL, 1.0, 4.0)), kinds, at_once=at_once_of)
    run.start({SMALL: 1, BIG: 1})
    run.finish()
    assert {run.instances[number].kind.variant for number in run.book.replica} == {SMALL}
