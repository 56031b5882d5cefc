"""What a certificate says of the base model and of the adapter: names without folders, shapes and digests."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lorafit.exporters.base import ExportSource, MixPart
from lorafit.exporters.chain import made_from, predecessors
from lorafit.exporters.chat_files import folder_title
from lorafit.run_folders.origins import adapter_digest


def base_facts(source: ExportSource) -> dict[str, Any]:
    """Return the name of the base model, the digests of its files, and what it was made from if it is an export."""
    files = {name: {"quick": one.quick, "sha256": one.sha256} for name, one in source.base_files.items()}
    return {"name": Path(source.base.name).name if Path(source.base.name).is_absolute() else source.base.name,
            "model_type": source.spec.model_type, "files": files, "made_from": made_from(source)}  # fmt: skip


def adapter_facts(source: ExportSource) -> dict[str, Any]:
    """Return the settings of the adapter, the sha256 of its weights, and the adapters that it contains."""
    settings = asdict(source.config) | {"target_modules": sorted({m.rpartition(".")[2] for m in source.modules})}
    settings.pop("base_model")
    facts = {"run": folder_title(source), "sha256": adapter_digest(source.adapter), "layers": len(source.modules),
             "settings": settings}  # fmt: skip
    if source.parts:
        return facts | {"parts": [_part_facts(part) for part in source.parts]}
    return facts | {"predecessors": predecessors(source.adapter)}


def _part_facts(part: MixPart) -> dict[str, Any]:
    return {"name": part.name, "weight": part.weight, "sha256": adapter_digest(part.adapter),
            "predecessors": predecessors(part.adapter)}  # fmt: skip
