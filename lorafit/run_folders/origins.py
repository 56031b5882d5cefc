"""What a run was made from, in origins.json: the base model, data, chat template and first adapter, with their digests.

A resumed run compares them with the present ones. Names may differ: only the content counts.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from lorafit import __version__
from lorafit.atomic import atomic_file
from lorafit.config import TrainConfig
from lorafit.data.cache import TOKENIZER_FILES, file_sha256
from lorafit.data.dataset import DataFile, PreparedData
from lorafit.data.sources import named_paths
from lorafit.errors import RunError
from lorafit.messages import _, clauses
from lorafit.models.hub import FoundModel, is_local
from lorafit.models.identity import FileIdentity
from lorafit.run_folders.adapter import WEIGHTS
from lorafit.run_folders.directory import RunDir
from lorafit.run_folders.foreign_adapter import MLX_WEIGHTS

PACKAGES = ("transformers", "tokenizers")
MOST_LINES = 5  # changed files that an error names
SHORT = 12  # characters of a digest that an error shows
BaseFiles = dict[str, FileIdentity]  # by their names in the base model's folder


@dataclass(frozen=True)
class Origins:
    """The inputs of a run. `tokenizer` holds the sha256 of each file by its name, `adapter` that of the weights."""

    base: str = ""  # a model ID, `demo`, or the absolute folder
    base_files: BaseFiles = field(default_factory=dict)
    tokenizer: dict[str, str] = field(default_factory=dict)
    data: list[DataFile] = field(default_factory=list)
    template: str | None = None  # sha256 of the text of --chat_template
    adapter: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the origins to `path` as JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False, indent=1) + "\n", "utf-8")

    def portable(self, base: str) -> "Origins":
        """Return the origins without folders, for another machine, where the base model is named `base`."""
        data = [
            replace(one, file=Path(one.file).name if Path(one.file).is_absolute() else one.file) for one in self.data
        ]
        return replace(self, base=base, data=data)


def read_origins(run: RunDir) -> Origins | None:
    """Return the origins of `run`; None for a run of a version that wrote none. Raises RunError for a damaged file."""
    try:
        facts = json.loads(run.origins.read_text("utf-8"))
        return _from_json(facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        fix = _("Delete this file to resume without a check that the base model's files are still the same.")
        what = _("The record of the run's base model and data cannot be read.")
        raise RunError(what, where=run.origins, found=error, fix=fix) from None


def _from_json(facts: dict[str, Any]) -> Origins:
    known = {one.name: facts[one.name] for one in fields(Origins) if one.name in facts}
    known |= {name: {key: str(text) for key, text in known[name].items()} for name in ("tokenizer", "versions")}
    files = {name: FileIdentity(str(one["quick"]), _text(one["sha256"])) for name, one in known["base_files"].items()}
    data = [DataFile(one["setting"], one["file"], int(one["rows"]), str(one["content"])) for one in known["data"]]
    known |= {name: _text(known[name]) for name in ("template", "adapter")}
    return Origins(**{**known, "base": str(known["base"]), "base_files": files, "data": data})


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def origins_of(
    model: FoundModel, base: BaseFiles, data: PreparedData, template: str | None, adapter: Path | None
) -> Origins:
    """Return the origins of a run on `data` and on `model` with the files `base`.

    `template` is the text of --chat_template, `adapter` the folder of --init_adapter.
    """
    return replace(
        data_origins(model.folder, data),
        base=model.name,
        base_files=base,
        template=None if template is None else template_digest(template),
        adapter=None if adapter is None else adapter_digest(adapter),
    )


def data_origins(model_folder: Path, data: PreparedData) -> Origins:
    """Return the origins that decide the tokenized data: files, tokenizer and versions."""
    kept = {path for pattern in TOKENIZER_FILES for path in model_folder.glob(pattern) if path.is_file()}
    return Origins(
        tokenizer={path.name: file_sha256(path) for path in sorted(kept) if path.name != "config.json"},
        data=data.files,
        versions={"lorafit": __version__, **{name: metadata.version(name) for name in PACKAGES}},
    )


def template_digest(template: str) -> str:
    """Return the sha256 of a chat template's text."""
    return hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()


def adapter_digest(folder: Path) -> str | None:
    """Return the sha256 of the weights of the adapter in `folder`; None without weights."""
    found = next((folder / name for name in (WEIGHTS, MLX_WEIGHTS) if (folder / name).is_file()), None)
    return None if found is None else file_sha256(found)


