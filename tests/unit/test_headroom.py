"""What replicas can be loaded with when requests come at random: closed forms, limits and bounds."""

from __future__ import annotations

import itertools
import math

import pytest

from medley_planner.programme.headroom import (
    EXACT_UP_TO,
    Queue,
    erlang_c,
    queue_of,
    replicas_for,
    steps,
    usable_places,
    usable_replicas,
    waiting_probability,
)

QUEUES = [
    Queue(places, burstiness, quantile)
    for places, burstiness, quantile in itertools.product((1, 3, 48), (1.0, 2.5, 40.0), (0.1, 0.5, 0.9, 0.999))
]


def normal_density(x: float) -> float:
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def normal_distribution(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def by_definition(places: int, busy: float) -> float:
    """Erlang's formula as it is usually written."""
    waiting = busy**places / math.factorial(places) * places / (places - busy)
    return waiting / (sum(busy**k / math.factorial(k) for k in range(places)) + waiting)


@pytest.mark.parametrize(("places", "busy"), [(1, 0.3), (2, 1.5), (5, 4.0), (30, 20.0), (100, 99.0)])
def test_erlang_c_is_the_formula(places: int, busy: float) -> None:
    assert erlang_c(places, busy) == pytest.approx(by_definition(places, busy), rel=1e-12)


def test_one_place_waits_as_often_as_it_is_busy() -> None:
    assert erlang_c(1, 0.37) == pytest.approx(0.37)
    assert usable_places(1, 1.0, 0.9) == pytest.approx(0.1)


def test_two_places_in_closed_form() -> None:
    """C(2, a) = a²/(2 + a), so that a = (c + √(c² + 8c))/2 for C = c."""
    assert usable_places(2, 1.0, 0.8) == pytest.approx((0.2 + math.sqrt(0.04 + 1.6)) / 2)


def test_nobody_waits_without_load_and_all_do_with_too_much() -> None:
    assert erlang_c(3, 0.0) == waiting_probability(3, 0.0, 2.0) == 0.0
    assert erlang_c(3, 3.0) == waiting_probability(3, 3.5, 2.0) == 1.0
    assert erlang_c(5000, 1e-3) == 0.0


@pytest.mark.parametrize("safety", [0.2, 1.0, 2.0])
def test_many_places_follow_halfin_and_whitt(safety: float) -> None:
    expected = 1 / (1 + safety * normal_distribution(safety) / normal_density(safety))
    busy = 40_000.0
    assert erlang_c(round(busy + safety * math.sqrt(busy)), busy) == pytest.approx(expected, rel=0.015)


@pytest.mark.parametrize("queue", QUEUES)
def test_the_usable_load_just_keeps_the_quantile(queue: Queue) -> None:
    for replicas in (1, 2, 7, 60):
        busy = usable_replicas(replicas, queue) * queue.places
        waits = waiting_probability(replicas * queue.places, busy, queue.burstiness)
        assert waits == pytest.approx(1 - queue.quantile, rel=1e-6)


@pytest.mark.parametrize("queue", QUEUES)
def test_usable_is_convex_and_its_share_grows(queue: Queue) -> None:
    usable = [usable_replicas(n, queue) for n in range(80)]
    differences = [after - before for before, after in itertools.pairwise(usable)]
    assert usable[0] == 0
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(differences))
    shares = [usable[n] / n for n in range(1, 80)]
    assert all(before <= after + 1e-12 < 1 for before, after in itertools.pairwise(shares))


def test_burstier_arrivals_and_a_higher_quantile_need_more_room() -> None:
    loads = [usable_replicas(4, Queue(8, burstiness, 0.9)) for burstiness in (1.0, 1.5, 4.0, 80.0)]
    assert loads == sorted(loads, reverse=True)
    loads = [usable_replicas(4, Queue(8, 1.0, quantile)) for quantile in (0.01, 0.5, 0.9, 0.9999)]
    assert loads == sorted(loads, reverse=True)


@pytest.mark.parametrize("queue", QUEUES)
def test_steps_are_exact_where_they_begin_and_never_optimistic(queue: Queue) -> None:
    found = steps(queue, 100)
    assert [step.replicas for step in found[:EXACT_UP_TO]] == list(range(1, EXACT_UP_TO + 1))
    assert sum(1 + step.more for step in found) == 100
    for step in found:
        assert step.usable == usable_replicas(step.replicas, queue)
        for more in range(step.more + 1):
            exact = usable_replicas(step.replicas + more, queue)
            assert exact - 0.05 * queue.burstiness**0.5 <= step.usable + step.slope * more <= exact + 1e-9


def test_fewest_replicas_for_a_load() -> None:
    for queue in QUEUES:
        for load in (0.01, 0.9, 3.0, 17.3):
            replicas = replicas_for(load, queue)
            assert usable_replicas(replicas - 1, queue) < load <= usable_replicas(replicas, queue)
    assert replicas_for(0.0, QUEUES[0]) == 0


def test_places_and_variation_are_those_of_the_mixture() -> None:
    """Half the requests are 1 s in their place and half 3 s: c_s² = 1/4. A busy replica holds 8 or 6 of them."""
    found = queue_of([2.0, 2.0], [8.0, 2.0], [8.0, 6.0], interarrival_cv=1.5, quantile=0.9)
    assert found.places == 6  # busy: a quarter and one replica; in places: 2 and 6; 8 / 1.25 = 6.4
    assert found.burstiness == pytest.approx((1.5**2 + 0.25) / 2)


def test_a_replica_of_unknown_concurrency_is_one_place() -> None:
    """Times are then those of one request after the other: 1/8 s and 1/2 s, c_s² = 0.36."""
    found = queue_of([2.0, 2.0], [8.0, 2.0], [8.0, 0.0], interarrival_cv=2.0, quantile=0.9)
    assert found == Queue(1, pytest.approx((4 + 0.36) / 2), 0.9)


def test_regular_arrivals_get_no_credit_and_sizes_that_are_not_served_do_not_count() -> None:
    found = queue_of([2.0, 2.0, 0.0], [8.0, 0.0, 1.0], [4.0, 0.0, 1.0], interarrival_cv=0.1, quantile=0.9)
    assert found == Queue(4, 1.0, 0.9)
    assert queue_of([1.0], [0.0], [0.0], interarrival_cv=2.0, quantile=0.5) == Queue(1, 2.0, 0.5)


def test_huge_fleets_are_no_trouble() -> None:
    queue = Queue(256, 5000.0, 0.999999)
    assert usable_replicas(10**7, queue) == pytest.approx(10**7, rel=0.05)
    assert usable_replicas(replicas_for(1e8, queue), queue) >= 1e8
    assert len(steps(Queue(1, 1.0, 0.5), 10**6)) < 200
