"""What a plan says about itself: what binds, what other fleets would cost, why every other variant is out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from medley_planner.fleet import PlanOptions, ReplicaBounds
from medley_planner.plan import explain_plan, plan
from medley_planner.result import ServicePlan
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import LONG, SHORT, SMALL_AND_BIG, Rates, fleet, mix, pool, running, service, small_and_big


def explained(*, pools=None, rates: Rates = SMALL_AND_BIG, others=(), **wishes: object) -> ServicePlan:
    wishes.setdefault("rate", 8.0)
    state = fleet([service(**wishes), *others], pools or small_and_big())
    return plan(state, capacity_of=rates).service("chat")


def alternatives(found: ServicePlan) -> dict[str, tuple[float | None, str]]:
    return {each.name: (each.cost_usd_per_hour, each.detail) for each in found.alternatives}


def test_every_pool_alone_and_the_best_without_each_pool_of_the_mix() -> None:
    found = explained()
    assert mix(found) == {"big": 2, "small": 2}
    assert alternatives(found) == {
        "only big": (pytest.approx(15.0), "3×big for 15.00 $/h, 3.00 $/h more"),
        "only small": (pytest.approx(42.0), "42×small for 42.00 $/h, 30.00 $/h more"),
        "without big": (pytest.approx(42.0), "42×small for 42.00 $/h, 30.00 $/h more"),
        "without small": (pytest.approx(15.0), "3×big for 15.00 $/h, 3.00 $/h more"),
    }
    assert [each.name for each in found.alternatives] == ["only big", "without small", "only small", "without big"]
    assert [each.extra_usd_per_hour for each in found.alternatives] == pytest.approx([3.0, 3.0, 30.0, 30.0])


def test_the_sentence_compares_the_mix_with_the_best_single_pool() -> None:
    assert explained().reason == (
        "2×big + 2×small serves 8 req/s for 12.00 $/h; the best single pool, 3×big, would cost 15.00 $/h: 20.0 % saved"
    )


def test_an_alternative_without_enough_stock_says_how_much_there_is() -> None:
    cost, detail = alternatives(explained(pools=small_and_big(small=10)))["only small"]
    assert cost is None
    assert detail == "stock is short: 42×small for 42.00 $/h would do, of which there are 10 of 42 GPUs of small"


def test_stock_that_others_hold_is_no_alternative() -> None:
    others = [service("other", 1.0, pools=("big",), running=running(big=2), pinned=True)]
    cost, detail = alternatives(explained(pools=small_and_big(big=4), others=others))["only big"]
    assert cost is None
    assert detail.endswith("of which there are 2 of 3 GPUs of big")


def test_an_alternative_that_cannot_serve_some_size_says_which() -> None:
    rates = Rates({("small", 1): {SHORT: 2.0}, ("big", 1): {SHORT: 8.0, LONG: 2.0}})
    found = alternatives(explained(rates=rates))
    assert found["only small"] == (
        None,
        "cannot serve 50.0 % of the requests, such as those of 4000 input and 400 output tokens",
    )


def test_an_alternative_beyond_the_cap() -> None:
    found = alternatives(explained(max_cost_usd_per_hour=13.0))
    assert found["only big"] == (None, "15.00 $/h, more than the cap of 13.00 $/h")


def test_an_alternative_that_the_bounds_exclude() -> None:
    found = alternatives(explained(replicas=ReplicaBounds(1, 5)))
    assert found["only small"] == (None, "the bounds on replicas exclude it")


def test_without_the_only_pool_there_is_nothing() -> None:
    found = alternatives(explained(pools=small_and_big()[1:]))
    assert found == {"without big": (None, "no other pool can serve any of it")}


def test_the_demand_binds_where_nothing_else_does() -> None:
    (binding,) = explained(rate=7.6).binding
    assert (binding.constraint, binding.subject) == ("demand", "small")
    assert binding.detail.startswith("one replica of small less would serve only ")


@pytest.mark.parametrize(
    ("wishes", "constraint", "subject", "detail"),
    [
        (
            {"replicas": ReplicaBounds(1, 3)},
            "replicas_max",
            "maxReplicas",
            "at most 3 replicas: without this bound, 2×big + 2×small would do for 12.00 $/h, 3.00 $/h less",
        ),
        (
            {"replicas": ReplicaBounds(6)},
            "replicas_min",
            "minReplicas",
            "at least 6 replicas: without this bound, 2×big + 2×small would do for 12.00 $/h, 2.00 $/h less",
        ),
        (
            {"replicas_by_pool": {"small": ReplicaBounds(0, 1)}},
            "pool_replicas_max",
            "small",
            "at most 1 replica in small: without this bound, 2×big + 2×small would do for 12.00 $/h, 3.00 $/h less",
        ),
        (
            {"replicas_by_pool": {"big": ReplicaBounds(3)}},
            "pool_replicas_min",
            "big",
            "at least 3 replicas in big: without this bound, 2×big + 2×small would do for 12.00 $/h, 3.00 $/h less",
        ),
    ],
)
def test_a_bound_that_costs_money(wishes: dict[str, object], constraint: str, subject: str, detail: str) -> None:
    (binding,) = explained(**wishes).binding
    assert (binding.constraint, binding.subject, binding.detail) == (constraint, subject, detail)


def test_stock_that_costs_money() -> None:
    (binding,) = explained(pools=small_and_big(small=1)).binding
    assert (binding.constraint, binding.subject) == ("stock", "small")
    assert binding.detail == (
        "1 GPU of small can be had: with 2, 2×big + 2×small would do for 12.00 $/h, 3.00 $/h less"
    )


def test_stock_that_is_used_up_but_costs_nothing_does_not_bind() -> None:
    assert [each.constraint for each in explained(pools=small_and_big(small=2, big=2)).binding] == ["demand"]


def rejected(found: ServicePlan) -> dict[str, tuple[str, str]]:
    return {str(each.variant): (each.reason, each.detail) for each in found.rejected}


def test_every_variant_that_is_out_has_a_reason() -> None:
    pools = (*small_and_big(), pool("dear", 50.0), pool("none", 1.0, 0), pool("tiny", 0.1))
    rates = Rates(
        {
            **SMALL_AND_BIG.table,
            ("dear", 1): {SHORT: 8.0, LONG: 2.0},
            ("none", 1): {SHORT: 8.0, LONG: 2.0},
        }
    )
    found = explained(pools=pools, rates=rates)
    assert rejected(found) == {
        "dear/tp1": (
            "CostsMore",
            "dearer at every size: at best 6944 $ per million requests of 4000 input and 400 output tokens, "
            "694.4 $ on big",
        ),
        "none/tp1": ("NoStock", "no 1 GPU of none can be had on one node"),
        "tiny/tp1": ("MemoryTooSmall", "tiny is too small for (100, 100)"),
    }


def test_a_variant_that_is_cheaper_for_some_sizes_but_too_big_to_pay_for_itself() -> None:
    found = explained(rate=2.0, sizes=SizeHistogram.of((*SHORT, 0.9), (*LONG, 0.1)))
    assert mix(found) == {"small": 3}
    reason, detail = rejected(found)["big/tp1"]
    assert reason == "CostsMore"
    assert detail == (
        "cheaper for some sizes (694.4 $ per million requests of 4000 input and 400 output tokens, 2778 $ on small), "
        "but a whole replica for 5.00 $/h does not pay for itself"
    )


def test_an_exhausted_pool_and_one_that_is_not_asked_for() -> None:
    small, big = small_and_big(big=0)
    pools = (small, replace(big, exhausted="pods stayed Pending"), pool("other", 1.0))
    state = fleet(service(rate=1.0, pools=("small", "big")), pools)
    found = plan(state, capacity_of=SMALL_AND_BIG).service("chat")
    assert rejected(found) == {
        "big/tp1": ("PoolExhausted", "pods stayed Pending"),
        "other/tp1": ("NotAllowed", "other is not among the service's pools"),
    }


def test_more_gpus_than_a_node_holds_are_not_allowed() -> None:
    state = fleet(service(tensor_parallel=(1, 16)), small_and_big())
    found = plan(state, capacity_of=SMALL_AND_BIG).service("chat")
    assert rejected(found)["big/tp16"] == (
        "NotAllowed",
        "a node of big holds 8 GPUs, a replica of 16 does not span nodes",
    )


def test_explaining_afterwards_gives_the_same_as_explaining_at_once() -> None:
    state = fleet([service("a", 8.0), service("b", 3.0)], small_and_big(small=3, big=4))
    at_once = plan(state, capacity_of=SMALL_AND_BIG)
    bare = plan(state, PlanOptions(explain=False), capacity_of=SMALL_AND_BIG)
    assert bare.service("a").alternatives == ()
    assert explain_plan(state, bare, capacity_of=SMALL_AND_BIG) == at_once
    one = explain_plan(state, bare, only=["a"], capacity_of=SMALL_AND_BIG)
    assert one.service("a") == at_once.service("a")
    assert one.service("b") == bare.service("b")
