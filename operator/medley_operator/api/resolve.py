"""Judge what one object alone cannot know: the pools, profiles, presets and traces that a service names (pure).

What the API server accepts can still make no sense among the other objects of the cluster. Every such mistake is a
`Problem` value: the operator puts it into a condition, the command prints it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from medley_operator.api import problems as reasons
from medley_operator.api.catalogue import catalogue_id, catalogue_profile
from medley_operator.api.gpupool import GPUPool
from medley_operator.api.llmservice import LLMService
from medley_operator.api.modelprofile import ModelProfile
from medley_operator.api.problems import Problem, hint, nearest
from medley_operator.api.sizes import resolve_sizes
from medley_operator.api.traces import TraceKey
from medley_operator.workloads.arguments import refused_arguments
from medley_planner.catalogue.gpus import GPUType, UnknownGPUTypeError, gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import DATA_TYPE_BYTES, ModelArchitecture, ModelError, ThroughputPoint
from medley_planner.workload.sizes import SizeHistogram

COMPUTES_IN_BITS = {"fp8": 8, "int8": 8, "nvfp4": 8, "int4": 16, "mxfp4": 16}
"""Width of the inputs of matrix products with quantised weights; int4 and mxfp4 weights are widened."""


@dataclass(frozen=True)
class Surroundings:
    """The other objects of the cluster, by name.

    `traces` holds the ConfigMaps that services refer to, read by `traces.histogram_of_config_map`.
    """

    pools: Mapping[str, GPUPool]
    profiles: Mapping[str, ModelProfile]
    traces: Mapping[TraceKey, SizeHistogram | Problem] = field(default_factory=dict)


@dataclass(frozen=True)
class ResolvedProfile:
    """A profile in the planner's terms."""

    architecture: ModelArchitecture
    measurements: tuple[ThroughputPoint, ...]


@dataclass(frozen=True)
class ResolvedService:
    """A service with everything that it names, ready for the planner.

    Args:
        service: The service.
        model_profile: Its ModelProfile: one of the cluster, or one made from the catalogue.
        from_catalogue: Whether it is the latter.
        profile: That profile in the planner's terms.
        sizes: Its request sizes.
        pools: The pools that it may use, sorted.
    """

    service: LLMService
    model_profile: ModelProfile
    from_catalogue: bool
    profile: ResolvedProfile
    sizes: SizeHistogram
    pools: tuple[str, ...]

    @property
    def model_source(self) -> str:
        """Where the model's facts come from, in words."""
        return "catalogue" if self.from_catalogue else f"ModelProfile {self.model_profile.name}"


def resolve_pool(pool: GPUPool) -> GPUType | Problem:
    """The type of a pool's GPUs, or what is wrong with it."""
    gpu = pool.spec.gpu
    try:
        known = gpu_type(gpu.type)
    except UnknownGPUTypeError as error:
        if gpu.memory_gib is None or gpu.memory_bandwidth_gbps is None or gpu.teraflops is None:
            return Problem(
                reasons.UNKNOWN_GPU_TYPE,
                "spec.gpu.type",
                f"{error}; for a type of your own, give memoryGiB, memoryBandwidthGBps and teraflops",
            )
        return GPUType.of(
            gpu.type,
            memory_gib=gpu.memory_gib,
            memory_bandwidth_gb_per_s=gpu.memory_bandwidth_gbps,
            teraflops=gpu.teraflops,
        )
    if gpu.memory_gib is None or gpu.memory_bandwidth_gbps is None or gpu.teraflops is None:
        return known
    given = GPUType.of(
        known.name,
        memory_gib=gpu.memory_gib,
        memory_bandwidth_gb_per_s=gpu.memory_bandwidth_gbps,
        teraflops=gpu.teraflops,
    )
    return dataclasses.replace(
        given, link_bandwidth_bytes_per_s=known.link_bandwidth_bytes_per_s, product_labels=known.product_labels
    )


def same_nodes_problem(pool: GPUPool, pools: Mapping[str, GPUPool]) -> Problem | None:
    """That another pool, first in the order of names, selects the very same nodes; None where none does.

    Their GPUs would be counted twice. Empty selectors say nothing about nodes, as in a file of prices.
    """
    for name, other in sorted(pools.items()):
        if name >= pool.name or not pool.spec.node_selector:
            continue
        if (other.spec.node_selector, other.spec.resource_name) == (pool.spec.node_selector, pool.spec.resource_name):
            return Problem(
                reasons.SAME_NODES,
                "spec.nodeSelector",
                f"selects the same nodes as GPUPool {name}: their GPUs would count twice; add a label that differs",
            )
    return None


