"""Encodings of data files: multi-byte ones are detected and noted, single-byte ones are refused with suggestions."""

import json
from pathlib import Path

import pytest

from lorafit.data.readers.encoding import parse_encoding
from lorafit.data.readers.row import Broken
from lorafit.data.sources import Source, open_source
from lorafit.errors import ConfigError, DataError

TEXTS = {
    "cp949": "도서관은 몇 시에 문을 닫나요? 저녁 여덟 시에 닫습니다. 계약서에는 서명이 필요합니다.",
    "euc_jp": "図書館は何時に閉まりますか。夜の八時に閉まります。契約書には署名が必要です。カードもお持ちください。",
    "cp932": "図書館は何時に閉まりますか。夜の八時に閉まります。①契約書には署名が必要です。カードもお持ちください。",
    "gb18030": "图书馆几点关门？晚上八点关门。合同需要双方签字，押金在退租时返还。",
    "cp950": "圖書館幾點關門？晚上八點關門。合同需要雙方簽字，押金在退租時返還。",
}
SINGLE = {
    "cp1252": "Où est la bibliothèque ? Elle ferme à huit heures, même l’été, et le prêt est gratuit pour les élèves.",
    "cp1250": "Gdzie jest biblioteka? Otwarta do ósmej, również latem, a wypożyczenie książki jest bezpłatne dla uczniów.",
    "cp1251": "Где находится библиотека? Она закрывается в восемь часов, и летом тоже, а книги выдают бесплатно.",
    "koi8_r": "Где находится библиотека? Она закрывается в восемь часов, и летом тоже, а книги выдают бесплатно.",
}


def source_of(path: Path, text: str, encoding: str, setting: str | None = None) -> Source:
    """Return the source of a file with 12 rows of `text`."""
    rows = [{"question": f"{text} ({number})", "answer": text} for number in range(12)]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(content.encode(encoding))
    return open_source(str(path), "train", encoding=setting)


def answers(source: Source) -> set[object]:
    return {row.value["answer"] for row in source.rows() if isinstance(row.value, dict)}


@pytest.mark.parametrize("encoding", TEXTS)
def test_an_encoding_of_several_bytes_is_detected_and_noted(tmp_path: Path, encoding: str) -> None:
    source = source_of(tmp_path / "a.jsonl", TEXTS[encoding], encoding)
    assert answers(source) == {TEXTS[encoding]}
    [(file, text)] = source.reading.notes
    assert file == str(tmp_path / "a.jsonl")
    assert encoding in text
    assert "--encoding" in text


@pytest.mark.parametrize("end", range(14, 50, 4))
@pytest.mark.parametrize("encoding", TEXTS)
def test_short_texts_are_never_read_as_other_letters(tmp_path: Path, encoding: str, end: int) -> None:
    text = TEXTS[encoding][:end]
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"question": text, "answer": text}, ensure_ascii=False).encode(encoding))
    error = None
    try:
        assert answers(open_source(str(path), "train")) == {text}
    except DataError as refusal:  # too short to decide
        error = refusal
    assert error is None or f"--encoding {encoding}: " in str(error.fix)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_is_read_without_a_note(tmp_path: Path, encoding: str) -> None:
    source = source_of(tmp_path / "a.jsonl", TEXTS["cp949"], encoding)
    assert answers(source) == {TEXTS["cp949"]}
    assert not source.reading.notes


@pytest.mark.parametrize("encoding", SINGLE)
def test_an_encoding_of_one_byte_is_refused_with_the_right_flag_among_two(tmp_path: Path, encoding: str) -> None:
    source = source_of(tmp_path / "a.jsonl", SINGLE[encoding], encoding)
    with pytest.raises(DataError, match="encoding") as caught:
        list(source.rows())
    suggestions = [line for line in str(caught.value.fix).splitlines() if line.startswith("--encoding ")]
    assert len(suggestions) == 2
    right = next(line for line in suggestions if line.startswith(f"--encoding {encoding}: "))
    assert right.partition(": ")[2] in (tmp_path / "a.jsonl").read_text(encoding)
    assert answers(source_of(tmp_path / "a.jsonl", SINGLE[encoding], encoding, encoding)) == {SINGLE[encoding]}


def test_a_few_letters_that_fit_two_languages_are_refused_with_both(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes('{"question": "계약서", "answer": "있습니다"}\n'.encode("cp949"))
    with pytest.raises(DataError) as caught:
        list(open_source(str(path), "train").rows())
    assert "--encoding cp949: " in str(caught.value.fix)
    assert "--encoding gb18030: " in str(caught.value.fix)


@pytest.mark.parametrize("encoding", SINGLE)
def test_a_few_accents_are_never_read_as_characters_of_several_bytes(tmp_path: Path, encoding: str) -> None:
    for start in range(0, len(SINGLE[encoding]) - 30, 5):
        text = SINGLE[encoding][start : start + 30]
        if not text.isascii():
            with pytest.raises(DataError, match="--encoding"):
                list(source_of(tmp_path / "a.jsonl", text, encoding).rows())


def test_a_damaged_chinese_file_is_refused_and_read_row_by_row_with_its_encoding(tmp_path: Path) -> None:
    good = json.dumps({"question": TEXTS["gb18030"], "answer": "可以"}, ensure_ascii=False).encode("gb18030")
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good] * 5 + [good.replace(b"\xbf", b"\xff")] + [good] * 5))
    with pytest.raises(DataError) as caught:
        list(open_source(str(tmp_path / "a.jsonl"), "train").rows())
    assert "--encoding gb18030: " in str(caught.value.fix)
    rows = list(open_source(str(tmp_path / "a.jsonl"), "train", encoding="gbk").rows())
    assert len(rows) == 11
    assert not any(isinstance(row.value, Broken) for row in rows)


def test_an_encoding_is_named_as_everywhere_and_an_unknown_one_gets_near_names() -> None:
    assert [parse_encoding(name) for name in (None, "", "GBK", "Latin-1", "Shift_JIS", "windows-1252")] == [
        None, None, "gb18030", "iso8859-1", "cp932", "cp1252"
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"cp125\d") as caught:
        parse_encoding("cp125")
    assert caught.value.where == "encoding"
    for name in ("base64", "idna", "no such", "\0"):
        with pytest.raises(ConfigError):
            parse_encoding(name)


def test_the_encoding_is_part_of_what_identifies_the_data(tmp_path: Path) -> None:
    contents = [
        source_of(tmp_path / "a.jsonl", TEXTS["cp949"], "cp949", setting).content(lambda path: path.name)
        for setting in (None, "cp949", "euc_kr", "cp1252")
    ]
    assert contents[1] == contents[2]
    assert len({tuple(content) for content in contents}) == 3
