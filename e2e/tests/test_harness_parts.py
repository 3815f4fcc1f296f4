"""The harness's parts do what they say, without a cluster."""

from __future__ import annotations

import json
import socket
import tarfile
import threading
from pathlib import Path

import pytest
import yaml

from medley_cluster import ClusterOptions, WaitTimeoutError, wait_until
from medley_cluster.addresses import Addresses, claim_index, free_port, release_index
from medley_cluster.cache import cached_entry, hash_inputs
from medley_cluster.fake_gpu_engine import FakeEngine
from medley_cluster.images import write_docker_archive
from medley_cluster.options import GPU_MODELS
from medley_cluster.pod_discovery import PodTargets
from medley_cluster.processes import OWNER_VARIABLE, ProcessTable
from medley_cluster.simulated_nodes import stages_document


def test_wait_until_returns_what_the_condition_returned() -> None:
    answers = iter([None, None, "done"])
    assert wait_until(lambda: next(answers), 1.0, "three answers") == "done"


def test_wait_until_names_what_it_waited_for_and_the_last_error() -> None:
    def fails() -> bool:
        raise ConnectionError("refused")

    with pytest.raises(WaitTimeoutError, match=r"the server answers.*refused"):
        wait_until(fails, 0.05, "the server answers", tolerate=(ConnectionError,))


