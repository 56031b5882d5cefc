"""What can be told of a data set? Plain data, made by report.py and shown by the reporters."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RowLocation:
    """Where a row stands."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class RejectReason:
    """Rows rejected for one reason (numbers apart): how many, and the first of them with what stands there."""

    reason: str
    rows: int
    examples: list[tuple[RowLocation, str]]


@dataclass(frozen=True)
class StrangeCharacter:
    """A control or invisible character, in how many rows it stands, and the first of them."""

    code: str  # "U+200B"
    name: str
    rows: int
    first: RowLocation


@dataclass(frozen=True)
class DuplicateStats:
    """Copies. `exact` rows repeat an earlier one; `near` of the `compared` different ones are almost an earlier one."""

    exact: int
    compared: int
    near: int
    near_held_out: int  # held-out conversations with a near copy that is trained on
    examples: list[tuple[RowLocation, RowLocation, float]]  # the earlier, the later, their similarity


@dataclass(frozen=True)
class LengthStats:
    """Tokens of the samples before any cut. Bin i counts those from edges[i] to below edges[i + 1]; the last all others."""

    shortest: int
    median: float
    ninth_decile: float
    longest: int
    edges: list[int]
    rows: list[int]


@dataclass(frozen=True)
class ShownSample:
    """A sample as the model reads it: `pieces` of text, each with whether its tokens are targets."""

    place: RowLocation
    format: str
    tokens: int
    targets: int
    cut: int
    pieces: list[tuple[str, bool]]


@dataclass(frozen=True)
class DataReport:
    """All that is to be told of the data; plain data, counts in rows where nothing else is said."""

    model_name: str  # whose tokenizer
    max_length: int
    files: dict[str, tuple[int, int]]  # rows of each: read, good
    formats: dict[str, int]
    refused: list[RejectReason]  # the commonest first
    without_answer: int
    train: int
    valid: int
    on_both_sides: int  # rows trained on whose tokens are a held-out row's; must be 0
    twins: DuplicateStats
    lengths: LengthStats | None  # None where no row is good
    total_tokens: int
    total_targets: int
    cut_rows: int
    cut_tokens: int
    strange_rows: int
    strange: list[StrangeCharacter]  # the commonest first
    samples: dict[str, list[ShownSample]]  # "shortest", "longest", "random"

    @property
    def good(self) -> int:
        return self.train + self.valid

    @property
    def rejected(self) -> int:
        return sum(group.rows for group in self.refused)

    @property
    def rows(self) -> int:
        return self.good + self.rejected

    @property
    def target_share(self) -> float:
        """Of all tokens, those that carry loss; 0 where there is none."""
        return self.total_targets / max(self.total_tokens, 1)
