"""What do several tests share?"""

from pathlib import Path

import pytest

from lorafit.demo import demo_model


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    """The embedded model's folder in the user's cache, made on first use."""
    return demo_model()
