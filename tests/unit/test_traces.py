import gzip
import itertools
import json
import os
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from medley_planner.capacities.roofline import sustained_rates
from medley_planner.catalogue.gpus import gpu_type
from medley_planner.catalogue.known_models import known_models
from medley_planner.fleet import Objectives, Parallelism
from medley_planner.workload.buckets import bucket_counts, coarsened, corners_of, histogram_of
from medley_planner.workload.presets import UnknownPresetError, preset
from medley_planner.workload.traces import Trace, TraceError, read_trace

REPOSITORY = Path(__file__).parents[2]
TRACES = Path(os.environ.get("MEDLEY_TRACES") or REPOSITORY.parent / "shared" / "traces")

needs_traces = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not here: set MEDLEY_TRACES")


def lines(text: str) -> list[str]:
    return text.strip().splitlines(keepends=True)


def sizes(trace: Trace) -> list[tuple[int, int]]:
    return list(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))


@pytest.mark.parametrize(
    ("text", "arrivals_s"),
    [
        (
            """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 23:59:59.5000000,374,44
2023-11-17 00:00:00.7505000,396,109
""",
            [0, 1.2505],
        ),
        (
            """TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,374,44
2024-05-10 00:00:01.009930+00:00,396,109
""",
            [0, 1],
        ),
        ("timestamp_ms,input_length,output_length\n27000,374,44\n30000,396,109\n", [0, 3]),
        (
            """{"timestamp": 27482, "input_length": 374, "output_length": 44, "hash_ids": [1, 2]}
{"timestamp": 30535, "input_length": 396, "output_length": 109, "hash_ids": [3]}
""",
            [0, 3.053],
        ),
        (
            """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,374,44,418,Conversation log
45,GPT-4,396,109,505,Conversation log
""",
            [0, 40],
        ),
        (
            """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5.5,"a,b",1.25,ChatGPT,374,44,418,Conversation log
5.75,,2.5,GPT-4,396,109,505,API log
""",
            [0, 0.25],
        ),
        ("\ufeffarrival_s, input_tokens, output_tokens\r\n\r\n0.5, 374, 44\r\n2, 396, 109\r\n\r\n", [0, 1.5]),
    ],
    ids=["azure 2023", "azure 2024", "mooncake csv", "mooncake jsonl", "burstgpt old", "burstgpt", "plain"],
)
def test_layouts(text, arrivals_s):
    trace = read_trace(lines(text))

    assert trace.arrivals_s.tolist() == pytest.approx(arrivals_s, abs=1e-6)
    assert sizes(trace) == [(374, 44), (396, 109)]
    assert trace.failed_requests == 0


def test_requests_are_put_in_order_of_arrival():
    trace = read_trace(["arrival_s,input_tokens,output_tokens", "9,1,10", "5,2,20", "9,3,30", "7,4,40"])

    assert trace.arrivals_s.tolist() == [0, 2, 4, 4]
    assert sizes(trace) == [(2, 20), (4, 40), (1, 10), (3, 30)]


def test_failed_requests_are_counted_and_left_out():
    trace = read_trace(["arrival_s,input_tokens,output_tokens", "0,5,0", "1,5,7", "2,0,7"])

    assert sizes(trace) == [(5, 7)]
    assert trace.failed_requests == 2


def test_statistics_of_a_trace():
    trace = read_trace(["arrival_s,input_tokens,output_tokens", "0,10,1", "1,20,2", "2,30,3", "6,50,5"])

    assert (len(trace), trace.span_s, trace.rate_rps) == (4, 6.0, 0.5)
    assert trace.interarrival_cv == pytest.approx(np.sqrt(2) / 2)
    assert (trace.input_percentile(50), trace.output_percentile(100)) == (25, 5)


def test_all_requests_at_once_have_no_rate():
    trace = read_trace(["arrival_s,input_tokens,output_tokens", "3,10,1", "3,20,2"])

    assert np.isnan(trace.rate_rps)
    assert np.isnan(trace.interarrival_cv)


