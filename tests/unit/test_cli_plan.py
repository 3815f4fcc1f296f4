"""`medley plan`: exit statuses, mistakes by file, line and field, and answers for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from medley_operator.cli.app import app
from medley_operator.cli.inputs import MAX_FILE_BYTES

SAMPLES = Path(__file__).resolve().parents[2] / "manifests" / "samples"

POOL = """\
apiVersion: medley.dev/v1alpha1
kind: GPUPool
metadata:
  name: l4
spec:
  gpu:
    type: L4
  gpusPerNode: 8
  pricePerGPUHour: 0.8
"""
PROFILE = (SAMPLES / "modelprofile-llama-3.1-8b.yaml").read_text(encoding="utf-8")
SERVICE = """\
apiVersion: medley.dev/v1alpha1
kind: LLMService
metadata:
  name: chat
spec:
  model:
    name: meta-llama/Llama-3.1-8B-Instruct
    maxContextTokens: 8192
  objectives:
    timePerOutputToken:
      milliseconds: 120
  workload:
    rate: 2
    sizes:
      histogram:
      - inputTokens: 500
        outputTokens: 100
        weight: 1
"""


def medley(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=stdin, env={"COLUMNS": "160", "NO_COLOR": "1"})


def plan_of(*texts: str, flags: tuple[str, ...] = ()) -> Result:
    return medley("plan", "-f", "-", *flags, stdin="\n---\n".join(texts))


def mistakes(result: Result) -> list[str]:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def answer(result: Result) -> Any:
    assert result.exit_code in {0, 1}, result.output
    return json.loads(result.stdout)


def test_the_samples_are_planned_with_a_mix_of_gpus() -> None:
    planned = answer(medley("plan", "-f", str(SAMPLES), "-o", "json"))
    assert planned["feasible"]
    chat = next(service["plan"] for service in planned["services"] if service["name"] == "chat")
    assert len({entry["pool"] for entry in chat["entries"]}) >= 2
    only = [other["costPerHour"] for other in chat["alternatives"] if other["name"].startswith("only ")]
    assert len(only) == 4
    assert chat["costPerHour"] < min(only)
    assert chat["lowerBound"] <= chat["costPerHour"]
    assert planned["costPerHour"] == pytest.approx(sum(each["plan"]["costPerHour"] for each in planned["services"]))


def test_json_and_yaml_say_the_same() -> None:
    as_json = medley("plan", "-f", str(SAMPLES), "-o", "json")
    as_yaml = medley("plan", "-f", str(SAMPLES), "-o", "yaml")
    assert json.loads(as_json.stdout) == yaml.safe_load(as_yaml.stdout)


def test_files_folders_and_standard_input_together(tmp_path: Path) -> None:
    (tmp_path / "pools" / "deep").mkdir(parents=True)
    (tmp_path / "pools" / "deep" / "l4.yml").write_text(POOL)
    (tmp_path / "pools" / "kustomization.yaml").write_text("resources: [deep/l4.yml]\n")
    (tmp_path / "pools" / ".hidden.yaml").write_text("not: [yaml")
    (tmp_path / "profile.json").write_text(json.dumps(yaml.safe_load(PROFILE)))
    flags = ("-f", str(tmp_path / "pools"), "-f", str(tmp_path / "profile.json"), "-f", "-", "-o", "json")
    planned = answer(medley("plan", *flags, stdin=SERVICE))
    assert [pool["name"] for pool in planned["pools"]] == ["l4"]


def test_a_list_is_its_items() -> None:
    items = [yaml.safe_load(text) for text in (POOL, PROFILE, SERVICE)]
    listed = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    assert answer(plan_of(listed, flags=("-o", "json")))["feasible"]


def test_other_objects_are_passed_over_and_told() -> None:
    secret = "apiVersion: v1\nkind: Secret\nmetadata:\n  name: token\n"
    notes = answer(plan_of(POOL, PROFILE, SERVICE, secret, flags=("-o", "json")))["notes"]
    assert any("1 × Secret" in note for note in notes)
    assert any("as many GPUs as wanted in l4" in note for note in notes)


def test_a_trace_in_a_config_map() -> None:
    trace = "arrival_s,input_tokens,output_tokens\n0,400,80\n1,600,120\n"
    data = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "t"}, "data": {"r.csv": trace}})
    service = yaml.safe_load(SERVICE)
    service["spec"]["workload"]["sizes"] = {"traceConfigMap": {"name": "t", "key": "r.csv"}}
    assert answer(plan_of(POOL, PROFILE, json.dumps(service), data, flags=("-o", "json")))["feasible"]
    (missing,) = mistakes(plan_of(POOL, PROFILE, json.dumps(service)))
    assert "spec.workload.sizes.traceConfigMap.name: there is no ConfigMap 't'" in missing


def test_an_infeasible_service_ends_with_status_1_and_says_what_would_do() -> None:
    capped = SERVICE + "  gpus:\n    maxCostPerHour: 0.1\n"
    result = plan_of(POOL, PROFILE, capped)
    assert result.exit_code == 1
    assert "CostCapTooLow" in result.stdout
    planned = answer(plan_of(POOL, PROFILE, capped, flags=("-o", "json")))
    assert not planned["feasible"]
    cap = planned["services"][0]["plan"]["nearestFeasibleCostCap"]
    enough = SERVICE + f"  gpus:\n    maxCostPerHour: {cap}\n"
    assert answer(plan_of(POOL, PROFILE, enough, flags=("-o", "json")))["feasible"]


def test_a_limit_bounds_the_plan() -> None:
    result = plan_of(POOL + "  limit: 0\n", PROFILE, SERVICE)
    assert result.exit_code == 1
    assert "StockShort" in result.stdout


def test_melanges_formulation_is_a_mode() -> None:
    planned = answer(plan_of(POOL, PROFILE, SERVICE, flags=("-o", "json", "--formulation", "melange")))
    assert planned["services"][0]["plan"]["outcome"] == "Planned"


def test_a_mistake_names_file_line_and_field(tmp_path: Path) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text(POOL + "---\n" + SERVICE.replace("rate: 2", "rate: -2").replace("objectives", "objective"))
    assert mistakes(medley("plan", "-f", str(file))) == [
        f"{file}:15: spec.objectives: is required",
        f"{file}:19: spec.objective: there is no such field; did you mean objectives?",
        f"{file}:23: spec.workload.rate: must be greater than 0, is -2",
    ]


def test_a_reference_that_leads_nowhere_names_the_nearest() -> None:
    asked = SERVICE + "  gpus:\n    pools:\n    - l4\n    - l40\n"
    line = "\n---\n".join((POOL, PROFILE, asked)).splitlines().index("    - l40") + 1
    assert mistakes(plan_of(POOL, PROFILE, asked)) == [
        f"standard input:{line}: spec.gpus.pools[1]: there is no GPUPool 'l40'; did you mean l4?"
    ]


def test_a_pool_of_an_unknown_type_is_told_before_services_are_looked_at() -> None:
    (mistake,) = mistakes(plan_of(POOL.replace("type: L4", "type: L5"), PROFILE, SERVICE))
    assert mistake.startswith("standard input:7: spec.gpu.type: the catalogue has no GPU type 'L5'; did you mean L4")


def test_mistakes_of_all_files_are_told_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("a: [1")
    (tmp_path / "b.yaml").write_text("kind: GPUPool\n")
    (tmp_path / "c.yaml").write_text("just text\n")
    (tmp_path / "d.yaml").write_bytes(b"ok: 1\nbad: \xff\n")
    found = mistakes(medley("plan", "-f", str(tmp_path), "-f", str(tmp_path / "missing.yaml")))
    places = [mistake.removeprefix(f"{tmp_path}/").split(": ")[0] for mistake in found]
    assert places == ["a.yaml:1", "b.yaml:1", "c.yaml:1", "d.yaml:2", "missing.yaml"]


def test_the_same_object_twice() -> None:
    (mistake,) = mistakes(plan_of(POOL, POOL, PROFILE, SERVICE))
    assert mistake == "standard input:15: metadata.name: GPUPool l4 is there already, at standard input:1"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there is no LLMService"),
        (POOL, "there is no LLMService"),
        ("apiVersion: medley.dev/v2\nkind: LLMService\n", "must be medley.dev/v1alpha1"),
        ("apiVersion: medley.dev/v1alpha1\nkind: LLMServer\n", "did you mean LLMService?"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n", "metadata.name: is required"),
        ("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndata: {a: 1}\n", "data: must be a map to strings"),
        ("- 1\n- 2\n", "is not a Kubernetes object"),
        ("[" * 1000, "nested deeper"),
    ],
)
def test_input_that_makes_no_sense(text: str, words: str) -> None:
    found = mistakes(plan_of(text))
    assert any(words in mistake for mistake in found)


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"# " + b"x" * MAX_FILE_BYTES)
    assert mistakes(medley("plan", "-f", str(file))) == [f"{file}: larger than 8 MiB"]


def test_an_empty_folder(tmp_path: Path) -> None:
    (mistake,) = mistakes(medley("plan", "-f", str(tmp_path)))
    assert "holds no .yaml, .yml or .json file" in mistake


@pytest.mark.parametrize(("name", "words"), [("a" * 300, "File name too long"), ("a\0b", "embedded null byte")])
def test_a_name_that_no_file_can_have(tmp_path: Path, name: str, words: str) -> None:
    (found,) = mistakes(medley("plan", "-f", f"{tmp_path}/{name}"))
    assert found.endswith(f"cannot be read: {words}")


def test_the_order_of_documents_does_not_matter() -> None:
    texts = (POOL, PROFILE, SERVICE)
    assert plan_of(*texts, flags=("-o", "json")).stdout == plan_of(*texts[::-1], flags=("-o", "json")).stdout


def test_version_and_help() -> None:
    assert medley("version").stdout.strip()
    assert "plan" in medley("--help").stdout
    assert medley("plan").exit_code == 2


def test_variants_that_do_a_part_of_requests_are_told_apart() -> None:
    result = plan_of(POOL, PROFILE, SERVICE, flags=("--disaggregated",))
    assert result.exit_code == 0, result.output
    rows = [line.split("  ")[1] for line in result.stdout.splitlines() if line.startswith("  l4 × ")]
    assert any(row.endswith("(prefill)") for row in rows)
    assert any(row.endswith("(decode)") for row in rows)
    found = answer(plan_of(POOL, PROFILE, SERVICE, flags=("--disaggregated", "-o", "json")))["services"][0]["plan"]
    rows = [(each["pool"], each["tensorParallel"], each.get("role")) for each in found["entries"] + found["rejected"]]
    assert len(rows) == len(set(rows))
    assert {role for _, _, role in rows} == {None, "prefill", "decode"}
