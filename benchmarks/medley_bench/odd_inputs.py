"""Inputs of `medley plan` that nobody should give it, each made of a seed and a number, so that it can be made again.

fields     a sound fleet with values replaced, removed, renamed, doubled
extremes   objects made from the API's schemas, with values at and between the bounds
conflicts  sound objects that contradict one another
text       sound YAML or JSON with characters and lines lost, doubled, swapped, or replaced by what YAML minds
yaml       aliases, bombs, depth, tags, merge keys, huge scalars, many documents
files      what is no file, or not what its name says
flags      sound input with odd arguments
pages      extremes of which a page is to be written
"""

from __future__ import annotations

import copy
import functools
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from medley_operator.api.base import ApiModel
from medley_operator.api.crd import structural_schema
from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile

Manifest = dict[str, Any]

FOLDER = "FOLDER"
"""Stands for the folder of a case's files in its arguments."""

MODEL = "example/eight"
GPU_TYPES = ("L4", "A10G", "A100-80GB", "H100-80GB", "MI300X")
WORDS = (
    "", " ", "a", "l4", "chat", "default", "-", "--", "..", "/", "\0", "\n", "\t", "é", "漢字", "\u202eabc", "🚀",
    "null", "true", "1", "1e999", "NaN", "-0", "0x10", "~", "*a", "&a", "!!x", "%s", "{{7}}", "$(x)", "<script>",
    "[red]x[/red]", "a" * 64, "a" * 254, "A100-80GB", "bf16", "azure-code-2023",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 16, 17, 0.5, -0.5, 1e-9, 1e-300, 5e-324, 1e9, 1e18, 1e300, 2**31, 2**63, 2**64, 10**40,
    math.inf, -math.inf, math.nan,
)  # fmt: skip
SHAPES: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], [{}], {"": ""}, {"a": {"b": 1}}, [1, "a", None])


@dataclass(frozen=True)
class Case:
    """One call of `medley plan`.

    Args:
        kind: Which of the module's kinds.
        files: Name and content of files in a folder; None is a folder.
        stdin: The standard input.
        arguments: What follows `plan`; `FOLDER` in it stands for the folder.
    """

    kind: str
    files: tuple[tuple[str, bytes | None], ...]
    stdin: bytes
    arguments: tuple[str, ...]


def case(seed: int, number: int) -> Case:
    """The case of a number."""
    rng = random.Random(f"{seed}/{number}")
    kinds: tuple[tuple[str, float, Callable[[random.Random], Case]], ...] = (
        ("fields", 30, _fields),
        ("extremes", 32, _extremes),
        ("conflicts", 8, _conflicts),
        ("text", 18, _text),
        ("yaml", 6, _yaml),
        ("files", 3, _files),
        ("flags", 3, _flags),
        ("pages", 0.1, _pages),
    )
    (make,) = rng.choices([make for _, _, make in kinds], [weight for _, weight, _ in kinds])
    return make(rng)


def _through_stdin(kind: str, rng: random.Random, data: bytes, *more: str) -> Case:
    output = rng.choice(("json", "json", "table", "yaml"))
    return Case(kind, (), data, ("-f", "-", "-o", output, "--time-limit", "0.5", *more))


# --- sound fleets -----------------------------------------------------------------------------------------------------


def fleet(rng: random.Random) -> list[Manifest]:
    """A small sound fleet: pools, a profile, a service or two, sometimes a trace."""
    types = rng.sample(GPU_TYPES, rng.randint(1, 2))
    pools = [_pool(rng, f"p{place}", gpu) for place, gpu in enumerate(types)]
    services = [_service(rng, f"s{place}") for place in range(rng.choice((1, 1, 1, 2)))]
    objects = [*pools, _profile(rng, types), *services]
    if rng.random() < 0.1:
        objects.append(_trace(rng))
        services[0]["spec"]["workload"]["sizes"] = {"traceConfigMap": {"name": "trace", "key": "requests.csv"}}
    rng.shuffle(objects)
    return objects