PLAIN = "arrival_s,input_tokens,output_tokens"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "line 1: there is no request"),
        ([PLAIN], "line 1: there is no request"),
        ([PLAIN, "", "0,5,0"], "line 3: no request has both input and output tokens"),
        ([PLAIN, "0,5,5", "1,5"], "line 3: has 2 values, the header has 3 columns"),
        ([PLAIN, "0,5,5", "soon,5,5"], "line 3, column arrival_s: must be a time, is 'soon'"),
        ([PLAIN, "nan,5,5"], "line 2, column arrival_s: must be a time, is 'nan'"),
        ([PLAIN, "0,5.5,5"], "line 2, column input_tokens: must be a whole number of tokens, is '5.5'"),
        ([PLAIN, "0,5,-1"], "line 2, column output_tokens: must be between 0 and 10000000, is -1"),
        ([PLAIN, "0,99999999,1"], "line 2, column input_tokens: must be between 0 and 10000000, is 99999999"),
        ([PLAIN, '0,"5,5'], "line 2: is not CSV"),
        ([AZURE, "2023-13-16 18:15:46,5,5"], "line 2, column TIMESTAMP: must be a time, is '2023-13-16 18:15:46'"),
        ([AZURE, "2023-11-16 18:15{x:46,5,5"], "line 2, column TIMESTAMP: must be a time"),
        ([AZURE, "9999-11-16 18:15:46,5,5"], "line 2, column TIMESTAMP: must be a time"),
        ([AZURE, "NaT,5,5"], "line 2, column TIMESTAMP: must be a time, is 'NaT'"),
        ([AZURE, "2023-11-16 18:15:46+02:00,5,5"], "line 2, column TIMESTAMP: must be a time"),
        ([PLAIN, "-1,5,5"], "line 2, column arrival_s: must be a time, is '-1'"),
        ([PLAIN, "1e300,5,5"], "line 2, column arrival_s: must be a time, is '1e300'"),
        (
            [PLAIN, f"0,{'9' * 5000},5"],
            f"line 2, column input_tokens: must be a whole number of tokens, is '{'9' * 200}…'",
        ),
        ([f"{PLAIN},input_tokens", "0,5,5,5"], "line 1, column input_tokens: is there twice"),
        (['{"timestamp": 1, "a": ' + "[" * 10**5], "line 1: is no JSON that can be read"),
        (['{"timestamp": ' + "1" * 5000], "line 1: is no JSON that can be read"),
        (["when,in,out", "0,5,5"], "line 2: the columns when, in, out are of no known trace"),
        (['{"timestamp": 1, "input_length": 5, "output_length": 5}', "{"], "line 2: is not JSON"),
        (['{"timestamp": 1, "input_length": 5, "output_length": 5}', "[1]"], "line 2: is not a JSON object"),
        (
            ['{"timestamp": 1, "input_length": 5, "output_length": 5}', '{"timestamp": 2, "input_length": 5}'],
            "line 2, column output_length: is missing",
        ),
        (
            ['{"timestamp": 1, "input_length": true, "output_length": 5}'],
            "line 1, column input_length: must be a whole number of tokens, is 'true'",
        ),
    ],
)
def test_a_broken_trace_is_refused_by_line_and_column(text, message):
    with pytest.raises(TraceError) as caught:
        read_trace(text)

    assert str(caught.value).startswith(message)


BURST = """Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
5,1,2.5,ChatGPT,100,10,110,Conversation log
7,1,1.5,GPT-4,200,20,220,Conversation log
9,,0.5,GPT-4,300,30,330,API log
11,,0.1,GPT-4,400,0,400,API log
"""


@pytest.mark.parametrize(
    ("where", "wanted", "failed"),
    [
        (None, [(100, 10), (200, 20), (300, 30)], 1),
        ({"Model": "GPT-4"}, [(200, 20), (300, 30)], 1),
        ({"Model": "GPT-4", "Log Type": "Conversation log"}, [(200, 20)], 0),
    ],
)
def test_requests_are_chosen_by_their_columns(where, wanted, failed):
    trace = read_trace(lines(BURST), where=where)

    assert sizes(trace) == wanted
    assert trace.failed_requests == failed


def test_json_lines_are_chosen_by_their_fields():
    text = ['{"timestamp": 1, "input_length": 5, "output_length": 6, "model": "a", "try": 2}']

    assert len(read_trace(text, where={"model": "a", "try": "2"})) == 1


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            {"Model": "GPT-5"},
            "line 5: no request has both input and output tokens and Model 'GPT-5' (it has 'ChatGPT', 'GPT-4')",
        ),
        ({"model": "GPT-4"}, "line 2, column model: is missing"),
    ],
)  # fmt: skip
def test_a_choice_that_leaves_nothing_is_told_what_there_is(where, message):
    with pytest.raises(TraceError) as caught:
        read_trace(lines(BURST), where=where)

    assert str(caught.value) == message


