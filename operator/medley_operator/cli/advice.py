"""What a plan advises that the operator does not do, as notes."""

from __future__ import annotations

from collections.abc import Iterator

from medley_planner.capacities.step_budget import DEFAULT_STEP_TOKENS, step_budget_tokens
from medley_planner.capacities.step_time import StepTime
from medley_planner.fleet import FleetState, Role
from medley_planner.result import FleetPlan
from medley_planner.wording import mix_text, variant_text

STEP_ARGUMENTS = {"vllm": "--max-num-batched-tokens", "sglang": "--chunked-prefill-size"}
"""How engines are told how many tokens a step computes at most."""


def notes_about_roles(answer: FleetPlan) -> Iterator[str]:
    """Which services the plan would split into prefill and decode, and that this is advice."""
    for service in answer.services:
        parts = [entry for entry in service.mix if entry.variant.role is not Role.SHARED]
        if parts:
            yield (
                f"{service.name}: {mix_text(parts)} would compute prompts and outputs apart; that is advice, "
                "as the operator does not run such replicas yet"
            )


def notes_about_steps(state: FleetState, answer: FleetPlan) -> Iterator[str]:
    """Which engines would keep every pause between output tokens within the objective with other steps than planned.

    One setting for each Deployment, from the replica and the objective alone. It is said, not set: a change of the
    objective, or of a constant of the estimate, would otherwise replace every replica.
    """
    gpus = {pool.name: pool.gpu for pool in state.pools}
    for service in sorted(state.services, key=lambda service: service.name):
        objective_s = service.objectives.time_per_output_token_s
        if objective_s is None or service.engine not in STEP_ARGUMENTS:
            continue
        advice = []
        for entry in answer.service(service.name).mix:
            if entry.variant.role is Role.SHARED and entry.variant.pool in gpus:
                times = StepTime(service.model, gpus[entry.variant.pool], entry.variant.parallelism)
                tokens = step_budget_tokens(times, objective_s)
                if tokens not in {None, DEFAULT_STEP_TOKENS}:
                    advice.append(f"{tokens} on {variant_text(entry.variant)}")
        if advice:
            yield (
                f"{service.name}: {STEP_ARGUMENTS[service.engine]} {', '.join(advice)} would keep single pauses "
                f"between output tokens within {1000 * objective_s:g} ms, by estimate; the plan counts with "
                f"{DEFAULT_STEP_TOKENS}"
            )
