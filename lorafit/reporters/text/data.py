"""Texts of a data report, shared by the terminal and the HTML page: figures with a judgment, and tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lorafit.data.findings import DataReport, RowLocation, ShownSample, StrangeCharacter
from lorafit.data.near_duplicates import MIN_SIMILARITY
from lorafit.messages import _, labelled, listed, phrases
from lorafit.units import count_text

MAX_ROWS = 20  # the most rows that a table shows


@dataclass(frozen=True)
class Figure:
    """One figure with a note. `good` says whether the value is as it should be; None if there is nothing to judge."""

    label: str
    value: str
    note: str = ""
    good: bool | None = None


@dataclass(frozen=True)
class Listing:
    """A table; `figures` are the indices of the numeric columns."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    figures: tuple[int, ...] = ()


def title(report: DataReport) -> str:
    """Return the names of the first three files."""
    names = [Path(name).name for name in report.files]
    return listed([*names[:3], *(["..."] if len(names) > 3 else [])])


def subtitle(report: DataReport) -> str:
    """Return the model whose tokenizer counts the tokens, and max_length."""
    text = _("counted with the tokenizer of {model} (choose yours with --model_name); max_length {n}")
    return text.format(model=report.model_name, n=count_text(report.max_length))


def figures(report: DataReport) -> list[Figure]:
    """Return the report's figures in reading order."""
    return [*_rows(report), *_duplicates(report), *_tokens(report), _strange(report)]


def _rows(report: DataReport) -> list[Figure]:
    formats = listed(f"{name} {count_text(rows)}" for name, rows in report.formats.items())
    share = _("{share:.1%} of the rows").format(share=report.rejected / max(report.rows, 1))
    return [
        Figure(_("rows"), count_text(report.rows), formats),
        *(
            Figure(_("read as question, answer"), count_text(rows), f"{question}, {answer}")
            for (question, answer), rows in report.key_use.pairs.items()
        ),
        Figure(_("rejected"), count_text(report.rejected), share if report.rejected else "", not report.rejected),
        Figure(
            _("without an answer"),
            count_text(report.without_answer),
            _("among the rejected") if report.without_answer else "",
            not report.without_answer,
        ),
        Figure(_("training set"), count_text(report.train), good=report.train > 0),
        Figure(_("validation set"), count_text(report.valid)),
    ]


def _duplicates(report: DataReport) -> list[Figure]:
    twins = report.duplicates
    near = _("similarity {share:.0%} or more; conversations compared: {n}").format(
        share=MIN_SIMILARITY, n=count_text(twins.compared)
    )
    across = _("validation rows with a near-duplicate in the training set: {n}").format(n=count_text(twins.near_valid))
    return [
        Figure(_("exact duplicates"), count_text(twins.exact), _("rows that repeat an earlier one"), not twins.exact),
        Figure(_("near-duplicates"), count_text(twins.near), near, not twins.near),
        Figure(
            _("train/validation overlap"),
            count_text(report.leaked_rows),
            across if twins.near_valid else _("training rows identical to a validation row"),
            not report.leaked_rows and not twins.near_valid,
        ),
    ]


def _tokens(report: DataReport) -> list[Figure]:
    if report.lengths is None:
        return []
    lengths, per_row = (
        report.lengths,
        _("per row: median {median:,.0f}, 90th percentile {most:,.0f}, longest {longest:,}"),
    )
    lost = _("tokens removed: {tokens}, of which {targets} in the loss; none with --max_length {longest}")
    return [
        Figure(
            _("tokens"),
            count_text(report.total_tokens),
            per_row.format(median=lengths.median, most=lengths.ninth_decile, longest=lengths.longest),
        ),
        Figure(
            _("in the loss"),
            f"{report.target_share:.1%}",
            _("{n} tokens count toward the loss").format(n=count_text(report.total_targets)),
        ),
        Figure(
            _("truncated rows"),
            count_text(report.cut_rows),
            lost.format(
                tokens=count_text(report.cut_tokens), targets=count_text(report.cut_targets), longest=lengths.longest
            )
            if report.cut_rows
            else "",
            not report.cut_rows,
        ),
        Figure(
            _("left out by the template"),
            count_text(report.dropped_rows),
            _("rows of which the chat template writes only a part, e.g. no earlier reasoning")
            if report.dropped_rows
            else "",
            not report.dropped_rows,
        ),
    ]


