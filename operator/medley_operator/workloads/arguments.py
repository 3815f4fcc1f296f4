"""Command-line arguments of engines: those that Medley alone sets, and how a user's are joined to Medley's.

An argument that decides how many GPUs a replica takes, where it listens or how it drains must agree with the plan and
with the rest of the pod, so it is a field of the LLMService or of the plan, never of `engine.args`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

Argument = tuple[str, ...]
"""One argument with its values: `("--port", "8000")`, `("--enable-metrics",)`, or `("org/model",)` by its position."""

_PLAN = "the plan chooses it; gpus.tensorParallel bounds the choice"
_PIPELINE = "the plan chooses it; gpus.pipelineParallel bounds the choice"
_DATA = "the plan chooses it; gpus.dataParallel bounds the choice"
_MODEL = "set model.source"
_NAME = "set model.name"
_PORT = "set engine.port"
_HOST = "pods listen on all of their addresses"
_CONTEXT = "set model.maxContextTokens"
_REVISION = "set model.source.huggingFace.revision"
_API_KEY = "the operator and the probes send none; authenticate in front of the Service"
_TLS = "the operator and the probes speak plain HTTP; end TLS in front of the Service"
_CONFIG_FILE = "give the arguments themselves, so that they can be checked"
_PATH_PREFIX = "the operator and the probes need the engine's own paths"

_RESERVED: Mapping[str, Mapping[str, str]] = {
    "vllm": {
        "--api-key": _API_KEY,
        "--config": _CONFIG_FILE,
        "--data-parallel-size": _DATA,
        "--host": _HOST,
        "--max-model-len": _CONTEXT,
        "--model": _MODEL,
        "--nnodes": "a replica never spans nodes",
        "--pipeline-parallel-size": _PIPELINE,
        "--port": _PORT,
        "--revision": _REVISION,
        "--root-path": _PATH_PREFIX,
        "--served-model-name": _NAME,
        "--shutdown-timeout": "set disruption.drainTimeoutSeconds",
        "--ssl-certfile": _TLS,
        "--ssl-keyfile": _TLS,
        "--tensor-parallel-size": _PLAN,
        "--uds": _HOST,
        "-dp": _DATA,
        "-pp": _PIPELINE,
        "-tp": _PLAN,
    },
    "sglang": {
        "--api-key": _API_KEY,
        "--config": _CONFIG_FILE,
        "--context-length": _CONTEXT,
        "--data-parallel-size": _DATA,
        "--dp-size": _DATA,
        "--enable-metrics": "it is always on: drains are watched by it",
        "--fastapi-root-path": _PATH_PREFIX,
        "--host": _HOST,
        "--model-path": _MODEL,
        "--nnodes": "a replica never spans nodes",
        "--pipeline-parallel-size": _PIPELINE,
        "--port": _PORT,
        "--pp-size": _PIPELINE,
        "--revision": _REVISION,
        "--served-model-name": _NAME,
        "--ssl-certfile": _TLS,
        "--ssl-keyfile": _TLS,
        "--tensor-parallel-size": _PLAN,
        "--tp-size": _PLAN,
    },
}

_NUMBER = re.compile(r"-\.?\d")
_SHORTEST_ABBREVIATION = len("--dp")


@dataclass(frozen=True)
class RefusedArgument:
    """An argument of the user's that Medley alone may set.

    Args:
        index: Its place in `engine.args`.
        argument: Its name as the user wrote it.
        instead: What to do instead, for people.
    """

    index: int
    argument: str
    instead: str


def reserved_arguments(engine: str) -> Mapping[str, str]:
    """The arguments that Medley alone sets for an engine, each with what a user does instead; none for `custom`."""
    return MappingProxyType(dict(_RESERVED.get(engine, {})))


def refused_arguments(engine: str, args: Sequence[str]) -> tuple[RefusedArgument, ...]:
    """Those of a user's arguments that the engine would take as a reserved one, in the order given.

    Engines parse with argparse, which also takes underscores for dashes (vLLM), and unambiguous beginnings
    (`--tensor-parallel` for `--tensor-parallel-size`). No argument of vLLM or SGLang is itself the beginning of a
    reserved one.
    """
    reserved = _RESERVED.get(engine, {})
    found = []
    for index, argument in enumerate(args):
        name = argument_name(argument)
        if name is None:
            continue
        match = next((owned for owned in sorted(reserved) if _means(name, owned)), None)
        if match is not None:
            found.append(RefusedArgument(index=index, argument=name, instead=reserved[match]))
    return tuple(found)


def argument_name(argument: str) -> str | None:
    """The name in `--name`, `--name=value` or `-n`, with dashes for underscores; None for a value."""
    if not argument.startswith("-") or argument == "-" or _NUMBER.match(argument):
        return None
    name = argument.partition("=")[0]
    return name.replace("_", "-") if name.startswith("--") else name


def joined(own: Sequence[Argument], user: Sequence[str]) -> list[str]:
    """Medley's arguments, then the user's; of Medley's, those that the user gives too are left out.

    Args:
        own: Medley's arguments, in order.
        user: The user's, one word each, as `engine.args` holds them.
    """
    given = {name for argument in user if (name := argument_name(argument)) is not None}
    kept = [argument for argument in own if argument_name(argument[0]) not in given]
    return [word for argument in kept for word in argument] + list(user)


def _means(name: str, owned: str) -> bool:
    shortest = _SHORTEST_ABBREVIATION if name.startswith("--") else len("-t")
    return len(name) >= shortest and owned.startswith(name)
