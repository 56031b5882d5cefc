"""Base models: loading, the layers that LoRA adapts, torch.compile and activation checkpointing."""

import json
import logging as python_logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BitsAndBytesConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from lorafit.engines.base import Setup
from lorafit.engines.torch.attention import SEGMENT_ATTENTION
from lorafit.engines.torch.device import DTYPES, arithmetic_dtype
from lorafit.engines.torch.lora import DropoutKeys, LoRALinear
from lorafit.engines.torch.low_bit_linear import LowBitLinear, compute_in_float32
from lorafit.engines.torch.model_class import decoder_of, read_config, text_class
from lorafit.engines.torch.weights import lazy_weights, read_weights
from lorafit.errors import ModelError
from lorafit.messages import _, listed
from lorafit.models.lora_targets import is_adaptable, select_targets
from lorafit.run_folders.adapter import AdapterConfig

PLAIN_SUBCLASSES = ("FalconLinear",)  # their own forward is the same matmul
logging.set_verbosity_error()
logging.disable_progress_bar()
python_logging.getLogger("bitsandbytes").setLevel(python_logging.ERROR)  # it warns at each 8-bit matmul


def _quantization(setup: Setup) -> BitsAndBytesConfig | None:
    """Return the config for NF4 with double quantization or for LLM.int8, else None.

    With NF4 the arithmetic stays in the plan's precision.
    """
    if setup.quantization == "4bit":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=DTYPES[setup.precision],
        )
    return BitsAndBytesConfig(load_in_8bit=True) if setup.quantization == "8bit" else None


def load_base(setup: Setup) -> PreTrainedModel:
    """Load the base model on its device: frozen, in eval mode, with attention per segment where the type allows it.

    The device map names the CPU too: without a device map, transformers would leave quantized weights on the CPU.
    Raises ModelError if the model cannot be loaded or its weights do not fit.
    """
    options: dict[str, Any] = {
        "dtype": DTYPES[setup.precision],
        "device_map": {"": setup.device},
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # _refuse_gaps() names them; the library would print a table and raise
    }
    _refuse_mlx_folder(setup.folder)
    try:
        config = read_config(setup)
        kind = text_class(config, setup.trust_remote_code)
        if getattr(kind, "_supports_attention_backend", False):
            options["attn_implementation"] = SEGMENT_ATTENTION
        model, info = _load_streamed(setup, config, kind, options) or _load_with_transformers(setup, kind, options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        fix = _(
            "Check that the folder is complete and that the installed transformers supports this "
            "model (upgrade: {command})."
        ).format(command="pip install -U transformers")
        raise ModelError(_("The base model cannot be loaded."), where=setup.folder, found=error, fix=fix) from error
    _refuse_gaps(setup.folder, info)
    if arithmetic_dtype(setup) != DTYPES[setup.precision]:
        compute_in_float32(model)
    model.eval().requires_grad_(False)
    if setup.plan is not None or setup.quantization != "none":
        _keep_gradients_of_quantised_layers(model)
    return model


def _load_streamed(
    setup: Setup, config: PretrainedConfig, kind: Any, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]] | None:
    """Load the model on the CPU from weights that lorafit reads: once into place, or quantized while they are read.

    Returns None for another device, a base that is stored quantized, and files that hold other types than floats.
    """
    if setup.device != "cpu" or hasattr(config, "quantization_config"):
        return None
    quantised = setup.quantization != "none"
    weights = lazy_weights(setup.folder) if quantised else read_weights(setup.folder, DTYPES[setup.precision])
    if weights is None:
        return None
    if quantised:
        options = {**options, "quantization_config": _quantization(setup)}
    loaded: Any = kind.from_pretrained(None, config=config, state_dict=weights, **options)
    return loaded[0], loaded[1]


