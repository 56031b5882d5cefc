"""Checks that a resumed run still has the base model, data, template and adapter that it was started with."""

import shlex
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from types import TracebackType

from lorafit.config import TrainConfig
from lorafit.data.cache import file_sha256
from lorafit.data.dataset_info import NAME as DATASET_INFO
from lorafit.errors import LorafitError, RunError
from lorafit.events import Event, Stage
from lorafit.hardware.detect import Machine
from lorafit.messages import _, clauses, listed
from lorafit.models.hub import FoundModel, find_model, is_local
from lorafit.models.identity import identify
from lorafit.models.spec import ModelSpec, read_config, read_spec
from lorafit.models.trainable import check_trainable
from lorafit.run_folders.adapter import read_adapter_config
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.run_folders.origins import (
    PLACES,
    BaseFiles,
    Origins,
    adapter_digest,
    add_sha256,
    base_changes,
    data_changes,
    file_change,
    places,
    read_origins,
    template_digest,
)
from lorafit.training.progress import stage_texts

COMPUTER = ("system", "arch", "chip", "cores", "memory_bytes")  # the facts of a machine that no update changes


def require_places(run: RunDir, config: TrainConfig, needs_adapter: bool) -> None:
    """Raise RunError if a file or folder that the saved settings of `run` name is gone, unless `config` has another.

    `needs_adapter`: training starts from init_adapter again.
    """
    saved, gone = saved_config(run), {}
    for setting in PLACES:
        value = getattr(config, setting)
        if value is None or value != getattr(saved, setting) or (setting == "init_adapter" and not needs_adapter):
            continue
        found = [path for _name, path in places(setting, value) if path is not None and not _is_there(path)]
        if found:
            gone[setting] = found
    if not gone:
        return
    paths = [path for found in gone.values() for path in found]
    flags = " ".join(f"--{setting} PATH" for setting in gone)
    fix = _("Restore it, or give its new place, with the same content: `{command}`")
    if not all(path.is_absolute() for path in paths):  # saved by an earlier version
        fix = _("Run the command in the folder where the run was started, or give the new place: `{command}`")
    elif read_origins(run) is None and gone.keys() & {"model_name", "init_adapter"}:
        fix = _("Put it back in its place: the run is of an earlier version, which recorded no digest of its content.")
    raise RunError(
        _("A file or folder that this run needs is missing."),
        where=listed(str(path) for path in paths),
        found=listed(gone),
        fix=fix.format(command=f"lorafit resume {shlex.quote(str(run.path))} {flags}"),
    )


def _is_there(path: Path) -> bool:
    return path.exists() or (path.parent / DATASET_INFO).is_file()


def with_known_base(run: RunDir, checkpoint: Path | None, config: TrainConfig) -> TrainConfig:
    """Return `config` with the folder of the base model that the adapter in `checkpoint` names.

    An earlier version saved a relative path in the settings, which elsewhere would be a model ID.
    """
    name = config.model_name
    is_complete = name == "demo" or Path(name).expanduser().is_absolute()
    if is_complete or run.origins.is_file() or checkpoint is None or name != saved_config(run).model_name:
        return config
    try:
        base = read_adapter_config(checkpoint).base_model
    except LorafitError:
        return config
    if base is None or not Path(base).is_absolute() or (is_local(name) and not Path(base).is_dir()):
        return config
    return config.model_copy(update={"model_name": base})


def find_base(
    config: TrainConfig, machine: Machine, resumed: RunDir | None
) -> Generator[Event, None, tuple[FoundModel, ModelSpec, BaseFiles]]:
    """Find the base model and read its shape and the identity of its files. Raises LorafitErrors.

    If `resumed` trained on this machine before, the files must be the same. On another machine, the base may be another
    copy of the model.
    """
    yield Stage(text=_("Looking for the model {name}").format(name=config.model_name))
    find = partial(find_model, config.model_name, hub=config.hub, endpoint=config.hf_endpoint)

    def accept(folder: Path) -> None:
        check_trainable(read_config(folder), config.model_name, config.trust_remote_code)

    model = yield from stage_texts(lambda say: find(say=say, accept=accept))
    accept(model.folder)
    spec, files = read_spec(model.folder), identify(model.folder)
    before = None if resumed is None else read_origins(resumed)
    if resumed is None or before is None:
        return model, spec, files
    if not other_machine(resumed, machine, COMPUTER):
        yield from _check_base(resumed, before.base_files, files, model.folder)
    return model, spec, _with_known_sha256(before.base_files, files)


