"""Interleaved rounds: all contestants of a heat are loaded, and each takes one step per round in turn.

A heat holds as many contestants as fit in memory. The reference is always among them, since only ratios within a heat
are comparable. The first step of each contestant is round 0, which medians exclude: it warms up, shows that the losses
agree, and shows how much memory the contestant needs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from peers.protocol import Task
from race.child import Child, ContestantFailed
from race.contestants import Contestant
from race.results import Line, append, of_run, read, rounds_done
from race.shapes import fp32_copy
from race.task import Rows

FREE_MEMORY_FACTOR = 1.5  # free memory that one more contestant needs, as a multiple of the largest peak so far


@dataclass(frozen=True)
class Race:
    """The inputs of a race: its task, rows and files; `flops` holds the least number of operations of each step."""

    run: str
    task: Task
    rows: Rows
    flops: list[float]
    rounds: int
    results: Path
    scratch: Path
    say: Callable[[str], None]


def race(plan: Race, contestants: list[Contestant]) -> None:
    """Run the missing rounds of all contestants; the first contestant is the reference of each heat.

    Stop if the reference fails. Failures are written to the results.
    """
    reference, *others = contestants
    waiting = [c for c in others if _wanting(plan, c)]
    while waiting or _wanting(plan, reference):
        with _heat(plan, [reference, *waiting]) as (tried, heat):
            waiting = [c for c in waiting if c not in tried]
            if not heat or heat[0].contestant != reference:
                return  # without the reference there are no ratios; its failure is in the results
            _run_rounds(plan, heat)


def _wanting(plan: Race, contestant: Contestant) -> bool:
    return rounds_done(of_run(read(plan.results), plan.run), contestant.name) < plan.rounds


@contextmanager
def _heat(plan: Race, candidates: list[Contestant]) -> Iterator[tuple[list[Contestant], list[Child]]]:
    """Yield the contestants that were tried, and the processes that finished their first step; end them at exit.

    Candidates are tried until memory does not suffice for one more.
    """
    tried: list[Contestant] = []
    children: list[Child] = []
    free = psutil.virtual_memory().available
    try:
        for contestant in candidates:
            peaks = [child.peak_bytes for child in children]
            if len(children) > 1 and free - sum(peaks) < FREE_MEMORY_FACTOR * max(peaks):
                break
            model = str(fp32_copy(Path(plan.task.model))) if contestant.fp32_file else plan.task.model
            child = Child(contestant, replace(plan.task, model=model, options=contestant.options), plan.scratch)
            children.append(child)
            tried.append(contestant)
            try:
                facts = child.wait_until_ready()
                line = {
                    "load_seconds": child.load_seconds,
                    "loaded_bytes": facts["peak_bytes"],
                    "heat": children[0].began,
                }
                _record(plan, child, 0, {**line, **child.step(), "versions": facts["versions"]})
            except ContestantFailed as lost:
                _lose(plan, child, lost)
                children.remove(child)
        yield tried, children
    finally:
        for child in children:
            child.end()


def _run_rounds(plan: Race, heat: list[Child]) -> None:
    for number in range(1, plan.rounds + 1):
        turn = number % len(heat)
        for child in [*heat[turn:], *heat[:turn]]:  # rotated, so that no contestant always runs first
            if child in heat:
                try:
                    _record(plan, child, number, {"heat": heat[0].began, **child.step()})
                except ContestantFailed as lost:
                    _lose(plan, child, lost)
                    heat.remove(child)


def _record(plan: Race, child: Child, number: int, facts: Line) -> None:
    tokens, targets = plan.rows.tokens(number)
    line = {"run": plan.run, "contestant": child.contestant.name, "round": number, "tokens": tokens, "targets": targets}
    append(plan.results, {**line, "flops": plan.flops[number], **facts})
    speed, peak = tokens / facts["seconds"], facts["peak_bytes"] / 1e6
    name = child.contestant.name
    plan.say(f"round {number}  {name:16} {speed:7.1f} tokens/s  {peak:6.0f} MB  loss {facts['loss']:.4f}")


def _lose(plan: Race, child: Child, lost: ContestantFailed) -> None:
    child.end()
    plan.say(f"{child.contestant.name}: {lost}")
    last = str(lost).splitlines()[-1]
    append(plan.results, {"run": plan.run, "contestant": child.contestant.name, "failed": last})
