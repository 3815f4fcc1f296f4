"""What the command reads from a cluster, through the official client: raw JSON, one call each.

The client is imported when a cluster is really asked: it takes longer to load than `medley plan` to run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from medley_operator.api import GROUP, VERSION
from medley_operator.kinds import CONFIG_MAPS, Kind

TIMEOUT_S = 20.0
PAGE_SIZE = 500


class ClusterError(Exception):
    """The cluster cannot be reached, or refuses; the message is for people. `code` is the HTTP status, 0 for none."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Connection:
    """Where a cluster is: a kubeconfig and context as kubectl takes them, or the pod's own cluster where there is none.

    Args:
        kubeconfig: Path of a kubeconfig; None for $KUBECONFIG, ~/.kube/config, or the pod's service account.
        context: Context in it; None for the current one.
    """

    kubeconfig: str | None = None
    context: str | None = None


class Cluster:
    """Reads objects of a cluster.

    Raises:
        ClusterError: There is no usable configuration.
    """

    def __init__(self, connection: Connection) -> None:
        from kubernetes import client, config  # noqa: PLC0415 - slow to import, and often not needed
        from kubernetes.config import ConfigException  # noqa: PLC0415

        settings = client.Configuration()
        try:
            config.load_config(
                config_file=connection.kubeconfig, context=connection.context, client_configuration=settings
            )
        except (ConfigException, OSError) as error:
            raise ClusterError(f"no cluster is configured: {error}") from None
        settings.retries = False
        self._client = client.ApiClient(settings)
        self.namespace = _current_namespace(connection)

    def llm_service(self, namespace: str, name: str) -> dict[str, Any]:
        """One LLMService as JSON; ClusterError with code 404 where there is none."""
        return self._get(f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/llmservices/{name}")

    def llm_service_names(self, namespace: str) -> list[str]:
        """The names of all LLMServices of a namespace, sorted."""
        listed = self._list(f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/llmservices")
        return sorted(str(item["metadata"]["name"]) for item in listed)

    def nodes(self) -> list[dict[str, Any]]:
        """All nodes as JSON."""
        return self._list("/api/v1/nodes")

    def objects(self, kind: Kind) -> list[dict[str, Any]]:
        """All objects of a kind as JSON."""
        return self._list(kind.path())

    def config_map_data(self, namespace: str, name: str) -> dict[str, str] | None:
        """What a ConfigMap holds; None where there is none of that name."""
        try:
            data: dict[str, str] = self._get(CONFIG_MAPS.path(namespace, name)).get("data") or {}
        except ClusterError as error:
            if error.code == 404:
                return None
            raise
        return data

    def _list(self, path: str) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        page = ""
        while True:
            query = {"limit": str(PAGE_SIZE), **({"continue": page} if page else {})}
            answer = self._get(path, query)
            items += answer.get("items", [])
            page = answer.get("metadata", {}).get("continue", "")
            if not page:
                return items

    def _get(self, path: str, query: dict[str, str] | None = None) -> dict[str, Any]:
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415
        from urllib3.exceptions import HTTPError  # noqa: PLC0415

        try:
            response = self._client.param_serialize("GET", path, query_params=list((query or {}).items()))
            answer = self._client.call_api(*response, _request_timeout=TIMEOUT_S)
            body = answer.read()
            answer.response.release_conn()
        except ApiException as error:
            raise ClusterError(_said(error.body) or str(error.reason), int(error.status or 0)) from None
        except (HTTPError, OSError) as error:
            raise ClusterError(f"the API server cannot be reached: {error}") from None
        if not 200 <= answer.status < 300:
            raise ClusterError(_said(body) or f"HTTP status {answer.status}", answer.status)
        try:
            made: dict[str, Any] = json.loads(body)
        except ValueError:
            raise ClusterError("answered with something that is not JSON: is this an API server?") from None
        return made


def _said(body: bytes | str | None) -> str:
    """The message of a Status object that the API server answered with."""
    try:
        status = json.loads(body or "")
    except ValueError:
        return ""
    return str(status.get("message", "")) if isinstance(status, dict) else ""


def _current_namespace(connection: Connection) -> str:
    """The namespace of the context, as kubectl takes it; `default` where it names none."""
    from kubernetes.config import ConfigException, list_kube_config_contexts  # noqa: PLC0415

    try:
        contexts, active = list_kube_config_contexts(config_file=connection.kubeconfig)
    except ConfigException:
        return "default"
    chosen = next((each for each in contexts if each["name"] == connection.context), active)
    return str(chosen.get("context", {}).get("namespace") or "default")
