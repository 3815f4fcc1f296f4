"""ModelProfiles that nobody wrote: of models in the planner's catalogue, and of a `config.json` (pure)."""

from __future__ import annotations

import re

from medley_operator.api.llmservice import Model
from medley_operator.api.metadata import ObjectMeta
from medley_operator.api.modelprofile import Architecture, DataType, ModelProfile, ModelProfileSpec
from medley_planner.catalogue.config_json import ModelReading
from medley_planner.catalogue.known_models import KnownModel, UnknownModelError, known_model
from medley_planner.catalogue.models import DATA_TYPE_BYTES

MAX_NAME = 63

_TYPES: dict[str, DataType] = {"fp8": "fp8", "int8": "int8", "int4": "int4", "mxfp4": "mxfp4", "nvfp4": "nvfp4"}


def catalogue_id(model: Model) -> str:
    """The id under which the catalogue may know a service's model: its repository on the hub, else its name."""
    source = model.effective_source.hugging_face
    return model.name if source is None or source.repository is None else source.repository


def catalogue_profile(model: Model) -> ModelProfile | None:
    """The profile of a service's model from the catalogue; None where the catalogue does not know it."""
    try:
        known = known_model(catalogue_id(model))
    except UnknownModelError:
        return None
    return profile_of(model.name, known.reading)


def known_profile(known: KnownModel, name: str) -> ModelProfile:
    """The profile of a model in the catalogue, under one of its ids."""
    return profile_of(name, known.reading)


def profile_of(model: str, reading: ModelReading) -> ModelProfile:
    """The profile of a model whose `config.json` was read; resolved again it is the same architecture."""
    facts = reading.architecture
    data_type = _TYPES.get(reading.data_type, "bf16" if reading.data_type == "bf16" else "int4")
    plain = facts.weight_bytes_per_parameter == DATA_TYPE_BYTES[data_type]
    return ModelProfile(
        metadata=ObjectMeta(name=profile_name(model)),
        spec=ModelProfileSpec(
            model=model,
            architecture=Architecture(
                parameters=facts.parameters,
                active_parameters=facts.active_parameters,
                layers=facts.layers,
                hidden_size=facts.hidden_size,
                attention_heads=facts.attention_heads,
                key_value_heads=facts.key_value_heads,
                head_size=facts.head_size,
                experts=facts.experts or None,
                active_experts=facts.active_experts or None,
                data_type=data_type,
                bytes_per_parameter=None if plain else facts.weight_bytes_per_parameter,
                bytes_per_expert_parameter=facts.expert_bytes_per_parameter,
                lookup_parameters=facts.lookup_parameters or None,
                latent_size=facts.latent_size or None,
                window_layers=facts.window_layers or None,
                window_tokens=facts.window_tokens or None,
                constant_layers=facts.constant_layers or None,
                state_bytes_per_request=facts.state_bytes_per_request or None,
                max_context_tokens=facts.max_context_tokens,
            ),
        ),
    )


def profile_name(model: str) -> str:
    """A name for the profile of a model: the last part of its id, as Kubernetes takes it."""
    last = model.rpartition("/")[2].lower()
    name = re.sub(r"[^a-z0-9.]+", "-", last)
    name = re.sub(r"-*\.[-.]*", ".", name)[:MAX_NAME].strip("-.")
    return name or "model"
