"""The adapter of aiconfigurator: with a stand-in for its process, and with the package itself where it is installed.

MEDLEY_AICONFIGURATOR_PYTHON=…/bin/python pytest tests/unit/test_aiconfigurator.py    an environment of its own
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from medley_operator.cli.estimating import EstimatorChoice, EstimatorMissingError, capacity_function
from medley_operator.estimators import aiconfigurator, aiconfigurator_worker
from medley_operator.estimators.aiconfigurator import SOURCE, AIConfigurator, AIConfiguratorError
from medley_operator.estimators.model_folder import config_values
from medley_planner.capacities.capacity import Capacities, Capacity, capacities
from medley_planner.capacities.estimators import ByMeasurement, ByRoofline
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.catalogue.models import ThroughputPoint
from medley_planner.fleet import Objectives, Parallelism, Role

LLAMA = known_models()["meta-llama/Llama-3.1-8B-Instruct"]
MIXTURE = known_models()["Qwen/Qwen3-30B-A3B"]

STAND_IN = """
import json, os, sys
print(json.dumps({"version": os.environ.get("STAND_IN_VERSION", "0.12.0")}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    with open(os.environ["STAND_IN_LOG"], "a") as log:
        log.write(line)
    if asked["system"] == "l40s":
        print(json.dumps({"error": "LookupError: no such table"}), flush=True)
        continue
    points = [
        None if i > 5000 else
        {"requests_per_second": 1000 / (i * o) ** 0.5, "concurrency": 100.0,
         "time_to_first_token_s": 0.2, "time_per_output_token_s": 0.03}
        for i, o in asked["sizes"]
    ]
    print(json.dumps({"points": points}), flush=True)
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What the stand-in was asked, as a function: one question for each line."""
    program = tmp_path / "stand_in.py"
    program.write_text(textwrap.dedent(STAND_IN))
    monkeypatch.setattr(aiconfigurator_worker, "__file__", str(program))
    monkeypatch.setenv(aiconfigurator.PYTHON_VARIABLE, sys.executable)
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("STAND_IN_LOG", str(log))
    return lambda: [json.loads(line) for line in log.read_text().splitlines()]


def find(tables, gpu="H100-80GB", sizes=((1000, 200),), model=LLAMA, **others) -> tuple[Capacity, ...]:
    arguments = {"measurements": (), "engine": "vllm", "parallelism": Parallelism(1), "objectives": Objectives(0.06, 2)}
    return Capacities((ByMeasurement(), tables, ByRoofline()))(
        model=model, gpu=gpu_type(gpu), sizes=sizes, max_context_tokens=8192, **(arguments | others)
    )


def test_its_answer_goes_before_the_roofline_and_after_measurements(asked) -> None:
    point = ThroughputPoint(
        gpu="H100-80GB",
        tensor_parallel=1,
        input_tokens=1000,
        output_tokens=200,
        requests_per_second=3.0,
        time_per_output_token_s=0.02,
        time_to_first_token_s=0.1,
    )
    with AIConfigurator() as tables:
        (found,) = find(tables)
        (measured,) = find(tables, measurements=(point,))

    assert (found.source, found.requests_per_second) == (SOURCE, pytest.approx(1000 / math.sqrt(200_000)))
    assert (found.concurrency, found.latency.time_per_output_token_s) == (
        pytest.approx(100),
        pytest.approx(0.03),
    )
    assert measured.source == "measured"
    (question,) = asked()
    assert (question["system"], question["tensor"], question["sizes"]) == ("h100_sxm", 1, [[1000, 200]])
    assert (question["time_to_first_token_ms"], question["time_per_output_token_ms"]) == (2000, 60)


@pytest.mark.parametrize(
    "others",
    [
        {"gpu": "L4"},
        {"engine": "custom"},
        {"model": replace(LLAMA, weight_bytes_per_parameter=1.0)},
        {"model": known_models()["openai/gpt-oss-20b"]},
        {"role": Role.DECODE},
    ],
    ids=["no tables of the GPU", "no such engine", "bad tables of 8-bit products", "windows", "parts of requests"],
)
def test_what_its_tables_lack_is_left_to_the_roofline(asked, others) -> None:
    with AIConfigurator() as tables:
        (found,) = find(tables, **others)

    assert found.source == "roofline"
    assert asked() == []


def test_8_bit_products_are_asked_about_where_the_tables_are_sound(asked) -> None:
    with AIConfigurator() as tables:
        find(tables, model=replace(LLAMA, weight_bytes_per_parameter=1.0), engine="sglang")

    assert [question["quantisation"] for question in asked()] == ["fp8_block"]


def test_a_variant_that_the_tables_cannot_do_is_asked_about_once(asked) -> None:
    with AIConfigurator() as tables:
        sources = [find(tables, gpu="L40S", sizes=(size,))[0].source for size in ((1000, 200), (500, 100))]

    assert sources == ["roofline", "roofline"]
    assert len(asked()) == 1


def test_many_sizes_are_interpolated_between_those_of_a_grid_that_all_services_share(asked) -> None:
    sizes = [(round(40 * 1.5**step), 20 + 7 * step) for step in range(11)]
    with AIConfigurator() as tables:
        found = find(tables, sizes=sizes)

    for (inputs, outputs), capacity in zip(sizes, found, strict=True):
        assert capacity.requests_per_second == pytest.approx(1000 / math.sqrt(inputs * outputs))
    (question,) = asked()
    assert all(
        math.log(tokens, 4) == pytest.approx(round(math.log(tokens, 4)))
        for size in question["sizes"]
        for tokens in size
    )


def test_a_size_beside_one_without_a_rate_is_asked_about_itself(asked) -> None:
    sizes = [(4500, 40 + step) for step in range(8)] + [(5500, 50)]
    with AIConfigurator() as tables:
        *served, refused = find(tables, sizes=sizes)

    assert all(
        capacity.requests_per_second == pytest.approx(1000 / math.sqrt(i * o))
        for (i, o), capacity in zip(sizes, served, strict=False)
    )
    assert (refused.requests_per_second, refused.reason, refused.source) == (0, "ObjectiveNotMet", SOURCE)


def test_answers_are_kept_between_runs(asked, tmp_path: Path) -> None:
    for _ in range(2):
        with AIConfigurator(tmp_path / "kept" / "answers.json") as tables:
            found = find(tables)
    assert found[0].source == SOURCE
    assert len(asked()) == 1


def test_an_objective_at_a_percentile_takes_the_share_that_the_roofline_takes(asked) -> None:
    means, strict = Objectives(0.03, 2), Objectives(0.03, 2, 99, 99)
    with AIConfigurator() as tables:
        (mean,), (tail,) = (find(tables, objectives=goal) for goal in (means, strict))
    plain = {
        "model": LLAMA,
        "measurements": (),
        "engine": "vllm",
        "gpu": gpu_type("H100-80GB"),
        "parallelism": Parallelism(1),
    }
    ours = [
        capacities(**plain, sizes=[(1000, 200)], objectives=goal, max_context_tokens=8192)[0].requests_per_second
        for goal in (strict, means)
    ]
    assert ours[0] < ours[1]
    assert tail.requests_per_second == pytest.approx(mean.requests_per_second * ours[0] / ours[1])
    assert tail.source == f"{SOURCE}, percentiles by roofline"


def test_another_version_is_refused(asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_VERSION", "0.11.0")
    with AIConfigurator() as tables, pytest.raises(AIConfiguratorError, match=r"0\.12\.0 is needed, it is 0\.11\.0"):
        find(tables)


def test_a_choice_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(aiconfigurator.PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with (
        pytest.raises(EstimatorMissingError, match=r"pip install aiconfigurator-core==0\.12\.0"),
        capacity_function(EstimatorChoice.AICONFIGURATOR),
    ):
        pass
    for choice in (EstimatorChoice.AUTO, EstimatorChoice.ROOFLINE):
        with capacity_function(choice) as capacity_of:
            assert capacity_of is capacities


@pytest.mark.parametrize("model", [LLAMA, MIXTURE, known_models()["Qwen/Qwen3-0.6B"]])
def test_a_folder_has_a_model_of_the_same_size(model) -> None:
    """Parameters of the config's shapes, counted as the two families have them, without norms and gates."""
    values = config_values(model)
    hidden, layers = values["hidden_size"], values["num_hidden_layers"]
    attention = hidden * values["head_dim"] * 2 * (values["num_attention_heads"] + values["num_key_value_heads"])
    experts = values.get("num_experts", 1)
    width = values["moe_intermediate_size"] if "num_experts" in values else values["intermediate_size"]
    tables = values["vocab_size"] * hidden * (1 if values["tie_word_embeddings"] else 2)
    total = tables + layers * (attention + experts * 3 * hidden * width)
    assert total == pytest.approx(model.parameters, rel=0.01)


REAL = pytest.mark.skipif(
    not aiconfigurator.is_installed(),
    reason="aiconfigurator-core is not installed: pip install aiconfigurator-core==0.12.0, or name a python that has "
    "it in MEDLEY_AICONFIGURATOR_PYTHON",
)


@REAL
def test_the_package_gives_the_rates_that_it_gave() -> None:
    """Its own figures for 2048 input and 512 output tokens, TTFT ≤ 2 s and TPOT ≤ 60 ms."""
    with AIConfigurator() as tables:
        ((llama,), (mixture,), (ranks,)) = (
            find(tables, sizes=((2048, 512),)),
            find(tables, gpu="A100-80GB", sizes=((2048, 512),), model=MIXTURE, parallelism=Parallelism(2)),
            find(tables, sizes=((2048, 512),), model=MIXTURE, parallelism=Parallelism(1, 1, 2)),
        )
    assert llama.requests_per_second == pytest.approx(8.89, rel=0.01)
    assert mixture.requests_per_second == pytest.approx(5.31, rel=0.01)
    assert (llama.source, mixture.source, ranks.source) == (SOURCE, SOURCE, SOURCE)
    assert ranks.requests_per_second > mixture.requests_per_second


@REAL
def test_the_process_reaches_no_other_host() -> None:
    """A model that is not there would be asked for at a hub; here that is an error."""
    with AIConfigurator() as tables:
        tables._folder.cleanup()
        Path(tables._folder.name).mkdir()
        question = {
            "folder": "nobody/no-such-model",
            "system": "h100_sxm",
            "engine": "vllm",
            "tensor": 1,
            "pipeline": 1,
            "data": 1,
            "moe": False,
            "quantisation": "",
            "max_batch": 8,
            "time_to_first_token_ms": None,
            "time_per_output_token_ms": None,
            "sizes": [[100, 10]],
        }
        process = tables._start()
        told = tables._exchange(question)
    assert "error" in told
    assert process.returncode == 0
