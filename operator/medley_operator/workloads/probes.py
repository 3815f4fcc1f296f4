"""Probes of an engine's container, and how long its pod may take to start and to stop."""

from __future__ import annotations

import math
from typing import Any

from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService

SETTLE_S = 10
"""Native `preStop` sleep: the time that proxies need to learn that a pod goes. A pod that Medley drained left the
endpoints long before; this is for pods that others evict."""

EXIT_S = 20
"""What an engine may take to exit, beyond its last request."""

_STARTUP_PERIOD_S = 2
_SHORTEST_STARTUP_S = 1800
_STARTUP_STEP_S = 1800
_LOAD_TIME_FACTOR = 4


def startup_deadline_s(pool: GPUPool) -> int:
    """How long a container may take to become healthy before it is restarted, in seconds.

    Four times the pool's load time, rounded up to half an hour: generous, because a restart starts the download
    again, and coarse, because a probe is part of the pod template and a finer step would move every replica whenever
    a load time is corrected.
    """
    generous_s = _LOAD_TIME_FACTOR * pool.spec.load_seconds
    return max(_SHORTEST_STARTUP_S, math.ceil(generous_s / _STARTUP_STEP_S) * _STARTUP_STEP_S)


def grace_period_s(service: LLMService) -> int:
    """How long a pod may take to stop, in seconds: proxies settle, requests in flight finish, the engine exits."""
    return SETTLE_S + service.spec.disruption.drain_timeout_seconds + EXIT_S


def probes(pool: GPUPool, *, path: str, port: str | int, timeout_s: int) -> dict[str, Any]:
    """Startup, liveness and readiness probes, as fields of a container.

    Readiness asks the same as liveness. Whether the *model* answers is the operator's question, with a real request,
    before it opens the readiness gate.
    """
    startup_attempts = startup_deadline_s(pool) // _STARTUP_PERIOD_S

    def probe(period_s: int, attempts: int) -> dict[str, Any]:
        return {
            "httpGet": {"path": path, "port": port},
            "timeoutSeconds": timeout_s,
            "periodSeconds": period_s,
            "failureThreshold": attempts,
        }

    return {
        "startupProbe": probe(_STARTUP_PERIOD_S, startup_attempts),
        "livenessProbe": probe(10, 6),
        "readinessProbe": probe(5, 3),
    }


def settle_hook() -> dict[str, Any]:
    """The container's lifecycle: a native sleep, which needs no shell in the image, before SIGTERM."""
    return {"preStop": {"sleep": {"seconds": SETTLE_S}}}
