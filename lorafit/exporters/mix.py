"""Several adapters of one base model with weights, as one adapter.

The rows of all A lie below each other, and the columns of all B side by side. So the rank is the sum of the ranks, and the
product is the weighted sum of the deltas. The mix is an ordinary adapter's folder, so that every target, and the live
side of the certificate, read it as they read any other.
"""

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from lorafit.atomic import disk_errors, ensure_disk_space, hidden_path
from lorafit.errors import AdapterError, ConfigError, ExportError, ModelError
from lorafit.evaluation.validation import read_trained, run_containing
from lorafit.exporters.base import FLAG, ExportRequest, ExportSource, MixPart
from lorafit.exporters.chain import name_of
from lorafit.exporters.chat_files import mix_card
from lorafit.exporters.low_rank import difference, side_by_side
from lorafit.exporters.merge import Delta
from lorafit.exporters.rounding import Float32
from lorafit.exporters.source import beside, chat_of, require_same_base, source_of
from lorafit.exporters.texts import template_ids
from lorafit.messages import _, listed
from lorafit.models.hub import is_local
from lorafit.paths import user_path
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import (
    AdapterConfig,
    lora_names,
    modules_of,
    read_adapter,
    read_adapter_config,
    read_chat_settings,
    write_adapter,
    write_chat_settings,
)
from lorafit.run_folders.adapter_fit import check_shapes
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.run_folders.module_pattern import make_pattern
from lorafit.run_folders.origins import read_origins

EXAMPLE = "--mix law=0.7,chat=0.3"
Deltas = dict[str, list[Delta]]  # by the full names of the layers


