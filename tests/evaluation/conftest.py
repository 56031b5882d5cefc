"""The tiny chat model of the evaluation tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """Return the folder of a tiny random Llama with the demo's tokenizer. Tests do not change it."""
    from support import tiny  # imports torch and transformers, which most modules here do not need

    return tiny.save_chat_model(tmp_path_factory.mktemp("chat_model"), demo_folder)
