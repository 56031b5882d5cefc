"""Figures of a race: medians, and ratios to the reference within the same heat and round."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from race.results import Line

SAME_LOSS = 1e-3  # tolerance for the mean loss of the first step, before any update
KEYS = {
    "vs_naive": "naive",
    "vs_trl_tuned": "trl tuned",
    "vs_trl_packing": "trl packing",
    "vs_lf_packing": "lf packing",
    "vs_lf_tuned": "lf tuned",
}


@dataclass(frozen=True)
class Entry:
    """The figures of one contestant: medians over its rounds, and its peak memory.

    `behind` is its time over the reference's time (1 for the reference), corrected by the matmul speed. `by_clock` is
    the same ratio of uncorrected times: the short matmul may miss a disturbance of the step, or meet one that the step
    did not. `utilisation` is the step's FLOP/s over the matmul's FLOP/s.
    """

    name: str
    rounds: int
    tokens_per_second: float
    targets_per_second: float
    behind: float
    by_clock: float
    utilisation: float
    peak_bytes: int
    load_seconds: float
    first_step_seconds: float
    first_loss: float


def entries(lines: list[Line]) -> list[Entry]:
    """Return the figures of all contestants with a finished round, in the order in which they entered.

    Times are scaled to a machine whose matmul always runs at its median speed.
    """
    steps = [line for line in lines if "seconds" in line]
    if not steps:
        return []
    typical = median(line["gflops"] for line in steps)
    names = list(dict.fromkeys(line["contestant"] for line in steps))
    return [
        _entry(name, steps, typical) for name in names if any(s["contestant"] == name and s["round"] for s in steps)
    ]


def _entry(name: str, steps: list[Line], typical: float) -> Entry:
    mine = [line for line in steps if line["contestant"] == name]
    rounds = [line for line in mine if line["round"] > 0]
    first = next(line for line in mine if line["round"] == 0)
    seconds = [_seconds(line, typical) for line in rounds]
    return Entry(
        name=name,
        rounds=len(rounds),
        tokens_per_second=median(line["tokens"] / s for line, s in zip(rounds, seconds, strict=True)),
        targets_per_second=median(line["targets"] / s for line, s in zip(rounds, seconds, strict=True)),
        behind=_behind(rounds, steps, lambda line: _seconds(line, typical)),
        by_clock=_behind(rounds, steps, lambda line: float(line["seconds"])),
        utilisation=median(line["flops"] / line["seconds"] / (line["gflops"] * 1e9) for line in rounds),
        peak_bytes=max(line["peak_bytes"] for line in mine),
        load_seconds=first["load_seconds"],
        first_step_seconds=first["load_seconds"] + first["seconds"],
        first_loss=first["loss"],
    )


def _seconds(line: Line, typical: float) -> float:
    return float(line["seconds"] * line["gflops"] / typical)


def _behind(rounds: list[Line], steps: list[Line], seconds: Callable[[Line], float]) -> float:
    first = steps[0]["contestant"]  # every heat starts with the reference, so the first line is its own
    reference = {_place(s): seconds(s) for s in steps if s["contestant"] == first}
    ratios = [seconds(line) / reference[key] for line in rounds if (key := _place(line)) in reference]
    return median(ratios) if ratios else float("nan")


def _place(line: Line) -> tuple[str, int]:
    return line["heat"], line["round"]


def faults(lines: list[Line], wanted: list[str], rounds: int) -> list[str]:
    """Return why a run is incomplete: the contestants that failed, have too few rounds, or computed another loss."""
    found = {entry.name: entry for entry in entries(lines)}
    failed = {line["contestant"]: line["failed"] for line in lines if "failed" in line}
    words, reference = [], next(iter(found), "")
    for name in wanted:
        done = found[name].rounds if name in found else 0
        if done < rounds:
            words.append(f"{name}: {done} of {rounds} rounds; {failed.get(name, 'broken off')}")
        elif not abs(found[name].first_loss - found[reference].first_loss) <= SAME_LOSS:
            words.append(f"{name}: loss {found[name].first_loss:.4f}, not {found[reference].first_loss:.4f}")
    return words


def flat(lines: list[Line], wanted: list[str], rounds: int) -> dict[str, Any]:
    """Return the figures as one flat object; a figure is None if its peer did not take part."""
    found = {entry.name: entry for entry in entries(lines)}
    peers = [entry for entry in found.values() if not entry.name.startswith("lorafit")]
    ours = [entry.peak_bytes for entry in found.values() if entry.name.startswith("lorafit")]
    leanest = min((entry.peak_bytes for entry in peers), default=None)
    why = faults(lines, wanted, rounds)
    return {
        "ok": not why,
        **{key: round(found[name].behind, 3) if name in found else None for key, name in KEYS.items()},
        "peak_vs_leanest": round(min(ours) / leanest, 3) if ours and leanest else None,
        "roofline": round(next(iter(found.values())).utilisation, 3) if found else None,
        "rounds": min((entry.rounds for entry in found.values()), default=0),
        "peers": len(peers),
        "why": "; ".join(why),
    }


def table(lines: list[Line]) -> list[list[str]]:
    """Return rows of text below a header, the fastest contestant first."""
    name = next((line["contestant"] for line in lines if "seconds" in line), "")
    header = ["", "tokens/s", "target tokens/s", f"{name} is faster by", "by the clock", "of the roofline", "peak MB", "load s",
              "to first step s"]  # fmt: skip
    ordered = sorted(entries(lines), key=lambda entry: entry.behind)
    return [header, *([*_figures(entry)] for entry in ordered)]


def _figures(entry: Entry) -> list[str]:
    return [
        entry.name,
        f"{entry.tokens_per_second:.1f}",
        f"{entry.targets_per_second:.1f}",
        f"{entry.behind:.2f}x",
        f"{entry.by_clock:.2f}x",
        f"{entry.utilisation:.0%}",
        f"{entry.peak_bytes / 1e6:.0f}",
        f"{entry.load_seconds:.1f}",
        f"{entry.first_step_seconds:.1f}",
    ]