@contextmanager
def mixed(request: ExportRequest, target: Path, say: ProgressCallback) -> Iterator[ExportSource]:
    """Yield the mix that `request` asks for as one adapter, in a folder that is deleted after the block.

    Raises LorafitErrors.
    """
    parts = _find_parts(request)
    first = source_of(parts[0].adapter, request, say)
    for part in parts[1:]:
        _require_one_base(first, part, request, say)
    folder = hidden_path(beside(target, "mix"), "tmp")
    size = sum(path.stat().st_size for part in parts for path in part.adapter.iterdir() if path.is_file())
    fix = _("Free disk space, or choose another folder with {flag}.").format(flag=FLAG)
    ensure_disk_space(folder, size, _("Not enough disk space for this export."), fix)
    say(_("Mixing {count} adapters").format(count=len(parts)))
    try:
        with disk_errors(target, FLAG):
            config = _write(folder, first, parts)
        yield replace(
            first,
            adapter=folder,
            config=config,
            modules=config.target_modules,
            chat=read_chat_settings(folder),
            parts=tuple(parts),
            notes=tuple(_differences(first, parts, request)),
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def title(parts: list[MixPart]) -> str:
    """Return a short name of a mix, with the weights of its parts."""
    return " + ".join(f"{part.weight:g} x {part.name}" for part in parts)


def _find_parts(request: ExportRequest) -> list[MixPart]:
    """Return the adapters of --mix. Raises ConfigError or AdapterError."""
    if request.run:
        raise ConfigError(
            _("A run and --mix cannot be used together: --mix names all adapters."),
            found=listed(request.run),
            fix=_("Give it a weight in --mix, e.g. {example}").format(example=f"--mix {request.run[0]}=0.5,..."),
        )
    parts: list[MixPart] = []
    for text in str(request.mix).split(","):
        name, weight = _parsed(text.strip())
        adapter = find_adapter(name, Path(request.output_dir))
        if any(part.adapter.resolve() == adapter.resolve() for part in parts):
            fix = _("Give each adapter once, with the sum of its weights.")
            raise ConfigError(_("--mix names an adapter twice."), where=adapter, found=name, fix=fix)
        parts.append(MixPart(_shown_name(adapter, [part.name for part in parts]), weight, adapter))
    return parts


def _parsed(text: str) -> tuple[str, float]:
    """Return the name and the weight in `text`. Raises ConfigError."""
    name, equals, number = text.rpartition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not equals or not name.strip() or not math.isfinite(weight):
        raise ConfigError(
            _("--mix needs adapters with weights."),
            found=text or None,
            fix=_("Write NAME=WEIGHT for each, with commas between them, e.g. {example}").format(example=EXAMPLE),
        )
    return name.strip(), weight


def _shown_name(adapter: Path, taken: list[str]) -> str:
    """Return the name of `adapter`, with that of its folder if the name is `taken`."""
    name = name_of(adapter)
    return f"{name}/{adapter.resolve().name}" if name in taken else name


def _require_one_base(first: ExportSource, part: MixPart, request: ExportRequest, say: ProgressCallback) -> None:
    """Raise AdapterError unless `part` was trained on the base model of `first`, as far as records tell."""
    run, found = run_containing(part.adapter), None
    if run is not None and read_origins(run) is not None:
        try:
            require_same_base(run, first.base_files, first.base, say)
        except ModelError as error:
            found = error.found
    elif request.base_model is None:
        name = read_adapter_config(part.adapter).base_model
        same = name == first.base.name or (
            name is not None and is_local(name) and user_path(name).resolve() == first.base.folder.resolve()
        )
        found = None if same else f"{name or '?'} != {first.base.name}"
    if found is not None:
        raise _other_base(part, found)
    check_shapes(part.adapter, first.spec)


def _other_base(part: MixPart, found: str) -> AdapterError:
    return AdapterError(
        _("The adapters of --mix were not trained on the same base model."),
        where=part.adapter,
        found=found,
        fix=_("Mix adapters of one base model. If it only has another name here, give it with --base_model."),
    )


def _write(folder: Path, first: ExportSource, parts: list[MixPart]) -> AdapterConfig:
    """Write the mix of `parts` into `folder`, and return its settings. Raises ExportError or AdapterError."""
    deltas = _deltas(parts)
    tensors: dict[str, Float32] = {}
    for module, found in deltas.items():
        a, b = side_by_side(found)
        if not np.isfinite(b).all():
            fix = _("If a weight is very large, use a smaller one. Otherwise please report it.")
            raise ExportError(_("A weight of --mix is too large for float32."), where=module, fix=fix)
        tensors |= dict(zip(lora_names(module), (a, b), strict=True))
    ranks = {module: sum(len(delta.a) for delta in found) for module, found in deltas.items()}
    write_adapter(folder, _settings(first, parts, ranks), tensors)
    config, read = read_adapter(folder)
    for module, found in deltas.items():
        a, b = (read[name] for name in lora_names(module))
        difference(module, found, Delta(a, b, config.scale_of(module)))
    chat = replace(first.chat, run=title(parts), base_model=first.base.name)
    write_chat_settings(folder, chat)
    (folder / "README.md").write_text(mix_card(first, parts), "utf-8")
    return replace(config, target_modules=sorted(deltas))


def _deltas(parts: list[MixPart]) -> Deltas:
    """Return the weighted deltas of `parts`. Raises AdapterError for other shapes."""
    found: Deltas = {}
    for part in parts:
        config, tensors = read_adapter(part.adapter)
        for module in modules_of(tensors):
            a, b = (tensors[name] for name in lora_names(module))
            delta = Delta(a, b, part.weight * config.scale_of(module))
            for other in found.setdefault(module, [])[:1]:
                if (other.a.shape[1], len(other.b)) != (a.shape[1], len(b)):
                    found_shapes = f"{module}: {(len(b), a.shape[1])} != {(len(other.b), other.a.shape[1])}"
                    raise _other_base(part, found_shapes)
            found[module].append(delta)
    return found


def _settings(first: ExportSource, parts: list[MixPart], ranks: Mapping[str, int]) -> AdapterConfig:
    """Return the settings of a mix with the `ranks` by layer: alpha is the rank, so the scale is 1."""
    kinds = [read_adapter_config(part.adapter).target_modules for part in parts]
    same = all(kind == kinds[0] for kind in kinds)
    r = max(ranks.values())
    pattern = make_pattern(ranks, r)
    return AdapterConfig(
        base_model=first.config.base_model or first.base.name,
        r=r,
        alpha=float(r),
        dropout=0.0,
        target_modules=kinds[0] if same else sorted(ranks),
        rank_pattern=pattern,
        alpha_pattern={name: float(rank) for name, rank in pattern.items()},
    )


def _differences(first: ExportSource, parts: list[MixPart], request: ExportRequest) -> Iterator[str]:
    """Yield texts on what the other adapters were trained with otherwise than the first, whose ways the export takes."""
    names = {"first": parts[0].name}
    ids = template_ids(first.tokenizer, first.chat.date_string)
    for part in parts[1:]:
        names["name"] = part.name
        tokenizer, chat = (
            chat_of(part.adapter, first.base.folder, request),
            read_chat_settings(part.adapter),
        )
        if template_ids(tokenizer, first.chat.date_string) != ids:
            text = _("{name} was trained with another chat template than {first}. The export has that of {first}.")
            yield text.format(**names)
        if tokenizer.stop_ids != first.tokenizer.stop_ids:
            text = _("{name} was trained with other end tokens than {first}. The export has those of {first}.")
            yield text.format(**names)
        if chat.system_prompt != first.chat.system_prompt:
            text = _("{name} was trained with another system prompt than {first}. Chats use that of {first}.")
            yield text.format(**names)
        run = run_containing(part.adapter)
        stored = "none" if run is None else read_trained(run).plan.quantization
        if stored != first.quantization:
            text = _("{name} was trained on the base model with --quantization {other}, {first} with {own}. The export "
                     "takes the weights of {first}.")  # fmt: skip
            yield text.format(**names, other=stored, own=first.quantization)
