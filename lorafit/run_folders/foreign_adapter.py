"""Adapters of other programs: the layout of mlx-lm in PEFT's terms, and the parts that lorafit does not apply.

mlx-lm computes y = W x + scale * (x a) b with a [in, r] and b [r, out]. So lora_A is the transpose of a, lora_B is that
of b, and alpha is scale * r. mlx-lm's names of modules are those of transformers in most dense models.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorafit.errors import AdapterError
from lorafit.messages import _, clauses, labelled, listed
from lorafit.models.text_tensors import LAYER
from lorafit.run_folders.peft_form import parameters_of_modules

MLX_WEIGHTS = "adapters.safetensors"
MLX_SETTINGS = ("fine_tune_type", "num_layers", "lora_parameters", "model")  # the ones that are read
MLX_NAME = re.compile(r"(.+)\.lora_([ab])")
# Settings of adapters that compute something other than W + scale * B @ A.
UNSUPPORTED_SETTINGS = (
    "use_dora", "lora_bias", "modules_to_save", "layer_replication", "target_parameters", "trainable_token_indices",
    "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "megatron_config",
)  # fmt: skip
SUPPORTED_INITS = (None, True, False, "gaussian", "eva", "orthogonal")  # any other init changes the base weights too
# Kinds of peft that train tokens before the text, which no weight of a base model can hold.
UNMERGEABLE = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADAPTION_PROMPT", "CPT")
LFS_POINTER = b"version https://git-lfs"
SHOWN_MODULES = 3


def is_mlx(settings: dict[str, Any]) -> bool:
    """Return whether `settings`, of adapter_config.json, are those of mlx-lm."""
    return "peft_type" not in settings and bool({"fine_tune_type", "lora_parameters"} & settings.keys())


def mlx_as_peft(settings: dict[str, Any]) -> dict[str, Any]:
    """Return PEFT's settings for mlx-lm's. Raise KeyError or TypeError if one is missing or not valid."""
    lora = settings["lora_parameters"]
    return {
        "base_model_name_or_path": settings.get("model"),
        "r": lora["rank"],
        "lora_alpha": float(lora["scale"]) * lora["rank"],
        "lora_dropout": lora.get("dropout"),
    }


def mlx_part(name: str) -> tuple[str, str] | None:
    """Return the module and "A" or "B" of a tensor that mlx-lm calls `name`; None for a tensor of another kind."""
    parts = MLX_NAME.fullmatch(name)
    return (parts[1], parts[2].upper()) if parts else None


def refuse_settings(settings: dict[str, Any], path: Path) -> None:
    """Raise AdapterError if `settings`, of the file `path`, describe an adapter that lorafit does not compute."""
    if is_mlx(settings):
        _refuse_mlx(settings, path)
        return
    strange = {name: settings[name] for name in UNSUPPORTED_SETTINGS if settings.get(name)}
    if parameters_of_modules(settings):
        strange.pop("target_parameters", None)
    if settings.get("peft_type") != "LORA":
        strange["peft_type"] = settings.get("peft_type")
    if settings.get("init_lora_weights") not in SUPPORTED_INITS:
        strange["init_lora_weights"] = settings["init_lora_weights"]
    if settings.get("peft_type") in UNMERGEABLE:
        what, fix = (
            _("lorafit does not support this kind of adapter."),
            _("Use it with `peft`, or train a LoRA adapter."),
        )
        raise AdapterError(what, where=path, found=f"peft_type: {settings['peft_type']}", fix=fix)
    if strange:
        raise unsupported_error(path, listed(f"{name}: {value!r}" for name, value in strange.items()))


def refuse_tensors(others: Iterable[str], modules: Iterable[str], path: Path) -> None:
    """Raise AdapterError if the file `path` holds more than LoRA on linear layers of the decoder.

    `modules` have lora_A and lora_B; `others` are the names of all other tensors. Names of no known kind pass: they are
    errors of the file.
    """
    plain = {name: name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in others}
    found = {
        _("LoRA on the embedding"): [n.rpartition(".")[0] for n in plain.values() if "lora_embedding_" in n],
        _("LoRA outside the decoder layers"): [n for n in modules if not LAYER.search(f"{n}.")],
        _("LoRA on fused experts"): [n for n in modules if ".switch_mlp." in n],
        _("biases"): [n for n in plain.values() if n.endswith(".bias")],
        _("whole weights, e.g. of a resized vocabulary"): [
            n for n in plain.values() if n.endswith(".weight") and ".lora_" not in n
        ],
    }
    if texts := [labelled(kind, _shown(names)) for kind, names in found.items() if names]:
        raise unsupported_error(path, clauses(texts))


def unsupported_error(path: Path, found: str) -> AdapterError:
    """Return the error for an adapter with the part `found`, which lorafit does not apply."""
    fix = _(
        "Merge it into its base model with `peft` (merge_and_unload), and give the merged folder, with the tokenizer, "
        "as --model_name (chat: --base_model) instead of the adapter."
    )
    return AdapterError(_("lorafit does not support this kind of adapter."), where=path, found=found, fix=fix)


def number_type_error(path: Path, kind: str) -> AdapterError:
    """Return the error for weights in a number type `kind` that lorafit does not read."""
    return AdapterError(
        _("lorafit does not support the number type of this adapter's weights."),
        where=path,
        found=kind,
        fix=_("Save the adapter in float32, bfloat16 or float16."),
    )


def refuse_pointer(path: Path) -> None:
    """Raise AdapterError if the file `path` only stands for weights that Git LFS has not downloaded."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) != LFS_POINTER:
            return
    raise AdapterError(
        _("The adapter's weights are missing."),
        where=path,
        found=_("the file is a pointer of Git LFS"),
        fix=_("Download the file itself; in a git clone, run `git lfs pull`."),
    )


def _refuse_mlx(settings: dict[str, Any], path: Path) -> None:
    kind, lora = settings.get("fine_tune_type", "lora"), settings.get("lora_parameters")
    what = _("lorafit does not support this kind of adapter.")
    if kind != "lora":
        fix = _(
            "Merge it into its base model with `mlx_lm.fuse`, and give the merged folder as --model_name "
            "(chat: --base_model) instead of the adapter."
        )
        raise AdapterError(what, where=path, found=f"fine_tune_type: {kind!r}", fix=fix)
    if isinstance(lora, dict) and lora.get("alpha") is not None:
        try:
            old = lora["scale"] * lora["alpha"] / lora["rank"]
        except (KeyError, TypeError, ZeroDivisionError):
            return  # the file is not valid, which mlx_as_peft finds
        raise AdapterError(
            _("The scale of this adapter is ambiguous: mlx-lm used alpha in 2024, and ignores it today."),
            where=path,
            found=f"scale: {lora['scale']}, alpha: {lora['alpha']}, rank: {lora['rank']}",
            fix=_(
                "Remove alpha from lora_parameters. If a version of mlx-lm with alpha trained the adapter, "
                "also set scale to {scale:g}."
            ).format(scale=old),
        )


def _shown(names: list[str]) -> str:
    names = sorted(set(names))
    return listed([*names[:SHOWN_MODULES], *(["..."] if names[SHOWN_MODULES:] else [])])