def random_trace(seed: int, requests: int = 5000) -> Trace:
    rng = np.random.default_rng(seed)
    return Trace(
        arrivals_s=np.arange(requests, dtype=np.float64),
        input_tokens=np.maximum(1, rng.lognormal(6, 1.5, requests)).astype(np.int64),
        output_tokens=np.maximum(1, rng.lognormal(3, 1.5, requests)).astype(np.int64),
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bins", [1, 5, 20])
def test_corners_enclose_every_request_of_a_bucket(seed, bins):
    trace = random_trace(seed)

    lower, upper = corners_of(trace, input_bins=bins, output_bins=bins)
    means = histogram_of(trace, input_bins=bins, output_bins=bins)

    assert lower.mean_input_tokens <= means.mean_input_tokens <= upper.mean_input_tokens
    assert lower.mean_output_tokens <= means.mean_output_tokens <= upper.mean_output_tokens
    assert lower.buckets[0].input_tokens == trace.input_tokens.min()
    assert upper.longest_request_tokens >= (trace.input_tokens + trace.output_tokens).max()
    if bins == 1:
        assert [bucket[:2] for bucket in map(astuple, upper.buckets)] == [
            (trace.input_tokens.max(), trace.output_tokens.max())
        ]


def test_corners_of_as_many_bins_as_sizes_are_the_requests():
    trace = read_trace(["arrival_s,input_tokens,output_tokens", "0,10,1", "1,20,2", "2,20,4", "3,40,8"])

    corners = corners_of(trace, input_bins=64, output_bins=64)

    assert corners.lower == corners.upper == histogram_of(trace, input_bins=64, output_bins=64)


@pytest.mark.parametrize("seed", range(5))
def test_a_histogram_keeps_the_tokens_and_the_requests(seed):
    trace = random_trace(seed)

    counts = bucket_counts(trace)
    histogram = histogram_of(trace)

    assert len(histogram.buckets) <= 100
    assert sum(counts.values()) == len(trace)
    assert histogram.mean_input_tokens == pytest.approx(trace.input_tokens.mean(), rel=1e-5)
    assert histogram.mean_output_tokens == pytest.approx(trace.output_tokens.mean(), rel=1e-4)


def test_more_bins_tell_more_sizes_apart():
    trace = random_trace(3)

    sizes_told_apart = [len(histogram_of(trace, input_bins=bins, output_bins=bins).buckets) for bins in (1, 2, 5, 10)]

    assert sizes_told_apart[0] == 1
    assert all(less < more for less, more in itertools.pairwise(sizes_told_apart))


def test_bins_of_a_trace_of_one_size():
    trace = read_trace([PLAIN, "0,7,9", "1,7,9"])

    assert bucket_counts(trace) == {(7, 9): 2}


def test_a_bucket_stands_for_its_requests_by_their_means():
    trace = read_trace([PLAIN, "0,10,10", "0,12,10", "0,900,10", "0,1000,10", "0,1001,20"])

    assert bucket_counts(trace, input_bins=2, output_bins=1) == {(11, 10): 2, (967, 13): 3}


@pytest.mark.parametrize("bins", [{"input_bins": 0}, {"output_bins": -1}])
def test_bins_must_be_positive(bins):
    with pytest.raises(ValueError, match=r"_bins: must be at least 1"):
        histogram_of(random_trace(0, requests=10), **bins)


# As analyses of these traces give them: requests, rate, CV of the times between arrivals, then of inputs and of outputs
# the percentiles 50, 90, 99 and the mean.
PUBLISHED = {
    "azure-conv-2023": (19366, 5.53, 1.09, (1020, 2734, 4142), 1155, (129, 424, 601), 211),
    "azure-code-2023": (8819, 2.57, 13.15, (1469, 5188, 7436), 2048, (13, 55, 251), 28),
    "mooncake-conversation-2024": (12031, 3.40, None, (6909, 27367, 85400), 12035, (350, 597, 1119), 343),
}


@needs_traces
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_statistics_of_the_public_traces(name):
    with gzip.open(TRACES / f"{name}.csv.gz", "rt", encoding="utf-8") as text:
        trace = read_trace(text)
    requests, rate_rps, cv, inputs, mean_input, outputs, mean_output = PUBLISHED[name]

    assert len(trace) == requests
    assert trace.rate_rps == pytest.approx(rate_rps, abs=0.005)
    assert cv is None or trace.interarrival_cv == pytest.approx(cv, abs=0.005)
    assert [trace.input_percentile(percent) for percent in (50, 90, 99)] == pytest.approx(inputs, abs=0.6)
    assert [trace.output_percentile(percent) for percent in (50, 90, 99)] == pytest.approx(outputs, abs=0.6)
    assert trace.input_tokens.mean() == pytest.approx(mean_input, abs=0.5)
    assert trace.output_tokens.mean() == pytest.approx(mean_output, abs=0.5)


@needs_traces
@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_load_of_the_buckets_is_that_of_the_single_requests(name):
    with gzip.open(TRACES / f"{name}.csv.gz", "rt", encoding="utf-8") as text:
        trace = read_trace(text)
    model, gpu = known_models()["meta-llama/Llama-3.1-8B-Instruct"], gpu_type("A100-80GB")

    def seconds(sizes):
        chunks = [sizes[start : start + 1000] for start in range(0, len(sizes), 1000)]
        rates = [
            sustained_rates(model, gpu, Parallelism(1), chunk, Objectives(0.08)).requests_per_second for chunk in chunks
        ]
        return 1 / np.concatenate(rates)

    buckets = histogram_of(trace).buckets
    weights = [bucket.weight for bucket in buckets]
    by_buckets = np.average(seconds([(b.input_tokens, b.output_tokens) for b in buckets]), weights=weights)
    sizes, counts = np.unique(np.stack([trace.input_tokens, trace.output_tokens], axis=1), axis=0, return_counts=True)

    assert by_buckets == pytest.approx(np.average(seconds(sizes.tolist()), weights=counts), rel=0.011)


@needs_traces
def test_presets_are_what_the_public_traces_give():
    command = [sys.executable, str(REPOSITORY / "planner" / "make_presets.py"), "--check", str(TRACES)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["azure-code-2023", "azure-conversation-2023", "mooncake-conversation-2024"])
def test_a_preset_names_its_source_and_is_small(name):
    found = preset(name)

    assert found.source.startswith("https://")
    assert found.licence in {"CC-BY-4.0", "Apache-2.0"}
    assert 50 <= len(found.sizes.buckets) <= 100
    assert found.requests > 8000
    text = (REPOSITORY / "planner" / "medley_planner" / "presets" / f"{name}.json").read_text(encoding="utf-8")
    assert json.loads(text)["attribution"]


def test_an_unknown_preset_is_answered_with_the_nearest():
    with pytest.raises(UnknownPresetError, match="did you mean azure-conversation-2023") as caught:
        preset("azure-conversation")
    assert caught.value.nearest[0] == "azure-conversation-2023"

    with pytest.raises(UnknownPresetError, match="there are azure-code-2023, azure-conversation-2023, mooncake"):
        preset("zzz")


@pytest.mark.parametrize("most", [1, 2, 10, 60, 150])
def test_a_coarsened_histogram_has_no_more_buckets_and_the_same_tokens(most):
    fine = histogram_of(random_trace(3), input_bins=16, output_bins=16)

    coarse = coarsened(fine, max_buckets=most)

    assert len(coarse.buckets) <= most < len(fine.buckets)
    assert coarse.mean_input_tokens == pytest.approx(fine.mean_input_tokens, rel=2e-3)
    assert coarse.mean_output_tokens == pytest.approx(fine.mean_output_tokens, rel=2e-2)
    assert sum(bucket.weight for bucket in coarse.buckets) == pytest.approx(1)


def test_a_histogram_that_is_coarse_enough_stays_as_it_is():
    fine = histogram_of(random_trace(3))

    assert coarsened(fine, max_buckets=len(fine.buckets)) is fine
    with pytest.raises(ValueError, match=r"^max_buckets: must be at least 1, is 0$"):
        coarsened(fine, max_buckets=0)
