"""What the operator may do, against what it did in all tests before this one. Runs last."""

from __future__ import annotations

import pytest

from medley_cluster.cluster import Cluster
from medley_scenarios import verbs
from medley_scenarios.installation import NAMESPACE

pytestmark = pytest.mark.cluster


def test_every_grant_was_used_and_nothing_was_refused(
    medley: Cluster, operator_process: object, request: pytest.FixtureRequest
) -> None:
    report = verbs.compare(medley, NAMESPACE, "medley")
    assert report.wildcards == ()
    assert report.refused == frozenset()
    assert report.used, "the audit log says nothing of the operator"
    whole_suite = {item.path.name for item in request.session.items} >= {"test_operator_story.py", "test_outages.py"}
    if whole_suite:
        assert report.unused == ()


def test_the_operator_is_refused_what_it_has_no_business_with(medley: Cluster) -> None:
    account = f"--as=system:serviceaccount:{NAMESPACE}:medley"
    for verb, resource in (
        ("get", "secrets"),
        ("list", "secrets"),
        ("create", "pods"),
        ("delete", "nodes"),
        ("update", "llmservices"),
        ("create", "clusterroles"),
        ("impersonate", "users"),
    ):
        assert medley.kubectl("auth", "can-i", verb, resource, account, "-A", check=False).strip() == "no", resource