def _object(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": "medley.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _pool(rng: random.Random, name: str, gpu: str) -> Manifest:
    spec: Manifest = {
        "gpu": {"type": gpu},
        "gpusPerNode": rng.choice((1, 2, 4, 8)),
        "pricePerGPUHour": round(rng.uniform(0.2, 9), 2),
    }
    if rng.random() < 0.6:
        spec["limit"] = rng.choice((0, 1, 3, 8, 100))
    if rng.random() < 0.3:
        spec["capacityType"] = rng.choice(("Spot", "Spot", "Reserved"))
        spec |= {"interruptionsPerHour": rng.choice((0, 0.1, 30))} if spec["capacityType"] == "Spot" else {}
    return _object("GPUPool", name, spec)


def _profile(rng: random.Random, types: list[str]) -> Manifest:
    architecture = {
        "parameters": rng.choice((1_000_000_000, 8_000_000_000, 70_000_000_000)),
        "layers": 32,
        "hiddenSize": 4096,
        "attentionHeads": 32,
        "keyValueHeads": 8,
        "headSize": 128,
        "maxContextTokens": 8192,
    }
    spec: Manifest = {"model": MODEL, "architecture": architecture}
    if rng.random() < 0.5:
        rates = sorted(rng.uniform(0.1, 9) for _ in range(2))
        points = [
            {
                "inputTokens": 500,
                "outputTokens": 100,
                "requestsPerSecond": round(rate, 3),
                "timePerOutputTokenMs": round(20 + 10 * rate, 2),
                "timeToFirstTokenMs": round(100 + 50 * rate, 2),
            }
            for rate in rates
        ]
        spec["measurements"] = [{"gpu": rng.choice(types), "tensorParallel": 1, "points": points}]
    return _object("ModelProfile", "eight", spec)


def _service(rng: random.Random, name: str) -> Manifest:
    sizes = [
        {"inputTokens": rng.randint(1, 6000), "outputTokens": rng.randint(1, 1000), "weight": rng.choice((1, 3, 0.2))}
        for _ in range(rng.choice((1, 2, 3)))
    ]
    spec: Manifest = {
        "model": {"name": MODEL},
        "objectives": {"timePerOutputToken": {"milliseconds": rng.choice((15, 60, 200))}},
        "workload": {"rate": round(rng.uniform(0.1, 20), 3), "sizes": {"histogram": sizes}},
    }
    if rng.random() < 0.3:
        spec["objectives"]["timeToFirstToken"] = {"milliseconds": rng.choice((50, 2000))}
    if rng.random() < 0.3:
        spec["gpus"] = {"tensorParallel": rng.choice(([1], [1, 2], [8]))}
    if rng.random() < 0.2:
        spec["scaling"] = {"minReplicas": rng.randint(1, 4), "headroom": rng.choice((0, 0.2, 0.9))}
    if rng.random() < 0.2:
        spec.setdefault("scaling", {})["noWaitShare"] = rng.choice((0, 0.5, 0.99))
    if rng.random() < 0.2:
        spec["objectives"]["timePerOutputToken"]["percentile"] = rng.choice((50, 95, 99.9))
    if rng.random() < 0.2:
        spot = {"maxShare": rng.choice((0, 0.5, 1)), "survivableShare": rng.choice((0, 0.5, 1))}
        spec.setdefault("gpus", {}).update(spot=spot, maxSharePerPool=rng.choice((0.5, 0.67, 1)))
    if rng.random() < 0.2:
        spec["priority"] = rng.choice((-1, 1, 1_000_000))
    return _object("LLMService", name, spec)


def _trace(rng: random.Random) -> Manifest:
    lines = ["arrival_s,input_tokens,output_tokens"]
    lines += [f"{place * 0.5},{rng.randint(1, 4000)},{rng.randint(1, 500)}" for place in range(rng.randint(1, 20))]
    if rng.random() < 0.5:
        place = rng.randrange(len(lines))
        lines[place] = rng.choice(("", "x,y,z", "1,2", "nan,1,1", "-1,-1,-1", "0,1e99,1", '"', "0,0,0", "\0", ",,,,"))
    metadata = {"name": "trace"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"requests.csv": "\n".join(lines)}}


