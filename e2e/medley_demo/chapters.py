"""The chapters: each changes one thing, waits for what Medley makes of it, and says why.

Every figure that is printed is read from the cluster. What is not as promised raises, and the demo fails.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.markup import escape

from medley_cluster.cluster import Cluster
from medley_cluster.waiting import wait_until
from medley_demo.service_view import ServiceView
from medley_demo.stage import Stage
from medley_demo.telling import Chapter, Telling
from medley_scenarios.pod_watch import PodWatch

CHECKOUT = Path(__file__).resolve().parents[2]
SAMPLES = CHECKOUT / "manifests" / "samples"
OWN = Path(__file__).with_name("manifests")


@dataclass
class Story:
    """What the chapters share."""

    stage: Stage
    telling: Telling

    @property
    def cluster(self) -> Cluster:
        """The demo's cluster."""
        return self.stage.cluster

    @property
    def chat(self) -> ServiceView:
        """The service that most of the story is about."""
        return ServiceView(self.cluster, "chat")

    def kubectl(self, *arguments: str, show: bool = True, stdin: str | None = None) -> str:
        """Run kubectl, and show the command and what it printed."""
        self.telling.command("kubectl " + " ".join(_shown(argument) for argument in arguments))
        printed = self.cluster.kubectl(*arguments, stdin=stdin)
        if show:
            self.telling.output(printed)
        return printed

    def explain(self, name: str, *, most_lines: int = 60) -> None:
        """Show `medley explain` of a service."""
        self.telling.command(f"medley explain llm/{name}")
        command = [sys.executable, "-m", "medley_operator.cli", "explain", f"llm/{name}"]
        environment = {**self.stage.environment, "COLUMNS": "150"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
        self.telling.output(done.stdout, most_lines=most_lines)

    def why(self, view: ServiceView) -> None:
        """Say which transition just ended, and why."""
        last = view.read().get("status", {}).get("lastTransition")
        if last:
            self.telling.say(f"  [green]{escape(last['reason'])}[/green]: {escape(last['message'])}")


def _shown(argument: str) -> str:
    path = argument.replace(f"{CHECKOUT}/", "")
    return f"'{path}'" if " " in path or "{" in path else path


def apply_samples(story: Story, chapter: Chapter) -> None:
    """The samples: pools with prices, a profile, services from a real trace."""
    story.cluster.kubectl("delete", "llm", "--all")
    story.kubectl("apply", "-f", str(SAMPLES))
    services = [item["metadata"]["name"] for item in story.cluster.get_json("llm")["items"]]
    for name in services:
        ServiceView(story.cluster, name).wait_settled()
    story.kubectl("get", "llm,gpupools")
    story.explain("chat")
    chapter.outcome = f"chat runs on {story.chat.mix()}"


def rate_grows(story: Story, chapter: Chapter) -> None:
    """The rate of chat grows fourfold."""
    before, rate = story.chat.mix(), story.chat.read()["spec"]["workload"]["rate"]
    _patch_chat(story, {"workload": {"rate": 4 * rate}, "disruption": {"stabilizationSeconds": 1}})
    with PodWatch(story.cluster) as pods:
        pods.mark()
        story.chat.wait_settled()
        fewest = pods.of("chat").fewest_ready
    story.why(story.chat)
    chapter.outcome = f"{before} → {story.chat.mix()}; never fewer than {fewest} Ready"


def price_rises(story: Story, chapter: Chapter) -> None:
    """A100s become dearer: replicas move, and the new ones serve before the old ones go."""
    price = story.cluster.get_json("gpupool", "a100")["spec"]["pricePerGPUHour"]
    before, replicas = story.chat.mix(), story.chat.replicas()
    _promised("a100" in before, f"the story needs an A100 in the mix, not {before}")
    _patch(story, "gpupool", "a100", {"pricePerGPUHour": round(2.5 * price, 3)})
    with PodWatch(story.cluster) as pods:
        pods.mark()
        story.chat.wait("the mix changes", lambda: story.chat.replicas() != replicas)
        story.chat.wait_settled()
        fewest = pods.of("chat").fewest_ready or 0
    story.why(story.chat)
    least = min(sum(replicas.values()), sum(story.chat.replicas().values()))
    _promised(fewest >= least, f"Ready replicas fell to {fewest}, below {least}")
    chapter.title = f"the price of an A100 rises from ${price:.2f}/h to ${2.5 * price:.2f}/h"
    chapter.outcome = f"{before} → {story.chat.mix()}; never fewer than {fewest} Ready"


def pool_lost(story: Story, chapter: Chapter) -> None:
    """A pool loses its nodes, and its autoscaler brings none: pods stay Pending, and Medley plans around it."""
    view = story.chat
    pool = max(view.plan()["entries"], key=lambda entry: entry["replicas"])["pool"]
    spec = story.cluster.get_json("gpupool", pool)["spec"]
    labels = ",".join(f"{key}={value}" for key, value in spec["nodeSelector"].items())
    before = view.mix()
    story.telling.say(f"  An autoscaler may bring the pool {pool} up to 16 GPUs, and is given 2 s to do so.")
    _patch(story, "gpupool", pool, {"limit": 16, "exhaustion": {"pendingDeadlineSeconds": 2}})
    names = [node["metadata"]["name"] for node in story.cluster.get_json("nodes", "-l", labels)["items"]]
    story.telling.say(f"  The cloud takes {', '.join(names)} back, with the pods on them.")
    story.cluster.remove_nodes(*names)
    view.wait("nothing of the lost pool is planned", lambda: pool not in _pools_of(view), timeout_s=90.0)
    view.wait_settled(timeout_s=90.0)
    story.kubectl("get", "gpupool", pool)
    exhausted = story.cluster.get_json("gpupool", pool)["status"].get("exhausted") or {}
    story.telling.output(exhausted.get("reason", ""))
    story.why(view)
    chapter.title = f"the pool {pool} loses its nodes, and none come"
    chapter.outcome = f"{before} → {view.mix()}; the pool counts as exhausted for a while"
    story.cluster.simulated_nodes.add(story.cluster.options.pools)


def cap_too_low(story: Story, chapter: Chapter) -> None:
    """A price cap that cannot be met: what runs keeps running, and the nearest cap is named."""
    serving = story.chat.serving()
    _patch_chat(story, {"gpus": {"maxCostPerHour": 0.5}})
    story.chat.wait("infeasible", lambda: story.chat.condition("Planned").get("reason") == "CostCapTooLow")
    condition = story.chat.condition("Planned")
    story.telling.output(f"Planned={condition['status']} ({condition['reason']}): {condition['message']}")
    _promised(story.chat.serving() >= serving, "replicas were lost to an infeasible plan")
    nearest = story.chat.plan()["nearestFeasibleCostCap"]
    _patch_chat(story, {"gpus": {"maxCostPerHour": None}})
    story.chat.wait("planned again", lambda: story.chat.condition("Planned").get("status") == "True")
    chapter.outcome = f"refused: ${nearest:.2f}/h would do; all {serving} replicas kept serving"


def mistakes_refused(story: Story, chapter: Chapter) -> None:
    """A spec with mistakes is refused at apply, each field named."""
    story.telling.command("kubectl apply -f e2e/medley_demo/manifests/mistakes.yaml")
    command = [*story.cluster.kubectl_command, "apply", "-f", str(OWN / "mistakes.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    story.telling.output(done.stderr)
    fields = ("spec.objectives", "spec.workload.rate", "spec.workload.sizes", "spec.gpus", "spec.scaling")
    missing = [field for field in fields if field not in done.stderr]
    _promised(done.returncode != 0 and not missing, f"not named: {', '.join(missing)}")
    chapter.outcome = f"refused; {len(fields)} fields named"


def operator_killed(story: Story, chapter: Chapter) -> None:
    """The leading operator is killed in the middle of a change; the other goes on with it."""
    rate = story.chat.read()["spec"]["workload"]["rate"]
    _patch_chat(story, {"workload": {"rate": rate / 4}})
    story.chat.wait("a transition is under way", lambda: "transition" in story.chat.read().get("status", {}))
    phase = story.chat.read().get("status", {}).get("transition", {}).get("phase", "")
    killed = story.stage.kill_leader()
    story.telling.command(killed)
    with PodWatch(story.cluster) as pods:
        pods.mark()
        story.chat.wait_settled(timeout_s=90.0)
        fewest = pods.of("chat").fewest_ready
    story.why(story.chat)
    chapter.outcome = (
        f"killed while {phase or 'it acted'}; finished: {story.chat.mix()}; never fewer than {fewest} Ready"
    )


def stream_from_real_node(story: Story, chapter: Chapter) -> None:
    """A service on the real node streams completions through its Service."""
    story.kubectl("apply", "-f", str(OWN / "real-node.yaml"))
    view = ServiceView(story.cluster, "standin")
    view.wait_settled(timeout_s=90.0)
    story.kubectl("get", "pods", "-l", "medley.dev/service=standin", "-o", "wide")
    service = story.cluster.get_json("service", "standin")["spec"]
    url = f"http://{service['clusterIP']}:{service['ports'][0]['port']}/v1/completions"
    model = view.read()["spec"]["model"]["name"]
    body = {"model": model, "prompt": "Which GPU is the cheapest?", "max_tokens": 24, "stream": True}
    story.telling.command(f"curl -N {url} -d '{json.dumps(body)}'")
    chunks, text = _stream(url, body)
    story.telling.output(text)
    _promised(chunks > 1, "the completion did not stream")
    chapter.outcome = f"{chunks} chunks streamed through the Service {service['clusterIP']}"


def _stream(url: str, body: dict[str, Any]) -> tuple[int, str]:
    chunks, text = 0, ""
    with httpx.stream("POST", url, json=body, timeout=30.0, trust_env=False) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: ") and line != "data: [DONE]":
                chunks += 1
                choices = json.loads(line.removeprefix("data: ")).get("choices") or [{}]
                text += choices[0].get("text", "")
    return chunks, text


def prometheus_scrapes(story: Story, chapter: Chapter) -> None:
    """Prometheus has the operator's own metrics."""
    url = f"{story.cluster.prometheus_url}/api/v1/query"
    query = "sum by (service) (medley_service_cost_dollars_per_hour)"

    def samples() -> list[Any]:
        answer = httpx.get(url, params={"query": query}, timeout=5.0, trust_env=False).json()
        return list(answer.get("data", {}).get("result", []))

    found = wait_until(samples, 30.0, "Prometheus has the cost of every service", tolerate=(httpx.HTTPError,))
    story.telling.command(f"curl -G {url} --data-urlencode 'query={query}'")
    for sample in found:
        story.telling.output(f"{sample['metric'].get('service', '')}: ${float(sample['value'][1]):.2f}/h")
    chapter.outcome = f"the cost of {len(found)} services is in Prometheus"


def delete_all(story: Story, chapter: Chapter) -> None:
    """Deleting a service leaves nothing of it behind."""
    names = [item["metadata"]["name"] for item in story.cluster.get_json("llm")["items"]]
    story.kubectl("delete", "llm", *names)
    kinds = "deployments,replicasets,pods,services,poddisruptionbudgets"

    def left() -> list[str]:
        items = story.cluster.get_json(kinds, "-l", "app.kubernetes.io/managed-by=medley")["items"]
        return [f"{item['kind']}/{item['metadata']['name']}" for item in items]

    wait_until(lambda: not left(), 60.0, lambda: f"still there: {', '.join(left())}")
    story.kubectl("get", kinds, "-l", "app.kubernetes.io/managed-by=medley")
    chapter.outcome = f"{len(names)} services gone, nothing left behind"
    story.cluster.kubectl("apply", "-f", str(SAMPLES))


def _patch_chat(story: Story, spec: dict[str, Any]) -> None:
    _patch(story, "llm", "chat", spec)


def _patch(story: Story, kind: str, name: str, spec: dict[str, Any]) -> None:
    story.kubectl("patch", kind, name, "--type=merge", "-p", json.dumps({"spec": spec}), show=False)


def _pools_of(view: ServiceView) -> set[str]:
    return {entry["pool"] for entry in view.plan().get("entries", [])}


def _promised(kept: bool, otherwise: str) -> None:
    if not kept:
        raise RuntimeError(f"the demo found a promise broken: {otherwise}")


Tell = Callable[[Story, Chapter], None]

CHAPTERS: tuple[tuple[str, Tell, bool], ...] = (
    ("the samples are applied", apply_samples, False),
    ("the rate of chat grows fourfold", rate_grows, False),
    ("a price rises", price_rises, False),
    ("a pool loses its nodes", pool_lost, False),
    ("a price cap that cannot be met", cap_too_low, False),
    ("a spec with mistakes", mistakes_refused, False),
    ("the operator is killed in the middle of a change", operator_killed, False),
    ("a service on the real node streams completions", stream_from_real_node, True),
    ("Prometheus scrapes the operator", prometheus_scrapes, True),
    ("everything is deleted", delete_all, False),
)
"""Title, telling, and whether it needs the real node."""
