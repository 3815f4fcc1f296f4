"""Architectures of well-known open models, by hub id, from `data/models.toml`; each row there names its source."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType

from medley_planner.models import ModelArchitecture, ModelError


@functools.cache
def known_models() -> Mapping[str, ModelArchitecture]:
    """All known architectures by hub id, sorted; the mapping cannot be changed."""
    text = resources.files("medley_planner").joinpath("data", "models.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["model"]
    models = {
        row["name"]: ModelArchitecture(**{field: row[field] for field in row if field not in {"name", "source"}})
        for row in rows
    }
    if len(models) != len(rows):
        raise ModelError("name", "the catalogue names a model twice")
    return MappingProxyType(dict(sorted(models.items())))
