"""100,000 odd inputs to `medley plan`: none may end in a traceback, a warning, or another status than 0, 1 or 2.

python benchmarks/planner_fuzz.py                          100,000 inputs, as in the table (about 15 minutes on 2 cores)
python benchmarks/planner_fuzz.py --inputs 2000 --seed 7   fewer, others
python benchmarks/planner_fuzz.py --replay 7:1234          one of them again, shown, in a process of its own

The inputs are called in this process, as the command calls itself, and a sample of them in processes of their own.
A status of 0 or 1 must come with an answer (JSON without NaN, where that was asked for), 2 with an error message and
nothing else.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import typer.main
import typer.testing
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from typer.testing import CliRunner

from medley_bench.odd_inputs import FOLDER, Case, case
from medley_bench.report import Row
from medley_operator.cli.app import app

SEED = 20261122
INPUTS, QUICK_INPUTS = 100_000, 400
PROCESSES, QUICK_PROCESSES = 100, 4
HANGS_AFTER_S = 60
CHUNK = 50
ENVIRONMENT = {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}


@dataclass(frozen=True)
class Failure:
    """An input that was not answered as it should be."""

    seed: int
    number: int
    kind: str
    what: str

    def __str__(self) -> str:
        return f"--replay {self.seed}:{self.number} ({self.kind}): {self.what}"


@dataclass
class Tally:
    """What came of some inputs.

    Args:
        statuses: How often each status, by kind of input.
        failures: What must not be.
        slowest: Seconds and number of the slowest input.
        seconds: All their time together.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Count these too."""
        self.statuses += other.statuses
        self.failures += other.failures
        self.slowest = max(self.slowest, other.slowest)
        self.seconds += other.seconds


class Hang(BaseException):
    """An input took too long; no handler of errors may take it for one."""


def main() -> int:
    """Run it; 1 where an input failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=INPUTS)
    parser.add_argument("--processes", type=int, default=PROCESSES, help="so many of them in processes of their own")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--replay", metavar="SEED:NUMBER", help="one input again")
    asked = parser.parse_args()
    if asked.replay:
        seed, _, number = asked.replay.partition(":")
        return _replay(int(seed), int(number))
    tally = fuzz(asked.seed, asked.inputs, asked.processes, asked.workers)
    return 1 if tally.failures else 0


def rows(*, quick: bool) -> list[Row]:
    """The figures: 400 inputs where it is to be quick, else 100,000 (about 15 minutes on 2 cores)."""
    inputs = QUICK_INPUTS if quick else INPUTS
    started = time.perf_counter()
    tally = fuzz(SEED, inputs, QUICK_PROCESSES if quick else PROCESSES, len(os.sched_getaffinity(0)))
    wall_s = time.perf_counter() - started
    failed = len(tally.failures)
    return [
        Row("fuzzed inputs to medley plan", inputs, f"inputs, seed {SEED}", "100,000", inputs >= INPUTS or None),
        Row("fuzzed inputs: tracebacks, warnings, other statuses", failed, "inputs", "0", failed == 0),
        Row("fuzzed inputs: slowest", tally.slowest[0], "s"),
        Row("fuzzed inputs: wall time", wall_s, "s"),
    ]


def fuzz(seed: int, inputs: int, processes: int, workers: int) -> Tally:
    """Try so many inputs, tell and count what came of them."""
    console = Console()
    console.print(
        f"seed {seed}: {inputs:,} inputs, {processes} of them in processes of their own too, {workers} workers"
    )
    tally = Tally()
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool, Progress(console=console, transient=True) as progress:
        task = progress.add_task("inputs", total=inputs)
        for done in pool.imap_unordered(_try_chunk, _chunks(seed, inputs, processes)):
            tally.add(done)
            progress.advance(task, sum(done.statuses.values()))
            for failure in done.failures:
                console.print(f"[red]failed[/red] {failure}", markup=True, highlight=False, soft_wrap=True)
    _show(console, tally)
    return tally


@dataclass(frozen=True)
class _Chunk:
    """Inputs for one worker at a time; those in `apart` are tried in processes of their own too."""

    seed: int
    numbers: range
    apart: frozenset[int]


