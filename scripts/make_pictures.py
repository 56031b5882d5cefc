"""Train the demo in each language and draw the terminal output of its events as pictures in docs/pictures/.

`make_pictures.py en=RUN zh=RUN` draws existing runs. A picture shows only the last state of the progress bar.
"""

import html
import os
import re
import subprocess
import sys
from io import StringIO
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.terminal_theme import MONOKAI

from lorafit.events import Event, StepDone, read_events
from lorafit.messages import set_language
from lorafit.reporters.terminal.progress import figures_text, left_text, progress_bar
from lorafit.reporters.terminal.run import TerminalReporter
from lorafit.reporters.terminal.throughput import Throughput
from lorafit.run_folders import directory

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/pictures"
WIDTH = 100  # cells
COMMANDS = {"en": "./run_train.sh --demo", "zh": "./run_train.sh --demo --lang zh"}
TEXT = re.compile(r'(?P<head><text [^>]*)textLength="(?P<length>[^"]+)"(?P<tail>[^>]*>)(?P<content>[^<]+)</text>')
# rich's default frame loads a font from a server; this frame uses the reader's fonts.
FRAME = """<svg class="terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px/{line_height}px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono",
"PingFang SC", "Noto Sans CJK SC", "WenQuanYi Zen Hei", monospace; }}
.{unique_id}-title {{ font: bold 18px sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g></g></svg>
"""


class LastState:
    """A display that prints the progress bar once, in its last state."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._now = 0.0

    def stage(self, text: str) -> None:
        pass

    def progress(self, text: str) -> None:
        pass

    def start(self, pace: Throughput, step: int, time: float) -> None:
        self._pace, self._now = pace, time
        self._bar = progress_bar(self._console, disable=True, clock=lambda: self._now)
        self._task: TaskID = self._bar.add_task("", total=pace.steps, completed=step, figures="", left="")

    def step(self, event: StepDone) -> None:
        self._now = event.time
        if self._bar is not None:
            figures, left = figures_text(self._pace, event), left_text(self._pace)
            self._bar.update(self._task, completed=event.step, figures=figures, left=left)

    def close(self) -> None:
        if self._bar is not None:
            self._console.print(self._bar)
            self._bar = None


def draw(events: list[Event], language: str) -> str:
    """Return the picture of a run's `events` as SVG."""
    set_language(language)
    console = Console(
        file=StringIO(), record=True, width=WIDTH, force_terminal=True, force_interactive=True, color_system="truecolor",
        highlight=False, legacy_windows=False,
    )  # fmt: skip
    console.print(f"$ {COMMANDS[language]}", style="bold")
    terminal = TerminalReporter(console, LastState(console))
    for event in events:
        terminal.on_event(event)
    terminal.close()
    picture = console.export_svg(title="lorafit", theme=MONOKAI, code_format=FRAME, unique_id="lorafit")
    return TEXT.sub(_stretched, picture)


def _stretched(text: re.Match[str]) -> str:
    """Set the length of a piece of text by cells. rich counts characters, but a Chinese character takes two cells."""
    content = html.unescape(text["content"])
    length = float(text["length"]) / len(content) * cell_len(content)
    return f'{text["head"]}textLength="{length:.1f}"{text["tail"]}{text["content"]}</text>'


def train(language: str) -> Path:
    """Train a demo run, which takes minutes, and return its folder."""
    command = [sys.executable, "train.py", "--demo", "--lang", language]
    subprocess.run(command, cwd=ROOT, check=True)
    return directory.find_run("latest", ROOT / "output").path


def main(argv: list[str]) -> None:
    """Draw the picture of each language, from the runs named in `argv` or from new runs."""
    runs = dict(word.split("=", 1) for word in argv)
    os.chdir(ROOT)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sys.argv[0] = "train.py"  # next commands are printed in the form of this script
    FOLDER.mkdir(exist_ok=True)
    for language in COMMANDS:
        run = Path(runs.get(language) or train(language))
        picture = FOLDER / f"demo.{language}.svg"
        picture.write_text(draw(read_events(run / "events.jsonl"), language), "utf-8")
        print(picture.relative_to(ROOT))


if __name__ == "__main__":
    main(sys.argv[1:])
