"""Kubeconfig files: for the administrator, for components, and for tests that act as somebody else."""

from __future__ import annotations

from pathlib import Path

from medley_cluster.files import write_yaml


def write_kubeconfig(
    path: Path,
    *,
    server: str,
    authority: Path,
    user: str,
    certificate: Path | None = None,
    key: Path | None = None,
    token: str | None = None,
    namespace: str = "default",
) -> Path:
    """Write a kubeconfig whose one user proves itself by a certificate or by a token."""
    credentials: dict[str, str] = {}
    if certificate and key:
        credentials = {"client-certificate": str(certificate), "client-key": str(key)}
    if token:
        credentials["token"] = token
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "medley", "cluster": {"server": server, "certificate-authority": str(authority)}}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "medley", "context": {"cluster": "medley", "user": user, "namespace": namespace}}],
        "current-context": "medley",
    }
    write_yaml(path, content, mode=0o600)
    return path
