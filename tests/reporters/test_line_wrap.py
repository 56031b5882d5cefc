"""Line breaks in English and Chinese text."""

import io

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from lorafit.reporters.terminal.line_wrap import words


def pieces(text: str) -> list[str]:
    return [piece for _start, _end, piece in words(text)]


def lines(text: str, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(Text(text))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def test_chinese_is_broken_between_characters_and_latin_at_spaces() -> None:
    assert pieces("基座模型 or `demo`") == ["基", "座", "模", "型 ", "or ", "`demo`"]


def test_punctuation_stays_with_what_it_closes_or_opens() -> None:
    assert pieces("微批（None：由规划器）。") == ["微", "批", "（None：", "由", "规", "划", "器）。"]


def test_the_pieces_are_the_text() -> None:
    for text in ("", " ", "  a  b", "（）（）", "。。", "“引文”，a…", "一\n二"):
        assert "".join(pieces(text)) == text
        assert [text[start:end] for start, end, _piece in words(text)] == pieces(text)


def test_what_rich_prints_is_broken_so() -> None:
    assert lines("学习率上升阶段占总步数的比例（默认）。", 12) == ["学习率上升阶", "段占总步数的", "比例（默", "认）。"]
    assert lines("数据 Skepsun/data 由文件夹提供", 20) == ["数据 Skepsun/data 由", "文件夹提供"]
    assert all(cell_len(line) <= 9 for line in lines("很长的路径/home/someone/models/x", 9))