def _chunks(seed: int, inputs: int, processes: int) -> Iterator[_Chunk]:
    apart = frozenset(place * inputs // processes for place in range(processes)) if processes else frozenset()
    for begin in range(0, inputs, CHUNK):
        yield _Chunk(seed, range(begin, min(begin + CHUNK, inputs)), apart)


def _try_chunk(chunk: _Chunk) -> Tally:
    return tried(chunk.seed, chunk.numbers, chunk.apart)


def tried(seed: int, numbers: Iterable[int], apart: Collection[int] = ()) -> Tally:
    """What came of some inputs.

    Args:
        seed: Their seed.
        numbers: Their numbers.
        apart: Those that are tried in processes of their own too.
    """
    tally = Tally()
    typer.testing._get_command = _command  # the runner would put the command together anew for every call
    signal.signal(signal.SIGALRM, _hang)
    with tempfile.TemporaryDirectory(prefix="medley-fuzz-") as folder:
        for number in numbers:
            made = case(seed, number)
            arguments = _laid_out(made, Path(folder))
            begun = time.perf_counter()
            status, what = _call(made, arguments)
            took_s = time.perf_counter() - begun
            if not what and number in apart and _can_be_given(arguments):
                apart_status, what = _call_apart(made, arguments)
                if not what and apart_status != status:
                    what = f"status {status} in this process, {apart_status} in one of its own"
            tally.statuses[made.kind, status] += 1
            tally.seconds += took_s
            tally.slowest = max(tally.slowest, (took_s, number))
            if what:
                tally.failures.append(Failure(seed, number, made.kind, what))
    return tally


_command = functools.cache(typer.main.get_command)


def _hang(_signal: int, _frame: object) -> None:
    raise Hang(f"took more than {HANGS_AFTER_S} s")


def _laid_out(made: Case, folder: Path) -> list[str]:
    """The arguments, with the case's files in the folder and nothing else."""
    if made.files:
        for old in folder.iterdir():
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    for name, content in made.files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if content is None else path.write_bytes(content)
    return ["plan", *(argument.replace(FOLDER, str(folder)) for argument in made.arguments)]


def _call(made: Case, arguments: list[str]) -> tuple[int, str]:
    """The status of one call in this process, and what is wrong with it."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER_S)
        try:
            result = CliRunner().invoke(app, arguments, input=made.stdin, env=ENVIRONMENT)
        except Hang as hang:
            return -1, str(hang)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    if isinstance(result.exception, Hang):
        return -1, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        last = traceback.extract_tb(result.exception.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        return result.exit_code, f"{type(result.exception).__name__} at {where}: {result.exception}"
    if warned:
        return result.exit_code, f"warning: {warned[0].message} ({Path(warned[0].filename).name}:{warned[0].lineno})"
    return result.exit_code, wrong(result.exit_code, result.stdout, result.stderr, arguments)


def _can_be_given(arguments: list[str]) -> bool:
    """Whether a process can be started with these arguments; in this process, any can be tried."""
    return not any("\0" in argument for argument in arguments)


def _call_apart(made: Case, arguments: list[str]) -> tuple[int, str]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "medley_operator.cli", *arguments]
    environment = os.environ | ENVIRONMENT
    done = subprocess.run(
        command, input=made.stdin, capture_output=True, env=environment, timeout=2 * HANGS_AFTER_S, check=False
    )
    stdout, stderr = done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
    return done.returncode, wrong(done.returncode, stdout, stderr, arguments)


def wrong(status: int, stdout: str, stderr: str, arguments: list[str]) -> str:
    """What is wrong with an answer; empty where nothing is."""
    if "Traceback (most recent call last)" in stdout + stderr:
        return "a traceback was printed"
    if status not in {0, 1, 2}:
        return f"ended with status {status}"
    if status == 2:
        if stdout:
            return "an answer was printed although the input is wrong"
        return "" if stderr.strip() else "says nothing of what is wrong"
    return _wrong_answer(stdout, stderr, arguments)


def _wrong_answer(stdout: str, stderr: str, arguments: list[str]) -> str:
    if not stdout.strip() and not stderr.strip():
        return "no answer was printed"
    if "--help" in arguments:
        return ""
    if "--report" in arguments:
        page = Path(arguments[arguments.index("--report") + 1])
        if not page.is_file() or not page.read_text(encoding="utf-8").endswith("</html>"):
            return "no page was written"
    return _wrong_json(stdout) if _output_of(arguments) == "json" and stdout else ""


def _output_of(arguments: list[str]) -> str:
    """The last `-o` wins."""
    values = [value for name, value in itertools.pairwise(arguments) if name == "-o"]
    return values[-1] if values else "table"


def _wrong_json(text: str) -> str:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError as error:
        return f"the answer is not JSON: {error}"
    return ""


def _replay(seed: int, number: int) -> int:
    """One input again, in a process of its own."""
    made = case(seed, number)
    with tempfile.TemporaryDirectory(prefix="medley-fuzz-") as folder:
        arguments = _laid_out(made, Path(folder))
        print(f"# {made.kind}: medley {' '.join(arguments)}", flush=True)
        sys.stdout.buffer.write(made.stdin[:20_000] + b"\n")
        sys.stdout.flush()
        if not _can_be_given(arguments):
            status, what = _call(made, arguments)
            print(f"# status {status} in this process; no other one can be given a NUL. {what}")
            return 0
        command = [sys.executable, "-m", "medley_operator.cli", *arguments]
        done = subprocess.run(command, input=made.stdin, env=os.environ | ENVIRONMENT, check=False)
    print(f"# status {done.returncode}")
    return 0


def _show(console: Console, tally: Tally) -> None:
    table = Table("inputs", "0 planned", "1 not planned", "2 wrong input", "other", title_justify="left")
    for kind in sorted({kind for kind, _ in tally.statuses}):
        counts = [tally.statuses[kind, status] for status in (0, 1, 2)]
        other = sum(count for (of, _), count in tally.statuses.items() if of == kind) - sum(counts)
        table.add_row(kind, *(f"{count:,}" for count in (*counts, other)))
    console.print(table)
    total = sum(tally.statuses.values())
    console.print(
        f"{total:,} inputs, {len(tally.failures)} failed; {1e3 * tally.seconds / max(total, 1):.1f} ms each, "
        f"the slowest (number {tally.slowest[1]}) {tally.slowest[0]:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