def resolve_profile(profile: ModelProfile) -> ResolvedProfile | Problem:
    """A profile in the planner's terms, or what is wrong with it."""
    facts = profile.spec.architecture
    cached = facts.key_value_data_type or ("bf16" if facts.data_type in COMPUTES_IN_BITS else facts.data_type)
    try:
        architecture = ModelArchitecture(
            parameters=facts.parameters,
            active_parameters=facts.active_parameters,
            layers=facts.layers,
            hidden_size=facts.hidden_size,
            attention_heads=facts.attention_heads,
            key_value_heads=facts.key_value_heads,
            head_size=facts.head_size,
            experts=facts.experts or 0,
            active_experts=facts.active_experts or 0,
            weight_bytes_per_parameter=facts.bytes_per_parameter or DATA_TYPE_BYTES[facts.data_type],
            expert_bytes_per_parameter=facts.bytes_per_expert_parameter,
            computes_in_bits=COMPUTES_IN_BITS.get(facts.data_type),
            lookup_parameters=facts.lookup_parameters or 0,
            latent_size=facts.latent_size or 0,
            window_layers=facts.window_layers or 0,
            window_tokens=facts.window_tokens or 0,
            constant_layers=facts.constant_layers or 0,
            state_bytes_per_request=facts.state_bytes_per_request or 0.0,
            key_value_bytes_per_element=DATA_TYPE_BYTES[cached],
            max_context_tokens=facts.max_context_tokens,
        )
    except ModelError as error:
        return Problem(reasons.INVALID_PROFILE, f"spec.architecture.{_camel(error.field)}", error.problem)
    return ResolvedProfile(architecture, tuple(_throughput_points(profile)))


def resolve_service(service: LLMService, around: Surroundings) -> ResolvedService | tuple[Problem, ...]:
    """A service with everything that it names, or all that is wrong with it, in the order of the fields."""
    found: list[Problem] = []
    source = find_profile(service, around.profiles)
    profile = _profile(service, source)
    sizes = resolve_sizes(service, around.traces)
    pools = _pools(service, around)
    found += [part for part in (profile,) if isinstance(part, Problem)]
    if isinstance(profile, ResolvedProfile):
        found += _context_problems(service, profile.architecture)
    found += _argument_problems(service)
    if isinstance(sizes, Problem):
        found.append(sizes)
    if isinstance(pools, list):
        found += pools
    else:
        found += _parallelism_problems(service, pools, around)
        found += _scaling_problems(service, pools, around)
    if found or isinstance(source, Problem) or isinstance(profile, Problem):
        return tuple(found)
    assert not isinstance(sizes, Problem)
    assert not isinstance(pools, list)
    from_catalogue = around.profiles.get(source.name) is not source
    return ResolvedService(service, source, from_catalogue, profile, sizes, pools)


def find_profile(service: LLMService, profiles: Mapping[str, ModelProfile]) -> ModelProfile | Problem:
    """The profile of a service: the one that it names, else the one of its model, else one from the catalogue."""
    model = service.spec.model
    if model.profile is not None:
        if model.profile in profiles:
            return profiles[model.profile]
        message = f"there is no ModelProfile {model.profile!r}{hint(model.profile, profiles)}"
        return Problem(reasons.PROFILE_NOT_FOUND, "spec.model.profile", message)
    matching = sorted(name for name, profile in profiles.items() if profile.spec.model == model.name)
    if len(matching) == 1:
        return profiles[matching[0]]
    if matching:
        message = f"must be given: several ModelProfiles have spec.model {model.name!r}: {', '.join(matching)}"
        return Problem(reasons.AMBIGUOUS_PROFILE, "spec.model.profile", message)
    known = catalogue_profile(model)
    if known is not None:
        return known
    asked = catalogue_id(model)
    also = "" if asked == model.name else f" (nor {asked!r})"
    names = {profile.spec.model for profile in profiles.values()} | set(known_models())
    alike = " or ".join(nearest(model.name, names))
    message = (
        f"no ModelProfile has spec.model {model.name!r}, and the catalogue does not know it{also}; "
        + (f"did you mean {alike}? Else " if alike else "")
        + "apply a ModelProfile: `medley model` makes one of the model's config.json"
    )
    return Problem(reasons.PROFILE_NOT_FOUND, "spec.model.name", message)


def _profile(service: LLMService, source: ModelProfile | Problem) -> ResolvedProfile | Problem:
    if isinstance(source, Problem):
        return source
    made = resolve_profile(source)
    if isinstance(made, Problem):
        where = "spec.model.profile" if service.spec.model.profile else "spec.model.name"
        return Problem(reasons.INVALID_PROFILE, where, f"ModelProfile {source.name} cannot be used: {made}")
    return made


def _pools(service: LLMService, around: Surroundings) -> tuple[str, ...] | list[Problem]:
    """The pools that a service may use, sorted, or what is wrong with them."""
    gpus = service.spec.gpus
    if gpus.pools is not None:
        named = {f"spec.gpus.pools[{place}]": name for place, name in enumerate(gpus.pools)}
        found = [_pool_problem(where, name, around) for where, name in named.items()]
        wrong = [problem for problem in found if problem is not None]
        return wrong or tuple(sorted(named.values()))
    usable = {name for name, pool in around.pools.items() if not isinstance(resolve_pool(pool), Problem)}
    if gpus.pool_selector is not None:
        wanted = gpus.pool_selector.match_labels
        usable = {name for name in usable if wanted.items() <= around.pools[name].metadata.labels.items()}
    if usable:
        return tuple(sorted(usable))
    if gpus.pool_selector is None:
        return [Problem(reasons.NO_POOL_MATCHES, "spec.gpus", "there is no usable GPUPool; create one with its price")]
    labels = ", ".join(f"{key}={value}" for key, value in sorted(gpus.pool_selector.match_labels.items()))
    message = f"no usable GPUPool has the labels {labels}"
    return [Problem(reasons.NO_POOL_MATCHES, "spec.gpus.poolSelector.matchLabels", message)]


