"""Certificates of one cluster, made with the openssl command. Every cluster has an authority of its own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from medley_cluster.toolchain import run_checked

VALID_DAYS = "365"


class CertificateAuthority:
    """Issues elliptic-curve certificates (fast to make) into one folder; what is there is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.certificate = folder / "ca.crt"
        self.key = folder / "ca.key"
        self._one_at_a_time = threading.Lock()

    def create(self) -> None:
        """Make the authority unless it exists."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        if not self.certificate.exists():
            extensions = [
                "-addext",
                "basicConstraints=critical,CA:TRUE",
                "-addext",
                "keyUsage=critical,keyCertSign,cRLSign",
            ]
            self._request("ca", "/CN=medley-cluster-ca", extensions, signed=False)

    def issue(
        self, name: str, common_name: str, organization: str | None = None, hosts: Sequence[str] = ()
    ) -> tuple[Path, Path]:
        """The certificate and key called `name`: for a client (a user and its group), a server (its hosts), or both."""
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        with self._one_at_a_time:
            if certificate.exists():
                return certificate, key
            subject = (f"/O={organization}" if organization else "") + f"/CN={common_name}"
            extensions = ["-addext", "basicConstraints=critical,CA:FALSE"]
            extensions += ["-addext", "extendedKeyUsage=clientAuth,serverAuth"]
            if hosts:
                names = [("IP:" if host.replace(".", "").isdigit() else "DNS:") + host for host in hosts]
                extensions += ["-addext", f"subjectAltName={','.join(names)}"]
            self._request(name, subject, extensions, signed=True)
        return certificate, key

    def service_account_key(self) -> Path:
        """The key that signs ServiceAccount tokens."""
        key = self.folder / "service-accounts.key"
        if not key.exists():
            run_checked(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key)])
        return key

    def _request(self, name: str, subject: str, extensions: list[str], signed: bool) -> None:
        certificate, key = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc"]
        argv += ["-days", VALID_DAYS, "-subj", subject, "-keyout", str(key), "-out", f"{certificate}.new"]
        argv += ["-CA", str(self.certificate), "-CAkey", str(self.key)] if signed else []
        run_checked([*argv, *extensions])
        key.chmod(0o600)
        Path(f"{certificate}.new").rename(certificate)
