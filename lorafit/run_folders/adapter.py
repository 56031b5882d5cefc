"""Adapters on disk in PEFT's layout and names, whichever engine made them, so that `peft` can load them.

adapter_model.safetensors holds lora_A [r, in] and lora_B [out, r] of each module; adapter_config.json holds the rest.
lorafit.json beside them holds the chat settings. Adapters of mlx-lm are read too. Adapters of a kind that lorafit would
compute wrongly are refused by name (foreign_adapter.py).
"""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize, safe_open
from safetensors.numpy import save_file

from lorafit.atomic import read_errors
from lorafit.errors import AdapterError
from lorafit.messages import _
from lorafit.run_folders import foreign_adapter, module_pattern
from lorafit.run_folders.peft_form import CONFIG, BaseFacts, form_of
from lorafit.units import TEMPLATE_DATE, kind_text

WEIGHTS, CHAT = "adapter_model.safetensors", "lorafit.json"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
LARGEST = 10**9  # rank or alpha; with a larger one, float32 overflows
DTYPES = {"F32": np.float32, "F16": np.float16, "F64": np.float64}


@dataclass(frozen=True)
class AdapterConfig:
    """The content of adapter_config.json.

    `target_modules` are short names ("q_proj") or full names ("model.layers.0.self_attn.q_proj"). The patterns have the
    ranks and alphas of some modules (module_pattern.py); the others have `r` and `alpha`.
    """

    base_model: str | None
    r: int
    alpha: float
    dropout: float
    target_modules: list[str]
    use_rslora: bool = False
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Return the rank of `module`."""
        return module_pattern.value_of(self.rank_pattern, module, self.r)

    def alpha_of(self, module: str) -> float:
        """Return the alpha of `module` in plain LoRA, whose scale is alpha / rank."""
        alpha = module_pattern.value_of(self.alpha_pattern, module, self.alpha)
        return alpha * math.sqrt(self.rank_of(module)) if self.use_rslora else alpha

    def scale_of(self, module: str) -> float:
        """Return the factor before B @ A: alpha / rank, with rsLoRA alpha / sqrt(rank) (arXiv 2312.03732)."""
        return self.alpha_of(module) / self.rank_of(module)

    def as_plain(self, modules: Iterable[str]) -> "AdapterConfig":
        """Return the config without rsLoRA that gives `modules` the same ranks and scales.

        Its `r` and `alpha` are those of the module with the highest rank. The patterns hold the values that differ.
        """
        ranks = {module: self.rank_of(module) for module in modules}
        alphas = {module: self.alpha_of(module) for module in ranks}
        r, alpha = max((ranks[module], alphas[module]) for module in ranks)
        return replace(
            self,
            r=r,
            alpha=alpha,
            use_rslora=False,
            rank_pattern=module_pattern.make_pattern(ranks, r),
            alpha_pattern=module_pattern.make_pattern(alphas, alpha),
        )


@dataclass(frozen=True)
class ChatSettings:
    """The inputs of the run's chat template, so that a chat uses the same ones. `run` is the name of the run.

    `untrained_end` is the end of the template's generation prompt that the training's samples do not have.
    """

    system_prompt: str | None = None
    date_string: str = TEMPLATE_DATE
    base_model: str | None = None
    run: str | None = None
    untrained_end: str = ""


def lora_names(module: str) -> tuple[str, str]:
    """Return the names of `module`'s lora_A and lora_B in the weights file."""
    return f"base_model.model.{module}.lora_A.weight", f"base_model.model.{module}.lora_B.weight"


def parse_lora_name(name: str) -> tuple[str, str] | None:
    """Return the module and "A" or "B", the inverse of lora_names(); None for any other name."""
    parts = KEY.fullmatch(name)
    return (parts[1], parts[2]) if parts else None


def modules_of(tensors: Iterable[str]) -> list[str]:
    """Return the names of the modules that `tensors`, names in the weights file, belong to."""
    return sorted({parts[0] for name in tensors if (parts := parse_lora_name(name))})


