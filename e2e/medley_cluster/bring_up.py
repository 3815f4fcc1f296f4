"""The order in which a cluster is brought up and taken down. Steps that do not need each other overlap."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from medley_cluster.addresses import SERVICE_PORTS, free_port, release_index
from medley_cluster.cache import cache_root
from medley_cluster.debian import PROMETHEUS, find_programs
from medley_cluster.network import why_no_network
from medley_cluster.node_cleanup import remove_node_files, restore_kernel_settings, stop_node_processes
from medley_cluster.options import ClusterOptions
from medley_cluster.processes import terminate
from medley_cluster.real_nodes import NodesImpossibleError, RealNodes
from medley_cluster.toolchain import CONTROL_PLANE, KWOK, ToolError, go_program, run_checked
from medley_cluster.waiting import wait_until

if TYPE_CHECKING:
    from medley_cluster.cluster import Cluster

ENGINE = "fake-gpu-engine"


def kernel_settings_file() -> Path:
    """Where the machine's own kernel settings are kept while kubelets run."""
    return cache_root() / "clusters" / ".kernel-settings.json"


def bring_up(cluster: Cluster, options: ClusterOptions) -> None:
    """Start what is missing; what an unclean stop left is removed first."""
    steps, state = cluster.steps, cluster.state
    go_program(CONTROL_PLANE, steps)
    kwok = go_program(KWOK, steps) / "kwok"
    dead = [record.name for record in cluster.processes.all() if not record.alive()]
    if cluster.state_dir.exists() and (dead or not state.exists):
        with steps.step("clean up after an unclean stop") as step:
            step.note = ", ".join(dead)
            take_down(cluster)
    no_network = why_no_network()
    if state.exists:
        state.set_options(options)
    else:
        state.create(options, network=no_network is None)
    if no_network:
        steps.skip("addresses of their own for simulated pods", no_network)
    else:
        with steps.step("network: bridge and namespace"):
            cluster.network.create_bridge()
            cluster.network.create_simulation_namespace()
    with steps.step("certificates"):
        cluster.control_plane.create_credentials()
    nodes = _real_nodes(cluster, options) if options.real_nodes else None
    with ThreadPoolExecutor(thread_name_prefix="medley-cluster") as pool:
        runtimes = pool.submit(nodes.start_runtimes) if nodes else None
        with steps.step("etcd, API server, controllers, scheduler"):
            cluster.control_plane.start()
        others = [pool.submit(_start_simulation, cluster, kwok, options)]
        if options.prometheus:
            others.append(pool.submit(_start_prometheus, cluster))
        if nodes and runtimes:
            runtimes.result()
            if nodes.operator_image:
                state.set_operator_image(nodes.operator_image)
            nodes.start_kubelets()
        for other in others:
            other.result()


def take_down(cluster: Cluster) -> None:
    """Stop the cluster's processes and remove its traces, from whatever state it is in."""
    steps = cluster.steps
    cluster.disconnect()
    with steps.step("stop processes"):
        stop_node_processes(cluster.processes, cluster.name)
        terminate(cluster.processes.all(), grace_s=5.0, kill=True)
        terminate(cluster.processes.stragglers(), grace_s=5.0, kill=True)
    if cluster.exists and cluster.has_network and why_no_network() is None:
        with steps.step("remove network, mounts and files"):
            remove_node_files(cluster.name, cluster.state_dir, cluster.addresses.bridge)
            cluster.network.remove()
    release_index(cluster.state_dir)
    with steps.step("remove the state folder"):
        # Image stores are tens of thousands of files: rm takes a fraction of the time of shutil.rmtree.
        run_checked(["rm", "-rf", str(cluster.state_dir)])
    cluster.state.forget()
    if not any(other.options.real_nodes for other in cluster.others()):
        restore_kernel_settings(kernel_settings_file())


def _real_nodes(cluster: Cluster, options: ClusterOptions) -> RealNodes | None:
    """The real nodes, or None with a reason shown where this machine cannot run them."""
    try:
        return RealNodes.prepare(cluster, options)
    except (ToolError, NodesImpossibleError) as error:
        cluster.steps.skip("real nodes", str(error))
        return None


def _start_prometheus(cluster: Cluster) -> None:
    try:
        find_programs(PROMETHEUS, cluster.steps)
    except ToolError as error:
        cluster.steps.skip("Prometheus", str(error))
        return
    with cluster.steps.step("Prometheus"):
        cluster.start_prometheus()


def _start_simulation(cluster: Cluster, kwok: Path, options: ClusterOptions) -> None:
    with cluster.steps.step("simulated GPU nodes (KWOK)") as step:
        _start_engine(cluster)
        own_network, host = cluster.has_network, cluster.endpoints.host
        simulated = cluster.simulated_nodes
        simulated.start(
            kwok=kwok,
            kubeconfig=cluster.control_plane.component_kubeconfig("kwok", "medley-kwok", "system:masters"),
            options=options,
            pod_network=str(cluster.addresses.simulated_pods),
            node_address=cluster.addresses.simulation if own_network else host,
            fixed_pod_address=None if own_network else host,
        )
        simulated.add(options.pools)
        wanted = set(simulated.names())
        step.note = f"{len(wanted)} nodes"

        def all_ready() -> bool:
            cluster.processes.check("kwok")
            return wanted <= cluster.ready_nodes()

        wait_until(all_ready, 30.0, lambda: f"simulated nodes are Ready. {cluster.processes.log_tail('kwok')}")


def _start_engine(cluster: Cluster) -> None:
    endpoints = cluster.endpoints
    engine = [sys.executable, str(Path(__file__).with_name("fake_gpu_engine.py"))]
    if cluster.has_network:
        host, ports = cluster.addresses.simulation, ",".join(str(port) for port in SERVICE_PORTS)
        command = [*cluster.network.inside("sim"), *engine, "--ports", ports]
    else:
        host, port = "127.0.0.1", free_port(endpoints.host, SERVICE_PORTS[0])
        if port != SERVICE_PORTS[0] and not cluster.processes.alive(ENGINE):
            why = f"port {SERVICE_PORTS[0]} of {endpoints.host} is taken"
            cluster.steps.skip("answers for simulated pods", why)
            return
        command = [*engine, "--bind", endpoints.host, "--ports", str(SERVICE_PORTS[0])]
    cluster.processes.start(ENGINE, [*command, "--control", f"{host}:{endpoints.engine_control_port}"])