def test_a_cache_entry_is_built_once_by_parallel_builders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_CACHE", str(tmp_path))
    builds: list[Path] = []

    def build(target: Path) -> None:
        builds.append(target)
        (target / "tool").write_text("x")

    threads = [threading.Thread(target=cached_entry, args=("tool", "key", build)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert (tmp_path / "tools" / "tool-key" / "tool").read_text() == "x"


def test_a_failed_build_leaves_no_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_CACHE", str(tmp_path))

    def build(target: Path) -> None:
        (target / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        cached_entry("tool", "key", build)
    assert [path.name for path in (tmp_path / "tools").iterdir()] == [".tool.lock"]


def test_input_hash_depends_on_names_contents_and_texts(tmp_path: Path) -> None:
    one, two = tmp_path / "a", tmp_path / "b"
    one.write_text("x")
    two.write_text("x")
    assert hash_inputs([one, two]) == hash_inputs([two, one])
    assert len({hash_inputs([one]), hash_inputs([two]), hash_inputs([one], "flags")}) == 3


def test_cluster_subnets_do_not_overlap() -> None:
    networks = []
    for index in range(16):
        addresses = Addresses(index)
        networks += [addresses.node_network, addresses.simulated_pods, addresses.services]
        networks += [addresses.node_pods(number) for number in range(9)]
    for position, network in enumerate(networks):
        assert not any(network.overlaps(other) for other in networks[position + 1 :])


def test_indexes_are_claimed_once_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDLEY_CACHE", str(tmp_path))
    first, second = tmp_path / "clusters" / "one", tmp_path / "clusters" / "two"
    first.mkdir(parents=True)
    second.mkdir()
    assert [claim_index(first), claim_index(second), claim_index(first)] == [0, 1, 0]
    release_index(first)
    assert claim_index(second) == 1
    second.rmdir()
    assert claim_index(first) == 0


def test_a_process_is_told_apart_from_one_that_got_its_pid(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    record = table.start("sleeper", ["sleep", "60"])
    assert table.alive("sleeper")
    assert record.pid in {straggler.pid for straggler in table.stragglers()}
    record_file = tmp_path / "run" / "sleeper.json"
    stored = json.loads(record_file.read_text())
    record_file.write_text(json.dumps({**stored, "start_ticks": stored["start_ticks"] - 1}))
    table.stop("sleeper")
    assert Path(f"/proc/{record.pid}").exists(), "a process with another start time was killed"
    record_file.write_text(json.dumps(stored))
    table.stop("sleeper")
    wait_until(lambda: not table.stragglers(), 5.0, "the process is gone")


def test_processes_carry_their_owner(tmp_path: Path) -> None:
    table = ProcessTable(tmp_path)
    record = table.start("sleeper", ["sleep", "60"])
    assert f"{OWNER_VARIABLE}={tmp_path}".encode() in Path(f"/proc/{record.pid}/environ").read_bytes().split(b"\0")
    table.stop("sleeper")
    assert not table.alive("sleeper")


def test_stages_are_valid_yaml_and_cover_every_gpu() -> None:
    options = ClusterOptions(load_times_s={"h100": 7.25})
    stages = {stage["metadata"]["name"]: stage for stage in yaml.safe_load_all(stages_document(options, None)) if stage}
    assert {f"pod-load-{gpu}" for gpu in GPU_MODELS} < set(stages)
    assert stages["pod-load-h100"]["spec"]["delay"]["durationMilliseconds"] == 7250
    assert "$" not in stages["pod-start"]["spec"]["next"]["statusTemplate"].replace("{{ $", "").replace(" $", "")


def test_docker_archive_has_what_a_runtime_reads(tmp_path: Path) -> None:
    layer = tmp_path / "layer.tar"
    with tarfile.open(layer, "w"):
        pass
    write_docker_archive(tmp_path / "image.tar", "example:1", [layer], ["/run"], user="1:1")
    with tarfile.open(tmp_path / "image.tar") as archive:
        manifest_file = archive.extractfile("manifest.json")
        assert manifest_file
        (manifest,) = json.load(manifest_file)
        assert manifest["RepoTags"] == ["example:1"]
        assert {manifest["Config"], *manifest["Layers"]} <= set(archive.getnames())


def test_fake_engine_speaks_vllm() -> None:
    engine = FakeEngine()
    status, _, body = engine.answer("10.0.0.1", "POST", "/v1/completions", b'{"model": "m", "prompt": "x"}')
    assert (status, json.loads(body)["model"]) == (200, "m")
    engine.control("PATCH", "/pods/10.0.0.1", b'{"running": 3}')
    metrics = engine.answer("10.0.0.1", "GET", "/metrics", b"")[2].decode()
    assert 'vllm:num_requests_running{model_name="simulated",engine="0"} 3' in metrics
    assert 'vllm:num_requests_running{model_name="simulated",engine="0"} 0' in engine.metrics(engine.pod("10.0.0.2"))
    assert engine.control("PATCH", "/pods/10.0.0.1", b'{"typo": 3}')[0] == 400


def test_discovery_keeps_annotated_pods_with_an_address(tmp_path: Path) -> None:
    targets = PodTargets(tmp_path / "targets.json")
    pod = {
        "metadata": {
            "uid": "1",
            "namespace": "ns",
            "name": "a",
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "8000"},
        },
        "spec": {"nodeName": "n"},
        "status": {},
    }
    targets.replace([pod])
    assert json.loads((tmp_path / "targets.json").read_text()) == []
    targets.change("MODIFIED", {**pod, "status": {"podIP": "10.0.0.1", "phase": "Running"}})
    (entry,) = json.loads((tmp_path / "targets.json").read_text())
    assert entry["labels"]["__meta_kubernetes_pod_annotation_prometheus_io_port"] == "8000"
    targets.change("DELETED", pod)
    assert json.loads((tmp_path / "targets.json").read_text()) == []


def test_a_port_that_is_taken_gives_the_next_one() -> None:
    with socket.socket() as listening:
        first = free_port("127.0.0.1", 20000)
        listening.bind(("127.0.0.1", first))
        listening.listen()
        following = free_port("127.0.0.1", first)
        assert first < following < first + 100


def test_where_no_port_can_be_had_it_is_said() -> None:
    with pytest.raises(RuntimeError, match=r"no free port at 192\.0\.2\.1 from 20000 on"):
        free_port("192.0.2.1", 20000)