def write_adapter(
    folder: Path, config: AdapterConfig, tensors: dict[str, NDArray[Any]], base: BaseFacts | None = None
) -> None:
    """Write `tensors`, named by lora_names(), and `config` into `folder`; equal weights give equal bytes.

    The facts of the `base` decide in which form the file names the trained modules; without them, `config` does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ordered = {name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}
    save_file(ordered, folder / WEIGHTS, {"format": "pt"})
    settings = _peft_config(config)
    if base is not None:
        settings |= form_of(modules_of(tensors), base, settings)
    (folder / CONFIG).write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", "utf-8")


def read_adapter_config(folder: Path) -> AdapterConfig:
    """Return the config of the adapter in `folder`. Raises AdapterError if it is missing, damaged or not supported."""
    return _open(folder).config


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, NDArray[np.float32]]]:
    """Return the adapter's config, and its tensors as float32 by PEFT's names. Raises AdapterError."""
    config, path, names = _open(folder)
    try:
        with read_errors(path):
            stored = {name: _array(facts, path) for name, facts in deserialize(path.read_bytes())}
    except (OSError, SafetensorError, ValueError) as error:
        raise _broken(path, error) from error
    tensors = {name: stored[own].T if path.name == foreign_adapter.MLX_WEIGHTS else stored[own] for name, own in names}
    _check_pairs(tensors, config, path)
    return config, tensors


def read_plain_config(folder: Path) -> AdapterConfig:
    """Return the config of the adapter in `folder` with its modules as full names and without rsLoRA."""
    config, _path, names = _open(folder)
    modules = modules_of(name for name, _own in names)
    return replace(config.as_plain(modules), target_modules=modules)


def write_chat_settings(folder: Path, settings: ChatSettings) -> None:
    """Write `settings` beside the adapter in `folder`."""
    (folder / CHAT).write_text(json.dumps(asdict(settings), ensure_ascii=False, indent=2) + "\n", "utf-8")


def read_chat_settings(folder: Path) -> ChatSettings:
    """Return the settings beside the adapter in `folder`.

    Absent or damaged values become defaults; `peft` itself writes no such file.
    """
    try:
        facts = json.loads((folder / CHAT).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ChatSettings()
    known = asdict(ChatSettings())
    facts = facts if isinstance(facts, dict) else {}
    return ChatSettings(**{name: facts[name] for name in known if isinstance(facts.get(name), str)})


def _peft_config(config: AdapterConfig) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.base_model,
        "r": config.r,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(config.target_modules),
        "use_rslora": config.use_rslora,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
        **({"rank_pattern": config.rank_pattern} if config.rank_pattern else {}),
        **({"alpha_pattern": config.alpha_pattern} if config.alpha_pattern else {}),
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with read_errors(path):
            facts = json.loads(path.read_text("utf-8-sig"))  # Windows editors write a byte-order mark
    except FileNotFoundError:
        raise AdapterError(
            _("No adapter found."),
            where=path.parent,
            found=_("{file} is missing").format(file=path.name),
            fix=_("Give a run folder, its final_model, or a checkpoint."),
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, error) from error
    if not isinstance(facts, dict):
        raise _broken(path, kind_text(facts))
    return facts


class _Opened(NamedTuple):
    """An adapter's config and weights file, and the names of its tensors: PEFT's and the file's."""

    config: AdapterConfig
    path: Path
    names: list[tuple[str, str]]


def _open(folder: Path) -> _Opened:
    """Read the adapter's settings and the names of its tensors. Raises AdapterError."""
    settings = _read_json(folder / CONFIG)
    foreign_adapter.refuse_settings(settings, folder / CONFIG)
    mlx = foreign_adapter.is_mlx(settings)
    path = folder / (foreign_adapter.MLX_WEIGHTS if mlx else WEIGHTS)
    _require_weights(path)
    try:
        with read_errors(path), path.open("rb"), safe_open(path, "numpy") as file:  # safetensors' own error is vague
            stored = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise _broken(path, error) from error
    parts = {name: foreign_adapter.mlx_part(name) if mlx else parse_lora_name(name) for name in stored}
    modules = sorted({part[0] for part in parts.values() if part})
    others = [name for name, part in parts.items() if part is None]
    foreign_adapter.refuse_tensors(others, modules, path)
    if others:
        raise _broken(path, _("tensor that is neither lora_A nor lora_B: {name}").format(name=others[0]))
    if not modules:
        raise _broken(path, _("the file has no tensors"))
    try:
        config = _config(foreign_adapter.mlx_as_peft(settings) if mlx else settings, modules)
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(folder / CONFIG, error) from error
    return _Opened(config, path, [(lora_names(p[0])["AB".index(p[1])], name) for name, p in parts.items() if p])


