"""How the keys of rows were read: which were taken as question and answer, and which were not used at all."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from lorafit.messages import _, listed
from lorafit.units import count_text

RowKeys = tuple[tuple[tuple[str, bool], ...], tuple[str, str] | None]  # of one row: `unused` and `pair` of ReadRow
SHOWN = 8  # keys named in a note


@dataclass
class KeyUse:
    """Counts over rows.

    `unused`: rows with each unused key. `long_texts`: the unused keys with texts of some length. `pairs`: rows by the
    keys of question and answer, where these are not the documented ones.
    """

    unused: dict[str, int] = field(default_factory=dict)
    long_texts: set[str] = field(default_factory=set)
    pairs: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, rows: Iterable[RowKeys]) -> None:
        """Count the keys of rows."""
        for unused, pair in rows:
            for key, long in unused:
                self.unused[key] = self.unused.get(key, 0) + 1
                self.long_texts.update([key] if long else [])
            if pair:
                self.pairs[pair] = self.pairs.get(pair, 0) + 1

    def to_json(self) -> dict[str, Any]:
        pairs = [[*pair, rows] for pair, rows in self.pairs.items()]
        return {"unused": self.unused, "long_texts": sorted(self.long_texts), "pairs": pairs}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "KeyUse":
        """Return the counts that `to_json` wrote."""
        pairs = {(question, answer): rows for question, answer, rows in facts["pairs"]}
        return cls(facts["unused"], set(facts["long_texts"]), pairs)

    def flag_for(self, key: str) -> str:
        """Return the flag that adds an unused text to the question, or an empty string."""
        return f"--context_field {key}" if key in self.long_texts and "[" not in key else ""

    def notes(self) -> Iterator[str]:
        """Yield the counts as messages for the user."""
        for (question, answer), rows in self.pairs.items():
            text = _("Rows read with `{question}` as the question and `{answer}` as the answer: {n}.")
            yield text.format(question=question, answer=answer, n=count_text(rows))
        if not self.unused:
            return
        keys = sorted(self.unused, key=lambda key: -self.unused[key])
        named = [_("`{key}` ({n})").format(key=key, n=count_text(self.unused[key])) for key in keys[:SHOWN]]
        if len(keys) > SHOWN:
            named.append(_("{n} more").format(n=len(keys) - SHOWN))
        yield _("Keys that are not used (rows): {keys}.").format(keys=listed(named))
        if flags := [flag for key in keys[:SHOWN] if (flag := self.flag_for(key))]:
            yield _("To put one of these texts before the question: {flags}.").format(flags=listed(flags))