def _strange(report: DataReport) -> Figure:
    note = _("rows with control or invisible characters") if report.strange_rows else ""
    return Figure(_("odd characters"), count_text(report.strange_rows), note, not report.strange_rows)


def listings(report: DataReport) -> list[Listing]:
    """Return the report's tables that are not empty."""
    several = len(report.files) > 1
    tables = [_reading_notes(report), _thoughts(report), *([_files(report)] if several else [])]
    tables += [_formats(report)] if len(report.formats) > 1 else []
    tables += [
        _unused_keys(report),
        _reject_reasons(report, several),
        _near_duplicates(report, several),
        _characters(report, several),
    ]
    return [table for table in tables if table.rows]


def _reading_notes(report: DataReport) -> Listing:
    return Listing(_("How the files were read"), (_("file"), _("note")), report.reading_notes[:MAX_ROWS])


def _thoughts(report: DataReport) -> Listing:
    rows = [(note,) for note in report.thoughts.notes()]
    if problem := report.thoughts.problem():
        rows += [(_("Training refuses these rows. {reason}").format(reason=problem.brief),)]
    return Listing(_("Thoughts of a reasoning model"), (_("note"),), rows)


def _files(report: DataReport) -> Listing:
    rows = [(name, count_text(read), count_text(read - good)) for name, (read, good) in report.files.items()]
    return Listing(_("Files"), (_("file"), _("rows"), _("rejected")), rows[:MAX_ROWS], (1, 2))


def _formats(report: DataReport) -> Listing:
    rows = [(name, count_text(count)) for name, count in report.formats.items()]
    return Listing(_("Formats"), (_("format"), _("rows")), rows, (1,))


def _unused_keys(report: DataReport) -> Listing:
    key_use = report.key_use
    rows = [(key, count_text(count), key_use.flag_for(key)) for key, count in list(key_use.unused.items())[:MAX_ROWS]]
    return Listing(_("Keys that are not used"), (_("key"), _("rows"), _("flag that uses it")), rows, (1,))


def _reject_reasons(report: DataReport, several: bool) -> Listing:
    rows = [
        (
            group.reason,
            count_text(group.rows),
            "\n".join(_located(p, row, several) for p, row in group.examples),
        )
        for group in report.reject_reasons[:MAX_ROWS]
    ]
    return Listing(_("Rejected, by reason"), (_("reason"), _("rows"), _("examples")), rows, (1,))


def _located(place: RowLocation, row: str, several: bool) -> str:
    where = location_text(place, several)
    return labelled(where, row) if row.strip() else where


def _near_duplicates(report: DataReport, several: bool) -> Listing:
    rows = [
        (location_text(one, several), location_text(other, several), f"{similar:.0%}")
        for one, other, similar in report.duplicates.examples
    ]
    return Listing(_("Near-duplicates, examples"), (_("row"), _("near-duplicate of"), _("similarity")), rows, (2,))


def _characters(report: DataReport, several: bool) -> Listing:
    rows = [
        (f"{c.code} {name_text(c)}", count_text(c.rows), location_text(c.first, several))
        for c in report.strange[:MAX_ROWS]
    ]
    return Listing(_("Odd characters"), (_("character"), _("rows"), _("first seen")), rows, (1,))


def name_text(character: StrangeCharacter) -> str:
    """Return the character's Unicode name, or "control character", which has no name."""
    return character.name or _("control character")


def location_text(place: RowLocation, several: bool) -> str:
    """Return the row's line number, with the file name if there are several files."""
    return f"{Path(place.file).name}:{place.line}" if several else _("line {n}").format(n=place.line)


def sample_titles() -> dict[str, str]:
    """Return the titles of the sample groups by their keys in the report."""
    return {"shortest": _("Shortest samples"), "longest": _("Longest samples"), "random": _("Random samples")}


def sample_text(sample: ShownSample) -> str:
    """Return a sample's format and its counts of tokens, tokens in the loss, and truncated tokens."""
    parts = [sample.format, _("{n} tokens").format(n=count_text(sample.tokens))]
    parts.append(_("{n} in the loss").format(n=count_text(sample.targets)))
    parts += [_("{n} truncated").format(n=count_text(sample.cut))] if sample.cut else []
    return phrases(parts)
