"""etcd, kube-apiserver, kube-controller-manager and kube-scheduler as processes of their own, tuned for tests.

Tuned means: nothing is synced to disk, failures are noticed in seconds and retried soon.
Semantics stay those of a real cluster: RBAC and node authorization, admission with PodSecurity and NodeRestriction.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medley_cluster.addresses import Addresses
from medley_cluster.api import ApiClient
from medley_cluster.files import write_yaml
from medley_cluster.kubeconfig import write_kubeconfig
from medley_cluster.pki import CertificateAuthority
from medley_cluster.processes import ProcessTable
from medley_cluster.waiting import wait_until

NODE_MONITOR_GRACE_S = 40
READY_TIMEOUT_S = 60.0

# The cluster's own components are left out: the log is there to compare what the operator does with what it may do.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "None",
            "users": [
                "system:apiserver",
                "system:kube-controller-manager",
                "system:kube-scheduler",
                "system:kube-proxy",
                "medley-kwok",
                "medley-prometheus",
            ],
        },
        {"level": "None", "userGroups": ["system:nodes", "system:serviceaccounts:kube-system"]},
        {"level": "Metadata"},
    ],
}

SCHEDULER_CONFIGURATION = {
    "apiVersion": "kubescheduler.config.k8s.io/v1",
    "kind": "KubeSchedulerConfiguration",
    "leaderElection": {"leaderElect": False},
    "podInitialBackoffSeconds": 1,
    "podMaxBackoffSeconds": 2,
    "clientConnection": {"qps": 500, "burst": 1000},
}


@dataclass(frozen=True)
class Endpoints:
    """Where the parts listen; kept in the cluster's state, so that a restart finds the same places."""

    host: str
    api_port: int
    etcd_port: int
    etcd_peer_port: int
    prometheus_port: int
    engine_control_port: int

    @property
    def api_server(self) -> str:
        """The API server's URL."""
        return f"https://{self.host}:{self.api_port}"

    @property
    def etcd(self) -> str:
        """etcd's URL."""
        return f"https://{self.host}:{self.etcd_port}"


