"""Mélange's own integer programme (arXiv 2404.14527), so that its mixes can be compared with ours on the same input.

Each bucket is cut into `slice_factor` equal slices; a slice i goes to one GPU type j as a whole:

    minimise     Σ_j c_j·B_j
    subject to   Σ_j A[i,j] = 1                 for all slices i
                 Σ_i A[i,j]·L[i,j] ≤ B_j        for all types j
                 A[i,j] ∈ {0, 1},  B_j ∈ ℤ≥0

with L[i,j] = rate / MaxTput(j, bucket, objective) of the slice. It knows no stock, no caps, no bounds, and one
service at a time.

The slices of a bucket are alike, so only *how many* of them go to a type matters: the binaries of a bucket are added
up to one integer A[b,j] ∈ {0 … slice_factor}. Every binary solution gives such integers and the other way round, at
the same cost, and the solver is spared the slice_factor! equal ways to write each. `binary=True` keeps the paper's
variables, to compare solving times.
"""

from __future__ import annotations

import enum
import math
from collections import defaultdict
from dataclasses import dataclass

import pulp

from medley_planner.programme.milp import Limits
from medley_planner.programme.problem import ServiceProblem
from medley_planner.programme.split import Split


class Solver(enum.Enum):
    """Who solves the programme."""

    HIGHS = "HiGHS"
    CBC = "CBC"
    """The paper's solver: the program `cbc` on the path, else the one that PuLP brings along. For comparisons only: it
    runs as a process and writes files."""


@dataclass(frozen=True)
class MelangeMix:
    """Mélange's answer for one service.

    Args:
        replicas: B_j by variant.
        split: The slices of each bucket on each variant, as shares.
        bound: Proven bound on the price of any mix of whole slices; −∞ where the solver gives none.
        optimal: Whether the solver proved it.
    """

    replicas: tuple[int, ...]
    split: Split
    bound: float
    optimal: bool


def melange(
    service: ServiceProblem, slice_factor: int, limits: Limits, *, solver: Solver = Solver.HIGHS, binary: bool = False
) -> MelangeMix | None:
    """Mélange's mix; None where the solver found none in time.

    Args:
        service: The service; its bounds, cap and what runs are not looked at.
        slice_factor: Slices per bucket.
        limits: Time and gap.
        solver: Who solves it.
        binary: One binary variable per slice, as the paper has it.

    Raises:
        pulp.PulpSolverError: There is no CBC on this machine.
    """
    items = [
        (b, 1 if binary else slice_factor)
        for b in range(len(service.loads))
        for _ in range(slice_factor if binary else 1)
    ]
    model = pulp.LpProblem("melange", pulp.LpMinimize)
    counts = [model.add_variable(f"B_{j}", 0, None, pulp.LpInteger) for j in range(len(service.variants))]
    loads: list[list[tuple[pulp.LpVariable, float]]] = [[] for _ in service.variants]
    assigned: dict[tuple[int, int], list[pulp.LpVariable]] = defaultdict(list)
    model.setObjective(pulp.LpAffineExpression(list(zip(counts, service.prices, strict=True))))
    for i, (b, slices) in enumerate(items):
        whole = []
        for j, load in enumerate(service.loads[b]):
            if load < math.inf:
                slices_on_type = model.add_variable(f"A_{i}_{j}", 0, slices, pulp.LpInteger)
                whole.append((slices_on_type, 1.0))
                loads[j].append((slices_on_type, load / slice_factor))
                assigned[b, j].append(slices_on_type)
        terms = pulp.LpAffineExpression(whole)
        model.addConstraint(pulp.LpConstraint(terms, pulp.LpConstraintEQ, f"slice_{i}", slices))
    for j, used in enumerate(loads):
        terms = pulp.LpAffineExpression([*used, (counts[j], -1.0)])
        model.addConstraint(pulp.LpConstraint(terms, pulp.LpConstraintLE, f"load_{j}", 0))
    model.solve(_solver(solver, limits))
    if model.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        return None
    replicas = tuple(round(count.varValue or 0.0) for count in counts)
    slices_on = {key: sum(round(variable.varValue or 0.0) for variable in found) for key, found in assigned.items()}
    optimal = model.sol_status == pulp.LpSolutionOptimal
    bound = float(model.solverModel.getInfo().mip_dual_bound) if solver is Solver.HIGHS else -math.inf
    return MelangeMix(replicas, _split(service, slices_on, slice_factor), bound, optimal)


def _solver(solver: Solver, limits: Limits) -> pulp.LpSolver:
    if solver is Solver.CBC:
        found = pulp.COIN_CMD(msg=False)
        path = found.path if found.available() else pulp.PULP_CBC_CMD.pulp_cbc_path
        return pulp.COIN_CMD(path=path, msg=False, threads=1, timeLimit=limits.time_limit_s, gapRel=limits.relative_gap)
    return pulp.HiGHS(msg=False, threads=1, random_seed=0, timeLimit=limits.time_limit_s, gapRel=limits.relative_gap)


def _split(service: ServiceProblem, slices_on: dict[tuple[int, int], int], slice_factor: int) -> Split:
    shares = tuple((b, j, slices / slice_factor) for (b, j), slices in sorted(slices_on.items()) if slices > 0)
    loads = tuple(
        math.fsum(service.loads[b][j] * share for b, j, share in shares if j == v) for v in range(len(service.variants))
    )
    return Split(shares, served_share=1.0, loads=loads)
