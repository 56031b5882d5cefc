"""Results of the data report as plain data, made by report.py and shown by the reporters."""

from dataclasses import dataclass, field

from lorafit.data.key_use import KeyUse
from lorafit.data.thoughts import ThoughtUse


@dataclass(frozen=True)
class RowLocation:
    """The file and line of a row."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class RejectReason:
    """Rows rejected for one reason; reasons that differ only in numbers count as one.

    `examples` are the first of these rows, each with an excerpt.
    """

    reason: str
    rows: int
    examples: list[tuple[RowLocation, str]]


@dataclass(frozen=True)
class StrangeCharacter:
    """A control, invisible or replacement character.

    `rows` is the number of rows that contain the character; `first` is the first of these rows.
    """

    code: str  # "U+200B"
    name: str
    rows: int
    first: RowLocation


@dataclass(frozen=True)
class DuplicateStats:
    """Numbers of duplicates.

    `exact` rows repeat an earlier row. Of the `compared` distinct conversations, `near` are near-duplicates of an
    earlier conversation.
    """

    exact: int
    compared: int
    near: int
    near_valid: int  # validation conversations with a near-duplicate among the training rows
    examples: list[tuple[RowLocation, RowLocation, float]]  # earlier row, later row, similarity


@dataclass(frozen=True)
class LengthStats:
    """Lengths of the samples in tokens, before truncation. `ninth_decile` is the 90th percentile.

    `rows` is a histogram: bin i counts the lengths from edges[i] to below edges[i + 1], the last bin all longer ones.
    """

    shortest: int
    median: float
    ninth_decile: float
    longest: int
    edges: list[int]
    rows: list[int]


@dataclass(frozen=True)
class ShownSample:
    """A sample as the model reads it.

    `pieces` are parts of the text, each with True if its tokens are targets. `cut` is the number of truncated tokens.
    """

    place: RowLocation
    format: str
    tokens: int
    targets: int
    cut: int
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True)
class DataReport:
    """All results of the data report. Counts are numbers of rows unless the name says otherwise."""

    model_name: str  # the model whose tokenizer counts the tokens
    max_length: int
    files: dict[str, tuple[int, int]]  # rows read and good rows of each file
    formats: dict[str, int]
    reject_reasons: list[RejectReason]  # most frequent first
    without_answer: int
    train: int
    valid: int
    leaked_rows: int  # training rows with the tokens of a validation row; must be 0
    duplicates: DuplicateStats
    lengths: LengthStats | None  # None if no row is good
    total_tokens: int
    total_targets: int
    cut_rows: int
    cut_tokens: int
    cut_targets: int  # of the cut tokens, those that are targets
    dropped_rows: int  # rows of which the chat template leaves out a part
    key_use: KeyUse
    thoughts: ThoughtUse
    strange_rows: int
    strange: list[StrangeCharacter]  # most frequent first
    samples: dict[str, list[ShownSample]]  # keys: "shortest", "longest", "random"; on request "all", the first 1,000
    reading_notes: list[tuple[str, str]] = field(default_factory=list)  # files, each with how it was read

    @property
    def good(self) -> int:
        return self.train + self.valid

    @property
    def rejected(self) -> int:
        return sum(group.rows for group in self.reject_reasons)

    @property
    def rows(self) -> int:
        return self.good + self.rejected

    @property
    def target_share(self) -> float:
        """The share of all tokens that are targets; 0 if there are no tokens."""
        return self.total_targets / max(self.total_tokens, 1)
