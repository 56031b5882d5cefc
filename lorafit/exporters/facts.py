"""What a certificate says of the base model and of the adapter: names without folders, shapes and digests."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorafit.exporters.base import ExportSource, MixPart
from lorafit.exporters.chat_files import folder_title
from lorafit.run_folders.origins import adapter_digest


def base_facts(source: ExportSource) -> dict[str, Any]:
    """Return the name of the base model and the digests of its files."""
    files = {name: {"quick": one.quick, "sha256": one.sha256} for name, one in source.base_files.items()}
    return {"name": Path(source.base.name).name if Path(source.base.name).is_absolute() else source.base.name,
            "model_type": source.spec.model_type, "files": files}  # fmt: skip


def adapter_facts(source: ExportSource) -> dict[str, Any]:
    """Return the settings of the adapter and the sha256 of its weights."""
    settings = asdict(source.config) | {"target_modules": sorted({m.rpartition(".")[2] for m in source.modules})}
    settings.pop("base_model")
    facts = {"run": folder_title(source), "sha256": adapter_digest(source.adapter), "layers": len(source.modules),
             "settings": settings}  # fmt: skip
    if source.parts:
        return facts | {"parts": [part_facts(part) for part in source.parts]}
    return facts


def part_facts(part: MixPart) -> dict[str, Any]:
    """Return the name, the weight and the sha256 of an adapter of a mix."""
    return {"name": part.name, "weight": part.weight, "sha256": adapter_digest(part.adapter)}
