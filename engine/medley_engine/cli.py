"""The ``medley-engine`` command: serve a model, change its size, look at it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from medley_engine.config import UnsupportedModelError, check_tensor_parallel, parse_model_config
from medley_engine.memory import cuda_driver
from medley_engine.memory.checkpoint import Checkpoint, CheckpointError
from medley_engine.serving.settings import Settings
from medley_engine.serving.supervisor import Supervisor, bind

_HELP = {
    "served_name": "name that clients send as `model` (default: the folder's name)",
    "run_dir": "directory for sockets and state (default: a new temporary one)",
    "data_parallel": "data-parallel groups at the start",
    "tensor_parallel": "ranks per group; fixed for the engine's life",
    "shared_domain": "ranks share one memory (CPUs of a node); --no-shared-domain gives each its own, as GPUs have",
    "device": "cpu, or cuda: rank r computes on GPU r, and each GPU has a memory of its own",
    "peer_access": "--no-peer-access: GPUs cannot map each other's memory (found out from the driver, too)",
    "dtype": "float32, float64 or bfloat16",
    "batch_invariant": "every token is independent of its batch, bit for bit; --no-batch-invariant is faster",
    "arm_standbys": "attach and warm up the standbys of neighbouring sizes ahead of time ",
    "copy_after_switch": "with a memory per rank: serve from where pages are, and copy them after the switch",
    "home_share": "share of one processor that copying after the switch may take",
    "standby_delay_s": "seconds after an operation until standbys are restored",
    "load_window_s": "seconds of each of the three windows over which the objectives are judged",
    "auto_scale": "follow the load estimator's advice",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="medley-engine", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve a checkpoint folder")
    serve.add_argument("model", type=Path, help="folder with config.json, safetensors files and tokenizer.json")
    for setting in fields(Settings):
        if setting.name == "model":
            continue
        flag, default = f"--{setting.name.replace('_', '-')}", setting.default
        if isinstance(default, bool):
            serve.add_argument(
                flag, action=argparse.BooleanOptionalAction, default=default, help=_HELP.get(setting.name)
            )
        elif setting.name in ("run_dir", "served_name"):
            serve.add_argument(flag, default=None, help=_HELP[setting.name])
        elif setting.name == "device":
            serve.add_argument(flag, choices=("cpu", "cuda"), default=default, help=_HELP[setting.name])
        else:
            serve.add_argument(flag, type=type(default), default=default, help=_HELP.get(setting.name))
    scale = commands.add_parser("scale", help="change the number of data-parallel groups")
    scale.add_argument("data_parallel", type=int)
    scale.add_argument("--rebalance", action="store_true", help="place experts by measured load, also at the same size")
    scale.add_argument("--operation-id", help="name of the operation; repeating it is harmless")
    scale.add_argument("--no-wait", action="store_true", help="return at once")
    status = commands.add_parser("status", help="what is in force and what changes it")
    for command in (scale, status):
        command.add_argument("--url", default="http://127.0.0.1:8000", help="address of the engine")
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    folder: Path = arguments.model.resolve()
    try:
        config = parse_model_config(Checkpoint(folder).raw_config)
        check_tensor_parallel(config, arguments.tensor_parallel)
    except (OSError, CheckpointError, UnsupportedModelError, json.JSONDecodeError) as error:
        sys.stderr.write(f"medley-engine: {folder}: {error}\n")
        return 2
    values = {field.name: getattr(arguments, field.name) for field in fields(Settings) if field.name != "model"}
    values["run_dir"] = values["run_dir"] or tempfile.mkdtemp(prefix="medley-engine-")
    values["served_name"] = values["served_name"] or folder.name
    if values["device"] == "cuda":
        try:
            values["peer_access"] &= cuda_driver.all_are_peers()
        except (cuda_driver.CudaError, ImportError) as error:
            sys.stderr.write(f"medley-engine: --device cuda: {error}\n")
            return 2
    try:
        settings = Settings(model=str(folder), **values)
    except ValueError as error:
        sys.stderr.write(f"medley-engine: {error}\n")
        return 2
    listener = bind(settings.host, settings.port)
    return Supervisor(replace(settings, port=listener.getsockname()[1]), listener).run()


def _request(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - the user's own address
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        reply: dict[str, Any] = json.load(response)
        return reply


def _scale(arguments: argparse.Namespace) -> int:
    body: dict[str, Any] = {"dataParallel": arguments.data_parallel, "rebalance": arguments.rebalance}
    if arguments.operation_id:
        body["operationId"] = arguments.operation_id
    operation = _request(f"{arguments.url}/scale", body)
    while not operation["finished"] and not arguments.no_wait:
        sys.stderr.write(f"\r{operation['phase']:<12} {operation['percent']:5.1f} %")
        time.sleep(0.1)
        operation = _request(f"{arguments.url}/scale/operations/{operation['id']}")
    sys.stderr.write("\n")
    sys.stdout.write(json.dumps(operation, indent=2) + "\n")
    return 0 if operation["phase"] == "succeeded" or arguments.no_wait else 1


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit status: 0 done, 1 not done (and why), 2 bad input."""
    parsed = _parser().parse_args(arguments)
    if parsed.command == "serve":
        return _serve(parsed)
    try:
        if parsed.command == "scale":
            return _scale(parsed)
        sys.stdout.write(json.dumps(_request(f"{parsed.url}/scale"), indent=2) + "\n")
    except urllib.error.HTTPError as error:
        sys.stderr.write(f"medley-engine: {error.read().decode(errors='replace')}\n")
        return 2 if error.code == 400 else 1
    except urllib.error.URLError as error:
        sys.stderr.write(f"medley-engine: {parsed.url}: {error.reason}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
