"""Processes that help to search: the plan is the same with them, without them, and where one is ended from outside."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import pytest

import medley_planner.sharing.coalitions as coalitions_module
from medley_planner.fleet import FleetState, PlanOptions
from medley_planner.plan import plan
from medley_planner.workload.sizes import SizeHistogram
from planner_fleets import LONG, SHORT, SMALL_AND_BIG, fleet, service, small_and_big

OPTIONS = PlanOptions(explain=False, shared_gap=0.01)
SERVICES = 40


@pytest.fixture(autouse=True)
def every_coalition_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coalitions_module, "_LARGE_SHARES", 0)


@pytest.fixture
def process() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def competing() -> FleetState:
    """Services of as many rates, most of which would like big GPUs best, and there are few."""
    sizes = SizeHistogram.of((*SHORT, 1.0), (*LONG, 0.7))
    asked = [service(f"s{k:02}", 2.0 + 0.17 * k, sizes=sizes) for k in range(SERVICES)]
    return fleet(asked, small_and_big(small=2000, big=25))


class Counting(Executor):
    """Hands work on, and does something before each piece."""

    def __init__(self, inner: Executor, before: Callable[[int], None] = lambda piece: None) -> None:
        self.pieces = 0
        self._inner, self._before = inner, before

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._before(self.pieces)
        self.pieces += 1
        return self._inner.submit(fn, *args, **kwargs)


def test_the_plan_does_not_depend_on_who_searches(process: ProcessPoolExecutor) -> None:
    alone = plan(competing(), OPTIONS, capacity_of=SMALL_AND_BIG)
    helper = Counting(process)
    helped = plan(competing(), OPTIONS, capacity_of=SMALL_AND_BIG, helpers=lambda: [helper])
    assert helper.pieces > 0
    assert helped == alone


def test_nobody_is_asked_for_help_with_few_services() -> None:
    def lend() -> list[Executor]:
        raise AssertionError("asked for help")

    few = fleet([service("only", 3.0)], small_and_big())
    assert plan(few, OPTIONS, capacity_of=SMALL_AND_BIG, helpers=lend).services


@pytest.mark.parametrize("survived", [0, 1])
def test_a_helper_that_is_ended_leaves_its_part_to_others(process: ProcessPoolExecutor, survived: int) -> None:
    alone = plan(competing(), OPTIONS, capacity_of=SMALL_AND_BIG)

    def end(piece: int) -> None:
        if piece == survived:
            os.kill(process.submit(os.getpid).result(), signal.SIGKILL)

    helper = Counting(process, end)
    helped = plan(competing(), OPTIONS, capacity_of=SMALL_AND_BIG, helpers=lambda: [helper])
    assert helper.pieces == survived + 1
    assert helped.gap <= OPTIONS.shared_gap
    assert helped.cost_usd_per_hour == pytest.approx(alone.cost_usd_per_hour, rel=OPTIONS.shared_gap)
