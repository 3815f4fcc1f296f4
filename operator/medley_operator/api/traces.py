"""Traces of requests in ConfigMaps: their text to a histogram, once, when the ConfigMap is read (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from medley_operator.api import problems as reasons
from medley_operator.api.llmservice import ConfigMapKeyReference
from medley_operator.api.problems import Problem, hint
from medley_planner.workload.buckets import histogram_of
from medley_planner.workload.sizes import SizeHistogram
from medley_planner.workload.traces import TraceError, read_trace


class TraceKey(NamedTuple):
    """Where a trace lies: a key of a ConfigMap in a namespace."""

    namespace: str
    config_map: str
    key: str


def histogram_of_config_map(
    reference: ConfigMapKeyReference, data: Mapping[str, str] | None
) -> SizeHistogram | Problem:
    """The request sizes of the trace that a service refers to, or what is wrong with it.

    Args:
        reference: The service's `spec.workload.sizes.traceConfigMap`.
        data: The ConfigMap's data; None where there is no such ConfigMap.
    """
    path = "spec.workload.sizes.traceConfigMap"
    if data is None:
        message = f"there is no ConfigMap {reference.name!r} in the service's namespace"
        return Problem(reasons.TRACE_NOT_FOUND, f"{path}.name", message)
    text = data.get(reference.key)
    if text is None:
        message = f"ConfigMap {reference.name!r} has no key {reference.key!r}{hint(reference.key, data)}"
        return Problem(reasons.TRACE_NOT_FOUND, f"{path}.key", message)
    try:
        return histogram_of(read_trace(text.splitlines()))
    except TraceError as error:
        return Problem(reasons.INVALID_TRACE, path, f"ConfigMap {reference.name}, key {reference.key}: {error}")