def _check_base(run: RunDir, before: BaseFiles, now: BaseFiles, folder: Path) -> Iterator[Event]:
    what = _("The base model changed after this run started: the result would not be that of one training.")
    if lines := [*base_changes(before, now)]:
        raise _changed(what, run, folder, clauses(lines))
    for name, identity in before.items():
        if identity.sha256 is not None:
            yield Stage(text=_("Checking that {name} is unchanged").format(name=name))
            found = now[name].sha256 or file_sha256(folder / name)
            if found != identity.sha256:
                raise _changed(what, run, folder, file_change(name, identity.sha256, found))


def _with_known_sha256(before: BaseFiles, now: BaseFiles) -> BaseFiles:
    """Return `now` with the sha256 in `before`, for the files with the same quick digest."""
    return {
        name: before[name] if name in before and before[name].quick == one.quick else one for name, one in now.items()
    }


def check_template_and_adapter(run: RunDir, template: str | None, adapter: Path | None) -> None:
    """Raise RunError if the chat template or the first adapter differs from that at the start of `run`.

    `template` is the text of --chat_template. `adapter` is the folder of --init_adapter, None if it is not needed.
    """
    before, saved = read_origins(run), saved_config(run)
    if before is None:
        return
    now = None if template is None else template_digest(template)
    if None not in (before.template, now) and before.template != now:
        name = saved.chat_template or ""
        where = "chat_template" if "{" in name else name
        found = file_change(Path(where).name, before.template, now)
        raise _changed(_("The chat template changed after this run started."), run, where, found)
    now = None if adapter is None else adapter_digest(adapter)
    if None not in (before.adapter, now) and before.adapter != now:
        what = _("The adapter that training starts from changed after this run started.")
        raise _changed(what, run, adapter, file_change("init_adapter", before.adapter, now))


def _changed(what: str, run: RunDir, where: object, found: str) -> RunError:
    fix = _("Restore the files, or start a new run from this run's weights: --init_adapter {run}")
    return RunError(what, where=where, found=found, fix=fix.format(run=shlex.quote(str(run.path))))


def refuse_other_data(run: RunDir, before: str, now: str, origins: Origins | None = None) -> None:
    """Raise RunError if the digests of the tokenized data differ: `before` at the run's start, `now` at present.

    `origins` are the present ones, with which the error names the files that differ.
    """
    if before == now:
        return
    raise RunError(
        _("The training data have changed since the run started: the result would not be that of one training."),
        where=saved_config(run).dataset_name,
        found=data_changes(run, origins, (before, now)),
        fix=_("Restore the data files, or start a new run (with --init_adapter to start from this run's weights)."),
    )


def other_machine(run: RunDir, machine: Machine, facts: tuple[str, ...] = (*COMPUTER, "torch_version")) -> bool:
    """Return whether one of `facts` differs between `machine` and the machine on which `run` trained last."""
    try:
        before = Machine.from_json(run.machine.read_text("utf-8"))
    except (OSError, ValueError, TypeError, KeyError):
        return True
    return any(getattr(before, name) != getattr(machine, name) for name in facts)


class FullDigests:
    """Within the block, a thread records the sha256 of the base model's files in the run's origins.json.

    For a model of 16 GB this takes a minute, for which the start does not wait. Until then the quick digests decide.
    """

    def __init__(self, run: RunDir, origins: Origins, folder: Path) -> None:
        self.run, self.folder, self.lock, self.ended = run, folder, Lock(), False
        self.names = [name for name, one in origins.base_files.items() if one.sha256 is None and _is_weights(name)]

    def __enter__(self) -> None:
        if self.names:
            Thread(target=self._record, daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.lock:
            self.ended = True

    def _record(self) -> None:
        for name in self.names:
            try:
                digest = file_sha256(self.folder / name)
                with self.lock:
                    if self.ended:
                        return
                    add_sha256(self.run, name, digest)
            except (OSError, LorafitError):  # training reports a full disk and a folder that is gone
                return


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors")
