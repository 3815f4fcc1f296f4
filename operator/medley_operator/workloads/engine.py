"""What differs between engines: image, command line, environment, user, and how their health is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from medley_operator.api.modelprofile import Architecture
from medley_operator.workloads.arguments import Argument
from medley_planner.fleet import Parallelism


@dataclass(frozen=True)
class Launch:
    """Everything that an engine's command line depends on.

    Args:
        model: Repository on the hub, or the mounted folder of the weights.
        revision: Revision on the hub; None for its main branch, and for a folder.
        served_name: The model's id that clients send.
        architecture: Facts of the model.
        context_tokens: Longest input and output together that a request may have.
        gpu_type: Type of the GPUs, as the pool names it.
        resource_name: The GPUs' name as a resource of the node; tells AMD's from NVIDIA's.
        parallelism: How the replica's GPUs share the work.
        port: Port to serve on.
        drain_timeout_s: How long requests in flight may take to finish after SIGTERM.
    """

    model: str
    revision: str | None
    served_name: str
    architecture: Architecture
    context_tokens: int
    gpu_type: str
    resource_name: str
    parallelism: Parallelism
    port: int
    drain_timeout_s: int

    @property
    def is_amd(self) -> bool:
        """Whether the GPUs are AMD's, which need another build of the engine."""
        return self.resource_name.startswith("amd.com/")


@dataclass(frozen=True)
class EngineRuntime:
    """How an engine is run for one variant.

    Args:
        image: Image that is used where the service names none.
        command: Entry point; empty for the image's own.
        arguments: Medley's arguments, in order.
        environment: Medley's environment variables.
        health_path: Answers 200 while the engine can serve.
        health_timeout_s: How long that answer may take.
        user_id: User and group to run as; None for the image's own user.
        home: Folder to mount as the user's home; empty for the image's own.
    """

    image: str
    arguments: tuple[Argument, ...]
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    health_path: str = "/health"
    health_timeout_s: int = 5
    user_id: int | None = None
    home: str = ""


def lacks_bf16(gpu_type: str) -> bool:
    """Whether GPUs of this type are older than Ampere (compute capability 8.0), the first with bfloat16 arithmetic."""
    return gpu_type.upper().startswith(("T4", "V100"))
