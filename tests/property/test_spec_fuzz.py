"""2,000 generated manifests, valid, broken and wild, against the models: accepted, or refused by a named field."""

from __future__ import annotations

import os
import sys

import pytest
import yaml

import spec_generator
from medley_operator.api.manifest import FieldError, InvalidManifestError, parse_any
from medley_operator.cli.yaml_documents import documents

COUNT = 2_000


@pytest.fixture(scope="module")
def seed() -> int:
    """Another one each day would hide what broke: fixed, unless MEDLEY_SEED asks for another."""
    chosen = int(os.environ.get("MEDLEY_SEED", "20260401"))
    sys.stdout.write(f"MEDLEY_SEED={chosen}\n")
    return chosen


def errors_of(manifest: dict) -> tuple[FieldError, ...]:
    try:
        parse_any(manifest)
    except InvalidManifestError as error:
        return error.errors
    return ()


def test_valid_specs_are_accepted(seed: int) -> None:
    refused = [
        (made.manifest, [str(error) for error in errors])
        for made in spec_generator.generate(seed, COUNT)
        if made.kind == "valid" and (errors := errors_of(made.manifest))
    ]
    assert refused == []


def test_broken_specs_are_refused_by_the_field_that_is_wrong(seed: int) -> None:
    seen = set()
    for made in spec_generator.generate(seed, COUNT):
        if made.kind != "broken":
            continue
        fields = {error.field for error in errors_of(made.manifest)}
        assert made.is_named_by(fields), f"{made.mistake}: refused for {fields}, not for {made.field}"
        seen.add(made.mistake)
    total = len(spec_generator.SERVICE_MISTAKES + spec_generator.POOL_MISTAKES + spec_generator.PROFILE_MISTAKES)
    assert len(seen) > 0.9 * total


def test_wild_specs_are_accepted_or_refused_with_a_field_and_never_crash(seed: int) -> None:
    accepted = refused = 0
    for made in spec_generator.generate(seed, COUNT):
        if made.kind != "wild":
            continue
        errors = errors_of(made.manifest)
        assert all(error.field and error.message for error in errors)
        accepted, refused = (accepted, refused + 1) if errors else (accepted + 1, refused)
    assert accepted > 50
    assert refused > 50


def test_the_same_seed_gives_the_same_specs() -> None:
    assert list(spec_generator.generate(7, 50)) == list(spec_generator.generate(7, 50))


def test_a_manifest_reads_the_same_from_yaml_as_kubectl_would_send_it(seed: int) -> None:
    for made in spec_generator.generate(seed, 300):
        (document,) = documents(yaml.safe_dump(made.manifest, allow_unicode=True))
        assert document.value == made.manifest