def _load_with_transformers(setup: Setup, kind: Any, options: dict[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load the model with transformers' own reader."""
    if config := _quantization(setup):
        options = {**options, "quantization_config": config}
    loaded: Any = kind.from_pretrained(
        setup.folder, trust_remote_code=setup.trust_remote_code, local_files_only=True, **options
    )
    return loaded[0], loaded[1]


def _refuse_mlx_folder(folder: Path) -> None:
    """Raise ModelError for a folder that mlx_lm quantized: only MLX reads its weights."""
    path = folder / "config.json"
    facts = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    stored = facts.get("quantization")
    if isinstance(stored, dict) and "bits" in stored:
        fix = _(
            "Use `--engine mlx` (if it is not installed: {command}). For PyTorch, use the "
            "unquantized model, with `--quantization 4bit` to save memory."
        )
        raise ModelError(
            _("The base model is quantized for MLX, which PyTorch cannot read."),
            where=folder,
            found=_("{bits}-bit").format(bits=stored["bits"]),
            fix=fix.format(command="pip install 'lorafit[mlx]'"),
        )


def _refuse_gaps(folder: Path, info: dict[str, Any]) -> None:
    """Raise ModelError for weights that are missing or of another shape: transformers would fill them randomly."""
    absent = [*sorted(info["missing_keys"]), *sorted(str(key[0]) for key in info["mismatched_keys"])]
    if absent:
        raise ModelError(
            _("The weights do not match the model's config.json: some are missing or have another shape."),
            where=folder,
            found=_("weights: {count}, e.g. {names}").format(count=len(absent), names=listed(absent[:3])),
            fix=_("Use config.json and weights of the same model, or download the folder again."),
        )


def _keep_gradients_of_quantised_layers(model: PreTrainedModel) -> None:
    """Set bitsandbytes layers to training mode, and replace the autograd function of 8-bit layers.

    In eval mode bitsandbytes repacks 4-bit weights for CPUs with bf16 arithmetic, and gradients are silently lost.
    The training mode changes nothing else in these layers.
    """
    for module in model.modules():
        if type(module).__module__.startswith("bitsandbytes."):
            module.training = True
            if type(module).__name__ == "Linear8bitLt":
                module.forward = partial(_apply_8bit, module, module.forward)


def _apply_8bit(layer: Any, forward: Any, x: Tensor) -> Tensor:
    y: Tensor = _Frozen8bit.apply(x, layer, forward)  # type: ignore[no-untyped-call]
    return y


class _Frozen8bit(torch.autograd.Function):
    """Autograd function of a frozen 8-bit layer, which does not save its input.

    The function of bitsandbytes saves the input, with or without recompute, though only a weight's gradient needs it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Any, forward: Any) -> Tensor:
        ctx.layer = layer
        y: Tensor = forward(x)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_y,), state = grads, ctx.layer.state
        weight_OI = state.CB.to(grad_y.dtype, copy=True).mul_(state.SCB.unsqueeze(1).mul(1 / 127))
        return grad_y @ weight_OI, None, None


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Return name and list of the decoder's layers. Raise ModelError if there are none.

    The list is the longest ModuleList of the decoder that lies in no other one. The rest of the model is not searched:
    a vision tower may have more layers than the language model. Nested lists do not count: a layer may have more
    experts.
    """
    decoder = decoder_of(model)
    prefix = next((f"{name}." for name, m in model.named_modules() if m is decoder and name), "")
    lists = {prefix + name: m for name, m in decoder.named_modules() if isinstance(m, nn.ModuleList)}
    outer = [(name, m) for name, m in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        raise ModelError(_("This model has no decoder layers that LoRA can be added to."), found=type(model).__name__)
    return max(outer, key=lambda pair: len(pair[1]))


def _is_linear(module: nn.Module) -> bool:
    """Return whether `module` is a plain linear layer. Some routers subclass one and return more than a matmul."""
    kind = type(module)
    known = kind.forward in (nn.Linear.forward, LowBitLinear.forward) or kind.__name__ in PLAIN_SUBCLASSES
    plain = known or kind.__module__.startswith("bitsandbytes.")
    return isinstance(module, nn.Linear) and plain


def find_targets(model: PreTrainedModel, targets: str) -> list[str]:
    """Return the full names of the linear layers that get an adapter: no routers, no indexers.

    Raises ConfigError if a name in `targets` matches no layer, and ModelError if the model has no linear layers.
    """
    prefix, _layers = decoder_layers(model)
    found = [name for name, m in model.named_modules() if _is_linear(m) and name.startswith(prefix + ".")]
    linears = [name for name in found if is_adaptable(name, model.config.get_text_config().to_dict())]
    if not linears:
        raise ModelError(_("This model has no linear layers that LoRA can be added to."), found=type(model).__name__)
    return select_targets(linears, targets)


def short(name: str) -> str:
    """Return the last part of a module name: `model.layers.0.self_attn.q_proj` -> `q_proj`."""
    return name.rpartition(".")[2]


def add_lora(model: PreTrainedModel, config: AdapterConfig, dropout: DropoutKeys) -> dict[str, LoRALinear]:
    """Put a LoRALinear around each linear layer that `config` names in full; return the new layers by name."""
    layers = {}
    for name in config.target_modules:
        r, scale = config.rank_of(name), config.scale_of(name)
        parent, _dot, attribute = name.rpartition(".")
        owner = model.get_submodule(parent)
        layers[name] = LoRALinear(getattr(owner, attribute), name, r, scale, dropout)
        setattr(owner, attribute, layers[name])
    return layers


def without_gradient(layers: Iterable[str], places: Sequence[int]) -> list[str]:
    """Return the names in `layers` of which both parameters, at 2i and 2i + 1 for layer i, are among `places`.

    Experts are not returned: one without a token in a check may get tokens later.
    """
    found = [name for place, name in enumerate(layers) if {2 * place, 2 * place + 1} <= set(places)]
    return [name for name in found if ".experts." not in name]


def remove_lora(model: PreTrainedModel, layers: dict[str, LoRALinear]) -> None:
    """Put back the linear layers that add_lora() wrapped in `layers`."""
    for name, layer in layers.items():
        parent, _dot, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, layer.base)


def compile_layers(model: PreTrainedModel) -> None:
    """Let torch.compile compile each decoder layer at its first run, for any sequence length."""
    for layer in decoder_layers(model)[1]:
        layer.compile(dynamic=True)


class ActivationCheckpointing:
    """Activation checkpointing: the first `count` decoder layers recompute activations in the backward pass."""

    def __init__(self, layers: nn.ModuleList) -> None:
        self.count = 0
        for index, layer in enumerate(layers):
            layer.forward = self._wrapped(index, layer.forward)

    def _wrapped(self, index: int, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            if index >= self.count or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            # Dropout is a function of keys, so there is no generator state to save.
            return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

        return run
