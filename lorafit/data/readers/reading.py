"""How files are read: the encoding that the user set, and the notes for the user on what was found in each file."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Reading:
    """The settings and the notes of one reading of files.

    `encoding` is None if the encoding is to be detected. `notes` holds pairs of a file and a text, each pair once.
    """

    encoding: str | None = None
    notes: dict[tuple[str, str], None] = field(default_factory=dict)

    def say(self, file: Path | str, text: str) -> None:
        """Note that `text` is true of `file`."""
        self.notes[str(file), text] = None
