"""An export from its request to the finished folder: find, check, write, certify. Whole or absent."""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path

from lorafit import registry
from lorafit.atomic import atomic_folder, disk_errors, ensure_disk_space, ensure_writable, leftovers
from lorafit.data.cache import file_sha256
from lorafit.engines.exported_template import exported_template
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.errors import AdapterError, ConfigError, LorafitError, ModelError
from lorafit.evaluation.model_request import tokenizer_folder
from lorafit.evaluation.validation import read_trained, run_containing
from lorafit.exporters.base import Check, ExportRequest, ExportSource
from lorafit.exporters.certificate import Certificate, file_digests, versions
from lorafit.exporters.readme import readme
from lorafit.exporters.words import told
from lorafit.messages import _, clauses, listed
from lorafit.models.hub import FoundModel, find_model, is_local
from lorafit.models.identity import identify
from lorafit.models.spec import read_spec
from lorafit.paths import require_utf8_name, user_path
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import read_adapter_config, read_chat_settings, read_plain_config
from lorafit.run_folders.adapter_fit import check_shapes
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.run_folders.origins import BaseFiles, base_changes, file_change, read_origins

FLAG = "--output"
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
    job = check(find_source(request, say), request)
    fix = _("Free disk space, or choose another folder with {flag}.").format(flag=FLAG)
    ensure_disk_space(target, job.needed_bytes, _("Not enough disk space for this export."), fix)
    _remove_leftovers(target)
    with atomic_folder(target, flag=FLAG, manifest=False) as folder:
        certificate = job.write(folder, say)
        certificate = replace(certificate, notes=[*certificate.notes, *told(certificate)], versions=versions())
        (folder / "README.md").write_text(readme(certificate), "utf-8")
        certificate = replace(certificate, files=file_digests(folder))
        certificate.write(folder)
    size = sum(one["bytes"] for one in certificate.files.values())
    return Exported(target, size, time.monotonic() - began, certificate)


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
    example = f"lorafit export {listed(request.run) or 'latest'} --to merged -o DIR"
    if request.to is None:
        known = listed(f"--to {name}" for name in registry.EXPORTERS)
        raise ConfigError(_("No target given."), found=None, fix=_("Add one of: {known}.").format(known=known))
    output = request.output or _own_folder(request)
    if output is None:
        raise ConfigError(_("No output folder given."), fix=_("Name a new folder: {command}").format(command=example))
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
    from lorafit.exporters.gguf.lmstudio import AUTHOR, models_folder

    folder = models_folder()
    adapter = find_adapter(request.run[0], Path(request.output_dir))
    run = run_containing(adapter)
    return None if folder is None else str(folder / AUTHOR / (run.name if run else adapter.resolve().name))


def _remove_leftovers(target: Path) -> None:
    """Delete what a killed export to the same folder left."""
    for path, kind, name in leftovers(target.absolute().parent):
        if kind == "tmp" and name == target.name:
            shutil.rmtree(path, ignore_errors=True)


def find_source(request: ExportRequest, say: ProgressCallback) -> ExportSource:
    """Return the adapter and its base model, whose files are those of the training. Raises LorafitErrors."""
    if len(request.run) != 1:
        fix = _("Name one run, e.g. {command}").format(command="lorafit export latest --to merged -o DIR")
        raise ConfigError(_("Expected exactly one run."), found=listed(request.run) or None, fix=fix)
    adapter = find_adapter(request.run[0], Path(request.output_dir))
    config = read_adapter_config(adapter)
    run = run_containing(adapter)
    base = _find_base(request, adapter, config.base_model, say)
    require_utf8_name(base.folder)
    spec = read_spec(base.folder)
    files = identify(base.folder)
    if run is not None:
        files = _require_same_base(run, files, base, say)
    check_shapes(adapter, spec)
    tokenizer = load_tokenizer(tokenizer_folder(adapter, base.folder), trust_remote_code=request.trust_remote_code)
    chat = read_chat_settings(adapter)
    tokenizer = tokenizer.answering(request.thinking, chat.untrained_end)
    exported_template(tokenizer)  # fails here, before a weight is read
    return ExportSource(
        adapter=adapter,
        config=config,
        modules=read_plain_config(adapter).target_modules,
        base=base,
        spec=spec,
        base_files=files,
        trained=None if run is None else read_trained(run),
        chat=chat,
        tokenizer=tokenizer,
        trust_remote_code=request.trust_remote_code,
    )


def _find_base(request: ExportRequest, adapter: Path, named: str | None, say: ProgressCallback) -> FoundModel:
    name = request.base_model or named
    if name is None:
        fix = _("Name the base model with --base_model.")
        raise AdapterError(_("The adapter does not name its base model."), where=adapter, fix=fix)
    try:
        return find_model(name, hub=request.hub, endpoint=request.hf_endpoint, say=say)
    except LorafitError as error:
        if request.base_model is None and is_local(name):
            error.fix = _("If the base model was moved, name its folder with --base_model.")
        raise


def _require_same_base(run: RunDir, files: BaseFiles, base: FoundModel, say: ProgressCallback) -> BaseFiles:
    """Return `files` with the sha256 that the run recorded. Raise ModelError if they are not what `run` trained on."""
    origins = read_origins(run)
    if origins is None:
        return files
    changes = list(base_changes(origins.base_files, files))
    for name, before in origins.base_files.items():
        if before.sha256 is not None and not changes:
            say(_("Checking that {name} is unchanged").format(name=name))
            found = files[name].sha256 or file_sha256(base.folder / name)
            changes += [file_change(name, before.sha256, found)] if found != before.sha256 else []
    if changes:
        raise ModelError(
            _("The base model is not the one that this adapter was trained on."),
            where=base.folder,
            found=clauses(changes[:5]),
            fix=_("Restore these files, or name the folder of the right model with --base_model."),
        )
    return origins.base_files
