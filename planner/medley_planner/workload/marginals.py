"""A joint histogram from its two margins: iterative proportional fitting of a prior.

Engines export how long prompts are and how long answers are, each as a histogram of its own (Prometheus), never both
together. A plan needs them together. Of all joint distributions with the measured margins, the fitted one is nearest
to the prior in Kullback-Leibler divergence: it keeps the prior's odds ratios, that is how inputs and outputs depend on
each other (Deming and Stephan 1940; Csiszár 1975). The formulas: docs/workloads.md.

Within a cell of the measured histograms the prior says how sizes spread; where it says nothing, the cell is one size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medley_planner.workload.margins import Margin, MarginalsError
from medley_planner.workload.sizes import Bucket, SizeHistogram

__all__ = ["FittedSizes", "Margin", "MarginalsError", "blend", "fit", "fit_sizes"]

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

SMOOTHING = 0.01
"""Share of the independent distribution of the measured margins that is mixed into the prior before it is fitted.

It makes every cell possible that the margins allow, so that the fit exists and converges whatever the prior lacks.
"""

TOLERANCE = 1e-9
"""The fit ends where no margin is off by more than this share of all requests."""

MAX_ITERATIONS = 10_000
TOTALS_WITHIN = 0.05
"""Requests counted by inputs and by outputs may differ by this share: they are read at slightly different moments."""

CONFIDENT_REQUESTS = 200.0
"""With fewer measured requests than these, the prior counts for the rest."""


@dataclass(frozen=True)
class FittedSizes:
    """A fitted joint histogram, and how it was come by.

    Args:
        sizes: The histogram.
        iterations: Rounds of fitting.
        beyond_prior_share: Share of the requests that lie in cells where the prior has none.
        measured_share: Share of the fit in the histogram; the prior has the rest, for want of measured requests.
    """

    sizes: SizeHistogram
    iterations: int
    beyond_prior_share: float
    measured_share: float


def fit_sizes(
    inputs: Margin,
    outputs: Margin,
    prior: SizeHistogram,
    *,
    requests: float | None = None,
    confident_requests: float = CONFIDENT_REQUESTS,
) -> FittedSizes:
    """The joint histogram that has the measured margins and is otherwise as near to the prior as can be.

    Args:
        inputs: Measured input sizes.
        outputs: Measured output sizes of the same requests.
        prior: What is known of their dependence, such as a preset.
        requests: Requests behind the margins; None takes the margins for certain. With fewer than
            `confident_requests` the histogram is a mixture: requests / confident_requests of the fit, the rest the
            prior.
        confident_requests: From so many requests on, the margins alone count.

    Raises:
        MarginalsError: Inputs and outputs cannot be of the same requests.
    """
    if abs(inputs.requests - outputs.requests) > TOTALS_WITHIN * max(inputs.requests, outputs.requests):
        raise MarginalsError(
            f"inputs add up to {inputs.requests:g} requests, outputs to {outputs.requests:g}: "
            "these are not the same requests"
        )
    buckets = prior.buckets
    tokens_in = np.array([bucket.input_tokens for bucket in buckets], dtype=np.int64)
    tokens_out = np.array([bucket.output_tokens for bucket in buckets], dtype=np.int64)
    rows, columns = inputs.cells(tokens_in), outputs.cells(tokens_out)
    weights = np.array([bucket.weight for bucket in buckets])
    joint = np.zeros((len(inputs.up_to), len(outputs.up_to)))
    np.add.at(joint, (rows, columns), weights)
    fitted, iterations = fit(joint, inputs.shares, outputs.shares)
    lifted = np.divide(fitted, joint, out=np.zeros_like(fitted), where=joint > 0)
    beyond = np.argwhere((joint == 0) & (fitted > 0))
    shares = np.concatenate([weights * lifted[rows, columns], fitted[beyond[:, 0], beyond[:, 1]]])
    input_tokens, output_tokens = (
        margin.moved(
            np.concatenate([tokens, _sizes_of_cells(margin, cells, tokens, weights)[more]]),
            np.concatenate([cells, more]),
            shares / shares.sum(),
        )
        for margin, cells, tokens, more in (
            (inputs, rows, tokens_in, beyond[:, 0]),
            (outputs, columns, tokens_out, beyond[:, 1]),
        )
    )
    entries = [
        Bucket(*entry) for entry in zip(input_tokens.tolist(), output_tokens.tolist(), shares.tolist(), strict=True)
    ]
    measured = 1.0 if requests is None else min(1.0, max(0.0, requests) / confident_requests)
    return FittedSizes(
        sizes=blend(SizeHistogram(tuple(entries)), prior, measured),
        iterations=iterations,
        beyond_prior_share=float(fitted[beyond[:, 0], beyond[:, 1]].sum()),
        measured_share=measured,
    )


def fit(
    prior: FloatArray, rows: FloatArray, columns: FloatArray, *, max_iterations: int = MAX_ITERATIONS
) -> tuple[FloatArray, int]:
    """The matrix with these row and column sums that is nearest to the prior, and the rounds that it took.

    The prior is smoothed first: `SMOOTHING` of it is the product of the margins. So only rows and columns whose sum is
    zero are zero, and scaling rows and columns in turn converges (Sinkhorn 1967). The last scaling is of the columns;
    rows are within `TOLERANCE`, unless the rounds end before.

    Args:
        prior: Any weights, at least 0, not all of them 0; shape (rows, columns).
        rows: Row sums; they add up to 1.
        columns: Column sums; they add up to 1.
        max_iterations: Rounds at most.
    """
    fitted = (1 - SMOOTHING) * prior / prior.sum() + SMOOTHING * np.outer(rows, columns)
    fitted[rows == 0, :] = 0.0
    fitted[:, columns == 0] = 0.0
    for iteration in range(1, max_iterations + 1):
        fitted = fitted * _ratio(rows, fitted.sum(axis=1))[:, None]
        fitted = fitted * _ratio(columns, fitted.sum(axis=0))[None, :]
        if np.abs(fitted.sum(axis=1) - rows).max() <= TOLERANCE:
            return fitted, iteration
    return fitted, max_iterations


def blend(measured: SizeHistogram, prior: SizeHistogram, measured_share: float) -> SizeHistogram:
    """A mixture of two histograms; a share of 1 is the measured one, of 0 the prior."""
    if measured_share >= 1:
        return measured
    if measured_share <= 0:
        return prior
    parts = ((measured, measured_share), (prior, 1 - measured_share))
    return SizeHistogram(
        tuple(
            Bucket(bucket.input_tokens, bucket.output_tokens, share * bucket.weight)
            for histogram, share in parts
            for bucket in histogram.buckets
        )
    )


def _ratio(wanted: FloatArray, have: FloatArray) -> FloatArray:
    return np.divide(wanted, have, out=np.zeros_like(wanted), where=have > 0)


def _sizes_of_cells(margin: Margin, cells: IntArray, tokens: IntArray, weights: FloatArray) -> FloatArray:
    """A size for each cell: the prior's mean in it where the prior has any, else its middle in logarithms."""
    low, high = margin.bounds()
    totals = np.bincount(cells, weights=weights * tokens, minlength=len(low))
    counts = np.bincount(cells, weights=weights, minlength=len(low))
    return np.where(counts > 0, totals / np.where(counts > 0, counts, 1.0), np.sqrt(low * high))
