"""How near does each engine come to float64, family by family? Writes docs/conformance.md.

PYTHONPATH=tests python tests/engines/table.py
"""

import sys
import tempfile
from pathlib import Path

import reference
import tiny
import ways

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from accuracy import pages


def main() -> None:
    plan = tiny.make_plan(token_budget=100)
    rows = [["", *(way.name for way in ways.WAYS)], ["---"] * (len(ways.WAYS) + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        for number, (case, (family, changes)) in enumerate(ways.CASES.items()):
            folder = tiny.save_model(family, Path(scratch) / str(number), **changes)
            adapter = ways.start_with_b(ways.WAYS[0].open(folder, plan), Path(scratch) / f"{number}-adapter")
            wanted = reference.reference(folder, adapter, plan, ways.SAMPLES)
            row = [case]
            for way in ways.WAYS:
                loss, gradients = ways.loss_and_gradients(
                    way, folder, plan, adapter, Path(scratch) / f"{number}-{way.name}"
                )
                row.append(f"{abs(loss / wanted.loss - 1):.0e}, {ways.worst(gradients, wanted.gradients):.1e}")
            rows.append(row)
            print(" | ".join(row), flush=True)
    pages.write("conformance.md", "families", "\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
