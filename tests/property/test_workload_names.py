"""Names and labels, for any service, pool and parallelism that the API takes."""

from __future__ import annotations

import re
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from medley_operator.workloads import naming
from medley_planner.fleet import Parallelism

DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")

service_names = st.from_regex(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
pool_names = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
sizes = st.sampled_from([1, 2, 4, 8, 16])
parallelisms = st.builds(Parallelism, sizes, sizes, sizes)
variants = st.tuples(service_names, pool_names, parallelisms)


def deployment_name(service: str, pool: str, parallelism: Parallelism) -> str:
    template = {"metadata": {"labels": naming.variant_labels(service, pool, parallelism)}}
    return naming.deployment_name(service, pool, parallelism, naming.revision(template))


@given(variants)
def test_names_and_labels_are_what_kubernetes_takes(variant: tuple[str, str, Parallelism]) -> None:
    name = deployment_name(*variant)
    assert len(name) <= 63
    assert DNS_LABEL.fullmatch(name)
    for value in naming.variant_labels(*variant).values():
        assert len(value) <= 63
        assert LABEL_VALUE.fullmatch(value)


@given(st.sets(variants, min_size=2, max_size=8))
def test_no_two_variants_share_a_name(several: set[tuple[str, str, Parallelism]]) -> None:
    assert len({deployment_name(*variant) for variant in several}) == len(several)


def test_names_that_only_run_together_alike_stay_apart() -> None:
    assert deployment_name("a-b", "c", Parallelism(1)) != deployment_name("a", "b-c", Parallelism(1))


@given(
    st.lists(st.tuples(st.text(max_size=5), st.integers()), unique_by=lambda item: item[0], max_size=8), st.randoms()
)
def test_a_revision_does_not_depend_on_the_order_of_keys(items: list[tuple[str, int]], random: Random) -> None:
    shuffled = list(items)
    random.shuffle(shuffled)
    assert naming.revision(dict(shuffled)) == naming.revision(dict(items))


@given(st.text(alphabet="abc-.", min_size=64, max_size=120))
def test_shortened_names_fit_and_differ_where_the_full_ones_do(name: str) -> None:
    assert len(naming.shortened(name)) <= 63
    assert naming.shortened(name) != naming.shortened(name + "x")


def test_replicas_that_only_share_products_keep_the_names_and_labels_they_had() -> None:
    assert naming.deployment_name("chat", "l4", Parallelism(2), "abc") == "chat-l4-tp2-abc"
    assert "medley.dev/pipeline-parallel" not in naming.variant_labels("chat", "l4", Parallelism(2))
    assert "medley.dev/data-parallel" not in naming.variant_labels("chat", "l4", Parallelism(2))
    assert naming.deployment_name("chat", "l4", Parallelism(2, 4, 1), "abc") == "chat-l4-tp2-pp4-abc"
