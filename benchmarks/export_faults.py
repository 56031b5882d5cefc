"""Planted faults in `lorafit export`, which must all be refused, and honest exports, none of which may be.

    python benchmarks/export_faults.py [--quick] [--json FILE]

A fault replaces one function of the exporter, or damages the files; the measurement stays as it is. Each fault is planted in
an export that passes without it, and counts as refused only if nothing is left on the disk. The models are small, with
random weights and a short training; the demo model is one of them. llama.cpp must be installed (`pip install
'lorafit[gguf]'`), and bitsandbytes for runs on 4-bit weights. --quick does a third of the kinds of faults, without the demo model.
"""

import argparse
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
if __name__ == "__main__":  # and not in a test, whose other tests would see it
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "LORAFIT_LANG": "en"}
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))

from ending import report_figures
from exports.chat_faults import CHAT, FILES, FOUR_BITS, OLLAMA, PEFT
from exports.faults import ADAPTER, LAYOUT
from exports.honest import HONEST, named, with_controls
from exports.other_faults import HONEST_OTHERS, OTHERS
from exports.sources import RUNS, Sources
from exports.trials import Result, Trial, run

FAULTS = [*ADAPTER, *LAYOUT, *CHAT, *FILES, *FOUR_BITS, *OLLAMA, *PEFT, *OTHERS]
LEAST_FAULTS, LEAST_HONEST = 25, 60
QUICK = 3  # every third kind of fault


def chosen(quick: bool) -> tuple[list[Trial], list[Trial]]:
    """Return faults and honest exports. The exports of the faults without them are honest ones."""
    if quick:
        kinds = {kind(trial): trial for trial in reversed(FAULTS) if trial.source not in RUNS}
        faults = list(kinds.values())[::QUICK]
        return faults, with_controls(faults)
    honest = {trial.name: trial for trial in [*HONEST, *map(named, HONEST_OTHERS), *with_controls(FAULTS)]}
    return FAULTS, list(honest.values())


def kind(trial: Trial) -> str:
    """Return the name of a fault without its export."""
    return trial.name.partition(" (")[0]


def verdict(results: list[Result], quick: bool) -> dict[str, Any]:
    """Return the figures."""
    faulty = [one for one in results if one.trial.is_faulty]
    honest = [one for one in results if not one.trial.is_faulty]
    missed = [f"{one.trial.name}: {one.state}" for one in faulty if one.state != "refused"]
    wrong = [f"{one.trial.name}: {one.said or one.state}" for one in honest if one.state != "written"]
    enough = quick or (len(faulty) >= LEAST_FAULTS and len(honest) >= LEAST_HONEST)
    return {"ok": enough and not missed and not wrong, "planted": len(faulty), "refused": len(faulty) - len(missed),
            "honest": len(honest), "false_refusals": len(wrong), "not_refused": missed, "falsely_refused": wrong,
            "kinds": len({kind(one.trial) for one in faulty})}  # fmt: skip


def line(result: Result) -> str:
    """Return what is printed of a trial."""
    told = result.said
    forms = result.exported.certificate.forms if result.exported else []
    if forms and forms[0].behaviour:
        found = forms[0].behaviour[0]
        told = f"KL(live || base) {found.kl_base:.2g}, R {found.kl_export / max(found.kl_base, 1e-30):.2g} {told}"
    sort = "fault" if result.trial.is_faulty else "honest"
    return f"{result.state:8}{sort:7}{result.seconds:5.1f} s  {result.trial.name}: {told[:200]}"


def main() -> int:
    """Run all trials, print a line for each, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a third of the kinds of faults, without the demo model")
    parser.add_argument("--json", type=Path, default=None)
    flags = parser.parse_args()
    if missing := [name for name in ("xllamacpp", "bitsandbytes", "peft", "mlx_lm") if find_spec(name) is None]:
        sys.exit(f"Needed, but not installed: {', '.join(missing)}.")
    faults, honest = chosen(flags.quick)
    began, results = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="lorafit-faults-") as scratch:
        os.environ["LORAFIT_CALIBRATIONS"] = f"{scratch}/calibrations.json"
        made, target = Path(scratch) / "made", Path(scratch) / "exports"
        made.mkdir()
        target.mkdir()
        sources = Sources(made)
        for trial in [*honest, *faults]:
            results.append(run(trial, sources, target))
            print(line(results[-1]), flush=True)
    figures = verdict(results, flags.quick) | {"seconds": round(time.monotonic() - began)}
    return report_figures(figures, flags.json)


if __name__ == "__main__":
    sys.exit(main())
