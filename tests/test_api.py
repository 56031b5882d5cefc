"""The public API: its names, their examples, and what importing it costs."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import lorafit
from lorafit import api

FUNCTIONS = [
    f for f in vars(api).values() if inspect.isfunction(f) and f.__module__ == api.__name__ and f.__name__[0] != "_"
]
# Each needs what the ones before it made, in this order.
OPTIONAL = ("mlx",)  # packages that are not on every machine


def example(function: Any) -> str:
    """Return the code below "Example::" in the docstring of `function`."""
    found = re.search(r"Example::\n\n(.*)", inspect.cleandoc(function.__doc__), re.S)
    assert found is not None, f"{function.__name__} has no example"
    return textwrap.dedent(found[1])


def test_every_public_name_is_there() -> None:
    assert len(lorafit.__all__) <= 18
    for name in lorafit.__all__:
        assert getattr(lorafit, name) is not None
    with pytest.raises(AttributeError):
        lorafit.nothing_of_the_kind  # noqa: B018


def import_every_module() -> None:
    """Import all modules of lorafit. Importing a submodule sets it as an attribute of its package."""
    for module in pkgutil.walk_packages(lorafit.__path__, "lorafit."):
        if module.name != "lorafit.__main__" and not set(module.name.split(".")) & set(OPTIONAL):
            importlib.import_module(module.name)


def test_no_module_takes_the_place_of_a_public_name() -> None:
    import_every_module()
    for name in set(lorafit.__all__) - {"__version__"}:
        assert callable(getattr(lorafit, name)), name


def test_the_examples_of_the_api_work_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_folder: Path
) -> None:
    import_every_module()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for function in FUNCTIONS:
        exec(compile(example(function), f"example of {function.__name__}", "exec"), names)
    assert {run.name for run in lorafit.runs(tmp_path / "output")} == {names["newest"].name}
    assert names["comparison"].tuned[0].losses is not None
    assert names["report"].rows == 24
    assert (tmp_path / "cloud/lorafit.ipynb").is_file()


def test_importing_it_loads_no_tensor_library_and_no_settings() -> None:
    code = "import sys, lorafit; sys.exit(bool(sys.modules.keys() & {'torch', 'transformers', 'numpy', 'pydantic'}))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
