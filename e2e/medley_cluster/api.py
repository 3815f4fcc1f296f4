"""The few API calls that the harness itself makes: HTTP with the administrator's certificate, no client library."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml

Manifest = dict[str, Any]

_COLLECTIONS = {
    "ClusterRole": "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ConfigMap": "api/v1/namespaces/{namespace}/configmaps",
    "Deployment": "apis/apps/v1/namespaces/{namespace}/deployments",
    "Namespace": "api/v1/namespaces",
    "Node": "api/v1/nodes",
    "Pod": "api/v1/namespaces/{namespace}/pods",
    "PriorityClass": "apis/scheduling.k8s.io/v1/priorityclasses",
    "Service": "api/v1/namespaces/{namespace}/services",
    "ServiceAccount": "api/v1/namespaces/{namespace}/serviceaccounts",
}


class ApiClient:
    """Kubernetes over httpx. Errors carry the API server's own message."""

    def __init__(self, server: str, authority: Path, certificate: Path, key: Path) -> None:
        context = ssl.create_default_context(cafile=str(authority))
        context.load_cert_chain(str(certificate), str(key))
        self._http = httpx.Client(base_url=server, verify=context, timeout=10.0, trust_env=False)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def ready(self) -> bool:
        """Whether the API server says that it can serve."""
        try:
            return self._http.get("/readyz", timeout=2.0).status_code == 200
        except httpx.HTTPError:
            return False

    def get(self, path: str, **query: str) -> Any:
        """The object or list at a path."""
        return self._call("GET", path, query=query)

    def find(self, path: str) -> Any | None:
        """The object at a path, or None where there is none."""
        response = self._http.get(path)
        return None if response.status_code == 404 else _checked(response)

    def create(self, manifest: Manifest) -> bool:
        """Create the object unless it exists; whether it was created."""
        response = self._http.post(_collection(manifest), json=manifest)
        if response.status_code == 409:
            return False
        _checked(response)
        return True

    def apply(self, manifest: Manifest) -> None:
        """Server-side apply, so that a second bring-up changes nothing."""
        path = f"{_collection(manifest)}/{manifest['metadata']['name']}"
        query = {"fieldManager": "medley-cluster", "force": "true"}
        response = self._http.patch(
            path, params=query, content=json.dumps(manifest), headers={"content-type": "application/apply-patch+yaml"}
        )
        _checked(response)

    def apply_all(self, documents: str) -> None:
        """Apply every document of a YAML text."""
        for manifest in yaml.safe_load_all(documents):
            if manifest:
                self.apply(manifest)

    def patch(self, path: str, change: Mapping[str, Any]) -> Any:
        """Change fields of an object by a strategic merge."""
        headers = {"content-type": "application/strategic-merge-patch+json"}
        return _checked(self._http.patch(path, content=json.dumps(change), headers=headers))

    def delete(self, path: str, grace_period_s: int | None = None) -> None:
        """Delete the object at a path; it is fine if there is none."""
        query = {} if grace_period_s is None else {"gracePeriodSeconds": str(grace_period_s)}
        response = self._http.delete(path, params=query)
        if response.status_code != 404:
            _checked(response)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Post to a path, such as a subresource."""
        return _checked(self._http.post(path, json=body))

    def _call(self, method: str, path: str, query: Mapping[str, str]) -> Any:
        return _checked(self._http.request(method, path, params=dict(query)))


def _collection(manifest: Manifest) -> str:
    template = _COLLECTIONS[manifest["kind"]]
    return "/" + template.format(namespace=manifest["metadata"].get("namespace", "default"))


def _checked(response: httpx.Response) -> Any:
    if response.is_error:
        try:
            message = response.json().get("message", response.text)
        except json.JSONDecodeError:
            message = response.text
        raise httpx.HTTPStatusError(
            f"{response.request.method} {response.request.url.path}: {response.status_code} {message}",
            request=response.request,
            response=response,
        )
    return response.json()
