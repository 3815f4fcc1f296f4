"""The Deployment of one variant of a service at one revision of its pod template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medley_operator.api.gpupool import GPUPool
    from medley_operator.api.llmservice import LLMService
    from medley_operator.api.modelprofile import ModelProfile


def deployment(
    service: LLMService, pool: GPUPool, profile: ModelProfile, *, tensor_parallel: int, replicas: int
) -> dict[str, Any]:
    """The Deployment that runs `replicas` replicas of `service` on `tensor_parallel` GPUs of `pool` each.

    Its name ends on a digest of the pod template: another image or argument is another Deployment, to which replicas are moved.
    """
    raise NotImplementedError
