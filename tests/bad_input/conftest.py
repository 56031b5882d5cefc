"""With what is the command line given bad input? A tiny model, data, flags for two steps, and what a refusal must be."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny
from support.refusals import Refused, Words

from lorafit.cli.app import main


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo_folder)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "law.jsonl"
    rows = [{"instruction": f"What does article {i} say?", "output": f"Article {i} says so."} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="session")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4 and alpha 8 for `model`, with its tokenizer."""
    folder = tmp_path_factory.mktemp("adapter")
    engine = tiny.open_engine(model, tiny.make_plan(lora_targets="q_proj,v_proj"))
    engine.save_adapter(folder)
    return folder


@pytest.fixture
def flags(model: Path, data: Path, tmp_path: Path) -> Callable[..., Words]:
    """The command line of a training of two steps, with changes."""

    def make(*more: object, **changes: object) -> Words:
        settings = {"model_name": model, "dataset_name": data, "max_length": 96, "max_steps": 2, "effective_batch": 4,
                    "lora_r": 4, "lora_alpha": 8, "output_dir": tmp_path / "output"}  # fmt: skip
        words = [word for name, value in (settings | changes).items() for word in (f"--{name}", str(value))]
        return ["train", "--no_supervisor", *words, *map(str, more)]

    return make


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Run a command line in both languages: exit code 2, every given text in the error, no traceback, nothing written."""

    def check(argv: Words, *named: object) -> str:
        texts = []
        for language in ("zh", "en"):
            code = main([*argv, "--lang", language])
            seen = capsys.readouterr()
            texts.append(seen.out + seen.err)
            assert code == 2, texts[-1]
            assert "Traceback" not in texts[-1]
            assert [word for word in map(str, named) if word not in seen.err] == [], seen.err
            assert not [path for path in (tmp_path / "output").glob("*")]
        return texts[-1]

    return check
