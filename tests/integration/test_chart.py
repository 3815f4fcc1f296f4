"""The Helm chart and the kustomize base: what they make, what they refuse, and that they say the same."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import kubernetes_validate
import pytest
import yaml

from medley_operator.metrics import Metrics
from medley_operator.settings import Settings
from medley_operator.workloads import naming
from medley_planner.fleet import Parallelism

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "medley"
KUBERNETES_VERSIONS = ("1.31", "1.35")
OF_THE_PROMETHEUS_OPERATOR = {"ServiceMonitor", "PrometheusRule"}

VALUES: dict[str, list[str]] = {
    "defaults": [],
    "one replica": ["replicas=1"],
    "everything on": ["metrics.serviceMonitor.enabled=true", "metrics.prometheusRule.enabled=true"],
    "everything off": [
        "rbac.create=false",
        "rbac.aggregate=false",
        "networkPolicy.enabled=false",
        "podDisruptionBudget.enabled=false",
        "metrics.scrapeAnnotations=false",
        "serviceAccount.create=false",
        "serviceAccount.name=own",
    ],
    "filled in": [
        "image.repository=mirror.example:5000/medley-operator",
        f"image.digest=sha256:{'a' * 64}",
        "imagePullSecrets={first,second}",
        "nodeSelector.role=system",
        "tolerations[0].key=system,tolerations[0].operator=Exists",
        "podAnnotations.note=hello",
        "podLabels.team=platform",
        "priorityClassName=system-cluster-critical",
        "topologySpreadConstraints[0].maxSkew=1,topologySpreadConstraints[0].topologyKey=rack",
        "topologySpreadConstraints[0].whenUnsatisfiable=ScheduleAnyway",
        "networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring",
        "serviceAccount.annotations.owner=platform",
    ],
}


@functools.cache
def renderer() -> ModuleType:
    """tools/render_base.py, which is a script and no package."""
    specification = importlib.util.spec_from_file_location("render_base", ROOT / "tools" / "render_base.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def helm() -> str:
    try:
        path: str = renderer().helm()
    except renderer().HelmNotFoundError as error:
        pytest.skip(str(error))
    return path


def run(helm: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm, *arguments], check=False, capture_output=True, text=True)


def template(helm: str, *settings: str, release: str = "medley") -> subprocess.CompletedProcess[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return run(helm, "template", release, str(CHART), "--namespace", "somewhere", *words)


def objects(helm: str, *settings: str, release: str = "medley") -> list[dict[str, Any]]:
    made = template(helm, *settings, release=release)
    assert made.returncode == 0, made.stderr
    return [value for value in yaml.safe_load_all(made.stdout) if value is not None]


def only(values: list[dict[str, Any]], kind: str, name: str = "medley-operator") -> dict[str, Any]:
    (found,) = [value for value in values if (value["kind"], value["metadata"]["name"]) == (kind, name)]
    return found


def test_lint_finds_nothing(helm: str) -> None:
    linted = run(helm, "lint", str(CHART), "--strict")
    assert linted.returncode == 0, linted.stdout + linted.stderr


@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
@pytest.mark.parametrize("settings", VALUES.values(), ids=VALUES)
def test_every_object_is_what_kubernetes_knows(helm: str, settings: list[str], version: str) -> None:
    for value in objects(helm, *settings):
        if value["kind"] not in OF_THE_PROMETHEUS_OPERATOR:
            kubernetes_validate.validate(value, version, strict=True)


@pytest.mark.parametrize(
    ("setting", "field"),
    [
        ("replicas=-1", "replicas"),
        ("replicas=two", "replicas"),
        ("logLevel=loud", "logLevel"),
        ("logFormat=xml", "logFormat"),
        ("planIntervalSeconds=0", "planIntervalSeconds"),
        ("image.digest=sha256:short", "image.digest"),
        ("image.pullPolicy=Sometimes", "image.pullPolicy"),
        ("image.repository=", "image.repository"),
        ("leaderElection.retryPeriodSeconds=0", "leaderElection.retryPeriodSeconds"),
        ("leaderElection.renewDeadlineSeconds=15", "leaderElection.renewDeadlineSeconds"),
        ("leaderElection.retryPeriodSeconds=6", "leaderElection.retryPeriodSeconds"),
        ("networkPolicy.apiServerPorts={0}", "networkPolicy.apiServerPorts"),
        ("metrics.serviceMonitor.interval=often", "metrics.serviceMonitor.interval"),
        ("resources.limits.gpu=1", "gpu"),
        ("replica=2", "replica"),
        ("serviceAccount.create=false", "serviceAccount.name"),
    ],
)
def test_bad_values_are_refused_with_the_field_named(helm: str, setting: str, field: str) -> None:
    refused = template(helm, setting)
    assert refused.returncode != 0
    assert field in refused.stderr


def test_the_schema_knows_every_default_and_nothing_else() -> None:
    def names(value: Any) -> set[str]:
        return set(value) if isinstance(value, dict) else set()

    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    schema = yaml.safe_load((CHART / "values.schema.json").read_text(encoding="utf-8"))
    assert names(schema["properties"]) - {"global"} == names(values)
    for name, described in schema["properties"].items():
        if described.get("additionalProperties") is False and "$ref" not in described:
            assert names(described["properties"]) == names(values[name]), name


def test_every_value_is_told_in_the_readme() -> None:
    readme = (CHART / "README.md").read_text(encoding="utf-8")
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    missing = [path for path in _leaves(values) if f"`{path}`" not in readme]
    assert missing == []


def _leaves(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict) and value and path != "resources":
        return [leaf for key, item in value.items() for leaf in _leaves(item, f"{path}.{key}" if path else key)]
    return [path]


def test_the_pod_meets_the_restricted_standard(helm: str) -> None:
    """The checks of the Pod Security Standard `restricted`, as far as they bear on this pod."""
    pod = only(objects(helm), "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {kind for volume in pod["volumes"] for kind in volume if kind != "name"} <= {"emptyDir"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()


def test_the_operators_settings_are_variables_that_it_reads(helm: str) -> None:
    container = only(objects(helm), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    environment = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    from_downward_api = {item["name"]: "somewhere" for item in container["env"] if "valueFrom" in item}
    assert Settings.from_environment({**environment, **from_downward_api}) == Settings(
        lease_namespace="somewhere", pod_name="somewhere"
    )
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert ports == {"metrics": environment["MEDLEY_METRICS_PORT"], "health": environment["MEDLEY_HEALTH_PORT"]}


def test_the_lease_that_the_operator_holds_is_the_one_it_may_hold(helm: str) -> None:
    for release in ("medley", "another"):
        values = objects(helm, release=release)
        (role,) = [value for value in values if value["kind"] == "Role"]
        (deployed,) = [value for value in values if value["kind"] == "Deployment"]
        environment = {
            item["name"]: item.get("value") for item in deployed["spec"]["template"]["spec"]["containers"][0]["env"]
        }
        assert [rule["resourceNames"] for rule in role["rules"] if "resourceNames" in rule] == [
            [environment["MEDLEY_LEASE_NAME"]]
        ]


def test_no_rule_has_a_wildcard_and_secrets_are_never_read(helm: str) -> None:
    roles = [value for value in objects(helm) if value["kind"] in {"Role", "ClusterRole"}]
    assert len(roles) == 5
    for role in roles:
        for rule in role["rules"]:
            for part in ("apiGroups", "resources", "verbs"):
                assert rule[part]
                assert "*" not in rule[part]
            assert "secrets" not in rule["resources"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])


def test_selectors_find_the_pods_and_nothing_that_the_operator_makes(helm: str) -> None:
    values = objects(helm)
    labels = only(values, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = [
        only(values, "Deployment")["spec"]["selector"]["matchLabels"],
        only(values, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        only(values, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        only(values, "Service", "medley-operator-metrics")["spec"]["selector"],
    ]
    engine = naming.variant_labels("medley", "l4", Parallelism(1))
    for selector in selectors:
        assert selector.items() <= labels.items()
        assert not selector.items() <= engine.items()
    engines = only(values, "NetworkPolicy")["spec"]["egress"][-1]["to"][0]["podSelector"]["matchLabels"]
    assert engines.items() <= engine.items()


def test_two_releases_share_no_name(helm: str) -> None:
    def named(release: str) -> set[tuple[str, str]]:
        return {(value["kind"], value["metadata"]["name"]) for value in objects(helm, release=release)}

    assert not named("medley") & named("another")


def test_a_single_replica_has_no_budget_that_would_hold_up_a_node_drain(helm: str) -> None:
    kinds = {value["kind"] for value in objects(helm, "replicas=1")}
    assert "PodDisruptionBudget" not in kinds


def test_every_alert_has_its_runbook_and_every_runbook_its_alert(helm: str) -> None:
    rule = only(objects(helm, "metrics.prometheusRule.enabled=true"), "PrometheusRule")
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    links = {alert["annotations"]["runbook_url"] for alert in alerts}
    written = {f"docs/runbooks/{path.name}" for path in (ROOT / "docs" / "runbooks").glob("*.md")}
    assert links == written - {"docs/runbooks/README.md"}
    for alert in alerts:
        text = (ROOT / alert["annotations"]["runbook_url"]).read_text(encoding="utf-8")
        assert text.startswith(f"# {alert['alert']}\n")


def test_alerts_ask_for_metrics_that_the_operator_has(helm: str) -> None:
    rule = only(objects(helm, "metrics.prometheusRule.enabled=true"), "PrometheusRule")
    expressions = " ".join(alert["expr"] for group in rule["spec"]["groups"] for alert in group["rules"])
    asked = set(re.findall(r"\bmedley_\w+", expressions))
    known = {name for family in Metrics().registry.collect() for name in _series(family)}
    assert asked <= known
    assert len(asked) >= 6


def _series(family: Any) -> set[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
    return {family.name + suffix for suffix in suffixes}


def test_the_chart_carries_the_generated_crds() -> None:
    generated = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    assert generated
    assert {path.name: path.read_bytes() for path in (CHART / "crds").glob("*.yaml")} == generated


def test_the_chart_is_of_the_release_that_it_installs() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]


def test_the_kustomize_base_is_what_the_chart_makes(helm: str) -> None:
    base = ROOT / "manifests" / "base"
    assert renderer().stale(renderer().rendered(), base) == []


def test_a_base_that_was_changed_by_hand_is_noticed(helm: str, tmp_path: Path) -> None:
    files = renderer().rendered()
    renderer().write(files, tmp_path)
    assert renderer().stale(files, tmp_path) == []
    (tmp_path / "extra.yaml").write_text("kind: ConfigMap\n", encoding="utf-8")
    (tmp_path / "namespace.yaml").unlink()
    (tmp_path / "kustomization.yaml").write_text("kind: Kustomization\n", encoding="utf-8")
    assert renderer().stale(files, tmp_path) == ["extra.yaml", "kustomization.yaml", "namespace.yaml"]
    renderer().write(files, tmp_path)
    assert renderer().stale(files, tmp_path) == []


def test_the_base_says_nothing_of_helm_and_enforces_restricted_pods(helm: str) -> None:
    base = ROOT / "manifests" / "base"
    values = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(base.glob("*.yaml"))]
    kinds = {value["kind"]: value for value in values}
    assert kinds["Namespace"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    listed = set(kinds["Kustomization"]["resources"])
    assert listed == {path.name for path in base.glob("*.yaml")} - {"kustomization.yaml"}
    assert "helm.sh/chart" not in "".join(path.read_text(encoding="utf-8") for path in base.glob("*.yaml"))
    for value in values:
        namespace = value["metadata"].get("namespace") if "metadata" in value else None
        assert namespace in {None, "medley-system"}
