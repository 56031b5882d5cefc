"""Fixtures for the tests of bad input: a tiny model, data, an adapter, a command line, and the check of a refusal."""

import codecs
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import tiny
from support.refusals import Refused, Words

from lorafit.cli.app import main


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A tiny chat model."""
    return tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo_folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data file with 20 rows."""
    path = tmp_path_factory.mktemp("data") / "law.jsonl"
    rows = [{"instruction": f"What does article {i} say?", "output": f"Article {i} says so."} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for `model`, with rank 4, alpha 8 and the targets q_proj and v_proj."""
    folder = tmp_path_factory.mktemp("adapter")
    engine = tiny.open_engine(model, tiny.make_plan(lora_targets="q_proj,v_proj"))
    engine.save_adapter(folder)
    return folder


@pytest.fixture
def flags(model: Path, data: Path, tmp_path: Path) -> Callable[..., Words]:
    """A function that returns the command line of a training of two steps: settings by name, and further words."""

    def make(*more: object, **changes: object) -> Words:
        settings = {"model_name": model, "dataset_name": data, "max_length": 96, "max_steps": 2, "effective_batch": 4,
                    "lora_r": 4, "lora_alpha": 8, "output_dir": tmp_path / "output"}  # fmt: skip
        words = [word for name, value in (settings | changes).items() for word in (f"--{name}", str(value))]
        return ["train", "--no_supervisor", *words, *map(str, more)]

    return make


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """A function that checks that a command line is refused, and returns its output in English.

    In both languages: exit code 2, every text of `named` on stderr, no traceback, and no run in the output folder.
    """

    def check(argv: Words, *named: object) -> str:
        texts = []
        for language in ("zh", "en"):
            code = main([*argv, "--lang", language])
            output = capsys.readouterr()
            texts.append(output.out + output.err)
            assert code == 2, texts[-1]
            assert "Traceback" not in texts[-1]
            assert [word for word in map(str, named) if word not in output.err] == [], output.err
            assert not [path for path in (tmp_path / "output").glob("*")]
        return texts[-1]

    return check


@pytest.fixture
def plain_user(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """A function that makes a folder reachable and takes root's permissions away for the rest of the test."""
    uid = os.geteuid()

    def become(folder: Path) -> None:
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == uid and parent != parent.parent and "pytest" in str(parent):
                parent.chmod(parent.stat().st_mode | 0o055)
        if uid == 0:
            codecs.lookup(
                "utf-8-sig"
            )  # Python could not load it as another user, if it is installed in a private folder
            os.seteuid(65534)

    yield become
    os.seteuid(uid)
