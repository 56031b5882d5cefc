"""The search for an adapter and for the base model that it was trained on."""

from pathlib import Path

from lorafit.data.cache import file_sha256
from lorafit.engines.exported_template import exported_template
from lorafit.engines.tokenizer import ChatTokenizer, load_tokenizer
from lorafit.errors import AdapterError, LorafitError, ModelError
from lorafit.evaluation.model_request import tokenizer_folder
from lorafit.evaluation.validation import read_trained, run_containing
from lorafit.exporters.base import ExportRequest, ExportSource
from lorafit.messages import _, clauses
from lorafit.models.hub import FoundModel, find_model, is_local
from lorafit.models.identity import identify
from lorafit.models.spec import read_spec
from lorafit.paths import require_utf8_name
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import read_adapter_config, read_chat_settings, read_plain_config
from lorafit.run_folders.adapter_fit import check_shapes
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.origins import BaseFiles, base_changes, file_change, read_origins


def beside(target: Path, what: str) -> Path:
    """Return the path whose hidden neighbor holds `what` while the export to `target` is written."""
    there = next(path for path in target.absolute().parents if path.is_dir())
    return there / f"{target.name}-{what}"


def source_of(adapter: Path, request: ExportRequest, say: ProgressCallback) -> ExportSource:
    """Return the adapter in the folder `adapter` and its base model, whose files are those of the training.

    Raises LorafitErrors.
    """
    config = read_adapter_config(adapter)
    run = run_containing(adapter)
    base = _find_base(request, adapter, config.base_model, say)
    require_utf8_name(base.folder)
    spec = read_spec(base.folder)
    files = identify(base.folder)
    if run is not None:
        files = require_same_base(run, files, base, say)
    check_shapes(adapter, spec)
    tokenizer = chat_of(adapter, base.folder, request)
    exported_template(tokenizer)  # fails here, before a weight is read
    return ExportSource(
        adapter=adapter,
        config=config,
        modules=read_plain_config(adapter).target_modules,
        base=base,
        spec=spec,
        base_files=files,
        trained=None if run is None else read_trained(run),
        chat=read_chat_settings(adapter),
        tokenizer=tokenizer,
        trust_remote_code=request.trust_remote_code,
    )


def chat_of(adapter: Path, base: Path, request: ExportRequest) -> ChatTokenizer:
    """Return the tokenizer that `adapter` was trained with, with the thoughts that the request asks for.

    Raises ModelError or ConfigError.
    """
    tokenizer = load_tokenizer(tokenizer_folder(adapter, base), trust_remote_code=request.trust_remote_code)
    return tokenizer.answering(request.thinking, read_chat_settings(adapter).untrained_end)


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


def require_same_base(run: RunDir, files: BaseFiles, base: FoundModel, say: ProgressCallback) -> BaseFiles:
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
