import math
import random

import pytest

from medley_planner.workload.sizes import MAX_TOKENS, Bucket, SizeHistogram, SizesError


def test_weights_are_normalised_and_buckets_sorted():
    histogram = SizeHistogram.of((200, 10, 3), (100, 50, 1))

    assert histogram.buckets == (Bucket(100, 50, 0.25), Bucket(200, 10, 0.75))


def test_buckets_of_the_same_size_are_merged():
    histogram = SizeHistogram.of((100, 50, 1), (200, 10, 2), (100, 50, 1))

    assert histogram.buckets == (Bucket(100, 50, 0.5), Bucket(200, 10, 0.5))


def test_buckets_without_weight_are_dropped():
    assert SizeHistogram.of((100, 50, 1), (200, 10, 0)).buckets == (Bucket(100, 50, 1.0),)


def test_the_order_in_which_buckets_are_written_does_not_matter():
    rng = random.Random(7)
    sizes = [(rng.randint(1, 40), rng.randint(1, 5), rng.random()) for _ in range(300)]
    shuffled = rng.sample(sizes, len(sizes))

    assert SizeHistogram.of(*shuffled) == SizeHistogram.of(*sizes)


def test_normalising_again_changes_nothing():
    rng = random.Random(11)
    histogram = SizeHistogram.of(*((rng.randint(1, 9999), rng.randint(1, 999), rng.random()) for _ in range(100)))

    assert SizeHistogram(histogram.buckets) == histogram
    assert math.fsum(bucket.weight for bucket in histogram.buckets) == pytest.approx(1, abs=1e-12)


def test_means_and_longest_request():
    histogram = SizeHistogram.of((100, 50, 1), (300, 10, 3))

    assert histogram.mean_input_tokens == 250
    assert histogram.mean_output_tokens == 20
    assert histogram.longest_request_tokens == 310


@pytest.mark.parametrize(
    ("bucket", "message"),
    [
        ((0, 1, 1), r"buckets\[1\]\.input_tokens: must be between 1 and 10000000, is 0"),
        ((1, -5, 1), r"buckets\[1\]\.output_tokens: must be between 1 and 10000000, is -5"),
        ((MAX_TOKENS + 1, 1, 1), r"buckets\[1\]\.input_tokens: must be between"),
        ((1.5, 1, 1), r"buckets\[1\]\.input_tokens: must be an integer, is 1\.5"),
        ((True, 1, 1), r"buckets\[1\]\.input_tokens: must be an integer, is True"),
        ((1, "2", 1), r"buckets\[1\]\.output_tokens: must be an integer, is '2'"),
        ((1, 1, -0.1), r"buckets\[1\]\.weight: must be a finite number, at least 0, is -0\.1"),
        ((1, 1, math.nan), r"buckets\[1\]\.weight: must be a finite number, at least 0, is nan"),
        ((1, 1, math.inf), r"buckets\[1\]\.weight: must be a finite number, at least 0, is inf"),
        ((1, 1, "1"), r"buckets\[1\]\.weight: must be a finite number, at least 0, is '1'"),
    ],
)
def test_an_impossible_entry_is_refused_by_its_place_and_field(bucket, message):
    with pytest.raises(SizesError, match=f"^{message}"):
        SizeHistogram.of((100, 100, 1), bucket)


def test_no_buckets_no_weight_and_too_much_weight_are_refused():
    with pytest.raises(SizesError, match=r"^buckets: there is none$"):
        SizeHistogram(())
    with pytest.raises(SizesError, match=r"^buckets: all weights are zero$"):
        SizeHistogram.of((1, 1, 0), (2, 2, 0.0))
    with pytest.raises(SizesError, match=r"^buckets: the weights are too large to add up$"):
        SizeHistogram.of((1, 1, 1e308), (2, 2, 1e308))
