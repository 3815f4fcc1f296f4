"""The request sizes that a service is planned for, from whatever it names them by (pure)."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from medley_operator.api import problems as reasons
from medley_operator.api.llmservice import ConfigMapKeyReference, HistogramEntry, LLMService
from medley_operator.api.margins import MarginCell, Margins
from medley_operator.api.problems import Problem
from medley_operator.api.traces import TraceKey
from medley_planner.workload.marginals import Margin, MarginalsError, fit_sizes
from medley_planner.workload.presets import UnknownPresetError, preset
from medley_planner.workload.sizes import Bucket, SizeHistogram, SizesError

PATH = "spec.workload.sizes"

Traces = Mapping[TraceKey, SizeHistogram | Problem]


def resolve_sizes(service: LLMService, traces: Traces) -> SizeHistogram | Problem:
    """The sizes of a service's requests, or what is wrong with them.

    Args:
        service: The service.
        traces: The traces that services refer to, each read or refused.
    """
    given = service.spec.workload.sizes
    if given.preset is not None:
        return _preset(given.preset, f"{PATH}.preset")
    if given.trace_config_map is not None:
        return _trace(service.namespace, given.trace_config_map, traces)
    if given.marginals is not None:
        return _fitted(given.marginals)
    return _histogram(given.histogram or ())


def _preset(name: str, field: str) -> SizeHistogram | Problem:
    try:
        return preset(name).sizes
    except UnknownPresetError as error:
        return Problem(reasons.UNKNOWN_PRESET, field, str(error))


def _trace(namespace: str, reference: ConfigMapKeyReference, traces: Traces) -> SizeHistogram | Problem:
    found = traces.get(TraceKey(namespace, reference.name, reference.key))
    if found is not None:
        return found
    message = f"there is no ConfigMap {reference.name!r} in namespace {namespace!r}"
    return Problem(reasons.TRACE_NOT_FOUND, f"{PATH}.traceConfigMap.name", message)


def _histogram(entries: tuple[HistogramEntry, ...]) -> SizeHistogram | Problem:
    try:
        return SizeHistogram(tuple(Bucket(entry.input_tokens, entry.output_tokens, entry.weight) for entry in entries))
    except SizesError as error:
        return Problem(reasons.INVALID_SIZES, f"{PATH}.histogram", str(error))


@functools.lru_cache(maxsize=1024)
def _fitted(given: Margins) -> SizeHistogram | Problem:
    """Margins fitted to their prior; the same margins are fitted once."""
    path = f"{PATH}.marginals"
    prior = _preset(given.prior, f"{path}.prior")
    inputs = _margin(f"{path}.inputTokens", given.input_tokens, given.mean_input_tokens)
    outputs = _margin(f"{path}.outputTokens", given.output_tokens, given.mean_output_tokens)
    for part in (inputs, outputs, prior):
        if isinstance(part, Problem):
            return part
    assert isinstance(inputs, Margin)
    assert isinstance(outputs, Margin)
    assert isinstance(prior, SizeHistogram)
    try:
        return fit_sizes(inputs, outputs, prior, requests=given.requests).sizes
    except MarginalsError as error:
        return Problem(reasons.INVALID_SIZES, path, str(error))


def _margin(path: str, cells: tuple[MarginCell, ...], mean_tokens: float | None) -> Margin | Problem:
    try:
        return Margin(tuple(float(cell.up_to) for cell in cells), tuple(cell.weight for cell in cells), mean_tokens)
    except MarginalsError as error:
        entry, found, message = str(error).partition(": ")
        if found and entry.startswith("["):
            return Problem(reasons.INVALID_SIZES, f"{path}{entry}", message)
        return Problem(reasons.INVALID_SIZES, path, str(error))
