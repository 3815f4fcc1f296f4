"""Events that people read in `kubectl describe`: posted beside the loop, each sentence at most once in a while."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from medley_operator.kinds import EVENTS, Kind
from medley_operator.kube import KubeClient, KubeError, RefusedError
from medley_operator.log import logger
from medley_operator.report.conditions import timestamp

LOG = logger("events")

REPEAT_AFTER_S = 600.0
REMEMBERED = 4096
QUEUED = 2000
ATTEMPTS = 3
RETRY_S = 1.0


@dataclass(frozen=True)
class Subject:
    """The object that an event is about."""

    kind: Kind
    namespace: str
    name: str
    uid: str


class Events:
    """Posts events in the background; they never hold up what they tell about, and are lost rather than piled up."""

    def __init__(self, client: KubeClient, instance: str) -> None:
        self._client = client
        self._instance = instance
        self._queue: asyncio.Queue[dict[str, object]] = asyncio.Queue(maxsize=QUEUED)
        self._said: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    def normal(self, subject: Subject, reason: str, message: str) -> None:
        """Something went as it should."""
        self._emit("Normal", subject, reason, message)

    def warning(self, subject: Subject, reason: str, message: str) -> None:
        """Something needs, or soon may need, a person."""
        self._emit("Warning", subject, reason, message)

    async def run(self) -> None:
        """Post events until cancelled."""
        while True:
            await self._post(await self._queue.get())

    def _emit(self, severity: str, subject: Subject, reason: str, message: str) -> None:
        now_s = time.time()
        key = (subject.uid, reason, message)
        if now_s < self._said.get(key, 0.0) + REPEAT_AFTER_S:
            return
        self._said.pop(key, None)
        self._said[key] = now_s
        if len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
        LOG.info(message, reason=reason, object=f"{subject.kind.plural}/{subject.namespace}/{subject.name}")
        try:
            self._queue.put_nowait(self._manifest(severity, subject, reason, message, now_s))
        except asyncio.QueueFull:
            LOG.warning("too many events, one is lost", reason=reason)

    def _manifest(self, severity: str, subject: Subject, reason: str, message: str, now_s: float) -> dict[str, object]:
        return {
            "metadata": {
                "name": f"{subject.name[:200]}.{time.time_ns():x}",
                "namespace": subject.namespace or "default",
            },
            "involvedObject": {
                "apiVersion": subject.kind.api_version,
                "kind": subject.kind.kind,
                "name": subject.name,
                "uid": subject.uid,
                **({"namespace": subject.namespace} if subject.namespace else {}),
            },
            "type": severity,
            "reason": reason,
            "message": message[:1024],
            "firstTimestamp": timestamp(now_s),
            "lastTimestamp": timestamp(now_s),
            "count": 1,
            "source": {"component": "medley-operator"},
            "reportingComponent": "medley.dev/operator",
            "reportingInstance": self._instance,
        }

    async def _post(self, manifest: dict[str, object]) -> None:
        for attempt in range(ATTEMPTS):
            try:
                await self._client.create(EVENTS, manifest)
            except RefusedError as error:  # the namespace is going away, or the name is taken
                LOG.info("event refused", error=str(error))
                return
            except KubeError as error:
                LOG.info("event not posted", attempt=attempt, error=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                return
