"""Fuzz test of all readers: mutated rows, files, checkpoints, adapters and configs may raise only lorafit's own errors.

    python benchmarks/fuzz.py [--quick] [--rows N] [--files N] [--seed N] [--json FILE]

The default is 100,000 rows and data files, and 10,000 checkpoints, adapters and configs; --quick runs a hundredth. One
process runs all cases, so that its peak memory bounds each of them. A case longer than CASE_SECONDS counts as a hang.
"""

import argparse
import json
import random
import re
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ending import report_figures
from lorafit.config import TrainConfig, make_config, read_yaml, write_yaml
from lorafit.data.conversation import BadRow
from lorafit.data.formats import to_conversation
from lorafit.data.sources import read_rows
from lorafit.errors import LorafitError
from lorafit.events import EventLog, StepDone, read_events
from lorafit.run_folders.adapter import AdapterConfig, lora_names, read_adapter, write_adapter
from lorafit.run_folders.checkpoint import latest_good, save_checkpoint, step_of
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.history import read_record as read_record

CASE_SECONDS, GROWTH_BYTES = 20.0, 1 << 30
ROW: dict[str, Any] = {
    "instruction": "债务人不还钱怎么办？",
    "input": "",
    "output": "可以起诉。",
    "history": [["a", "b"]],
}
ODD_VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    float("nan"),
    "",
    "\x00",
    "\ud800",
    "a" * 5000,
    [],
    {},
    [[[]]],
    {"a": {"b": []}},
    10**40,
]


