"""The program `python -m lorafit.engines.torch.peft_check BASE ADAPTER`: whether the installed peft loads an adapter.

It builds the base model of the folder BASE without memory for its weights, gives peft the adapter's settings and the
names and shapes of its tensors, and compares. If peft does not take all, it tries other settings. It prints one line
of JSON (`PeftReport`). No tensor of the base model or the adapter is read.
"""

import json
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft.tuners.lora import LoraLayer
from transformers import AutoConfig, PretrainedConfig

from lorafit.engines.torch.model_class import loader_settings, model_class, skeleton_of
from lorafit.models.weight_files import Header, read_headers
from lorafit.run_folders.adapter import AdapterConfig, modules_of, read_adapter_config
from lorafit.run_folders.peft_form import CONFIG, Form, other_forms

WEIGHTS = "adapter_model.safetensors"
NAME = "default"  # peft's name of an adapter
PREFIX = "base_model.model."


@dataclass(frozen=True)
class PeftReport:
    """What `peft` does with the adapter: it fills `taken` of `total` tensors of the file.

    `changes` are the settings of adapter_config.json that differ from those in the file. `dropped` are tensors of the
    file that peft leaves out, and `new` are LoRA weights that peft makes anew. `error` is the text of peft's exception.
    `loader` is the class of peft that loads base and adapter.
    """

    peft: str
    transformers: str
    total: int
    taken: int = 0
    dropped: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    error: str | None = None
    loader: str = "AutoPeftModelForCausalLM"
    changes: Form = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether peft takes every tensor of the file, and makes no weight anew."""
        return self.taken == self.total and not self.new and self.error is None


def check(base: Path, adapter: Path, trust_remote_code: bool = False) -> PeftReport:
    """Return the report for the settings in the file, or for others if only these are complete."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code, local_files_only=True)
    case = _Case(config, trust_remote_code, adapter)
    loader = loader_settings(config, model_class(config, trust_remote_code))
    first = case.attempt(loader)
    if first.complete:
        return first
    # Without dropout, which some forms refuse, peft tells which modules it drops.
    dropped = modules_of(case.attempt({"lora_dropout": 0.0}).dropped) or case.modules
    for form in other_forms(case.settings, case.modules, dropped, case.every_module()):
        found = case.attempt(loader | form)
        if found.complete:
            return found
    return first


class _Case:
    """A base model's `config` and an adapter's folder."""

    def __init__(self, config: PretrainedConfig, trust_remote_code: bool, adapter: Path) -> None:
        self.config, self.trusted = config, trust_remote_code
        vars(config).pop("quantization_config", None)  # quantized layers have the same names
        self.headers: list[Header] = read_headers(adapter / WEIGHTS)
        self.modules = modules_of(header.name for header in self.headers)
        self.settings: Form = json.loads((adapter / CONFIG).read_text("utf-8"))
        self.own: AdapterConfig = read_adapter_config(adapter)

    def every_module(self) -> list[str]:
        """Return the names of all modules of the base model."""
        return [name for name, _module in skeleton_of(self.config, self.trusted).named_modules() if name]

    def attempt(self, changes: Form) -> PeftReport:
        """Let peft load the adapter with the settings in the file and `changes` into a new skeleton."""
        settings = self.settings | changes
        loader = "AutoPeftModel" if settings.get("auto_mapping") else "AutoPeftModelForCausalLM"
        changes = {name: value for name, value in changes.items() if self.settings.get(name) != value}
        report = PeftReport(
            peft.__version__, transformers.__version__, len(self.headers), loader=loader, changes=changes
        )
        tensors = {header.name: torch.empty(header.shape, device="meta") for header in self.headers}
        try:
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                (Path(folder) / CONFIG).write_text(json.dumps(settings), "utf-8")
                config = peft.PeftConfig.from_pretrained(folder)
                model = peft.PeftModel(skeleton_of(self.config, self.trusted), config, low_cpu_mem_usage=True)
                result: Any = peft.set_peft_model_state_dict(model, tensors, low_cpu_mem_usage=True)
        except Exception as error:
            return replace(report, error=_first_line(error), dropped=sorted(tensors))
        made = [name for name, _parameter in model.named_parameters() if ".lora_" in name]
        new = sorted(name for name in result.missing_keys if ".lora_" in name)
        dropped = [name.replace(f".{NAME}.", ".") for name in sorted(result.unexpected_keys)]
        wrong = list(self._other_scales(model))
        other = f"scale: {wrong[0]}" if wrong else None
        return replace(report, taken=len(made) - len(new), dropped=dropped, new=new, error=other)

    def _other_scales(self, model: torch.nn.Module) -> Iterator[str]:
        """Yield the modules to which peft gives another scale than the adapter was trained with."""
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and NAME in module.scaling:
                own = name.removeprefix(PREFIX)
                if own in self.modules and not math.isclose(module.scaling[NAME], self.own.scale_of(own), rel_tol=1e-6):
                    yield own


def _first_line(error: Exception) -> str:
    """Return the first line of an exception's text, without the print of a whole module that may follow."""
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:300]


def main(base: str, adapter: str, trust_remote_code: str = "") -> None:
    """Print the report as one line of JSON."""
    with suppress(OSError):  # if memory runs out, Linux ends this process, and not the training
        Path("/proc/self/oom_score_adj").write_text("1000", "utf-8")
    transformers.utils.logging.set_verbosity_error()
    print(json.dumps(asdict(check(Path(base), Path(adapter), bool(trust_remote_code)))))


if __name__ == "__main__":
    main(*sys.argv[1:])
