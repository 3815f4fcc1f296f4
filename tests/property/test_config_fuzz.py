"""Whatever a `config.json` holds, the answer is an architecture that a ModelProfile can hold, or a named mistake."""

from __future__ import annotations

import copy
import json
import random
import tomllib
from importlib import resources
from typing import Any

import pytest

from medley_operator.api.catalogue import profile_of
from medley_operator.api.resolve import ResolvedProfile, resolve_profile
from medley_planner.catalogue.config_families import FAMILIES
from medley_planner.catalogue.config_json import ConfigError, ModelReading, read_config
from medley_planner.catalogue.known_models import catalogue_of_models

SEEDS = range(6)
MUTANTS = 400

ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 7, -1, 64, 128, 4096, 10**6, 10**7, 10**17, 0.5, 1.5, -1e300,
    float("nan"), float("inf"),
    "", "x", "fp8", "nvfp4", "full_attention", [], {}, [1], ["linear_attention"], [None], {"type": "yarn"}, {"a": {}},
    {"quant_method": "fp8"},
    {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 3}}}},
)  # fmt: skip


def rows() -> list[dict[str, Any]]:
    """Rows of the catalogue as they stand in its file."""
    text = resources.files("medley_planner").joinpath("data", "models.toml").read_text(encoding="utf-8")
    found: list[dict[str, Any]] = tomllib.loads(text)["model"]
    return found


def configs() -> list[dict[str, Any]]:
    """Configs of all families that the catalogue has, as plain values."""
    return [row["config"] for row in rows()]


def mutated(rng: random.Random, config: dict[str, Any]) -> dict[str, Any]:
    """A config with one to four values replaced, removed, or added from another family's."""
    made = copy.deepcopy(config)
    for _ in range(rng.randint(1, 4)):
        places: list[tuple[Any, Any]] = []

        def walk(value: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key in value if isinstance(value, dict) else range(len(value)):
                places.append((value, key))
                if isinstance(value[key], dict | list):
                    walk(value[key])

        walk(made)
        if not places:
            return made
        holder, key = rng.choice(places)
        action = rng.random()
        if action < 0.6:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        elif action < 0.75:
            del holder[key]
        elif action < 0.9:
            made["model_type"] = rng.choice(sorted(FAMILIES))
        else:
            made = {"model_type": "wrapper", "text_config": made}
    return made


def read_or_refuse(text: str) -> ModelReading | None:
    """The reading, or None where it was refused with a message of one line that is not too long to read."""
    try:
        return read_config(text)
    except ConfigError as error:
        assert str(error)
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
        return None


@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_configs_are_read_or_refused_by_a_field(seed: int) -> None:
    rng = random.Random(seed)
    valid = configs()
    read = 0
    for index in range(MUTANTS):
        text = json.dumps(mutated(rng, rng.choice(valid)))
        made = read_or_refuse(text)
        if made is None:
            continue
        read += 1
        profile = profile_of("org/model", made)
        resolved = resolve_profile(profile)
        assert isinstance(resolved, ResolvedProfile), f"seed {seed}, mutant {index}: {resolved}\n{text}"
        assert resolved.architecture.parameters == made.architecture.parameters
        assert resolved.architecture.weight_bytes == pytest.approx(made.architecture.weight_bytes)
        again = read_config(text)
        assert again == made
    assert MUTANTS // 10 < read < MUTANTS


@pytest.mark.parametrize("seed", SEEDS)
def test_broken_text_is_refused(seed: int) -> None:
    rng = random.Random(seed)
    valid = configs()
    for _ in range(MUTANTS):
        text = list(json.dumps(rng.choice(valid)))
        for _ in range(rng.randint(1, 6)):
            place = rng.randrange(len(text))
            text[place] = rng.choice('{}[]",:0-9.eE \\u0000xNaN' + chr(rng.randrange(1, 0x2FFF)))
        read_or_refuse("".join(text))


def test_every_row_of_the_catalogue_reads_as_a_file_would() -> None:
    for row in rows():
        assert read_config(json.dumps(row["config"])) == catalogue_of_models()[row["name"]].reading
