"""From API values to Kubernetes manifests: pure functions, one per kind of object.

A variant of a service (a pool, a tensor parallel size) runs as one Deployment per revision of its pod template;
all variants of a service share one Service and one PodDisruptionBudget.
The manifests are plain dictionaries, complete for server-side apply, and the same input gives the same manifest.
"""

from medley_operator.workloads.arguments import RefusedArgument, refused_arguments, reserved_arguments
from medley_operator.workloads.custom import PodTemplateError
from medley_operator.workloads.deployment import deployment, pod_template
from medley_operator.workloads.disruption import pod_disruption_budget
from medley_operator.workloads.service import endpoint_url, service

__all__ = [
    "PodTemplateError",
    "RefusedArgument",
    "deployment",
    "endpoint_url",
    "pod_disruption_budget",
    "pod_template",
    "refused_arguments",
    "reserved_arguments",
    "service",
]
