"""`medley plan --sensitivity` and `--report`: the answers, the page, and what a page must never do."""

from __future__ import annotations

import importlib.util
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner, Result

from medley_operator.api.llmservice import LLMService
from medley_operator.api.manifest import parse
from medley_operator.cli.app import app
from medley_operator.cli.report.page import ReportError, page_html, service_page
from medley_operator.cli.sensitivity import told_within
from medley_operator.version import VERSION

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "cli"
MIX = str(GOLDEN / "mix.input.yaml")
SHORT = str(GOLDEN / "stock-short.input.yaml")
VOID = {"meta", "br", "hr", "img", "input", "link"}


def medley(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "160", "NO_COLOR": "1"})


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("report") / "plan.html"
    result = medley("plan", "-f", MIX, "--report", str(path))
    assert result.exit_code == 0, result.output
    return path.read_text(encoding="utf-8")


class Outline(HTMLParser):
    """Checks that tags are closed as they are opened, and collects text, ids and links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        named = dict(attrs)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.links += [named[name] or "" for name in ("href", "src", "xlink:href", "action") if name in named]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_is_well_formed_and_needs_nothing_else(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    assert all(link.startswith("#") and link[1:] in outline.ids for link in outline.links)
    assert not {"script", "link", "iframe", "img", "object"} & set(outline.tags)
    assert not re.findall(r"url\((?!#)|@import|https?://", page)
    assert "default-src 'none'" in page


def test_the_page_says_what_the_plan_says(page: str) -> None:
    planned = json.loads(medley("plan", "-f", MIX, "-o", "json").stdout)["services"][0]["plan"]
    words = " ".join(Outline(page).words.split())
    for sentence in (
        planned["reason"],
        *(each["detail"] for each in planned["binding"] + planned["alternatives"] + planned["rejected"]),
        "price of l4 rises",
        "rate of default/chat falls",
    ):
        assert " ".join(sentence.split()) in words


def test_every_plot_is_an_image_with_a_title_a_description_and_its_figures(page: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    titles = []
    for figure in figures:
        svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", figure, flags=re.DOTALL)[0])
        assert svg.attrib["role"] == "img"
        title, description = svg.attrib["aria-labelledby"].split()
        told = {each.attrib.get("id"): each.text for each in svg.iter()}
        assert told[title]
        assert len(told[description]) > len(told[title])
        assert figure.count("<tr>") > 2
        titles.append(told[title])
    assert titles == [
        "What other fleets would cost",
        "Cost against rate",
        "Cost against time per output token",
        "Cheapest GPUs by request size",
        "GPUs in use",
    ]


def test_plots_take_the_colours_of_the_page(page: str) -> None:
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert "prefers-color-scheme: dark" in page
    assert not re.findall(r"#[0-9a-f]{6}", svgs)
    for variable in set(re.findall(r"var\((--\w+)\)", svgs)):
        assert page.count(f"{variable}: #") == 2


def test_the_same_plan_gives_the_same_page(page: str, tmp_path: Path) -> None:
    medley("plan", "-f", MIX, "--report", str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page


HOSTILE = "<script>alert(1)</script>&\"'`{{7*7}}$x^2$ 漢字"


def test_hostile_strings_are_text() -> None:
    """A status may hold anything: whoever may write it must not thereby write the page."""
    service = parse(
        LLMService,
        {
            "apiVersion": "medley.dev/v1alpha1",
            "kind": "LLMService",
            "metadata": {"name": "chat", "namespace": "default", "generation": 1},
            "spec": {
                "model": {"name": "example/eight"},
                "objectives": {"timePerOutputToken": {"milliseconds": 80}},
                "workload": {"rate": 1, "sizes": {"preset": "azure-code-2023"}},
            },
            "status": {"plan": hostile_plan(HOSTILE), "conditions": []},
        },
    )
    page = page_html(service_page(service))
    assert "<script" not in page
    assert "{{7*7}}" in page
    outline = Outline(page)
    assert outline.words.count("<script>alert(1)</script>") >= 8
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(svg)


def hostile_plan(text: str) -> dict[str, Any]:
    return {
        "mix": text,
        "entries": [
            {
                "pool": text,
                "gpu": text,
                "tensorParallel": 1,
                "replicas": 1,
                "gpus": 1,
                "costPerHour": 1.0,
                "utilisation": 0.5,
            }
        ],
        "costPerHour": 1.0,
        "lowerBound": 1.0,
        "gapPercent": 0,
        "outcome": "Planned",
        "reason": text,
        "binding": [{"constraint": text, "subject": text, "detail": text}],
        "alternatives": [{"name": text, "costPerHour": 2.0, "extraPerHour": 1.0, "detail": text}],
        "rejected": [{"pool": text, "tensorParallel": 1, "reason": text, "detail": text}],
        "capacitySources": [{"pool": text, "tensorParallel": 1, "source": text}],
    }


def test_a_service_without_a_plan_has_no_page() -> None:
    bare = {
        "apiVersion": "medley.dev/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "chat"},
        "spec": {
            "model": {"name": "example/eight"},
            "objectives": {"timePerOutputToken": {"milliseconds": 80}},
            "workload": {"rate": 1, "sizes": {"preset": "azure-code-2023"}},
        },
    }
    with pytest.raises(ReportError, match="default/chat has no plan yet"):
        service_page(parse(LLMService, bare))


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    result = medley("plan", "-f", MIX, "--report", str(tmp_path / "plan.html"))
    assert result.exit_code == 2
    assert result.stderr == "error: a report needs matplotlib: install them with pip install 'medley[report]'\n"
    assert result.stdout == ""


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    result = medley("plan", "-f", MIX, "--report", str(tmp_path / "none" / "plan.html"))
    assert result.exit_code == 2
    assert result.stderr.endswith("plan.html: cannot be written: there is no such folder\n")
    assert medley("plan", "-f", MIX, "--report", str(tmp_path)).stderr.endswith("cannot be written: is a folder\n")


def test_a_plan_that_is_not_feasible_has_a_page_too(tmp_path: Path) -> None:
    result = medley("plan", "-f", SHORT, "--report", str(tmp_path / "plan.html"))
    assert result.exit_code == 1
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "Not every service is served" in page
    assert VERSION in page


def test_sensitivity_as_a_table_and_as_values() -> None:
    table = medley("plan", "-f", MIX, "--sensitivity").stdout
    assert "how far it holds" in table
    found = json.loads(medley("plan", "-f", MIX, "--sensitivity", "-o", "json").stdout)["sensitivity"]
    assert {turn["pool"] for turn in found["prices"]} == {"a100", "h100", "l4"}
    assert {(turn["service"], turn["direction"]) for turn in found["rates"]} == {
        ("default/chat", "falls"),
        ("default/chat", "rises"),
    }
    turned = [turn for turn in found["prices"] if turn["changesAt"] is not None]
    assert turned
    for turn in turned:
        assert turn["changesAt"] == pytest.approx(turn["holdsTo"], rel=0.01)
        assert turn["changes"][0]["before"] != turn["changes"][0]["after"]
        assert turn["changes"][0]["after"] in table
    assert (found["curves"], found["maps"], found["unanswered"]) == ([], [], [])


def test_without_being_asked_there_is_no_sensitivity() -> None:
    assert "sensitivity" not in json.loads(medley("plan", "-f", MIX, "-o", "json").stdout)


def test_a_fleet_cap_bounds_all_services_together() -> None:
    both = str(GOLDEN / "two-services.input.yaml")
    assert medley("plan", "-f", both, "--fleet-cap", "11").exit_code == 0
    assert medley("plan", "-f", both, "--fleet-cap", "9").exit_code == 1


def test_no_question_is_begun_after_the_time() -> None:
    now_s = [0.0]
    with told_within(10.0, clock=lambda: now_s[0]) as told:
        assert told(0, 3, "first")
        now_s[0] = 9.9
        assert told(1, 3, "second")
        now_s[0] = 10.1
        assert not told(2, 3, "third")


def test_who_is_served_is_told_where_not_everybody_is(tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    given = str(GOLDEN / "priorities.input.yaml")
    result = medley("plan", "-f", given, "--report", str(path), "-o", "json")
    assert result.exit_code == 1, result.output
    services = json.loads(result.stdout)["services"]
    assert [(each["name"], each["priority"], each["plan"]["servedPercent"]) for each in services] == [
        ("chat", 0, 0),
        ("search", 10, 100),
    ]
    words = "".join(Outline(path.read_text(encoding="utf-8")).words.split())
    assert "Whoisservedservicepriorityrequests/sserved$/hourbydefault/search1020100%" in words
    assert "1moreGPUof" in words
    assert "lowerboundperhour" not in words