def as_yaml(objects: list[Any]) -> bytes:
    """Objects as the documents of a YAML file."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return yaml.dump_all(objects, Dumper=dumper, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")


# --- fields -----------------------------------------------------------------------------------------------------------


def _fields(rng: random.Random) -> Case:
    objects: list[Any] = fleet(rng)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        _spoil(rng, rng.choice(objects))
    if rng.random() < 0.1:
        objects.append(copy.deepcopy(rng.choice(objects)))
    if rng.random() < 0.05:
        objects.append(rng.choice(SHAPES + WORDS + NUMBERS))
    if rng.random() < 0.3:
        return _through_stdin(
            "fields", rng, json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}).encode()
        )
    return _through_stdin("fields", rng, as_yaml(objects))


def _spoil(rng: random.Random, value: Any) -> None:
    """One change somewhere below a value."""
    if isinstance(value, dict) and value:
        key: Any = rng.choice(list(value))
    elif isinstance(value, list) and value:
        key = rng.randrange(len(value))
    else:
        return
    if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.85:
        _spoil(rng, value[key])
        return
    what = rng.random()
    if what < 0.15:
        del value[key]
    elif what < 0.3 and isinstance(value, dict):
        value[rng.choice((key + "s", key.upper(), rng.choice(WORDS), "status", "spec"))] = value.pop(key)
    elif what < 0.6 and isinstance(value[key], int | float):
        value[key] = value[key] * rng.choice((0.1, 0.5, 2, 3, 10, 100, -1, 0, 1e9, 1e-9, 1e300))
    elif what < 0.65:
        value[key] = [value[key]] * rng.choice((1, 2, 70, 300))
    else:
        value[key] = copy.deepcopy(rng.choice(SHAPES + WORDS + NUMBERS))


# --- extremes ---------------------------------------------------------------------------------------------------------


@functools.cache
def _schema(model: type[ApiModel]) -> dict[str, Any]:
    schema: dict[str, Any] = structural_schema(model)["properties"]["spec"]
    return schema


def _extremes(rng: random.Random) -> Case:
    """A sound fleet in which some fields are made from the schemas."""
    objects = fleet(rng)
    models: dict[str, type[ApiModel]] = {"GPUPool": GPUPool, "ModelProfile": ModelProfile, "LLMService": LLMService}
    ours = [each for each in objects if each["kind"] in models]
    names = [each["metadata"]["name"] for each in objects]
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        each = rng.choice(ours)
        _put_somewhere(rng, each["spec"], _schema(models[each["kind"]]), names)
    return _through_stdin("extremes", rng, as_yaml(objects))


def _put_somewhere(rng: random.Random, value: Manifest, schema: dict[str, Any], names: list[str]) -> None:
    """One field anew, somewhere below an object: more often one that is there than one that is not, and of those more
    often a figure than a name, which mostly leads nowhere."""
    fields = schema.get("properties", {})
    if not fields:
        return
    present = sorted(key for key in value if key in fields)
    figures = sorted(key for key, of in fields.items() if of.get("type") != "string" or "enum" in of)
    key = rng.choice(present if present and rng.random() < 0.6 else figures or sorted(fields))
    of = fields[key]
    items = of.get("items", {})
    if "properties" in of and (key in value or not of.get("required")):
        below = value.setdefault(key, {})
        if isinstance(below, dict):
            _put_somewhere(rng, below, of, names)
    elif "properties" in items and value.get(key) and rng.random() < 0.8:
        _put_somewhere(rng, rng.choice(value[key]), items, names)
    else:
        value[key] = _made(rng, of, names)


def _made(rng: random.Random, schema: dict[str, Any], names: list[str]) -> Any:  # noqa: PLR0911 - one for each type
    """A value within a schema's bounds, often at one of them."""
    if "enum" in schema:
        return rng.choice(schema["enum"])
    match schema.get("type"):
        case "object":
            return _made_object(rng, schema, names)
        case "array":
            least, most = schema.get("minItems", 0), min(schema.get("maxItems", 3), 4)
            return [_made(rng, schema["items"], names) for _ in range(rng.randint(least, max(least, most)))]
        case "integer":
            return int(_number(rng, schema, whole=True))
        case "number":
            return _number(rng, schema, whole=False)
        case "boolean":
            return rng.random() < 0.5
        case "string":
            fitting = [word for word in (*names, *WORDS) if re.search(schema.get("pattern", ""), word)]
            return rng.choice(fitting or ["a"])
        case _:
            return copy.deepcopy(rng.choice(SHAPES))


def _made_object(rng: random.Random, schema: dict[str, Any], names: list[str]) -> Manifest:
    required = set(schema.get("required", ()))
    made = {
        key: _made(rng, of, names)
        for key, of in sorted(schema.get("properties", {}).items())
        if key in required or rng.random() < 0.4
    }
    if isinstance(schema.get("additionalProperties"), dict):
        made |= {name: _made(rng, schema["additionalProperties"], names) for name in rng.sample(names, 1)}
    return made


