"""How does a training look at a terminal? Replays a run's events into an SVG: `make_picture.py RUN OUTPUT.svg [en|zh]`."""

import sys
from pathlib import Path

from rich.console import Console

from lorafit.events import Stage, read_events
from lorafit.messages import set_language
from lorafit.reporters.terminal import Terminal

WIDTH = 100


def main(run: str, output: str, language: str = "en") -> None:
    """Live displays leave only their last state in a recording, as on a real terminal."""
    set_language(language)
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=WIDTH, force_terminal=True, highlight=False, file=nowhere)
        terminal = Terminal(console)
        for event in read_events(Path(run) / "events.jsonl"):
            if not (isinstance(event, Stage) and not event.text.startswith("✓")):
                terminal.see(event)
        terminal.close()
        console.save_svg(output, title="./run_train.sh --demo")


if __name__ == "__main__":
    main(*sys.argv[1:])
