"""Distance of each engine to transformers in float64, by model family; the run writes docs/conformance.md.

python benchmarks/conformance.py
"""

import sys
import tempfile
from pathlib import Path

from accuracy import pages

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import engine_variants, float64_reference, tiny


def main() -> None:
    plan = tiny.make_plan(token_budget=100)
    rows = [["", *(way.name for way in engine_variants.WAYS)], ["---"] * (len(engine_variants.WAYS) + 1)]
    with tempfile.TemporaryDirectory() as scratch:
        for number, (case, (family, changes)) in enumerate(engine_variants.CASES.items()):
            folder = tiny.save_model(family, Path(scratch) / str(number), **changes)
            adapter = engine_variants.start_with_b(
                engine_variants.WAYS[0].open(folder, plan), Path(scratch) / f"{number}-adapter"
            )
            wanted = float64_reference.reference(folder, adapter, plan, engine_variants.SAMPLES)
            row = [case]
            for way in engine_variants.WAYS:
                if not way.has(case):
                    row.append("refused")
                    continue
                loss, gradients = engine_variants.loss_and_gradients(
                    way, folder, plan, adapter, Path(scratch) / f"{number}-{way.name}"
                )
                row.append(
                    f"{abs(loss / wanted.loss - 1):.0e}, {engine_variants.worst(gradients, wanted.gradients):.1e}"
                )
            rows.append(row)
            print(" | ".join(row), flush=True)
    pages.write("conformance.md", "families", "\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
