"""Make the presets of request sizes from public traces: `python planner/make_presets.py FOLDER [--check]`.

FOLDER holds the publishers' files under the names below, gzipped or not.
With `--check` nothing is written, and the exit status is 1 where a preset is not what its trace gives.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from medley_planner.workload.presets import preset_json
from medley_planner.workload.traces import Trace, read_trace

PRESETS_FOLDER = Path(__file__).parent / "medley_planner" / "presets"


class Origin(NamedTuple):
    """A preset and the trace that it is made from."""

    name: str
    trace: str
    title: str
    source: str
    licence: str
    attribution: str


ORIGINS = (
    Origin(
        name="azure-code-2023",
        trace="azure-code-2023.csv",
        title="Code completion, Azure LLM inference trace 2023",
        source="https://github.com/Azure/AzurePublicDataset",
        licence="CC-BY-4.0",
        attribution="Azure LLM inference traces 2023, Microsoft; published with Patel et al., Splitwise, ISCA 2024",
    ),
    Origin(
        name="azure-conversation-2023",
        trace="azure-conv-2023.csv",
        title="Conversation, Azure LLM inference trace 2023",
        source="https://github.com/Azure/AzurePublicDataset",
        licence="CC-BY-4.0",
        attribution="Azure LLM inference traces 2023, Microsoft; published with Patel et al., Splitwise, ISCA 2024",
    ),
    Origin(
        name="mooncake-conversation-2024",
        trace="mooncake-conversation-2024.csv",
        title="Long-context conversation, Mooncake trace 2024",
        source="https://github.com/kvcache-ai/Mooncake",
        licence="Apache-2.0",
        attribution="Mooncake traces, Moonshot AI; published with Qin et al., Mooncake, FAST 2025",
    ),
)


def preset_text(folder: Path, origin: Origin) -> str:
    """The text of a preset, from its trace in the folder; FileNotFoundError where the trace is missing."""
    trace = _read(folder / origin.trace)
    return preset_json(
        trace,
        name=origin.name,
        title=origin.title,
        source=origin.source,
        licence=origin.licence,
        attribution=origin.attribution,
    )


def _read(path: Path) -> Trace:
    zipped = path.with_name(f"{path.name}.gz")
    if zipped.exists():
        with gzip.open(zipped, "rt", encoding="utf-8") as lines:
            return read_trace(lines)
    with path.open(encoding="utf-8") as lines:
        return read_trace(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make or check all presets; the exit status."""
    parser = argparse.ArgumentParser(description="Make the presets of request sizes from public traces.")
    parser.add_argument("folder", type=Path, help="folder of the traces")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a preset is out of date")
    options = parser.parse_args(arguments)
    stale = 0
    for origin in ORIGINS:
        path = PRESETS_FOLDER / f"{origin.name}.json"
        text = preset_text(options.folder, origin)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if options.check:
            sys.stderr.write(f"{path.name} is not what {origin.trace} gives\n")
        else:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"wrote {path.name}\n")
    return 1 if options.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
