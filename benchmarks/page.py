"""Writer of docs/benchmarks.md and its pictures from benchmarks/results/; measures nothing.

python benchmarks/page.py
"""

from pathlib import Path
from typing import Any

from race import figures, pictures
from race.results import GROWTH, MLX, RESULTS, Line, of_run, read

ROOT = Path(__file__).parents[1]
PAGE, PICTURES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "pictures"
INTRODUCTION = """# Benchmarks

Made by `python benchmarks/page.py` from `benchmarks/results/`; do not edit.

## How to measure

```
python benchmarks/speed.py --quick                             # four contestants, 4 samples a step: about ten minutes
python benchmarks/speed.py                                     # all of them, 16 samples a step
python benchmarks/speed.py --rows uncut                        # longer rows
python benchmarks/speed.py --system 300                        # a system prompt of 300 tokens before every row
python benchmarks/speed.py --shape llama-3.2-1b --samples 4    # random weights of a larger shape
python benchmarks/mlx_speed.py                                 # the MLX engine beside mlx_lm
python benchmarks/growth.py                                    # length, rows, rank, budget
python benchmarks/page.py                                      # this page
```

All contestants get the same base model, the same token ids in the same steps, LoRA on all seven projections with rank
32, fp32, fused AdamW and the same threads, and each must show the same loss at its first step, within 0.001. Each is a
process of its own that loads once and takes one step a round in turn, so that a machine's moods meet all alike; a matrix
product before and after each step takes out what is left of them. "tokens/s" are real tokens, without padding. "Peak" is
the process's resident memory at its highest, imports and loading included. The roofline is the step's least number of
floating-point operations over what the machine's matrix product does at the model's shapes.

"naive" is transformers' Trainer with every row padded to the maximum length. "default" is how a library comes, apart from
fp32 and the adapter; "tuned" keeps activations, 4 x 4 samples, near lengths together; "packing" puts samples end to end
in one row (TRL's padding-free mode, LLaMA-Factory's neat_packing), with attention in one dense mask, since flash
attention needs a GPU; "lean" takes one sample at a time and computes activations twice.

Beside MLX: "mlx_lm.lora" is mlx_lm's own trainer with every repair that it takes as an argument (bias-corrected AdamW,
near lengths together, a loss over targets only), "eager" the same without compiling its step, "mlx_lm loop" its model in
the least loop that a careful user would write. OpenBLAS is loaded for all; "peak" there is MLX's own counter.
"""
AXES = {"length": "tokens of a sample", "rows": "rows of the data set", "rank": "rank of the adapter",
        "budget": "tokens of a micro-batch"}  # fmt: skip


def table(rows: list[list[str]]) -> str:
    """Return `rows` as a Markdown table, the header first; all columns except the first are right-aligned."""
    header, *body = rows
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *body]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def speed_section(lines: list[Line], run: str, about: dict[str, Any]) -> str:
    """Draw the bar chart of one run and return the run's Markdown section."""
    mine = of_run(lines, run)
    title = _title(about)
    picture = PICTURES / f"speed-{run}.svg"
    pictures.bars(figures.entries(mine), title, picture)
    wrong = figures.faults(mine, about["contestants"], about["rounds"])
    parts = [f"## {title}", _circumstances(about, mine)]
    parts += [f"Not whole: {text}." for text in wrong]
    parts += [table(figures.table(mine)), f"![{title}](pictures/{picture.name})"]
    return "\n\n".join(parts)


def _title(about: dict[str, Any]) -> str:
    kind = {"legal": "legal rows cut to Llama-3's lengths", "uncut": "uncut legal rows"}[about["rows"]]
    prompt = f", a system prompt of {about['system_prompt']} tokens" if about["system_prompt"] else ""
    return f"{about['model']}: {kind}{prompt}, {about['samples']} samples a step"


def _circumstances(about: dict[str, Any], lines: list[Line]) -> str:
    used: dict[str, set[str]] = {}
    for line in lines:
        for package, version in line.get("versions", {}).items():
            used.setdefault(package, set()).add(version)
    versions = ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in used.items() if name != "lorafit")
    return f"{_machine(about)}; medians of {about['rounds']} rounds. {versions}."


def _machine(about: dict[str, Any]) -> str:
    memory = f"{about['memory_bytes'] / 2**30:.0f} GiB"
    text = f"{about['chip']}, {about['threads']} threads of {about['cores']}, {memory}, {about['system']}, Python "
    text += f"{about['python']}, torch {about['torch']}, lorafit {about['lorafit']}"
    return f"**{about['note']}.** {text}" if about["note"] else text


def growth_section(lines: list[Line]) -> str:
    """Draw the curves of the growth measurements and return their Markdown section.

    Only lines with the same machine, versions and settings as the last line are shown.
    """
    about = lines[-1]["about"]
    mine = [line for line in lines if line["about"] == about]
    parts = ["## How cost grows", _machine(about) + "; one step each, the demo model."]
    pictures.curves(mine, AXES, PICTURES / "growth.svg")
    parts.append("![Tokens a second and peak memory](pictures/growth.svg)")
    for axis, words in AXES.items():
        points = sorted((line for line in mine if line["axis"] == axis), key=lambda line: int(line["value"]))
        if points:
            header = [words, "tokens/s", "peak MB", "to first step s"]
            parts.append(table([header, *(_growth_row(line) for line in points)]))
    return "\n\n".join(parts)


def _growth_row(line: Line) -> list[str]:
    speed, peak, first = line["tokens_per_second"], line["peak_bytes"] / 1e6, line["first_step_seconds"]
    return [f"{line['value']:,}", f"{speed:.1f}", f"{peak:.0f}", f"{first:.1f}"]


def newest(lines: list[Line]) -> list[tuple[str, dict[str, Any]]]:
    """Return (run, about) of the newest run of each kind that has a finished round.

    Runs are of one kind if their titles and their contestants are equal.
    """
    kinds: dict[str, tuple[str, dict[str, Any]]] = {}
    for line in lines:
        if "about" in line and figures.entries(of_run(lines, line["run"])):
            about = line["about"]
            kinds[f"{_title(about)} {about['contestants']}"] = line["run"], about
    return list(kinds.values())


def main() -> None:
    """Write the page and its pictures; delete the former speed pictures first."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    for old in PICTURES.glob("speed-*.svg"):
        old.unlink()
    speed, growth = [*read(RESULTS), *read(MLX)], read(GROWTH)
    sections = [INTRODUCTION.strip()]
    sections += [speed_section(speed, run, about) for run, about in newest(speed)]
    sections += [growth_section(growth)] if growth else []
    PAGE.write_text("\n\n".join(sections) + "\n", "utf-8")


if __name__ == "__main__":
    main()
