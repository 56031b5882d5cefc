"""Which engines, exporters and clouds are there, and how is one of them opened? Names to "module:attribute", imported when asked for."""

import importlib
from dataclasses import dataclass
from typing import Any

from lorafit.errors import ConfigError, LorafitError
from lorafit.messages import _, listed


@dataclass(frozen=True)
class Entry:
    """`target` is "module:attribute"; `install` is the command that brings what its module needs."""

    target: str
    install: str


_TORCH = "pip install lorafit torch transformers"
_MLX = "pip install 'lorafit[mlx]'"

ENGINES: dict[str, Entry] = {
    "torch": Entry("lorafit.engines.torch.engine:TorchEngine", _TORCH),
    "mlx": Entry("lorafit.engines.mlx.engine:MLXEngine", _MLX),
}
EXPORTERS: dict[str, Entry] = {}
CLOUDS: dict[str, Entry] = {
    name: Entry(f"lorafit.transfer.cloud.{name}:TARGET", "pip install lorafit")
    for name in ("colab", "kaggle", "paperspace", "sagemaker", "skypilot")
}

# What the driver lets a device use, as an engine's library tells it; functions (device name).
MEASURED_BYTES: dict[str, Entry] = {
    "torch": Entry("lorafit.engines.torch.device:measured_bytes", _TORCH),
    "mlx": Entry("lorafit.engines.mlx.device:recommended_bytes", _MLX),
}

# Several processes as one: a context (processes, what to do while waiting) -> Ranks.
RANKS = Entry("lorafit.engines.torch.process_group:joined", _TORCH)

# What `lorafit doctor` tries: functions (device, precision) that return words, or raise where something is wrong.
SELF_TESTS: dict[str, Entry] = {
    "torch": Entry("lorafit.engines.torch.doctor:try_device", "pip install torch transformers"),
    "mlx": Entry("lorafit.engines.mlx.doctor:try_device", _MLX),
}
QUANTIZATIONS: dict[str, Entry] = {
    "4bit": Entry("lorafit.engines.torch.doctor:try_4bit", "pip install bitsandbytes"),
    "8bit": Entry("lorafit.engines.torch.doctor:try_8bit", "pip install bitsandbytes"),
}


def find_entry(kind: dict[str, Entry], name: str) -> Entry:
    """The entry called `name`. Raises ConfigError that lists the names there are."""
    if name not in kind:
        known = listed(sorted(kind)) or "-"
        raise ConfigError(
            _("Nothing is registered under `{name}`.").format(name=name),
            found=name,
            fix=_("Known: {known}.").format(known=known),
        )
    return kind[name]


def load(entry: Entry) -> Any:
    """What `entry` names, imported now. Raises LorafitError with the install command when a package is missing."""
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
