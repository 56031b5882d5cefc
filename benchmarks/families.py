"""Every family of models that the installed transformers has: whether lorafit trains it, and whether it trains rightly.

    python benchmarks/families.py                         # all families; writes docs/families.md
    python benchmarks/families.py --only llama,qwen3_5    # some of them, and what is wrong with them

Each family is a tiny model with random weights in a folder like those of a hub; nothing is downloaded. Each is examined in
a process of its own. The exit status is 1 if something is wrong or crashed. A run that was interrupted goes on where it was.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.model_zoo.shapes import TEXT
from support.model_zoo.wrappers import WRAPPERS

from accuracy import pages
from matrix import children, page
from matrix.record import Record, versions

BENCHMARKS = Path(__file__).parent
TESTS = BENCHMARKS.parent / "tests"
NAMES = [*TEXT, *WRAPPERS]
PAGE = "families.md"


def main() -> int:
    """Examine the families that the record lacks, print a line for each, and write the page."""
    flags = parse()
    names = flags.only.split(",") if flags.only else NAMES
    if unknown := sorted(set(names) - set(NAMES)):
        sys.exit(f"Unknown families: {', '.join(unknown)}. Known: {', '.join(NAMES)}.")
    record = Record(flags.json)
    with tempfile.TemporaryDirectory(prefix="lorafit-families-") as scratch:
        prepare_environment(Path(scratch))
        for row in children.examine_all([name for name in names if name not in record.rows], flags.jobs):
            record.add(row)
            print(line(row), flush=True)
    rows = [record.rows[name] for name in names]
    texts = [page.counts(rows), page.faults(rows), page.remarks(rows), page.refusals(rows, ("plan", "train"))]
    print("", *texts, sep="\n\n")
    if not flags.only and not flags.no_page:
        write_page(rows)
    return int(any(page.verdict(row) in ("WRONG", "CRASH", "not made") for row in rows))


def parse() -> argparse.Namespace:
    """Return the flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of families, separated by commas; the page stays as it is")
    parser.add_argument("--jobs", type=int, default=1, help="families examined at a time")
    parser.add_argument(
        "--json", type=Path, default=BENCHMARKS.parent / "build/families.jsonl", help="the record, a line a family"
    )
    parser.add_argument("--no-page", action="store_true", help="leave docs/families.md as it is")
    return parser.parse_args()


def prepare_environment(scratch: Path) -> None:
    """Set what the processes of the families find in their environment: search path, threads, and a cache in `scratch`."""
    children.import_from_here([BENCHMARKS, TESTS])
    os.environ |= {
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
        "LORAFIT_LANG": "en", "LORAFIT_CACHE": str(scratch), "LORAFIT_CALIBRATIONS": str(scratch / "calibrations.json"),
    }  # fmt: skip


def line(row: dict[str, Any]) -> str:
    """Return what is printed of a row: its verdict, its cells and its seconds."""
    seconds = sum(page.stage(row, name).get("seconds", 0.0) for name in page.STAGES)
    return f"{page.verdict(row):8} {seconds:5.1f} s  " + " | ".join(cell.strip("`*") for cell in page.cells(row))


def write_page(rows: list[dict[str, Any]]) -> None:
    """Write the tables into the page."""
    told = ", ".join(f"{name} {version}" for name, version in versions().items())
    pages.write(PAGE, "summary", f"{page.counts(rows)} Measured with {told}.")
    pages.write(PAGE, "families", page.table(rows))
    pages.write(PAGE, "faults", page.faults(rows))
    pages.write(PAGE, "remarks", page.remarks(rows))
    pages.write(PAGE, "refusals", page.refusals(rows, ("plan", "train")))
    pages.write(PAGE, "refusals of MLX", page.refusals(rows, ("mlx",), with_fix=False))


if __name__ == "__main__":
    sys.exit(main())
