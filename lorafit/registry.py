"""Registry of engines, cloud platforms and self-tests by name; each is imported only when it is used."""

import importlib
from dataclasses import dataclass
from typing import Any

from lorafit.errors import ConfigError, LorafitError
from lorafit.messages import _, listed


@dataclass(frozen=True)
class Entry:
    """An object to import: `target` is "module:attribute", `install` the command that installs its packages."""

    target: str
    install: str


_TORCH = "pip install lorafit torch transformers"
_MLX = "pip install 'lorafit[mlx]'"

ENGINES: dict[str, Entry] = {
    "torch": Entry("lorafit.engines.torch.engine:TorchEngine", _TORCH),
    "mlx": Entry("lorafit.engines.mlx.engine:MLXEngine", _MLX),
}
CLOUDS: dict[str, Entry] = {
    name: Entry(f"lorafit.transfer.cloud.{name}:TARGET", "pip install lorafit")
    for name in ("colab", "kaggle", "paperspace", "sagemaker", "skypilot")
}

# Targets of `lorafit export`: functions that check a request and return the job (exporters/base.py).
EXPORTERS: dict[str, Entry] = {
    name: Entry(f"lorafit.exporters.{module}:check", "pip install lorafit")
    for name, module in (
        ("merged", "merged"),
        ("gguf", "gguf.export"),
        ("ollama", "ollama.export"),
        ("lmstudio", "gguf.lmstudio"),
        ("vllm", "vllm"),
        ("mlx", "mlx.export"),
        ("peft", "peft"),
    )
}
# Functions (source, file or folder, tokens) that load a form of an export in the program that it is for (a Runtime).
EXPORT_RUNTIMES: dict[str, Entry] = {
    name: Entry(f"lorafit.exporters.{module}:open_form", "pip install lorafit")
    for name, module in (
        ("merged", "merged"),
        ("gguf", "gguf.merged"),
        ("ollama", "gguf.merged"),
        ("lmstudio", "gguf.merged"),
        ("mlx", "mlx.runtime"),
    )
}
MODULE_TENSORS = Entry("lorafit.engines.torch.tensor_names:module_tensors", _TORCH)
DEQUANTIZED_WEIGHTS = Entry("lorafit.engines.torch.dequantize:dequantized_weights", _TORCH)
ROUND_WEIGHTS = Entry("lorafit.engines.torch.log_probs:round_weights", _TORCH)
LOG_PROBS = Entry("lorafit.engines.torch.log_probs:log_probs", _TORCH)
MLX_FUSED = Entry("lorafit.engines.mlx.fuse:FusedModel", _MLX)
MLX_LAYERS = Entry("lorafit.engines.mlx.layer_names:layer_names", _MLX)
MLX_RUNTIME = Entry("lorafit.engines.mlx.runtime:MLXModel", _MLX)
MLX_QUANTIZED_BASE = Entry("lorafit.engines.mlx.load:quantized_base", _MLX)
LAYER_PRODUCTS = Entry("lorafit.engines.torch.log_probs:layer_products", _TORCH)

# Functions (device name) -> bytes that the driver lets the device use, or None, by the engine's library.
USABLE_BYTES: dict[str, Entry] = {
    "torch": Entry("lorafit.engines.torch.device:measured_bytes", _TORCH),
    "mlx": Entry("lorafit.engines.mlx.device:recommended_bytes", _MLX),
}

# Context manager (processes, callback while waiting) -> Collectives; inside, several processes train as one.
PROCESS_GROUP = Entry("lorafit.engines.torch.process_group:join_process_group", _TORCH)

# Self-tests of `lorafit doctor`: functions (device, precision) that return a text, or raise if a result is wrong.
SELF_TESTS: dict[str, Entry] = {
    "torch": Entry("lorafit.engines.torch.doctor:try_device", "pip install torch transformers"),
    "mlx": Entry("lorafit.engines.mlx.doctor:try_device", _MLX),
}
QUANTIZATIONS: dict[str, Entry] = {
    "4bit": Entry("lorafit.engines.torch.doctor:try_4bit", "pip install bitsandbytes"),
    "8bit": Entry("lorafit.engines.torch.doctor:try_8bit", "pip install bitsandbytes"),
}


def find_entry(kind: dict[str, Entry], name: str) -> Entry:
    """Return the entry called `name`. Raise ConfigError with the known names if there is none."""
    if name not in kind:
        known = listed(sorted(kind)) or "-"
        raise ConfigError(
            _("Unknown name `{name}`.").format(name=name),
            found=name,
            fix=_("Use one of: {known}.").format(known=known),
        )
    return kind[name]


def load(entry: Entry) -> Any:
    """Import and return the object of `entry`. Raise LorafitError with the install command if a package is missing."""
    module, _colon, attribute = entry.target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "lorafit":
            raise
        raise LorafitError(
            _("The package `{name}` is not installed.").format(name=error.name),
            where=entry.target,
            found=error,
            fix=_("Install it: {command}").format(command=entry.install),
        ) from None
