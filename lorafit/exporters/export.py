"""An export from its request to the finished folder: find, check, write, certify. Whole or absent."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lorafit import registry
from lorafit.atomic import atomic_folder, disk_errors, ensure_disk_space, ensure_writable, leftovers
from lorafit.errors import ConfigError, DiskError
from lorafit.evaluation.validation import run_containing
from lorafit.exporters.base import FLAG, Check, ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate, file_digests, versions
from lorafit.exporters.chain import continued
from lorafit.exporters.gguf.models_folder import AUTHOR, models_folder
from lorafit.exporters.mix import mixed
from lorafit.exporters.mlx_base import with_plain_base
from lorafit.exporters.readme import add_readme
from lorafit.exporters.source import beside, source_of
from lorafit.exporters.words import told
from lorafit.messages import _, listed
from lorafit.paths import require_utf8_name, user_path
from lorafit.progress import ProgressCallback
from lorafit.run_folders.find_adapter import find_adapter

# Settings that only some targets have.
ONLY = {
    "dtype": ("merged",),
    "quantize": ("gguf", "ollama", "lmstudio"),
    "bits": ("mlx",),
    "keep": ("gguf", "ollama", "lmstudio", "mlx"),
    "adapter_only": ("gguf", "mlx"),
}


@dataclass(frozen=True)
class Exported:
    """A finished export: its folder, its size on disk, the time it took, and its certificate."""

    folder: Path
    bytes: int
    seconds: float
    certificate: Certificate


def export(request: ExportRequest, say: ProgressCallback) -> Exported:
    """Write what `request` asks for. Raises LorafitError, and then leaves nothing behind."""
    began = time.monotonic()
    _require_own_flags(request)
    target = _target(request)
    check: Check = registry.load(registry.find_entry(registry.EXPORTERS, str(request.to)))
    _remove_leftovers(target)
    with (
        _find_source(request, target, say) as found,
        with_plain_base(found, request, target, say) as (source, settled),
    ):
        job = check(source, settled)
        fix = _("Free disk space, or choose another folder with {flag}.").format(flag=FLAG)
        ensure_disk_space(target, job.needed_bytes, _("Not enough disk space for this export."), fix)
        with atomic_folder(target, flag=FLAG, manifest=False) as folder:
            with _named_as(target, folder):
                certificate = job.write(folder, say)
            notes = [*source.notes, *continued(certificate.adapter), *certificate.notes, *told(certificate)]
            certificate = replace(certificate, notes=notes, versions=versions())
            add_readme(certificate, folder)
            certificate = replace(certificate, files=file_digests(folder))
            certificate.write(folder)
    size = sum(one["bytes"] for one in certificate.files.values())
    return Exported(target, size, time.monotonic() - began, certificate)


@contextmanager
def _named_as(target: Path, hidden: Path) -> Iterator[None]:
    """Let errors of the disk name files of `target`, and not of the `hidden` folder that becomes it."""
    try:
        yield
    except DiskError as error:
        where = Path(str(error.where))
        if where.is_relative_to(hidden):
            error.where = str(target / where.relative_to(hidden))
        raise


def _require_own_flags(request: ExportRequest) -> None:
    """Raise ConfigError for a setting of another target."""
    for name, targets in ONLY.items():
        given = getattr(request, name)
        if request.to is not None and request.to not in targets and given != type(request).model_fields[name].default:
            raise ConfigError(
                _("--{flag} works only with these targets: {targets}.").format(flag=name, targets=listed(targets)),
                found=f"--to {request.to} --{name} {given}",
                fix=_("Remove --{flag}, or choose one of these targets.").format(flag=name),
            )


def _target(request: ExportRequest) -> Path:
    """Return the folder to write. Raises ConfigError or DiskError if it cannot be written, or holds files."""
    source = " ".join(request.run) if request.mix is None else f"--mix {request.mix}"
    example = f"lorafit export {source or 'latest'} --to {request.to} -o DIR"
    if request.to is None:
        known = listed(f"--to {name}" for name in registry.EXPORTERS)
        raise ConfigError(_("No target given."), found=None, fix=_("Add one of: {known}.").format(known=known))
    output = request.output or _own_folder(request)
    if output is None:
        what = _("No output folder given.")
        if request.to == "lmstudio":
            what = _("No output folder given, and LM Studio's own was not found.")
        raise ConfigError(what, fix=_("Name a new folder: {command}").format(command=example))
    target = user_path(output)
    require_utf8_name(target)
    with disk_errors(target, FLAG):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            fix = _("Name a new folder with {flag}, or delete this one.").format(flag=FLAG)
            raise ConfigError(_("The output folder exists already."), where=target, fix=fix)
    ensure_writable(target.absolute().parent, FLAG)
    return target


def _own_folder(request: ExportRequest) -> str | None:
    """Return the folder in which the target's program looks for models; None: the user must name one."""
    if request.to != "lmstudio" or len(request.run) != 1:
        return None
    folder = models_folder()
    adapter = find_adapter(request.run[0], Path(request.output_dir))
    run = run_containing(adapter)
    return None if folder is None else str(folder / AUTHOR / (run.name if run else adapter.resolve().name))


def _remove_leftovers(target: Path) -> None:
    """Delete what a killed export to the same folder left."""
    places = (target.absolute(), beside(target, "mix"), beside(target, "base"))
    for folder in {place.parent for place in places}:
        for path, kind, name in leftovers(folder):
            if kind == "tmp" and name in [place.name for place in places]:
                shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _find_source(request: ExportRequest, target: Path, say: ProgressCallback) -> Iterator[ExportSource]:
    """Yield the adapter that `request` names, or a mix that exists within the block, and its base model."""
    if request.mix is not None:
        with mixed(request, target, say) as source:
            yield source
        return
    if len(request.run) != 1:
        fix = _("Name one run, e.g. {command}").format(command="lorafit export latest --to merged -o DIR")
        raise ConfigError(_("Expected exactly one run."), found=listed(request.run) or None, fix=fix)
    yield source_of(find_adapter(request.run[0], Path(request.output_dir)), request, say)
