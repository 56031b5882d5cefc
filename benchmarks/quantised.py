"""Cost and savings of 4-bit and 8-bit bases beside float32: the demo model, legal rows, one run for each base.

    python benchmarks/quantised.py [--quick] [--json FILE]

Each base is measured by two processes, one after the other. One trains: peak memory of the whole process, validation
loss before and after. One compares gradients with float64 on the same weights dequantized. MLX's quantized weights are
cached beforehand. The script writes the table of docs/conformance.md. Flat JSON: `ok`, and the figures of each base.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from accuracy import pages
from ending import report_figures
from lorafit.hardware import detect
from lorafit.units import MIB

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests"
WHOLE = {"steps": 24, "batch": 2, "held_out": 20, "max_length": 256}
QUICK = {"steps": 2, "batch": 2, "held_out": 3, "max_length": 96}
BASES = {
    "torch_fp32": ("PyTorch, float32", "torch", "none"),
    "torch_4bit": ("PyTorch, NF4", "torch", "4bit"),
    "torch_8bit": ("PyTorch, LLM.int8", "torch", "8bit"),
    "mlx_fp32": ("MLX, float32", "mlx", "none"),
    "mlx_4bit": ("MLX, 4-bit", "mlx", "4bit"),
    "mlx_8bit": ("MLX, 8-bit", "mlx", "8bit"),
}
MOST_GRADIENT = 5e-4  # float32 itself differs from float64 by up to 1e-4 in this model's worst tensor
LEAST_LEARNT = 0.9  # share of float32's drop in validation loss; a quantized base that starts worse has more to learn
Found = dict[str, dict[str, Any]]


def in_child(module: str, flags: dict[str, Any], scratch: Path) -> dict[str, Any]:
    """Run the module bases.`module` on `flags` in a process of its own and return its JSON. Raises SystemExit."""
    path = scratch / "flags.json"
    path.write_text(json.dumps(flags), "utf-8")
    places = (HERE, HERE.parent, TESTS, TESTS / "engines")
    done = subprocess.run(
        [sys.executable, "-m", f"bases.{module}", str(path)], cwd=HERE, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": ":".join(map(str, places))},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{flags}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(sizes: dict[str, int]) -> Found:
    """Return the figures of every base."""
    found: Found = {}
    for key, (name, engine, quantization) in BASES.items():
        with tempfile.TemporaryDirectory() as folder:
            adapter = Path(folder) / "adapter"
            adapter.mkdir()
            flags = {**sizes, "engine": engine, "quantization": quantization, "adapter": str(adapter)}
            if engine == "mlx":  # fills its cache before the measurement
                in_child("learn", {**flags, "only_open": True}, Path(folder))
            found[key] = in_child("learn", {**flags, "only_open": False}, Path(folder))
            found[key] |= in_child("gradients", flags, Path(folder))
        print(f"{name}: {json.dumps(found[key])}", flush=True)
    return found


def verdict(found: Found, steps: int) -> dict[str, Any]:
    """Return flat figures; `ok` if gradients are right, and quantized bases are smaller and learn as well.

    Each base is compared with float32 in the same engine. Only 4-bit bases must also have a lower peak memory.
    """
    good = True
    for key, one in found.items():
        whole = found[f"{key.partition('_')[0]}_fp32"]
        good &= one["grad_rel"] < MOST_GRADIENT
        good &= one["before"] - one["after"] >= LEAST_LEARNT * (whole["before"] - whole["after"])
        good &= one is whole or one["base_bytes"] < whole["base_bytes"]
        good &= not key.endswith("4bit") or one["peak_bytes"] < whole["peak_bytes"]
    figures = {f"{key}_{name}": value for key, one in found.items() for name, value in one.items()}
    return {"ok": good, "steps": steps, **figures}


def table(found: Found, steps: int, chip: str) -> str:
    """Return the Markdown table of all bases."""
    head = [
        "base",
        "weights MiB",
        "peak MiB",
        "s per step",
        "validation loss before",
        f"after {steps} steps",
        "loss",
        "gradient",
    ]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for key, one in found.items():
        mib = [f"{one[name] / MIB:.0f}" for name in ("base_bytes", "peak_bytes")]
        losses = [f"{one[name]:.4f}" for name in ("before", "after")]
        off = [f"{one[name]:.0e}" for name in ("loss_rel", "grad_rel")]
        rows.append([BASES[key][0], *mib, f"{one['step_seconds']:.1f}", *losses, *off])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\nMeasured on: {chip}."


def main() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two steps of short rows, and the page stays as it is")
    parser.add_argument("--json", type=Path, help="write the verdict here")
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else WHOLE
    found, steps = measure(sizes), sizes["steps"]
    if not arguments.quick:
        pages.write("conformance.md", "quantised", table(found, steps, detect.detect_machine().chip))
    flat = verdict(found, steps)
    return report_figures(flat, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
