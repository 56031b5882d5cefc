"""What an adapter and its base model were made from: adapters that it continues, and exports that became its base.

A training with --init_adapter continues the same weights, so its adapter contains the one that it started from.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from lorafit.errors import LorafitError
from lorafit.evaluation.validation import run_containing
from lorafit.exporters.base import ExportSource
from lorafit.exporters.certificate import NAME, read_certificate
from lorafit.messages import _, listed
from lorafit.models.identity import FileIdentity
from lorafit.run_folders.adapter import read_chat_settings
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.run_folders.origins import adapter_digest, read_origins

Facts = dict[str, Any]


def predecessors(adapter: Path) -> list[Facts]:
    """Return name and sha256 of the adapters that `adapter` continues, the latest first, as far as records tell.

    The sha256 is that of the time when the training started. The list ends at an adapter that is gone or has changed.
    """
    found: list[Facts] = []
    seen: set[Path] = set()
    while adapter.resolve() not in seen:
        seen.add(adapter.resolve())
        run = run_containing(adapter)
        if run is None:
            return found + _of_export(adapter)
        start = _start_of(run)
        if start is None:
            break
        adapter, digest = start
        found.append({"name": name_of(adapter), "sha256": digest})
        if digest is None or adapter_digest(adapter) != digest:
            break
    return found


def continued(adapter: Facts) -> list[str]:
    """Return a text for the user on the adapters that an `adapter` of a certificate continues, if there are any."""
    names = [str(one["name"]) for one in adapter.get("predecessors", [])]
    if not names:
        return []
    return [_("The adapter continues these, which it contains: {names}.").format(names=listed(names))]


def name_of(adapter: Path) -> str:
    """Return the name of the run that made the adapter in the folder `adapter`, else that of its folder."""
    run = run_containing(adapter)
    return read_chat_settings(adapter).run or (run.name if run is not None else adapter.resolve().name)


def _start_of(run: RunDir) -> tuple[Path, str | None] | None:
    """Return the folder of the adapter that `run` started from, and its sha256; None: it started from none."""
    try:
        config, origins = saved_config(run), read_origins(run)
    except LorafitError:
        return None
    if config.init_adapter is None:
        return None
    folder = Path(config.init_adapter)
    with suppress(LorafitError):  # it is gone; its name and digest remain
        folder = find_adapter(folder, Path(config.output_dir))
    return folder, origins.adapter if origins is not None and origins.adapter else adapter_digest(folder)


def _of_export(adapter: Path) -> list[Facts]:
    """Return the predecessors in the certificate of an exported adapter, if it is unchanged."""
    certificate = _certificate(adapter)
    if certificate is None or adapter_digest(adapter) not in [one["sha256"] for one in certificate["files"].values()]:
        return []
    found = certificate["adapter"].get("predecessors")
    known = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return [{name: _text(one.get(name)) for name in ("name", "sha256")} for one in known]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def made_from(source: ExportSource) -> Facts | None:
    """Return target, base and adapter of the export that the base model is; None: it is no unchanged export of lorafit."""
    folder = source.packed_base or source.base.folder
    certificate = _certificate(folder)
    if certificate is None:
        return None
    if any(_has_changed(folder / name, one, certificate) for name, one in source.base_files.items()):
        return None
    return {name: certificate[name] for name in ("target", "base", "adapter")}


def _has_changed(path: Path, identity: FileIdentity, certificate: Facts) -> bool:
    """Return whether size or known sha256 of a weight file differ from those of its export."""
    if path.suffix != ".safetensors":
        return False
    written = certificate["files"].get(path.name)
    sha256 = identity.sha256
    return (
        not written or written["bytes"] != path.stat().st_size or (sha256 is not None and sha256 != written["sha256"])
    )


def _certificate(folder: Path) -> Facts | None:
    if not (folder / NAME).is_file():
        return None
    try:
        facts = read_certificate(folder)
    except LorafitError:
        return None
    return facts if all(isinstance(facts.get(name), dict) for name in ("base", "adapter")) else None
