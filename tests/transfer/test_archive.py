"""A folder always packs to the same bytes, and no archive writes anything but plain files below its target folder."""

import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lorafit.errors import LorafitError, RunError
from lorafit.transfer import archive

MakeArchive = Callable[[Path], None]


def make_folder(folder: Path) -> Path:
    (folder / "deep/er").mkdir(parents=True)
    (folder / "中文 name.txt").write_text("你好\n" * 100, "utf-8")
    (folder / "deep/er/x.safetensors").write_bytes(os.urandom(3000))
    (folder / "empty").touch()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_folder_packs_to_the_same_bytes_and_unpacks_unchanged(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in")
    archive.pack(folder, tmp_path / "a.zip")
    (folder / "empty").chmod(0o600)
    os.utime(folder / "empty", (1, 1))
    archive.pack(folder, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    (tmp_path / "out").mkdir()
    archive.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert content(tmp_path / "out") == content(folder)


def test_a_name_that_the_locale_cannot_decode_is_packed_as_the_text_that_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / os.fsdecode("法律".encode() + b"\xff")).write_text("a")
    archive.pack(folder, tmp_path / "a.zip")
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["法律\ufffd"]


def test_a_tar_as_sagemaker_writes_it_is_unpacked_too(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "in")
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.add(folder, ".")
    (tmp_path / "out").mkdir()
    archive.unpack(tmp_path / "model.tar.gz", tmp_path / "out")
    assert content(tmp_path / "out") == content(folder)


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..", "C:/evil", "a\\..\\evil", "a\0b", ""])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo("x")
        info.filename = info.orig_filename = name
        made.writestr(info, "evil")
    assert_refused(path, tmp_path)


def symlink(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, "/etc")
        made.writestr("link/passwd", "evil")


def duplicate_name(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("Name", "one")
        made.writestr("name", "other")


def truncated(path: Path) -> None:
    valid_zip(path)
    path.write_bytes(path.read_bytes()[:-400])


def bit_flipped(path: Path) -> None:
    valid_zip(path)
    data = bytearray(path.read_bytes())
    data[60] ^= 1  # within the first file's content
    path.write_bytes(data)


def wrong_length(path: Path) -> None:
    valid_zip(path)
    path.write_bytes(path.read_bytes().replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little")))


def html_page(path: Path) -> None:
    path.write_text("<html>404</html>")


def huge(path: Path) -> None:
    """Write a zip that claims to hold 1 TiB."""
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("big", "")
        made.filelist[0].file_size = 1 << 40


def valid_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("first", bytes(range(200)) * 5)
        made.writestr("second", b"x" * 300)


@pytest.mark.parametrize(
    "make_archive", [symlink, duplicate_name, truncated, bit_flipped, wrong_length, html_page, huge]
)
def test_a_damaged_or_unsafe_zip_is_refused_with_an_error(tmp_path: Path, make_archive: MakeArchive) -> None:
    path = tmp_path / "bad.zip"
    make_archive(path)
    assert_refused(path, tmp_path)


def tar_member(path: Path, **facts: object) -> None:
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("x")
        for name, value in facts.items():
            setattr(info, name, value)
        tar.addfile(info, io.BytesIO(b"evil"))


@pytest.mark.parametrize("facts", [
    {"name": "../evil", "size": 4}, {"name": "/evil", "size": 4}, {"type": tarfile.SYMTYPE, "linkname": "/etc"},
    {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"}, {"type": tarfile.CHRTYPE}, {"type": tarfile.FIFOTYPE},
])  # fmt: skip
def test_an_unsafe_tar_is_refused(tmp_path: Path, facts: dict[str, object]) -> None:
    path = tmp_path / "bad.tar.gz"
    tar_member(path, **facts)
    assert_refused(path, tmp_path)


def assert_refused(path: Path, tmp_path: Path) -> None:
    """Assert that unpacking `path` raises RunError and writes nothing outside of the target folder."""
    out = tmp_path / "deep/out"
    out.mkdir(parents=True)
    with pytest.raises(RunError) as raised:
        archive.unpack(path, out)
    assert raised.value.fix
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, "deep"])
    assert not any(p.is_symlink() for p in out.rglob("*"))


def test_a_member_is_read_up_to_a_size_only(tmp_path: Path) -> None:
    valid_zip(tmp_path / "a.zip")
    assert archive.read_member(tmp_path / "a.zip", "second", 300) == b"x" * 300
    assert archive.read_member(tmp_path / "a.zip", "third", 300) is None
    with pytest.raises(LorafitError):
        archive.read_member(tmp_path / "a.zip", "second", 299)