@dataclass
class Tally:
    """Counts of a group of cases: accepted, refused with one of lorafit's errors, or `wrong` (other errors, hangs)."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    slowest_seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def run(self, name: str, read: Callable[[], object]) -> None:
        """Run the case read(): it may return a value, or raise LorafitError or BadRow; any other exception is wrong."""
        began = time.monotonic()
        self.cases += 1
        try:
            read()
            self.accepted += 1
        except (LorafitError, BadRow):
            self.refused += 1
        except Exception as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {str(error)[:200]}")
        seconds = time.monotonic() - began
        self.slowest_seconds = max(self.slowest_seconds, seconds)
        if seconds > CASE_SECONDS:
            self.wrong.append(f"{name}: took {seconds:.0f} s")


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return a copy of `data` with one to four random edits.

    An edit flips a bit, truncates, inserts random bytes, repeats the beginning, or writes bytes that are hard to parse.
    """
    out = bytearray(data)
    for _i in range(rng.randint(1, 4)):
        place = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0 if out:
                out[min(place, len(out) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                del out[place:]
            case 2:
                out[place:place] = bytes(rng.randrange(256) for _j in range(rng.randint(1, 8)))
            case 3:
                out[place:place] = out[: rng.randint(0, min(len(out), 64))]
            case _:
                out[place : place + 3] = rng.choice(
                    [b"\xff\xfe", b"[" * 50, b"{", b'"', b"null", b"\n", b"1e999", b"\xed\xa0\x80"]
                )
    return bytes(out)


def mutated_row(rng: random.Random) -> object:
    """Return a row with unexpected values in one to three fields; in 5% of the calls, a value that is no row at all."""
    row = json.loads(json.dumps(ROW))
    for _i in range(rng.randint(1, 3)):
        row[rng.choice([*row, "messages", "conversations", "prompt", "chosen", "x"])] = rng.choice(
            [
                *ODD_VALUES,
                [{"role": "user", "content": rng.choice(ODD_VALUES)}],
                [{"from": "gpt", "value": rng.choice(ODD_VALUES)}],
            ]
        )
    return row if rng.random() < 0.95 else rng.choice(ODD_VALUES)


def fuzz_rows(count: int, rng: random.Random) -> Tally:
    """Convert `count` mutated rows to conversations."""
    tally = Tally()
    for _i in range(count):
        row = mutated_row(rng)
        tally.run("row", lambda row=row: to_conversation(row))  # type: ignore[misc]
    return tally


def fuzz_data_files(count: int, rng: random.Random, folder: Path) -> Tally:
    """Read `count` small mutated data files of all text formats to the end."""
    lines = [json.dumps(ROW, ensure_ascii=False) for _i in range(3)]
    table = 'instruction,output\n问,答\n"a\nb",c\n'
    seeds = {
        ".jsonl": "\n".join(lines),
        ".json": "[" + ",".join(lines) + "]",
        ".csv": table,
        ".tsv": table.replace(",", "\t"),
    }
    tally = Tally()
    for _i in range(count):
        suffix, text = rng.choice(list(seeds.items()))
        path = folder / f"data{suffix}"
        path.write_bytes(mutate_bytes(text.encode(), rng))
        tally.run(suffix, lambda path=path: [to_conversation(row.value) for row in read_rows(str(path), "train")])  # type: ignore[misc]
    return tally


def fuzz_folders(kind: str, count: int, rng: random.Random, folder: Path) -> Tally:
    """Mutate one file of a valid folder, read the folder and restore the file, `count` times."""
    make, read = {
        "checkpoint": (_make_run, _read_run),
        "adapter": (_make_adapter, read_adapter),
        "config": (_make_config, _read_config),
    }[kind]
    home = folder / kind
    home.mkdir()
    make(home)
    files = sorted(path for path in home.rglob("*") if path.is_file())
    tally = Tally()
    for _i in range(count):
        path = rng.choice(files)
        good = path.read_bytes()
        path.write_bytes(mutate_bytes(good, rng))
        tally.run(f"{kind} {path.name}", lambda: read(home))
        path.write_bytes(good)
    return tally


def _make_run(folder: Path) -> None:
    run = RunDir(folder)
    write_yaml(TrainConfig(), run.config)
    run.plan.write_text(json.dumps({"steps": 10, "choices": [{"setting": "a", "value": "b", "reason": "c"}]}))
    with EventLog(run.events) as log:
        for step in (1, 2):
            log.write(StepDone(step=step, loss=1.0, target_tokens=1, tokens=2, grad_norm=1.0, lr=1e-4, seconds=1.0, peak_bytes=1, micro_batches=1, epoch=0.1))  # fmt: skip
    for step in (1, 2):
        save_checkpoint(run, step, _make_adapter)


def _read_run(folder: Path) -> object:
    run = RunDir(folder)
    good, _bad = latest_good(run)
    if good is not None:
        read_adapter(good)
        step_of(good)
    read_record(run)
    return read_events(run.events)


def _make_adapter(folder: Path) -> None:
    a, b = lora_names("model.layers.0.self_attn.q_proj")
    tensors = {a: np.ones((2, 8), np.float32), b: np.ones((8, 2), np.float32)}
    write_adapter(folder, AdapterConfig("demo", 2, 4.0, 0.0, ["q_proj"]), tensors)


def _make_config(folder: Path) -> None:
    write_yaml(TrainConfig(), folder / "config.yaml")


def _read_config(folder: Path) -> object:
    return make_config(read_yaml(folder / "config.yaml"), folder)


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--files", type=int)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    share = 100 if args.quick else 1
    rows, files = args.rows or 100_000 // share, args.files or 10_000 // share
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    before = _peak_bytes()
    try:
        figures = fuzz(rows, files, args.seed, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures["growth_bytes"] = _peak_bytes() - before
    figures["ok"] = not figures["wrong"] and figures["growth_bytes"] < GROWTH_BYTES
    return report_figures(figures, args.json)


def fuzz(rows: int, files: int, seed: int, folder: Path) -> dict[str, Any]:
    """Run all kinds of cases and return flat figures; nine tenths of `rows` are rows, the others whole data files."""
    rng = random.Random(seed)
    tallies = {"rows": fuzz_rows(rows - rows // 10, rng), "data_files": fuzz_data_files(rows // 10, rng, folder)}
    tallies |= {kind: fuzz_folders(kind, files // 3 + 1, rng, folder) for kind in ("checkpoint", "adapter", "config")}
    figures: dict[str, Any] = {"seed": seed}
    for name, tally in tallies.items():
        figures |= {
            name: tally.cases,
            f"{name}_refused": tally.refused,
            f"{name}_slowest_seconds": round(tally.slowest_seconds, 3),
        }
    wrong = [text for tally in tallies.values() for text in tally.wrong]
    figures["wrong"] = len(wrong)
    figures["first_wrong"] = sorted({re.sub(r"\d+", "#", text) for text in wrong})[:10]
    return figures


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main())