def _config(facts: dict[str, Any], modules: list[str]) -> AdapterConfig:
    """Return the config of PEFT's settings `facts` for the trained `modules`. Raise TypeError or ValueError."""
    return AdapterConfig(
        base_model=_text(facts.get("base_model_name_or_path")),
        r=_positive(int, facts, "r"),
        alpha=_positive(float, facts, "lora_alpha"),
        dropout=float(facts.get("lora_dropout") or 0.0),
        target_modules=_targets(facts, modules),
        use_rslora=bool(facts.get("use_rslora")),
        rank_pattern=_positive_pattern(int, facts, "rank_pattern"),
        alpha_pattern=_positive_pattern(float, facts, "alpha_pattern"),
    )


def _targets(facts: dict[str, Any], modules: list[str]) -> list[str]:
    """Return the config's module names that select `modules`; the full names if it has no plain list or narrows it."""
    names = facts.get("target_modules")
    narrowed = facts.get("layers_to_transform") is not None or facts.get("exclude_modules")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or narrowed:
        return modules
    used = {name: [module for module in modules if f".{module}".endswith(f".{name}")] for name in names}
    complete = set(modules) == {module for found in used.values() for module in found}
    return sorted(name for name, found in used.items() if found) if complete else modules


def _positive(kind: type[Any], facts: dict[str, Any], name: str) -> Any:
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int | kind) or not 0 < value <= LARGEST:
        raise ValueError(f"{name}: {value!r}")
    return value


def _positive_pattern(kind: type[Any], facts: dict[str, Any], name: str) -> dict[str, Any]:
    pattern = facts.get(name) or {}
    module_pattern.check_keys(pattern, name)
    return {key: _positive(kind, pattern, key) for key in pattern}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _array(facts: dict[str, Any], path: Path) -> NDArray[np.float32]:
    """Return a tensor as float32. numpy has no bfloat16, which is the upper half of a float32."""
    if facts["dtype"] == "BF16":
        values = (np.frombuffer(facts["data"], np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif facts["dtype"] in DTYPES:
        values = np.frombuffer(facts["data"], DTYPES[facts["dtype"]]).astype(np.float32)
    else:
        raise foreign_adapter.number_type_error(path, facts["dtype"])
    return values.reshape(facts["shape"])


def _require_weights(path: Path) -> None:
    if path.is_file():
        foreign_adapter.refuse_pointer(path)
        return
    pickled = path.with_suffix(".bin").is_file()
    raise AdapterError(
        _("The adapter's weights are missing."),
        where=path,
        found=_("{file} is a pickle file, which can run any code").format(file=path.with_suffix(".bin").name)
        if pickled
        else None,
        fix=_("Save the adapter as safetensors with `peft`.")
        if pickled
        else _("Copy the whole folder of the adapter."),
    )


def _check_pairs(tensors: dict[str, NDArray[np.float32]], config: AdapterConfig, path: Path) -> None:
    """Raise AdapterError unless every tensor is a lora_A [r, in] or lora_B [out, r] of a module that has both."""
    for name, tensor in tensors.items():
        module, which = parse_lora_name(name) or ("", "A")
        r = config.rank_of(module)
        if not set(lora_names(module)) <= tensors.keys():
            raise _broken(path, _("{name} has no matching lora_A or lora_B").format(name=name))
        if tensor.ndim != 2 or tensor.shape["AB".index(which)] != r:
            raise _broken(path, _("{name} has shape {shape}, but r is {r}").format(name=name, shape=tensor.shape, r=r))
        if not np.isfinite(tensor).all():
            raise _broken(path, _("{name} has values that are no numbers (NaN) or infinite").format(name=name))


def _broken(path: Path, found: object) -> AdapterError:
    return AdapterError(
        _("The adapter files are damaged or not valid."),
        where=path,
        found=found,
        fix=_("Copy or save the adapter again, or choose another checkpoint."),
    )
