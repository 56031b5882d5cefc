"""Tables with a header: the names of the columns, and the records as objects with these keys."""

from collections.abc import Sequence
from pathlib import Path

from lorafit.data.readers.reading import Reading
from lorafit.data.readers.row import Broken
from lorafit.errors import DataError
from lorafit.messages import _, listed

CONVERSATIONS = ("conversations", "messages", "history", "tools")  # columns whose cells may hold JSON


def is_blank(record: Sequence[str]) -> bool:
    """Return whether no cell of the record has text; spreadsheets write such records below the table."""
    return not any(record)


class Table:
    """The columns of a table, by its header. Columns at the end without a name are left out if they are blank.

    The constructor raises DataError if two columns have the same name.
    """

    def __init__(self, path: Path, line: int, header: Sequence[str], reading: Reading) -> None:
        self.path, self.reading, self.is_first = path, reading, True
        names = [name.strip() for name in header]
        while names and not names[-1]:
            names.pop()
        named = [name for name in names if name]
        if len(set(named)) < len(named):
            fix = _("Give each column a different name.")
            raise DataError(
                _("Two columns have the same name."), where=f"{path}:{line}", found=listed(named)[:300], fix=fix
            )
        self.names = names

    def row(self, record: list[str]) -> object:
        """Return the record as an object, or Broken if its number of fields is not that of the header."""
        names = self.names
        if len(record) != len(names):
            surplus = record[len(names) :]
            if len(record) < len(names) or any(surplus):
                wanted = _("field count {n}, as in the header").format(n=len(names))
                return Broken(_("field count {n}").format(n=_used(record)), wanted, ",".join(record)[:200])
            record = record[: len(names)]
        if self.is_first:
            self._say_json(record)
        return dict(zip(names, record, strict=True))

    def _say_json(self, record: list[str]) -> None:
        self.is_first = False
        for name, cell in zip(self.names, record, strict=True):
            if name in CONVERSATIONS and cell.lstrip()[:1] in ("[", "{"):
                self.reading.say(self.path, _("the column `{name}` holds JSON, which is read").format(name=name))


def _used(record: list[str]) -> int:
    """Return the number of fields up to the last one with text."""
    return max(number for number, cell in enumerate([*record, ""], 1) if cell or number == 1)
