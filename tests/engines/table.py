"""How near does each engine come to float64, family by family? Writes docs/conformance.md.

PYTHONPATH=tests python tests/engines/table.py
"""

import tempfile
from pathlib import Path

import reference
import tiny
import ways

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
HEAD = """# Conformance: every engine, every family

Written by `PYTHONPATH=tests python tests/engines/table.py`. Small random models with what is special to each family; one step of 16
samples in float32, against transformers and peft in float64, sample by sample with full logits. A cell holds the relative
error of the loss, and of the gradient of the worst tensor, by norm. The tests (`tests/engines/`) hold them below {loss:g} and {gradient:g}.

"""
MOST_LOSS, MOST_GRADIENT = 2e-6, 2e-5


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
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    PAGE.write_text(HEAD.format(loss=MOST_LOSS, gradient=MOST_GRADIENT) + table + "\n", "utf-8")


if __name__ == "__main__":
    main()
