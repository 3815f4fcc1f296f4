"""What the operator asked of the API server, by its audit log, against what its roles grant."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medley_cluster.cluster import Cluster

Access = tuple[str, str, str]
"""(API group, resource or resource/subresource, verb)"""


@dataclass(frozen=True)
class AccessReport:
    """What was granted and what was used; both sorted sets of (group, resource, verb)."""

    granted: frozenset[Access]
    used: frozenset[Access]
    refused: frozenset[Access]

    @property
    def unused(self) -> tuple[Access, ...]:
        """Granted and never used."""
        return tuple(sorted(self.granted - self.used))

    @property
    def wildcards(self) -> tuple[Access, ...]:
        """Grants with a `*` in any place."""
        return tuple(sorted(access for access in self.granted if "*" in access))


def granted(cluster: Cluster, namespace: str, service_account: str) -> frozenset[Access]:
    """Everything that roles bound to a ServiceAccount grant."""
    found: set[Access] = set()
    for kind in ("clusterrolebindings", "rolebindings"):
        for binding in cluster.get_json(kind, "-A")["items"]:
            subjects = binding.get("subjects") or []
            if not any(
                s["kind"] == "ServiceAccount" and s["name"] == service_account and s.get("namespace") == namespace
                for s in subjects
            ):
                continue
            reference = binding["roleRef"]
            where = ("-n", binding["metadata"]["namespace"]) if reference["kind"] == "Role" else ()
            role = cluster.get_json(reference["kind"].lower(), reference["name"], *where)
            for rule in role.get("rules") or []:
                found |= {
                    (group, resource, verb)
                    for group in rule.get("apiGroups", [])
                    for resource in rule.get("resources", [])
                    for verb in rule["verbs"]
                }
    return frozenset(found)


def used(audit_log: Path, namespace: str, service_account: str) -> tuple[frozenset[Access], frozenset[Access]]:
    """What a ServiceAccount asked for: what was allowed, and what was refused with 403.

    A server-side apply that creates an object is a `patch` answered by 201, and needs the verb `create` as well.
    """
    user = f"system:serviceaccount:{namespace}:{service_account}"
    allowed: set[Access] = set()
    refused: set[Access] = set()
    with audit_log.open() as lines:
        for line in lines:
            event: dict[str, Any] = json.loads(line)
            reference = event.get("objectRef")
            if event.get("user", {}).get("username") != user or not reference:
                continue
            resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
            access = (reference.get("apiGroup", ""), resource, event["verb"])
            code = event.get("responseStatus", {}).get("code")
            (refused if code == 403 else allowed).add(access)
            if event["verb"] == "patch" and code == 201:
                allowed.add((access[0], resource, "create"))
    return frozenset(allowed), frozenset(refused)


def compare(cluster: Cluster, namespace: str, service_account: str) -> AccessReport:
    """The operator's grants against its use so far on this cluster.

    An API server that has just started refuses everybody until it has read the roles; what it allowed at another time
    does not count as refused.
    """
    if cluster.audit_log is None:
        raise RuntimeError("the cluster keeps no audit log")
    allowed, refused = used(cluster.audit_log, namespace, service_account)
    return AccessReport(granted(cluster, namespace, service_account), allowed, refused - allowed)
