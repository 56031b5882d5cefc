"""Fuzz test of the command line: odd bytes in flags, names and the input of a chat end with exit code 0 or 2.

    python benchmarks/fuzz_commands.py [--cases N] [--seed N] [--json FILE]

One process runs all cases, in a temporary folder, with the demo model, and without a hub. A case is also wrong if a
control character reaches the terminal.
"""

import argparse
import contextlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ending import report_figures
from fuzz import Tally
from lorafit import ChatRequest, TrainConfig
from lorafit.api import open_chat
from lorafit.cli.app import COMMANDS, main
from lorafit.evaluation.chat import Chat
from lorafit.reporters.terminal.chat import COMMANDS as CHAT_COMMANDS
from lorafit.reporters.terminal.chat import talk

RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
PARTS = (b"\xff", b"\xfe\xff", b"\xed\xa0\x80", b"\xc0\xaf", b"\x1b[31m", b"\x1b]0;x\x07", b"\x9b", "\u202e".encode(), b"\r", b"\n",
         b"~", b"~nouser", b"-", b"--", b"=", b",", b"[", b"[/red]", b"{", b"%s", b"{x}", b"'", b'"', b"\\", b" ", b"*", b":",
         "中文".encode(), b"latest", b"demo", b"train[:1]", b"1e999", b"nan", b"-1", b"9" * 30, b"None", b"true", b"a" * 300,
         b"plan.json", b".zip", b".json", b"r/x")  # fmt: skip
RUNS = ("list", "show", "diff", "remove", "stop", "pause", "continue", "ls", "rm")
FLAGS = tuple(f"--{name}" for name in TrainConfig.model_fields)
OTHERS = (
    "--output",
    "-o",
    "--plot",
    "--machine",
    "--json",
    "--table",
    "--prompt",
    "--test_file",
    "--yes",
    "--lora_weights",
)


def odd_bytes(rng: random.Random) -> bytes:
    """Return one to five odd parts, or random bytes."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randint(1, 12))
    return b"".join(rng.choice(PARTS) for _i in range(rng.randint(1, 5)))


def word(rng: random.Random) -> str:
    """Return odd bytes as the operating system passes them in a command line; they lead to no other folder."""
    text = os.fsdecode(odd_bytes(rng).replace(b"\0", b"").replace(b"..", b"."))
    return text.lstrip("/")


def command_line(rng: random.Random) -> list[str]:
    """Return a command with odd words and flags, or only odd words. No command of it trains or opens a hub."""
    kind = rng.random()
    if kind < 0.1:
        return [word(rng) for _i in range(rng.randint(1, 3))]
    if kind < 0.5:
        words = ["runs", rng.choice(RUNS), *rng.choice([["run"], ["run", "run"], []])]
    elif kind < 0.75:
        words = ["plan", "--model_name", "model", "--dataset_name", "law.jsonl"]
    elif kind < 0.85:
        words = ["data", "law.jsonl", "--model_name", "model"]
    else:
        words = [rng.choice([name for name in COMMANDS if name not in ("train", "resume", "doctor", "cloud", "chat")])]
    for _i in range(rng.randint(1, 3)):
        flag = rng.choice(FLAGS + OTHERS)
        value = word(rng)
        words += rng.choice([[flag, value], [f"{flag}={value}"], [value], [f"--{value}"], [flag]])
    return words


def run_command(argv: list[str]) -> None:
    """Run a command line. Raise AssertionError for a wrong exit code or a control character in its output."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _i in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    told = out.buffer.getvalue().decode() + err.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert code in (0, 2), f"exit code {code}: {told[-600:]!a}"
    image = {"-o", "--output", "--plot"} & {part.partition("=")[0] for part in argv}
    assert image or RAW.search(told) is None, f"control character: {told[-200:]!a}"


def run_chat(chat: Chat, text: bytes) -> None:
    """Let `chat` read `text` as its input."""
    out, before = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8", errors="replace")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            talk(chat)
    finally:
        sys.stdin = before
        chat.reset()
    told = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert RAW.search(told) is None, f"control character: {told[-200:]!a}"


def chat_input(rng: random.Random) -> bytes:
    """Return one to three lines: questions and commands."""
    commands = [name.encode() for name in CHAT_COMMANDS if name not in ("/exit", "/quit")]
    lines = [
        rng.choice([b"", b"/", *commands]) + rng.choice([b" ", b""]) + odd_bytes(rng).replace(b"/", b"|")
        for _i in range(3)
    ]
    return b"\n".join(lines[: rng.randint(1, 3)])


@contextlib.contextmanager
def quiet_folder(model: Path) -> Iterator[Path]:
    """Work in a temporary folder with `model`, two rows of data and no runs; the cache is there too, and no hub is asked."""
    before, environ = Path.cwd(), dict(os.environ)
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        os.chdir(folder)
        os.environ.update(
            HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9", LORAFIT_DATA_CACHE=str(folder / "cache")
        )
        (folder / "model").symlink_to(model)
        (folder / "law.jsonl").write_text('{"instruction": "Who?", "output": "Me."}\n' * 4, "utf-8")
        yield folder
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environ)
        shutil.rmtree(folder, ignore_errors=True)


def fuzz(cases: int, seed: int, model: Path) -> dict[str, Any]:
    """Run `cases` cases with `model` and return flat figures; a quarter of them are inputs of a chat."""
    rng, tally = random.Random(seed), Tally()
    with quiet_folder(model):
        chat = open_chat(ChatRequest(base_model="model", max_new_tokens=1, device="cpu"))
        for number in range(cases):
            if number % 4 == 0:
                text = chat_input(rng)
                tally.run(ascii(text), _case(run_chat, chat, text))
            else:
                Path("output/run").mkdir(parents=True, exist_ok=True)  # a command may have removed the run
                Path("output/run/config.yaml").write_text("lora_r: 4\n", "utf-8")
                argv = command_line(rng)
                tally.run(ascii(argv), _case(run_command, argv))
    return {"seed": seed, "cases": tally.cases, "slowest_seconds": round(tally.slowest_seconds, 3),
            "wrong": len(tally.wrong), "first_wrong": tally.wrong[:10], "ok": not tally.wrong}  # fmt: skip


def _case(function: Callable[..., None], *values: object) -> Callable[[], None]:
    return lambda: function(*values)


def main_fuzz() -> int:
    """Run the benchmark and return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from lorafit.models.demo import demo_model

    return report_figures(fuzz(args.cases, args.seed, demo_model()), args.json)


if __name__ == "__main__":
    sys.exit(main_fuzz())
