"""Speed and memory of turning rows into samples, beside the JSON loader and map of `datasets` with the same tokenizer.

    python benchmarks/data.py [--quick] [--rows N] [--json FILE]

The rows are generated short questions and answers. Every measurement is a process of its own. Compare the ratios:
machines differ.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from lorafit.config import TrainConfig
from lorafit.data.dataset import exhaust, prepare_cached
from lorafit.data.preprocessing import preprocessing_of
from lorafit.data.sources import read_rows
from lorafit.data.tokenize import tokenize_all, usable_cores
from lorafit.engines.tokenizer import shared_tokenizer
from lorafit.models.demo import demo_model

FEW, MANY, QUICK, STAGE_ROWS = 10_000, 1_000_000, 50_000, 20_000
WORDS = [
    "合同",
    "当事人",
    "约定",
    "期限",
    "违约",
    "赔偿",
    "责任",
    "法院",
    "起诉",
    "仲裁",
    "劳动",
    "工资",
    "解除",
    "通知",
    "三十日",
    "应当",
    "可以",
    "依照",
    "规定",
    "第十条",
]


def write_rows(path: Path, rows: int) -> None:
    """Write `rows` different questions and answers as JSON lines."""
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            said = ["".join(rng.choices(WORDS, k=rng.randrange(3, 20))) for _ in range(2)]
            row = {"instruction": f"{number}：{said[0]}？", "input": "", "output": f"{said[1]}。"}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def prepare(path: Path) -> dict[str, Any]:
    """Prepare data as for a training (make samples, or open the cache); return rows, tokens and seconds."""
    folder, began = demo_model(), time.monotonic()
    load = partial(shared_tokenizer, folder, None, False)
    data = exhaust(prepare_cached(TrainConfig(dataset_name=str(path), max_length=512), folder, load))
    return {"rows": data.rows, "tokens": data.total_tokens, "seconds": time.monotonic() - began}


def stages(path: Path) -> dict[str, float]:
    """Return rows per second of each stage, without the time of the earlier stages.

    All run in one process, except the stage that names a process per core.
    """
    recipe, load = preprocessing_of(TrainConfig()), partial(shared_tokenizer, demo_model(), None, False)
    load()
    read = _seconds(lambda: sum(1 for _row in read_rows(str(path), "train")))
    recognised = _seconds(lambda: [recipe.read(row.value) for row in read_rows(str(path), "train")])
    threads = _seconds(lambda: sum(1 for _ in tokenize_all(read_rows(str(path), "train"), recipe, load, cores=1)))
    processes = _seconds(lambda: sum(1 for _ in tokenize_all(read_rows(str(path), "train"), recipe, load, patience=0)))
    speed = {"read": read, "recognise": recognised - read, "render, tokenise, mask": threads - recognised}
    speed |= {"all stages": threads, "all stages, a process a core (with their start)": processes}
    return {name: STAGE_ROWS / seconds for name, seconds in speed.items()}


def with_datasets(path: Path) -> dict[str, float]:
    """Return rows per second of `datasets`: its JSON loader, and a map that tokenizes but makes no target mask."""
    import datasets

    datasets.disable_progress_bars()
    tokenizer = shared_tokenizer(demo_model(), None, False).inner

    def tokenise(rows: dict[str, list[str]]) -> Any:
        pairs = zip(rows["instruction"], rows["output"], strict=True)
        said = [[{"role": "user", "content": ask}, {"role": "assistant", "content": answer}] for ask, answer in pairs]
        texts = tokenizer.apply_chat_template(said, tokenize=False)
        return tokenizer(texts, add_special_tokens=False)

    with tempfile.TemporaryDirectory() as cache:
        began = time.monotonic()
        table = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=cache)
        loaded = time.monotonic()
        table.map(tokenise, batched=True, batch_size=256, remove_columns=table.column_names)
        mapped = time.monotonic()
    speed = {"read": loaded - began, "render, tokenise": mapped - loaded, "all stages": mapped - began}
    return {name: STAGE_ROWS / seconds for name, seconds in speed.items()}


def _seconds(work: Any) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def measure_in_child(what: str, path: Path, cache: Path) -> dict[str, Any]:
    """Run `what` in a process of its own; return its result and its peak memory (getrusage, without children)."""
    code = (
        f"import json, resource, runpy; bench = runpy.run_path({__file__!r})\n"
        "from pathlib import Path\n"
        f"found = bench[{what!r}](Path({str(path)!r}))\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(json.dumps({'found': found, 'peak_KiB': peak}))"
    )
    script = path.with_name("measure.py")
    script.write_text(f"if __name__ == '__main__':\n    {code.replace(chr(10), chr(10) + '    ')}\n", "utf-8")
    environ = {**os.environ, "LORAFIT_DATA_CACHE": str(cache)}
    done = subprocess.run([sys.executable, str(script)], env=environ, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    """Measure all stages and sizes, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} rows instead of {MANY}")
    parser.add_argument("--rows", type=int, help="this many rows")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    flags = parser.parse_args()
    many = flags.rows or (QUICK if flags.quick else MANY)
    demo_model()
    figures: dict[str, Any] = {"cores": usable_cores(), "rows": many}
    with tempfile.TemporaryDirectory(prefix="lorafit-bench-") as scratch:
        folder = Path(scratch)
        stage_file = folder / "stages.jsonl"
        write_rows(stage_file, STAGE_ROWS)
        for name in ("stages", "with_datasets"):
            figures[name] = measure_in_child(name, stage_file, folder / "cache")["found"]
            print(name, json.dumps({k: round(v) for k, v in figures[name].items()}), flush=True)
        for rows in (FEW, many):
            path = folder / f"{rows}.jsonl"
            write_rows(path, rows)
            for time_ in ("first", "second"):
                figures[f"{rows} rows, {time_} time"] = found = measure_in_child("prepare", path, folder / "cache")
                print(f"{rows} rows, {time_} time", json.dumps(found), flush=True)
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
