"""A thin asynchronous client of the API server: raw JSON in and out, typed errors, and only the calls that the
operator makes.

It uses the official client for what is hard to get right (kubeconfig, in-cluster credentials and their rotation,
TLS), and nothing of its object models: those cost time and memory, and drop fields that they do not know.

Status is written by server-side apply on the status subresource, not by a merge patch: what is sent *is* the status,
so a field that is no longer sent goes away by itself, and the managed fields tell whose it was.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config import ConfigException, load_incluster_config, load_kube_config

from medley_operator.kinds import Kind
from medley_operator.version import VERSION
from medley_operator.workloads.naming import FIELD_OWNER

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STRATEGIC_MERGE = "application/strategic-merge-patch+json"

REQUEST_TIMEOUT_S = 15.0
PAGE_SIZE = 250
CONNECTIONS = 32
TEMPORARY_CODES = frozenset({408, 425, 429, 500, 502, 503, 504})

Object = dict[str, Any]


class KubeError(Exception):
    """The API server did not do what was asked.

    Args:
        message: What it said.
        code: The HTTP status; 0 where there was no answer.
        reason: The machine-readable reason of the answer, such as `Forbidden`, or the kind of connection error.
    """

    def __init__(self, message: str, *, code: int, reason: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class TemporaryError(KubeError):
    """Nothing is known to be wrong with the request: the server is away, busy, or failed. Worth another try, later."""

    def __init__(self, message: str, *, code: int, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, code=code, reason=reason)
        self.retry_after_s = retry_after_s


class RefusedError(KubeError):
    """The server understood the request and refuses it; the same request will be refused again."""


class NotFoundError(RefusedError):
    """There is no such object."""


class ConflictError(RefusedError):
    """The object is not what the request assumes: look again, then decide again."""


ErrorObserver = Callable[[str, Kind, KubeError], None]
"""Is told the method, the kind and the error of every failed call."""


class ConfigurationError(Exception):
    """There is no usable way to an API server."""


async def load_configuration() -> Configuration:
    """How to reach the API server: `KUBECONFIG` where it is set, else the pod's service account, else ~/.kube/config.

    Raises:
        ConfigurationError: None of them is there, or it cannot be read; says which.
    """
    configuration = Configuration()
    configuration.connection_pool_maxsize = CONNECTIONS
    kubeconfig = os.environ.get("KUBECONFIG")
    try:
        if kubeconfig:
            await load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        elif os.environ.get("KUBERNETES_SERVICE_HOST"):
            load_incluster_config(client_configuration=configuration)
        else:
            await load_kube_config(client_configuration=configuration)
    except (ConfigException, OSError, ValueError) as error:
        source = kubeconfig or "this pod's service account or ~/.kube/config"
        raise ConfigurationError(f"no way to an API server by {source}: {error}") from error
    return configuration


class KubeClient:
    """Calls to one API server. To be closed, and to be used from the event loop that it was made in."""

    def __init__(self, configuration: Configuration, *, on_error: ErrorObserver | None = None) -> None:
        self._configuration = configuration
        self._api = ApiClient(configuration)
        self._api.user_agent = f"medley-operator/{VERSION}"
        self._on_error = on_error

    async def close(self) -> None:
        """Close all connections."""
        await self._api.close()

    async def get(
        self, kind: Kind, name: str, namespace: str | None = None, *, timeout_s: float | None = None
    ) -> Object:
        """One object. Raises NotFoundError where there is none."""
        return await self._call("GET", kind, kind.path(namespace, name), timeout_s=timeout_s)

    async def list_all(
        self, kind: Kind, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> tuple[list[Object], int]:
        """All objects of a kind, and the resource version at which the list was true."""
        items: list[Object] = []
        version = 0
        async for page, page_version in self.pages(
            kind, namespace, label_selector=label_selector, field_selector=field_selector
        ):
            items += page
            version = page_version
        return items, version

    async def pages(
        self, kind: Kind, namespace: str | None = None, *, label_selector: str = "", field_selector: str = ""
    ) -> AsyncIterator[tuple[list[Object], int]]:
        """As `list_all`, page by page, so that a large cluster is never wholly in memory.

        All pages show the same moment.
        """
        query = {"limit": str(PAGE_SIZE), "labelSelector": label_selector, "fieldSelector": field_selector}
        while True:
            page = await self._call("GET", kind, kind.path(namespace), query=query)
            metadata = page.get("metadata", {})
            yield page.get("items") or [], int(metadata.get("resourceVersion") or 0)
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def apply(
        self, kind: Kind, manifest: Mapping[str, Any], *, subresource: str | None = None, force: bool = True
    ) -> Object:
        """Server-side apply as the one field owner; with `force`, what others own of these fields is taken over.

        Raises:
            ConflictError: Without `force`, others own some of these fields; or the object has another uid or resource
            version.
        """
        metadata = manifest["metadata"]
        return await self._call(
            "PATCH",
            kind,
            kind.path(metadata.get("namespace"), metadata["name"], subresource),
            query={"fieldManager": FIELD_OWNER, "force": "true" if force else "false"},
            body={"apiVersion": kind.api_version, "kind": kind.kind, **manifest},
            content_type=APPLY,
        )

    async def patch(
        self,
        kind: Kind,
        name: str,
        namespace: str | None,
        body: Mapping[str, Any],
        *,
        subresource: str | None = None,
        strategic: bool = False,
    ) -> Object:
        """A merge patch; with `strategic`, lists with a merge key (a pod's conditions) are merged by it."""
        return await self._call(
            "PATCH",
            kind,
            kind.path(namespace, name, subresource),
            query={"fieldManager": FIELD_OWNER},
            body=body,
            content_type=STRATEGIC_MERGE if strategic else MERGE,
        )

    async def create(self, kind: Kind, manifest: Mapping[str, Any], *, timeout_s: float | None = None) -> Object:
        """Create an object. Raises ConflictError where it is there already."""
        return await self._call(
            "POST",
            kind,
            kind.path(manifest["metadata"].get("namespace")),
            query={"fieldManager": FIELD_OWNER},
            body={"apiVersion": kind.api_version, "kind": kind.kind, **manifest},
            timeout_s=timeout_s,
        )

    async def replace(self, kind: Kind, manifest: Mapping[str, Any], *, timeout_s: float | None = None) -> Object:
        """Replace an object. Raises ConflictError where it is not of the manifest's resource version any more."""
        metadata = manifest["metadata"]
        return await self._call(
            "PUT",
            kind,
            kind.path(metadata.get("namespace"), metadata["name"]),
            query={"fieldManager": FIELD_OWNER},
            body={"apiVersion": kind.api_version, "kind": kind.kind, **manifest},
            timeout_s=timeout_s,
        )

    async def delete(self, kind: Kind, name: str, namespace: str | None = None, *, uid: str) -> None:
        """Delete the object with this uid, and in the background what it owns.

        Raises NotFoundError where it is gone.
        """
        body = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        await self._call("DELETE", kind, kind.path(namespace, name), body=body)

    async def _call(
        self,
        method: str,
        kind: Kind,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        timeout_s: float | None = None,
    ) -> Object:
        try:
            url = path + _query_string(query or {})
            return await self._send(method, url, body, content_type, timeout_s or REQUEST_TIMEOUT_S)
        except KubeError as error:
            if self._on_error is not None:
                self._on_error(method, kind, error)
            raise

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        content_type: str,
        timeout_s: float,
    ) -> Object:
        url = self._configuration.host + path
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": self._api.user_agent}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._api.rest_client.request(
                    method, url, headers=headers, body=body, _request_timeout=timeout_s
                )
                content = await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            message = f"{method} {path}: {str(error) or 'no answer in time'}"
            raise TemporaryError(message, code=0, reason=type(error).__name__) from error
        if response.status >= 400:
            raise _error(f"{method} {path}", response.status, content, response.headers.get("Retry-After"))
        answer: Object = json.loads(content) if content else {}
        return answer


def _query_string(query: Mapping[str, str]) -> str:
    words = urlencode({key: value for key, value in query.items() if value})
    return f"?{words}" if words else ""


def _error(what: str, code: int, content: bytes, retry_after: str | None) -> KubeError:
    reason, message = "Unknown", content[:500].decode(errors="replace")
    try:
        status = json.loads(content)
    except ValueError:
        status = None
    if isinstance(status, dict):
        reason, message = status.get("reason") or reason, status.get("message") or message
    text = f"{what}: {code} {reason}: {message}"
    if code in TEMPORARY_CODES:
        delay_s = float(retry_after) if retry_after and retry_after.isdigit() else None
        return TemporaryError(text, code=code, reason=reason, retry_after_s=delay_s)
    kinds: dict[int, type[RefusedError]] = {404: NotFoundError, 409: ConflictError}
    return kinds.get(code, RefusedError)(text, code=code, reason=reason)
