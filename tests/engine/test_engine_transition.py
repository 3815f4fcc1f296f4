"""The transition plan: complete, cheapest, and within its own peak."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from medley_engine.transition import Costs, plan

ITEMS = ["a", "b", "c", "d"]
DOMAINS = ["x", "y", "z"]
SIZES = {"a": 3, "b": 5, "c": 7, "d": 11}


@st.composite
def cases(draw):
    residency = {item: draw(st.sets(st.sampled_from(DOMAINS))) for item in ITEMS}
    domain_of = {rank: draw(st.sampled_from(DOMAINS)) for rank in range(draw(st.integers(1, 3)))}
    needs = {rank: draw(st.lists(st.sampled_from(ITEMS), unique=True)) for rank in domain_of}
    return residency, domain_of, needs


def cheapest(residency, wanted, costs):
    """Every order of meeting the wanted pairs, every primitive: the least total of bytes × seconds."""
    best = float("inf")
    for order in itertools.permutations(wanted):
        total, holders = 0.0, {item: set(domains) for item, domains in residency.items()}
        for domain, item in order:
            if domain not in holders[item]:
                total += SIZES[item] * (costs.peer_s_per_byte if holders[item] else costs.disk_s_per_byte)
            holders[item].add(domain)
        best = min(best, total)
    return best


@given(cases())
def test_the_plan_is_complete_and_of_minimum_cost(case):
    residency, domain_of, needs = case
    costs = Costs(disk_s_per_byte=10.0, peer_s_per_byte=1.0)
    made = plan(residency=residency, needs=needs, domain_of=domain_of, sizes=SIZES, costs=costs)
    have = {(d, i) for i, ds in residency.items() for d in ds}
    for step in made.disk:
        assert not any(item == step.item for _, item in have), "read from disk though a peer had it"
        have.add((step.domain, step.item))
    for step in made.peer:
        assert step.source != step.domain
    have |= {(step.domain, step.item) for step in made.peer}
    wanted = sorted({(domain_of[r], i) for r, items in needs.items() for i in items})
    assert set(wanted) <= have
    if len(wanted) <= 5:
        spent = sum(s.size_bytes * 10.0 for s in made.disk) + sum(s.size_bytes * 1.0 for s in made.peer)
        assert spent == cheapest(residency, wanted, costs)


@given(cases())
def test_nothing_wanted_is_freed_and_the_books_balance(case):
    residency, domain_of, needs = case
    made = plan(residency=residency, needs=needs, domain_of=domain_of, sizes=SIZES)
    wanted = {(domain_of[r], i) for r, items in needs.items() for i in items}
    assert not set(made.free_after) & wanted
    freed = sum(SIZES[item] for _, item in made.free_after)
    assert made.peak_bytes - freed == made.after_bytes
    assert made.peak_bytes == made.before_bytes + made.copied_bytes


@given(cases())
def test_planning_from_where_a_plan_leads_changes_nothing(case):
    residency, domain_of, needs = case
    made = plan(residency=residency, needs=needs, domain_of=domain_of, sizes=SIZES)
    after = {item: set(ds) for item, ds in residency.items()}
    for step in (*made.disk, *made.peer):
        after[step.item].add(step.domain)
    for domain, item in made.free_after:
        after[item].discard(domain)
    again = plan(residency=after, needs=needs, domain_of=domain_of, sizes=SIZES, old_needs=needs)
    assert not again.disk
    assert not again.peer
    assert not again.free_after
    assert not any(again.remapped.values())


def test_peer_copies_are_spread_over_the_holders():
    items = [f"e{n}" for n in range(8)]
    made = plan(
        residency=dict.fromkeys(items, frozenset({"x", "y"})),
        needs={0: items},
        domain_of={0: "z"},
        sizes=dict.fromkeys(items, 10),
    )
    sent = {source: sum(s.size_bytes for s in made.peer if s.source == source) for source in ("x", "y")}
    assert sent == {"x": 40, "y": 40}


def test_without_peers_each_item_is_read_again_from_disk():
    made = plan(residency={"a": {"x"}}, needs={0: ["a"]}, domain_of={0: "y"}, sizes=SIZES, peer_allowed=False)
    assert [step.item for step in made.disk] == ["a"]
    assert not made.peer
