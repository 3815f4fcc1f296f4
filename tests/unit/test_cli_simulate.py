"""`medley simulate`: what it simulates, how it ends, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from medley_operator.cli.app import app
from medley_operator.cli.simulation_tables import sparkline

CHAT = Path(__file__).resolve().parents[1] / "golden" / "simulate" / "chat.input.yaml"
HEADER = "arrival_s,input_tokens,output_tokens\n"
TRACE = HEADER + "".join(f"{0.5 * place},{200 + place},{20 + place % 7}\n" for place in range(200))


def medley(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "160", "NO_COLOR": "1"})


def answer(*arguments: str) -> dict[str, Any]:
    result = medley("-f", str(CHAT), *arguments, "-o", "json")
    assert result.exit_code in (0, 1), result.output
    made: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code == 0) == made["attained"]
    return made


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def changed(tmp_path: Path, **service: Any) -> str:
    """The input with other fields in the service's spec."""
    documents = list(yaml.safe_load_all(CHAT.read_text()))
    documents[-1]["spec"].update(service)
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump_all(documents))
    return str(path)


def test_the_service_is_replayed_at_its_planned_rate() -> None:
    made = answer("--duration", "200")
    service = made["services"][0]
    assert service["name"] == "default/chat"
    assert service["requests"] == pytest.approx(6 * 200, rel=0.1)
    assert service["served"] == service["requests"]
    assert made["simulated"] is True
    assert made["costPerHour"] == pytest.approx(made["plannedCostPerHour"], abs=1e-3)
    assert sum(service["timeline"]["arrivalsPerSecond"]) * service["timeline"]["intervalSeconds"] == pytest.approx(
        service["requests"]
    )


def test_a_trace_is_replayed_at_the_planned_rate_or_the_one_asked_for(trace: Path) -> None:
    planned = answer("--trace", str(trace))
    assert planned["services"][0]["requests"] == 200
    assert planned["durationSeconds"] == pytest.approx(200 / 6, rel=0.02)
    assert any("times are stretched" in note for note in planned["notes"])
    slower = answer("--trace", str(trace), "--rate", "2")
    assert slower["durationSeconds"] == pytest.approx(100, rel=0.02)
    assert slower["services"][0]["inputTokens"] == sum(200 + place for place in range(200))
    again = answer("--trace", str(trace), "--rate", "2", "--duration", "300")
    assert again["services"][0]["requests"] == pytest.approx(600, abs=2)


def test_sizes_of_a_preset(tmp_path: Path) -> None:
    made = answer("--preset", "azure-code-2023", "--duration", "100")
    service = made["services"][0]
    assert service["outputTokens"] / service["served"] < 60


def test_objectives_that_are_missed_end_with_status_1_and_say_so(trace: Path) -> None:
    result = medley("-f", str(CHAT), "--rate", "60", "--duration", "60")
    assert result.exit_code == 1
    assert "NotAttained" in result.stdout
    assert "not kept: default/chat: time to first token: percentile 95 is" in result.stdout


def test_the_rate_that_must_be_planned_for_is_found(trace: Path) -> None:
    missed = answer("--rate", "20", "--duration", "100", "--fit")
    assert not missed["attained"]
    fit = missed["fit"]
    assert fit["found"]
    assert fit["rate"] == pytest.approx(6 * fit["factor"], rel=1e-3)
    assert fit["factor"] > 1.5
    assert all(each["attained"] for each in fit["objectives"])
    assert fit["costPerHour"] > missed["costPerHour"]
    kept = answer("--duration", "100", "--fit")["fit"]
    assert kept["factor"] <= 1
    assert "planned for" in medley("-f", str(CHAT), "--duration", "100", "--fit").stdout


def test_a_rate_that_stock_cannot_serve_is_not_found() -> None:
    missed = answer("--rate", "600", "--duration", "20", "--fit")
    assert missed["fit"] == {"service": "default/chat", "found": False}


def test_a_service_that_cannot_be_planned_ends_with_status_1(tmp_path: Path) -> None:
    result = medley("-f", changed(tmp_path, objectives={"timePerOutputToken": {"milliseconds": 1}}))
    assert result.exit_code == 1
    assert "NoGPUFits" in result.stdout
    assert "has no replicas, so it was not simulated" in result.stdout


def test_the_seed_decides() -> None:
    one, same, other = (answer("--duration", "60", "--seed", seed) for seed in ("1", "1", "2"))
    assert one == same
    assert one["services"] != other["services"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--trace", "nowhere.csv"], "nowhere.csv: cannot be read"),
        (["--preset", "azure-cod"], "did you mean azure-code-2023"),
        (["--service", "nobody"], "nobody is not among the services; there are default/chat"),
        (["--duration", "1e7", "--rate", "1e6"], "would make more than 2,000,000 requests"),
        (["--duration", "0.1"], "Invalid value for '--duration'"),
    ],
)
def test_wrong_arguments_end_with_status_2(arguments: list[str], words: str) -> None:
    result = medley("-f", str(CHAT), *arguments)
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())


def test_a_page_of_the_simulation(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    result = medley("-f", str(CHAT), "--duration", "60", "--html", str(path))
    assert result.exit_code == 0
    html = path.read_text(encoding="utf-8")
    assert "Every objective is kept." in html
    assert html.count("<svg") == html.count("</svg>") == 4
    assert "<script" not in html
    assert "default/chat" in html


def test_a_page_that_cannot_be_written_ends_with_status_2(tmp_path: Path) -> None:
    result = medley("-f", str(CHAT), "--duration", "10", "--html", str(tmp_path / "no" / "page.html"))
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_sparklines() -> None:
    assert sparkline([0.0, 1.0, 2.0, 4.0]) == "▁▂▄█"
    assert sparkline([1.0, float("nan"), 0.5], full=2.0) == "▄·▂"
    assert sparkline([0.0, 0.0]) == "▁▁"
