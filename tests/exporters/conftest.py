"""Fixtures for the tests of exports: tiny models as on a hub, each with a trained-looking adapter in its own folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.model_zoo.folder import save_family

from lorafit.engines.base import Setup
from lorafit.engines.torch.engine import TorchEngine
from lorafit.exporters.base import ExportRequest
from lorafit.exporters.export import Exported, export
from lorafit.progress import ignore_progress

Export = Callable[..., Exported]


@pytest.fixture(scope="session")
def base_and_adapter(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A function that returns the folders of a tiny model of a family and of an adapter on all its linear layers."""
    folder = tmp_path_factory.mktemp("families")

    def make(name: str) -> tuple[Path, Path]:
        base, adapter = folder / name, folder / f"{name}-adapter"
        if not adapter.is_dir():
            save_family(name, base)
            engine = TorchEngine.open(Setup(base, str(base), "cpu", "fp32", plan=tiny.make_plan()))
            tiny.fill_b(engine)
            engine.save_adapter(adapter)
        return base, adapter

    return make


@pytest.fixture
def run_export(tmp_path: Path) -> Export:
    """A function that exports an adapter's folder to `tmp_path / "out"`."""

    def run(adapter: Path, to: str = "merged", **flags: Any) -> Exported:
        settings = {"run": [str(adapter)], "to": to, "output": str(tmp_path / "out"), **flags}
        return export(ExportRequest.model_validate(settings), ignore_progress)

    return run
