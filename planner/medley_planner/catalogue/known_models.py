"""Architectures of well-known open models, by hub id, from `data/models.toml`; each row there names its source."""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType

from medley_planner.catalogue.config_json import ModelReading, read_config_values
from medley_planner.catalogue.models import ModelArchitecture, ModelError


class UnknownModelError(LookupError):
    """The catalogue has no such model.

    Args:
        name: What was asked for.
        nearest: Ids in the catalogue that look like it, nearest first; may be empty.
    """

    def __init__(self, name: str, nearest: tuple[str, ...]) -> None:
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        super().__init__(f"the catalogue has no model {name!r}{hint}")
        self.name = name
        self.nearest = nearest


@dataclass(frozen=True)
class KnownModel:
    """A row of the catalogue.

    Args:
        names: Ids on the hub whose facts these are, the first being the row's own.
        source: Where the facts are from.
        reading: The facts.
    """

    names: tuple[str, ...]
    source: str
    reading: ModelReading

    @property
    def architecture(self) -> ModelArchitecture:
        """What the planner needs of the model."""
        return self.reading.architecture


@functools.cache
def known_models() -> Mapping[str, ModelArchitecture]:
    """All known architectures by hub id, sorted; the mapping cannot be changed."""
    return MappingProxyType({name: row.architecture for name, row in catalogue_of_models().items()})


def known_model(name: str) -> KnownModel:
    """The model with this hub id; case does not matter.

    Raises:
        UnknownModelError: There is none; it names those that look alike.
    """
    folded = {known.casefold(): known for known in catalogue_of_models()}
    found = folded.get(name.casefold())
    if found is None:
        raise UnknownModelError(name, tuple(folded[near] for near in _nearest(name.casefold(), folded)))
    return catalogue_of_models()[found]


@functools.cache
def catalogue_of_models() -> Mapping[str, KnownModel]:
    """All rows by each of their hub ids, sorted; the mapping cannot be changed."""
    text = resources.files("medley_planner").joinpath("data", "models.toml").read_text(encoding="utf-8")
    models: dict[str, KnownModel] = {}
    for row in tomllib.loads(text)["model"]:
        known = KnownModel((row["name"], *row.get("also", ())), row["source"], read_config_values(row["config"]))
        if known.architecture.parameters != row["parameters"]:
            raise ModelError("parameters", f"{row['name']} has {known.architecture.parameters} by its shapes")
        for name in known.names:
            if name in models:
                raise ModelError("name", f"the catalogue names {name} twice")
            models[name] = known
    return MappingProxyType(dict(sorted(models.items())))


def _nearest(name: str, known: Mapping[str, str]) -> list[str]:
    """At most three: those whose last part is or begins as the name's, whoever publishes them, then by likeness."""
    last = name.rpartition("/")[2]
    same = [candidate for candidate in known if last and candidate.rpartition("/")[2].startswith(last)]
    same.sort(key=lambda candidate: (candidate.rpartition("/")[2] != last, candidate))
    alike = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return list(dict.fromkeys(same + alike))[:3]
