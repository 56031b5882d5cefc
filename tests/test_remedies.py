"""Every remedy that an error prints works: the error is caused, its fix is followed, and the command then succeeds."""

import shlex
import shutil
from fnmatch import fnmatchcase
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants
from support import remedy_files
from support.remedies import carried_out, deeds, printed_from, texts_with_a_remedy
from support.remedies_followed import REMEDIES
from support.remedies_followed_foreign import FOREIGN
from support.remedies_not_followed import NOT_FOLLOWED
from support.remedy_case import SKIP, Remedy

from lorafit.cli.app import main
from lorafit.models.hub import use_endpoint

NOWHERE = "http://127.0.0.1:9"  # the port "discard", closed on any machine
CASES = [*REMEDIES, *FOREIGN]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A folder with all that the commands name."""
    folder = tmp_path_factory.mktemp("remedies")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        remedy_files.write_files(demo_folder)
    return folder


@pytest.fixture
def reader(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template's copy as working folder; no hub is reachable, and the hub's cache is empty."""
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_ENDPOINT", constants.ENDPOINT)  # restored at the end
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    use_endpoint(NOWHERE)


def test_every_text_with_a_remedy_is_followed_or_has_a_reason_not_to_be() -> None:
    followed = {text for case in CASES for one in case.values if isinstance(one, Remedy) for text in one.texts}
    reasons = [text for texts in NOT_FOLLOWED.values() for text in texts]
    listed = set(reasons)
    found = texts_with_a_remedy()
    assert found - followed - listed == set(), "follow these in REMEDIES, or list them with a reason"
    assert listed - found == set(), "no code has these any more"
    assert followed & listed == set()
    assert len(reasons) == len(listed), "one reason a text"


@pytest.mark.parametrize("case", CASES)
def test_the_fix_of_an_error_works(
    case: Remedy, reader: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = shlex.split(case.argv)
    case.before()
    capsys.readouterr()
    with monkeypatch.context() as patch:
        for name, value in case.environ.items():
            patch.setenv(name, value)
        assert main(argv) == 2
    error = capsys.readouterr().err
    fix = error if case.in_details else error.partition("\nfix: ")[2]
    assert [text for text in case.texts if not printed_from(text, fix)] == [], error
    found = list(dict.fromkeys(deeds(fix)))
    assert len(found) == len(case.typed), fix
    assert all(map(fnmatchcase, found, case.typed)), fix
    case.by_hand()
    for deed, typed in zip(found, case.typed.values(), strict=True):
        if typed is not SKIP:
            command = carried_out(typed or deed, argv)
            assert main(command) == 0, f"{deed}: {shlex.join(command)}\n{capsys.readouterr().err}"