def add_sha256(run: RunDir, name: str, sha256: str) -> None:
    """Record the sha256 of the base model's file `name`. Raises OSError or RunError if the record cannot be written."""
    origins = read_origins(run)
    if origins is None or name not in origins.base_files:
        return
    files = origins.base_files | {name: replace(origins.base_files[name], sha256=sha256)}
    with atomic_file(run.origins) as path:
        replace(origins, base_files=files).save(path)


# Settings with absolute paths


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Return `config` with absolute paths, so that it means the same in every working directory. Raises DataError."""
    changes = {name: _absolute(name, getattr(config, name)) for name in PLACES if getattr(config, name) is not None}
    return config.model_copy(update={**changes, "output_dir": str(Path(config.output_dir).expanduser().absolute())})


PLACES = ("model_name", "dataset_name", "valid_dataset", "chat_template", "init_adapter")


def places(setting: str, value: str) -> list[tuple[str, Path | None]]:
    """Return each name in the `value` of a setting in PLACES, with its path if it is one. Raises DataError."""
    if setting in ("dataset_name", "valid_dataset"):
        return named_paths(value)
    if setting == "model_name":
        is_path = value != "demo" and is_local(value)
    else:
        is_path = setting == "init_adapter" or "{" not in value
    return [(value, Path(value).expanduser() if is_path else None)]


def _absolute(setting: str, value: str) -> str:
    """Return `value` with absolute paths; unchanged if a comma or a brace in them would give them another meaning."""
    names = [name if path is None else str(path.absolute()) for name, path in places(setting, value)]
    made = ",".join(names)
    return made if [name for name, _path in places(setting, made)] == names else value


# Differences in words


def base_changes(before: BaseFiles, now: BaseFiles) -> Iterator[str]:
    """Yield a text for each file of the base model that differs: its name and both digests."""
    for name in sorted({*before, *now}):
        then, this = before.get(name), now.get(name)
        if then is None or this is None or then.quick != this.quick:
            yield file_change(name, then.quick if then else None, this.quick if this else None)


def file_change(name: str, then: str | None, now: str | None) -> str:
    """Return the text for a file with the digest `then` at the start and `now` at present; None: without this file."""
    texts = [digest[:SHORT] if digest else _("missing") for digest in (then, now)]
    return _("{file}: {before} at the start, {now} now").format(file=name, before=texts[0], now=texts[1])


def data_changes(run: RunDir, now: Origins | None, digests: tuple[str, str]) -> str:
    """Return a text that names the files due to which the tokenized data of `run` differ from those at its start.

    If no file differs or none is recorded, the text has the `digests` of the tokenized data, at the start and now.
    """
    before, (then, this) = read_origins(run), digests
    lines: list[str] = []
    if before is not None and now is not None:
        lines = [*_data_lines(before, now), *_differing(before.tokenizer, now.tokenizer)]
        lines = lines or [*_differing(before.versions, now.versions)]
    lines = lines or [file_change(_("tokenized data"), then, this)]
    return clauses([*lines[:MOST_LINES], *(["..."] if len(lines) > MOST_LINES else [])])


def _differing(before: dict[str, str], now: dict[str, str]) -> Iterator[str]:
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            yield file_change(name, before.get(name), now.get(name))


def _data_lines(before: Origins, now: Origins) -> Iterator[str]:
    """Yield a text for each data file whose content differs, or that only one of the two has."""
    contents, past = [{(one.setting, one.content) for one in side.data} for side in (now, before)]
    missing = [one for one in before.data if (one.setting, one.content) not in contents]
    added = [one for one in now.data if (one.setting, one.content) not in past]
    for one in missing:
        other = next((this for this in added if _is_same_file(one, this)), None)
        if other is not None:
            added.remove(other)
        yield _data_line((other or one).file, one, other)
    for one in added:
        yield _data_line(one.file, None, one)


def _is_same_file(one: DataFile, other: DataFile) -> bool:
    return one.setting == other.setting and (one.file == other.file or Path(one.file).name == Path(other.file).name)


def _data_line(name: str, then: DataFile | None, now: DataFile | None) -> str:
    texts = [_("missing") if one is None else _content_text(one) for one in (then, now)]
    return _("{file}: {before} at the start, {now} now").format(file=name, before=texts[0], now=texts[1])


def _content_text(one: DataFile) -> str:
    return _("rows: {rows}, sha256 {digest}").format(rows=one.rows, digest=one.content[:SHORT])