def _pool_problem(where: str, name: str, around: Surroundings) -> Problem | None:
    if name not in around.pools:
        return Problem(reasons.UNKNOWN_POOL, where, f"there is no GPUPool {name!r}{hint(name, around.pools)}")
    made = resolve_pool(around.pools[name])
    if isinstance(made, Problem):
        return Problem(reasons.INVALID_POOL, where, f"GPUPool {name} cannot be used: {made}")
    return None


def _parallelism_problems(service: LLMService, pools: tuple[str, ...], around: Surroundings) -> list[Problem]:
    sizes = service.spec.gpus.tensor_parallel
    largest = max(around.pools[name].spec.gpus_per_node for name in pools)
    if sizes is None or min(sizes) <= largest:
        return []
    listed = " and ".join(str(size) for size in sorted(sizes))
    message = f"{listed}: no allowed GPUPool has so many GPUs on a node; the largest has {largest}"
    return [Problem(reasons.TENSOR_PARALLEL_TOO_LARGE, "spec.gpus.tensorParallel", message)]


def _scaling_problems(service: LLMService, pools: tuple[str, ...], around: Surroundings) -> list[Problem]:
    scaling = service.spec.scaling
    found = []
    for place, bounds in enumerate(scaling.pools):
        where = f"spec.scaling.pools[{place}].name"
        if bounds.name not in around.pools:
            message = f"there is no GPUPool {bounds.name!r}{hint(bounds.name, around.pools)}"
            found.append(Problem(reasons.UNKNOWN_POOL, where, message))
        elif bounds.name not in pools:
            message = f"spec.gpus does not allow GPUPool {bounds.name!r}{hint(bounds.name, pools)}"
            found.append(Problem(reasons.POOL_NOT_ALLOWED, where, message))
    least = sum(bounds.min_replicas or 0 for bounds in scaling.pools)
    if scaling.max_replicas is not None and least > scaling.max_replicas:
        message = f"the pools' minReplicas add up to {least}, more than spec.scaling.maxReplicas {scaling.max_replicas}"
        found.append(Problem(reasons.BOUNDS_CONTRADICT, "spec.scaling.pools", message))
    return found


def _context_problems(service: LLMService, model: ModelArchitecture) -> list[Problem]:
    """That requests, or the context asked for, are longer than the model was made for."""
    asked = service.spec.model.max_context_tokens
    if asked is not None and asked > model.max_context_tokens:
        message = f"{asked} is more than the {model.max_context_tokens} tokens of the model's profile"
        return [Problem(reasons.CONTEXT_TOO_LONG, "spec.model.maxContextTokens", message)]
    longest = asked or model.max_context_tokens
    return [
        Problem(
            reasons.CONTEXT_TOO_LONG,
            f"spec.workload.sizes.histogram[{place}]",
            f"{entry.input_tokens} + {entry.output_tokens} tokens are more than the context of {longest}",
        )
        for place, entry in enumerate(service.spec.workload.sizes.histogram or ())
        if entry.input_tokens + entry.output_tokens > longest
    ]


def _argument_problems(service: LLMService) -> list[Problem]:
    engine = service.spec.engine
    return [
        Problem(
            reasons.RESERVED_ARGUMENT,
            f"spec.engine.args[{refused.index}]",
            f"{refused.argument} is set by Medley: {refused.instead}",
        )
        for refused in refused_arguments(engine.type, engine.args or ())
    ]


def _throughput_points(profile: ModelProfile) -> list[ThroughputPoint]:
    return [
        ThroughputPoint(
            gpu=_catalogue_name(measurement.gpu),
            tensor_parallel=measurement.tensor_parallel,
            pipeline_parallel=measurement.parallelism.pipeline,
            data_parallel=measurement.parallelism.data,
            engine=measurement.engine,
            input_tokens=point.input_tokens,
            output_tokens=point.output_tokens,
            requests_per_second=point.requests_per_second,
            time_per_output_token_s=point.time_per_output_token_ms / 1e3,
            time_to_first_token_s=point.time_to_first_token_ms / 1e3,
        )
        for measurement in profile.spec.measurements
        for point in measurement.points
    ]


def _catalogue_name(name: str) -> str:
    """The catalogue's spelling of a GPU type; one that it does not hold is a pool's own."""
    try:
        return gpu_type(name).name
    except UnknownGPUTypeError:
        return name


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
