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

`python benchmarks/page.py` makes this page from `benchmarks/results/`. Do not edit it.

## How to measure

```
python benchmarks/speed.py --quick                             # four programs, 4 samples per step: about ten minutes
python benchmarks/speed.py                                     # all programs, 16 samples per step
python benchmarks/speed.py --rows uncut                        # longer rows
python benchmarks/speed.py --system 300                        # a system prompt of 300 tokens before every row
python benchmarks/speed.py --shape llama-3.2-1b --samples 4    # random weights of a larger shape
python benchmarks/mlx_speed.py                                 # the MLX engine and mlx_lm
python benchmarks/growth.py                                    # length, rows, rank, token budget
python benchmarks/page.py                                      # this page
```

All programs do the same work:

| equal for all | value |
|---|---|
| base model, and token IDs of each step | the same |
| LoRA | rank 32, on all seven projections |
| precision | fp32 |
| optimizer | fused AdamW |
| CPU threads | the same number |
| loss of the first step | equal within 0.001; otherwise the page says so |

Each program is a process of its own and loads once. In each round, every program takes one step in turn, so that load on the
machine affects all alike. A reference matmul runs before and after each step. Dividing by its time removes most of the
remaining differences.

| column | meaning |
|---|---|
| tokens/s | real tokens per second, without padding, normalized by the reference matmul |
| target tokens/s | of these, the tokens in the loss |
| is faster by | time of the program over the time of the first program, in the same round, normalized |
| by the clock | the same ratio in seconds, not normalized |
| of the roofline | least number of floating-point operations of the step, over what the machine's matmul computes in that time at the model's shapes |
| peak MB | highest resident memory of the process, with imports and loading |
| load s, to first step s | seconds to load the model; seconds until the first step is done |

| setup of a peer | meaning |
|---|---|
| naive | transformers' Trainer, with every row padded to the maximum length |
| default | the defaults of a library, except fp32 and the adapter |
| tuned | keeps activations, takes 4 x 4 samples, groups samples of similar lengths |
| packing | samples end to end in one row (TRL's padding-free mode, LLaMA-Factory's neat_packing). Attention has one dense mask, because flash attention needs a GPU |
| lean | one sample at a time, with gradient checkpointing |

| setup of lorafit | meaning |
|---|---|
| fast | the `fast` allocator |
| lean | the `lean` allocator, micro-batches of 512 tokens, all layers recompute |
| default | glibc's default allocator |
| trimmed | the `lean` allocator alone |
| bf16 | base weights stored in bf16, micro-batches of 512 tokens, all layers recompute |

| setup of MLX | meaning |
|---|---|
| mlx_lm.lora | mlx_lm's own trainer, with every correction that it takes as an argument: bias-corrected AdamW, groups of similar lengths, a loss over target tokens only |
| mlx_lm.lora eager | the same, without compiling its step |
| mlx_lm loop | mlx_lm's model in the shortest loop that a careful user would write |

With MLX, OpenBLAS is loaded for all programs, and the peak is MLX's own counter. "trl" is TRL, and "lf" is LLaMA-Factory.
"""
AXES = {"length": "tokens per sample", "rows": "rows of the data set", "rank": "rank of the adapter",
        "budget": "tokens per micro-batch"}  # fmt: skip


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
    parts += [f"Incomplete: {text}." for text in wrong]
    parts += [table(figures.table(mine)), f"![{title}](pictures/{picture.name})"]
    return "\n\n".join(parts)


def _title(about: dict[str, Any]) -> str:
    kind = {"legal": "legal rows truncated to Llama-3's lengths", "uncut": "legal rows, not truncated"}[about["rows"]]
    prompt = f", a system prompt of {about['system_prompt']} tokens" if about["system_prompt"] else ""
    return f"{about['model']}: {kind}{prompt}, {about['samples']} samples per step"


def _circumstances(about: dict[str, Any], lines: list[Line]) -> str:
    used: dict[str, set[str]] = {}
    for line in lines:
        for package, version in line.get("versions", {}).items():
            used.setdefault(package, set()).add(version)
    versions = {name: " and ".join(sorted(found)) for name, found in used.items() if name != "lorafit"}
    return _facts(about, {"rounds, of which medians are shown": str(about["rounds"]), **versions})


def _facts(about: dict[str, Any], more: dict[str, str]) -> str:
    """Return the table of the machine and the versions, with the rows `more`; the note of the run is above it."""
    rows = {
        "CPU": f"{about['chip']}, {about['threads']} threads of {about['cores']}",
        "memory": f"{about['memory_bytes'] / 2**30:.0f} GiB",
        "system": about["system"],
        "Python": about["python"],
        "lorafit": about["lorafit"],
        "torch": about["torch"],
        **more,
    }
    text = "\n".join(f"| {name} | {value} |" for name, value in {"": "", "---": "---", **rows}.items())
    return f"**{about['note']}.**\n\n{text}" if about["note"] else text


def growth_section(lines: list[Line]) -> str:
    """Draw the curves of the growth measurements and return their Markdown section.

    Only lines with the same machine, versions and settings as the last line are shown.
    """
    about = lines[-1]["about"]
    mine = [line for line in lines if line["about"] == about]
    parts = ["## How cost grows", "The demo model, one step for each row.", _facts(about, {})]
    pictures.curves(mine, AXES, PICTURES / "growth.svg")
    parts.append("![Tokens per second and peak memory](pictures/growth.svg)")
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