def _number(rng: random.Random, schema: dict[str, Any], *, whole: bool) -> float:
    least = float(schema.get("minimum", -1e6))
    most = float(schema.get("maximum", 1e12))
    if rng.random() < 0.35:
        smallest = 1.0 if whole else rng.choice((1e-300, 1e-12, 1e-9, 1e-3))
        return rng.choice((least, most, least + smallest, min(most, 1.0), most * (1 - 1e-12)))
    low = max(least, 1.0 if whole else 1e-6)
    value = math.exp(rng.uniform(math.log(low), math.log(max(most, low))))
    return float(round(value)) if whole else value


# --- conflicts --------------------------------------------------------------------------------------------------------


def _conflicts(rng: random.Random) -> Case:
    objects = fleet(rng)
    for each in objects:
        if each["kind"] != "LLMService":
            continue
        spec = each["spec"]
        pool = rng.choice([other["metadata"]["name"] for other in objects if other["kind"] == "GPUPool"])
        least = rng.choice((1, 5, 10_000))
        gpus = spec.setdefault("gpus", {})
        scaling = spec.setdefault("scaling", {})
        for change in rng.sample(range(6), rng.randint(1, 4)):
            match change:
                case 0:
                    gpus["maxCostPerHour"] = rng.choice((1e-9, 0.01, 1.0, 1e9))
                case 1:
                    scaling |= {"minReplicas": least, "maxReplicas": max(least, rng.choice((1, 5, 10_000)))}
                case 2:
                    scaling["pools"] = [{"name": pool, "minReplicas": least, "maxReplicas": 10_000}]
                case 3:
                    gpus["pools"] = [rng.choice((pool, "p0", "p9"))]
                case 4:
                    spec["objectives"]["timePerOutputToken"]["milliseconds"] = rng.choice((1e-6, 0.1, 3_600_000))
                case _:
                    spec["workload"]["rate"] = rng.choice((1e-9, 1e6))
    return _through_stdin("conflicts", rng, as_yaml(objects))


# --- text -------------------------------------------------------------------------------------------------------------

GARBAGE = (
    b"\t", b": ", b"- ", b"{", b"}", b"[", b"]", b"&a ", b"*a", b"|\n", b">\n", b"'", b'"', b"#", b"---\n", b"...\n",
    b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\x85", b"\xe2\x80\xa8", b"\xed\xa0\x80", b"%YAML 1.1\n",
    b"!!binary ", b"!!python/object:os.system ", b"<<: ", b"? ", b"@", b"`", b"\x1b[31m", b"1e", b"\\",
)  # fmt: skip


def _text(rng: random.Random) -> Case:
    objects = fleet(rng)
    data = as_yaml(objects) if rng.random() < 0.8 else json.dumps(objects).encode()
    for _ in range(rng.choice((1, 1, 2, 4, 12))):
        data = _scratched(rng, data)
    return _through_stdin("text", rng, data)


def _scratched(rng: random.Random, data: bytes) -> bytes:  # noqa: PLR0911 - one for each way
    place = rng.randrange(len(data) + 1)
    end = min(len(data), place + rng.choice((1, 1, 3, 40)))
    lines = data.split(b"\n")
    match rng.randrange(7):
        case 0:
            return data[:place] + data[end:]
        case 1:
            return data[:place] + rng.choice(GARBAGE) + data[place:]
        case 2:
            return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        case 3:
            return data[:place]
        case 4:
            line = rng.randrange(len(lines))
            return b"\n".join([*lines[:line], lines[line], *lines[line:]])
        case 5:
            line = rng.randrange(len(lines))
            return b"\n".join([*lines[:line], b" " * rng.randint(1, 3) + lines[line], *lines[line + 1 :]])
        case _:
            one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            lines[one], lines[other] = lines[other], lines[one]
            return b"\n".join(lines)


# --- yaml -------------------------------------------------------------------------------------------------------------


