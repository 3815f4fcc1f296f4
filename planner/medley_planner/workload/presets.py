"""Request sizes of published workloads, as small joint histograms that ship with the planner.

Each is a JSON file in `presets/`, made from a public trace by `planner/make_presets.py`.
It names its source and licence.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from medley_planner.workload.buckets import bucket_counts
from medley_planner.workload.sizes import Bucket, SizeHistogram
from medley_planner.workload.traces import Trace


class UnknownPresetError(LookupError):
    """There is no such preset; `nearest` has the names that look like it, nearest first."""

    def __init__(self, name: str, nearest: Sequence[str]) -> None:
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else f"; there are {', '.join(presets())}"
        super().__init__(f"there is no preset {name!r}{hint}")
        self.name = name
        self.nearest = tuple(nearest)


@dataclass(frozen=True)
class Preset:
    """The request sizes of a published workload.

    Args:
        name: What users write.
        title: What it is, for people.
        source: Where the trace is published.
        licence: Licence of the trace.
        rate_rps: Mean rate of the trace, which says nothing about anybody else's.
        requests: Requests that the histogram was made of.
        sizes: The histogram.
    """

    name: str
    title: str
    source: str
    licence: str
    rate_rps: float
    requests: int
    sizes: SizeHistogram


@functools.cache
def presets() -> Mapping[str, Preset]:
    """All presets by name, sorted; the mapping cannot be changed."""
    folder = resources.files("medley_planner").joinpath("presets")
    found = [_from_json(file.read_text(encoding="utf-8")) for file in folder.iterdir() if file.name.endswith(".json")]
    return MappingProxyType({preset.name: preset for preset in sorted(found, key=lambda preset: preset.name)})


def preset(name: str) -> Preset:
    """The preset with this name.

    Raises:
        UnknownPresetError: There is none; it names those that look alike.
    """
    found = presets().get(name)
    if found is None:
        raise UnknownPresetError(name, difflib.get_close_matches(name, presets(), n=3, cutoff=0.4))
    return found


def preset_json(trace: Trace, *, name: str, title: str, source: str, licence: str, attribution: str) -> str:
    """The JSON file of a preset made from a trace: the same trace gives the same bytes."""
    counts = bucket_counts(trace)
    head = {
        "name": name,
        "title": title,
        "source": source,
        "licence": licence,
        "attribution": attribution,
        "changes": "Reduced to a joint histogram: buckets are [mean input tokens, mean output tokens, requests].",
        "made_by": "python planner/make_presets.py",
        "requests": len(trace),
        "span_s": round(trace.span_s, 3),
        "rate_rps": round(trace.rate_rps, 4),
    }
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
    rows = ",\n".join(f"    [{inputs}, {outputs}, {count}]" for (inputs, outputs), count in counts.items())
    return "\n".join(["{", *lines, '  "buckets": [', rows, "  ]", "}", ""])


def _from_json(text: str) -> Preset:
    fields = json.loads(text)
    buckets = tuple(Bucket(inputs, outputs, float(count)) for inputs, outputs, count in fields["buckets"])
    return Preset(
        name=fields["name"],
        title=fields["title"],
        source=fields["source"],
        licence=fields["licence"],
        rate_rps=fields["rate_rps"],
        requests=fields["requests"],
        sizes=SizeHistogram(buckets),
    )