class ControlPlane:
    """The control plane of one cluster; methods may be repeated and each waits for what it starts."""

    def __init__(
        self,
        *,
        state_dir: Path,
        programs: Path,
        endpoints: Endpoints,
        addresses: Addresses,
        processes: ProcessTable,
        audit: bool,
    ) -> None:
        self.state_dir = state_dir
        self.endpoints = endpoints
        self.authority = CertificateAuthority(state_dir / "pki")
        self.audit_log = state_dir / "logs" / "audit.jsonl" if audit else None
        self.programs = programs
        self._addresses = addresses
        self._processes = processes
        self._api: ApiClient | None = None

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state_dir / "kubeconfig"

    @property
    def api(self) -> ApiClient:
        """A client with the administrator's rights."""
        if self._api is None:
            certificate, key = self.authority.issue("admin", "medley-admin", "system:masters")
            self._api = ApiClient(self.endpoints.api_server, self.authority.certificate, certificate, key)
        return self._api

    def component_kubeconfig(self, name: str, user: str, group: str | None = None) -> Path:
        """A kubeconfig with a certificate for `user`."""
        certificate, key = self.authority.issue(name, user, group)
        path = self.state_dir / "config" / f"{name}.kubeconfig"
        return write_kubeconfig(
            path,
            server=self.endpoints.api_server,
            authority=self.authority.certificate,
            user=user,
            certificate=certificate,
            key=key,
        )

    def create_credentials(self) -> None:
        """Certificates, keys and kubeconfigs of every part; what is there is kept."""
        self.authority.create()
        host = self.endpoints.host
        names = [host, "127.0.0.1", self._addresses.api_service, "localhost", "kubernetes", "kubernetes.default"]
        names += ["kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        self.authority.issue("apiserver", "kube-apiserver", hosts=names)
        self.authority.issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters")
        self.authority.issue("etcd", "etcd", hosts=[host, "127.0.0.1", "localhost"])
        self.authority.service_account_key()
        self.component_kubeconfig("controller-manager", "system:kube-controller-manager")
        self.component_kubeconfig("scheduler", "system:kube-scheduler")
        certificate, key = self.authority.issue("admin", "medley-admin", "system:masters")
        write_kubeconfig(
            self.kubeconfig,
            server=self.endpoints.api_server,
            authority=self.authority.certificate,
            user="medley-admin",
            certificate=certificate,
            key=key,
        )
        write_yaml(self.state_dir / "config" / "audit-policy.yaml", AUDIT_POLICY)
        scheduler_kubeconfig = str(self.state_dir / "config" / "scheduler.kubeconfig")
        scheduler = {**SCHEDULER_CONFIGURATION}
        scheduler["clientConnection"] = {"qps": 500, "burst": 1000, "kubeconfig": scheduler_kubeconfig}
        write_yaml(self.state_dir / "config" / "scheduler.yaml", scheduler)

    def start(self) -> None:
        """Start everything and wait until the API server is ready. Parts wait for each other by themselves."""
        self.start_etcd()
        self.start_apiserver()

    def start_etcd(self) -> None:
        """Start etcd unless it runs."""
        self._processes.start("etcd", self._etcd_command())

    def start_apiserver(self) -> None:
        """Start it unless it runs, wait until it is ready, and start the controllers and the scheduler."""
        self._processes.start("kube-apiserver", self._apiserver_command())
        self._wait_for_api_server()
        self._processes.start("kube-controller-manager", self._controller_manager_command())
        self._processes.start("kube-scheduler", self._scheduler_command())

    def stop_apiserver(self) -> None:
        """Kill it, as a crash does. Controllers and scheduler stop too, as those of a real cluster do when they cannot
        renew their leases: ones that went on would take the silence for the death of every node.
        """
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler"):
            self._processes.stop(name, kill=True)

    def restart_etcd(self) -> None:
        """Kill etcd, start it on the same data, and wait until the API server serves again."""
        self._processes.stop("etcd", kill=True)
        self.start_etcd()
        self._wait_for_api_server()

    def close(self) -> None:
        """Close the connections to the API server."""
        if self._api is not None:
            self._api.close()
            self._api = None

    def _wait_for_api_server(self) -> None:
        def ready() -> bool:
            self._processes.check("etcd")
            self._processes.check("kube-apiserver")
            return self.api.ready()

        wait_until(
            ready,
            READY_TIMEOUT_S,
            lambda: f"the API server is ready. {self._processes.log_tail('kube-apiserver')}",
            longest_interval_s=0.1,
        )

    def _program(self, name: str) -> str:
        return str(self.programs / name)

    def _pki(self, file_name: str) -> str:
        return str(self.authority.folder / file_name)

    def _etcd_command(self) -> list[str]:
        peer = f"http://127.0.0.1:{self.endpoints.etcd_peer_port}"
        return [
            self._program("etcd"),
            f"--data-dir={self.state_dir / 'etcd'}",
            f"--listen-client-urls={self.endpoints.etcd}",
            f"--advertise-client-urls={self.endpoints.etcd}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={self._pki('etcd.crt')}",
            f"--key-file={self._pki('etcd.key')}",
            f"--trusted-ca-file={self._pki('ca.crt')}",
            "--client-cert-auth",
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--auto-compaction-retention=5m",
        ]

    def _apiserver_command(self) -> list[str]:
        command = [
            self._program("kube-apiserver"),
            f"--bind-address={self.endpoints.host}",
            f"--advertise-address={self.endpoints.host}",
            f"--secure-port={self.endpoints.api_port}",
            f"--etcd-servers={self.endpoints.etcd}",
            f"--etcd-cafile={self._pki('ca.crt')}",
            f"--etcd-certfile={self._pki('etcd.crt')}",
            f"--etcd-keyfile={self._pki('etcd.key')}",
            f"--tls-cert-file={self._pki('apiserver.crt')}",
            f"--tls-private-key-file={self._pki('apiserver.key')}",
            f"--client-ca-file={self._pki('ca.crt')}",
            f"--kubelet-certificate-authority={self._pki('ca.crt')}",
            f"--kubelet-client-certificate={self._pki('apiserver-kubelet-client.crt')}",
            f"--kubelet-client-key={self._pki('apiserver-kubelet-client.key')}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={self._pki('service-accounts.key')}",
            f"--service-account-signing-key-file={self._pki('service-accounts.key')}",
            f"--service-cluster-ip-range={self._addresses.services}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",
            "--profiling=false",
            "--max-requests-inflight=1600",
            "--max-mutating-requests-inflight=800",
            "--shutdown-delay-duration=0s",
        ]
        if self.audit_log:
            policy = self.state_dir / "config" / "audit-policy.yaml"
            command += [
                f"--audit-policy-file={policy}",
                f"--audit-log-path={self.audit_log}",
                "--audit-log-format=json",
            ]
        return command

    def _controller_manager_command(self) -> list[str]:
        return [
            self._program("kube-controller-manager"),
            f"--kubeconfig={self.state_dir / 'config' / 'controller-manager.kubeconfig'}",
            f"--root-ca-file={self._pki('ca.crt')}",
            f"--service-account-private-key-file={self._pki('service-accounts.key')}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            "--secure-port=0",
            f"--node-monitor-grace-period={NODE_MONITOR_GRACE_S}s",
            "--node-monitor-period=2s",
            "--kube-api-qps=500",
            "--kube-api-burst=1000",
            "--concurrent-deployment-syncs=20",
            "--concurrent-replicaset-syncs=20",
            "--concurrent-endpoint-syncs=20",
            "--concurrent-service-endpoint-syncs=20",
            "--concurrent-gc-syncs=40",
            "--concurrent-namespace-syncs=20",
            "--allocate-node-cidrs=false",
        ]

    def _scheduler_command(self) -> list[str]:
        return [
            self._program("kube-scheduler"),
            f"--config={self.state_dir / 'config' / 'scheduler.yaml'}",
            "--secure-port=0",
        ]
