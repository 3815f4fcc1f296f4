"""The commands: `python -m medley_cluster up | status | down | build-tools | kubectl`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from medley_cluster.cluster import DEFAULT_NAME, Cluster, cluster_names
from medley_cluster.debian import IMAGE_BUILDER, NODE, PROMETHEUS, find_programs
from medley_cluster.operator_image import operator_image
from medley_cluster.options import DEFAULT_POOLS, GPU_MODELS, ClusterOptions, SimulatedPool
from medley_cluster.progress import Steps
from medley_cluster.toolchain import GO_PROGRAMS, ToolError, find_helm, go_program


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, or 1 with a message when it could not be done."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["kubectl"]:
        return _kubectl(words[1:])
    parser = _parser()
    options = parser.parse_args(words)
    try:
        with Steps(quiet=options.quiet) as steps:
            report = options.run(options, steps)
            report["steps"] = {step.name: round(step.elapsed_s, 3) for step in steps.finished}
            report["skipped"] = steps.skipped
    except (ToolError, RuntimeError, TimeoutError) as error:
        Console(stderr=True, highlight=False).print(f"[red]{type(error).__name__}[/red]: ", end="")
        print(error, file=sys.stderr)
        return 1
    if options.output == "json":
        print(json.dumps(report, indent=2))
    else:
        _show(report)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medley_cluster", description="A real Kubernetes cluster on this machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.add_argument("--name", default=DEFAULT_NAME, help="the cluster's name (default: %(default)s)")
        sub.add_argument("-o", "--output", choices=("text", "json"), default="text")
        sub.add_argument("-q", "--quiet", action="store_true", help="no progress")
        sub.set_defaults(run=run)
        return sub

    up = command("up", _up, "bring a cluster up, or what is missing of it")
    up.add_argument("--nodes", choices=("real", "none"), default="real", help="with or without real nodes")
    up.add_argument("--real-nodes", type=int, default=1, metavar="N", help="how many real nodes (default: %(default)s)")
    up.add_argument(
        "--real-gpu", choices=tuple(GPU_MODELS), default="t4", help="the GPU type real nodes pretend to have"
    )
    default_pools = ",".join(f"{pool.gpu}={pool.count}" for pool in DEFAULT_POOLS)
    up.add_argument("--pools", default=default_pools, help="simulated nodes, e.g. l4=3,h100=2x4 (2 nodes of 4 GPUs)")
    up.add_argument("--load-time", action="append", default=[], metavar="GPU=SECONDS", help="a GPU type's load time")
    up.add_argument("--no-prometheus", action="store_true")
    up.add_argument("--operator-image", action="store_true", help="build the operator's image for the real nodes")
    command("status", _status, "show a cluster")
    command("list", _list, "name the clusters on this machine")
    command("down", _down, "remove every trace of a cluster")
    build = command("build-tools", _build_tools, "find or build every tool, and fill the cache")
    build.add_argument("--operator-image", action="store_true", help="and build the operator's image")
    return parser


def _pools(text: str) -> tuple[SimulatedPool, ...]:
    pools = []
    for part in filter(None, text.split(",")):
        gpu, _, size = part.partition("=")
        count, _, gpus = size.partition("x")
        pools.append(SimulatedPool(gpu, int(count), int(gpus) if gpus else None))
    return tuple(pools)


def _up(options: argparse.Namespace, steps: Steps) -> dict[str, Any]:
    cluster = Cluster(options.name, steps)
    try:
        times = {gpu: float(seconds) for gpu, _, seconds in (item.partition("=") for item in options.load_time)}
        wanted = ClusterOptions(
            pools=_pools(options.pools),
            load_times_s=times,
            real_nodes=options.real_nodes if options.nodes == "real" else 0,
            real_gpu=options.real_gpu,
            prometheus=not options.no_prometheus,
            operator_image=options.operator_image,
        )
    except ValueError as error:
        raise RuntimeError(str(error)) from error
    return cluster.up(wanted).status()


def _status(options: argparse.Namespace, steps: Steps) -> dict[str, Any]:
    return Cluster(options.name, steps).status()


def _list(options: argparse.Namespace, steps: Steps) -> dict[str, Any]:
    return {"clusters": cluster_names()}


def _down(options: argparse.Namespace, steps: Steps) -> dict[str, Any]:
    Cluster(options.name, steps).down()
    return {"name": options.name, "exists": False}


def _build_tools(options: argparse.Namespace, steps: Steps) -> dict[str, Any]:
    tools = {program.name: str(go_program(program, steps)) for program in GO_PROGRAMS}
    tools["helm"] = str(find_helm(steps))
    for group in (NODE, PROMETHEUS, IMAGE_BUILDER):
        try:
            programs = find_programs(group, steps)
        except ToolError as error:
            steps.skip(group.name, str(error))
        else:
            tools[group.name] = str(programs.prefix or "on PATH")
    if options.operator_image:
        tools["operator image"] = str(operator_image(steps).archive)
    return {"tools": tools}


def _kubectl(words: list[str]) -> int:
    """kubectl of the cluster's own version: `kubectl [--name NAME] ARGUMENT…`, replacing this process."""
    name = DEFAULT_NAME
    if words[:1] == ["--name"]:
        name, words = words[1], words[2:]
    argv = [*Cluster(name).kubectl_command, *words]
    os.execv(argv[0], argv)


def _show(report: dict[str, Any]) -> None:
    console = Console(highlight=False)
    if "clusters" in report:
        console.print("\n".join(report["clusters"]) or "no clusters")
        return
    if "tools" in report:
        for name, path in report["tools"].items():
            console.print(f"{name:<14} {path}")
        return
    if not report["exists"]:
        console.print(f"The cluster {report['name']!r} is not up.")
        return
    groups: dict[tuple[str, str, int], list[bool]] = {}
    for node in report.get("nodes", {}).values():
        key = (node["kind"] or "other", node["gpu"] or "-", node["gpus"])
        groups.setdefault(key, []).append(node["ready"])
    table = Table(title=f"Cluster {report['name']}", title_justify="left")
    for column in ("nodes", "GPU", "GPUs each", "ready"):
        table.add_column(column)
    for (kind, gpu, gpus), ready in sorted(groups.items()):
        table.add_row(kind, gpu, str(gpus), f"{sum(ready)}/{len(ready)}")
    console.print(table)
    stopped = [name for name, pid in report["processes"].items() if pid is None]
    console.print(f"API server   {report['apiServer']}" + ("" if report["apiServerReady"] else "  (not ready)"))
    console.print(f"Prometheus   {report['prometheus'] or '-'}")
    console.print(
        f"processes    {len(report['processes'])}" + (f", not running: {', '.join(stopped)}" if stopped else "")
    )
    console.print(f"\nexport KUBECONFIG={report['kubeconfig']}", soft_wrap=True)
