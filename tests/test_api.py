"""Is the public API what it says, and does importing it cost nothing?"""

import subprocess
import sys

import pytest

import lorafit


def test_every_public_name_is_there() -> None:
    assert len(lorafit.__all__) <= 14
    for name in lorafit.__all__:
        assert getattr(lorafit, name) is not None
    with pytest.raises(AttributeError):
        lorafit.nothing_of_the_kind  # noqa: B018


def test_importing_it_loads_no_tensor_library_and_no_settings() -> None:
    code = "import sys, lorafit; sys.exit(bool(sys.modules.keys() & {'torch', 'transformers', 'numpy', 'pydantic'}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
