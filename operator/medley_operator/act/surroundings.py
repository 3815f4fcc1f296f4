"""What stands around a service's replicas: its Service, its PodDisruptionBudget,
and the pool and profile that manifests are made of.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.api.problems import Problem
from medley_operator.api.resolve import find_profile
from medley_operator.cache import ClusterCache
from medley_operator.kinds import DISRUPTION_BUDGETS, SERVICES
from medley_operator.kube import ConflictError, KubeClient, RefusedError
from medley_operator.observe.views import ServiceView
from medley_operator.workloads import pod_disruption_budget, service

APPLY_EVERY_S = 600.0
"""These objects are not watched; so often they are applied again, in case somebody changed or deleted them."""


class ServiceSurroundings:
    """Applies what stands around services, and finds the objects that they name."""

    def __init__(self, client: KubeClient, cache: ClusterCache) -> None:
        self._client = client
        self._cache = cache
        self._applied: dict[str, tuple[str, float]] = {}

    async def ensure(self, view: ServiceView) -> None:
        """Apply a service's Service and PodDisruptionBudget, where that was not done lately.

        Not by force: an object of this name that belongs to somebody else is left alone.

        Raises:
            RefusedError: There is one; the message names the fields and their owner.
        """
        assert view.llm is not None
        manifests = ((SERVICES, service(view.llm)), (DISRUPTION_BUDGETS, pod_disruption_budget(view.llm)))
        digest = _digest([manifest for _, manifest in manifests])
        known, applied_s = self._applied.get(view.uid, ("", 0.0))
        if known == digest and time.monotonic() < applied_s + APPLY_EVERY_S:
            return
        for kind, manifest in manifests:
            try:
                await self._client.apply(kind, manifest, force=False)
            except ConflictError as error:
                raise RefusedError(str(error), code=error.code, reason=error.reason) from error
        self._applied[view.uid] = (digest, time.monotonic())

    def forget(self, uid: str) -> None:
        """The service is no more."""
        self._applied.pop(uid, None)

    def pool(self, name: str) -> GPUPool | None:
        """The pool of this name."""
        view = self._cache.pools.get(("", name))
        return view.pool if view is not None else None

    def profile(self, llm: LLMService) -> ModelProfile | None:
        """The profile of this service; None where it has none."""
        profiles = {view.name: view.profile for view in self._cache.profiles if view.profile is not None}
        found = find_profile(llm, profiles)
        return None if isinstance(found, Problem) else found


def _digest(manifests: list[Mapping[str, Any]]) -> str:
    return hashlib.sha256(json.dumps(manifests, sort_keys=True).encode()).hexdigest()