def _yaml(rng: random.Random) -> Case:
    sound = as_yaml(fleet(rng)).decode()
    deep = rng.choice((10, 70, 1000, 20_000))
    odd = (
        "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"
        + "".join(
            f"{chr(100 + k)}: &{chr(100 + k)} [*{chr(99 + k)}, *{chr(99 + k)}, *{chr(99 + k)}]\n" for k in range(20)
        ),
        "&a [*a]",
        "&a {x: *a}",
        "a: &a\n  <<: *a\n",
        "[" * deep,
        "{a: " * deep,
        "- " * deep + "x",
        "".join(" " * depth + f"k{depth}:\n" for depth in range(min(deep, 1000))),
        "x: " + "9" * rng.choice((10, 100, 5000)),
        "x: 0x" + "f" * 100,
        "x: 1_000_000\ny: 0o17\nz: 017\nw: 0b101\nv: 1:30:00\nu: 2001-01-01\n",
        "x: .nan\ny: .inf\nz: -.INF\n",
        "x: !!binary aGVsbG8=\n",
        "x: !!python/object/apply:os.system ['true']\n",
        "!!set {a, b}",
        "? [a, b]\n: c\n",
        "? {a: b}\n: c\n",
        "1: a\ntrue: b\nnull: c\n",
        "a: 1\na: 2\n",
        "\n---\n".join(["x: 1"] * rng.choice((2, 300))),
        "",
        "# nothing\n",
        "---\n---\n---\n",
        "null",
        "just words",
        "kind: List\napiVersion: v1\nitems: " + rng.choice(("null", "[]", "{}", "[1, a, null]", "x")) + "\n",
        "%TAG ! tag:x,2000:\n---\n!y {a: b}\n",
        "a: |\n" + "  line\n" * rng.choice((1, 20_000)),
        "a: " + "x" * rng.choice((10, 200_000)),
        "a: [" + "1," * rng.choice((10, 30_000)) + "]",
    )
    text = rng.choice(odd)
    if rng.random() < 0.4:
        text = rng.choice((f"{text}\n---\n{sound}", f"{sound}\n---\n{text}"))
    return _through_stdin("yaml", rng, text.encode("utf-8", "surrogatepass"))


# --- files and flags --------------------------------------------------------------------------------------------------


def _files(rng: random.Random) -> Case:
    sound = as_yaml(fleet(rng))
    files: tuple[tuple[str, bytes | None], ...] = (
        ("fleet.yaml", sound),
        ("empty.yaml", b""),
        ("folder.yaml", None),
        ("noise.yaml", rng.randbytes(300)),
        ("packed.yaml", b"\x1f\x8b" + rng.randbytes(60)),
        ("wide.yaml", sound.decode().encode(rng.choice(("utf-16", "utf-32", "utf-8-sig")))),
        ("deep/er/fleet.json", b"[" * 500),
        (".hidden.yaml", b"not: [yaml"),
        ("Ünï cödé.yml", b"kind: x"),
    )
    kept = tuple(rng.sample(files, rng.randint(0, len(files))))
    named = [f"{FOLDER}/{name}" for name, _ in files]
    choices = (
        *named,
        FOLDER,
        f"{FOLDER}/none.yaml",
        "/dev/null",
        "-",
        "",
        ".\0",
        f"{FOLDER}/{'a' * 300}.yaml",
        "/proc/self/mem",
    )
    chosen = [argument for _ in range(rng.randint(1, 3)) for argument in ("-f", rng.choice(choices))]
    return Case("files", kept, rng.choice((b"", sound)), (*chosen, "-o", "json", "--time-limit", "0.5"))


def _flags(rng: random.Random) -> Case:
    flags = (
        ("-o", "json"), ("-o", "xml"), ("-o",), ("--formulation", "melange"), ("--formulation", "x"),
        ("--time-limit", "nan"), ("--time-limit", "inf"), ("--time-limit", "-1"), ("--time-limit", "0.1"),
        ("--fleet-cap", "nan"), ("--fleet-cap", "inf"), ("--fleet-cap", "0"), ("--fleet-cap", "1e-9"),
        ("--fleet-cap", "2"), ("--fleet-cap", "-1"), ("--sensitivity",), ("--nonsense",), ("extra",), ("-f",),
        ("-f", "-"), ("--report", f"{FOLDER}/none/x.html"), ("--report", FOLDER), ("--help",),
    )  # fmt: skip
    chosen = [word for each in rng.sample(flags, rng.randint(1, 3)) for word in each]
    return Case("flags", (("kept.yaml", b""),), as_yaml(fleet(rng)), ("-f", "-", *chosen))


def _pages(rng: random.Random) -> Case:
    made = _extremes(rng)
    return Case("pages", (("kept.yaml", b""),), made.stdin, (*made.arguments, "--report", f"{FOLDER}/plan.html"))
