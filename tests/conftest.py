"""What do several tests share?"""

from pathlib import Path

import pytest

from lorafit.demo import demo_model
from lorafit.messages import set_language


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The embedded model's folder in the user's cache, made on first use."""
    return demo_model()


@pytest.fixture(autouse=True)
def english() -> None:
    """Every test begins in English, whatever language the one before it spoke."""
    set_language("en")
