"""How do adapter weights move? AdamW with moments that any engine can take over."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from lorafit.engines.torch.device import Device
from lorafit.errors import AdapterError
from lorafit.messages import _
from lorafit.plan.plan import Plan

FILE = "optimizer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
STATES = {"adamw": MOMENTS, "paged_adamw_8bit": ("state1", "state2")}
RAW = ("state1", "state2", "absmax1", "absmax2")
BLOCK = 256  # bitsandbytes' block of elements that share a scale

Arrays = dict[str, NDArray[Any]]


class Optimizer:
    """AdamW (torch, fused) or bitsandbytes' paged 8-bit AdamW over named fp32 parameters."""

    def __init__(self, parameters: dict[str, nn.Parameter], plan: Plan, device: Device) -> None:
        self.kind, self.parameters = plan.optimizer, parameters
        options: dict[str, Any] = {
            "lr": plan.learning_rate,
            "betas": (plan.adam_beta1, plan.adam_beta2),
            "eps": plan.adam_epsilon,
            "weight_decay": plan.weight_decay,
        }
        self._torch: torch.optim.Optimizer
        if plan.optimizer == "paged_adamw_8bit":
            from bitsandbytes.optim.adamw import PagedAdamW8bit  # a second to import, and not there on every platform

            self._torch = PagedAdamW8bit(parameters.values(), **options)
        else:
            self._torch = torch.optim.AdamW(parameters.values(), fused=device.fused_adamw, **options)
        for index, parameter in enumerate(parameters.values()):
            self._start(index, parameter)

    def _start(self, index: int, parameter: nn.Parameter) -> None:
        """Moments of zero, now: were memory to run out at the first update, some weights would be updated, others not."""
        if self.kind == "adamw":
            step = torch.zeros((), device=parameter.device)
            self._torch.state[parameter] = {"step": step, **{key: torch.zeros_like(parameter) for key in MOMENTS}}
        else:
            self._torch.init_state(self._torch.param_groups[0], parameter, 0, index)  # type: ignore[attr-defined]

    def update(self, lr: float) -> None:
        """One bias-corrected update of every parameter from its .grad."""
        for group in self._torch.param_groups:
            group["lr"] = lr
        self._torch.step()

    def drop_gradients(self) -> None:
        self._torch.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        """Write the moments as fp32 under the parameters' names, and 8-bit states raw beside them."""
        tensors: Arrays = {}
        for name, parameter in self.parameters.items():
            state = self._torch.state[parameter]
            tensors |= {f"{name}.{plain}": moment for plain, moment in self.moments(parameter).items()}
            if "absmax1" in state:
                tensors |= {f"{name}.raw.{key}": state[key].detach().cpu().numpy() for key in RAW}
            tensors["updates"] = np.asarray([float(state["step"])], np.float32)
        save_file(dict(sorted(tensors.items())), folder / FILE, {"optimizer": self.kind})

    def moments(self, parameter: nn.Parameter) -> Arrays:
        """The moments of `parameter` in fp32, under AdamW's names."""
        state = self._torch.state[parameter]
        return {plain: _as_fp32(state, key) for plain, key in zip(MOMENTS, STATES[self.kind], strict=True)}

    def load(self, folder: Path) -> None:
        """Take the moments back; raw 8-bit states where they are there. Raises AdapterError when names or shapes differ."""
        try:
            tensors = load_file(folder / FILE)
            for name, parameter in self.parameters.items():
                mine = {k.removeprefix(name + "."): v for k, v in tensors.items() if k.startswith(name + ".")}
                if any(mine[moment].shape != tuple(parameter.shape) for moment in MOMENTS):
                    raise ValueError(f"{name}: {mine[MOMENTS[0]].shape} != {tuple(parameter.shape)}")
                self._take(parameter, mine, float(tensors["updates"][0]))
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            what = _("The optimizer's state does not fit this run.")
            raise AdapterError(what, where=folder / FILE, found=error) from error

    def _take(self, parameter: nn.Parameter, mine: Arrays, updates: float) -> None:
        state = self._torch.state[parameter]
        if self.kind == "adamw":
            state["step"].fill_(updates)
            for key in MOMENTS:
                state[key].copy_(torch.from_numpy(mine[key]))
            return
        state["step"] = int(updates)
        if "absmax1" in state and "raw.absmax1" in mine:
            for key in RAW:
                state[key].copy_(torch.from_numpy(mine[f"raw.{key}"]))
            return
        for plain, key in zip(MOMENTS, STATES[self.kind], strict=True):
            _fill(state, key, torch.from_numpy(mine[plain]))


def _as_fp32(state: dict[str, Any], key: str) -> NDArray[np.float32]:
    moment: Tensor = state[key]
    if moment.dtype == torch.uint8:
        from bitsandbytes import functional

        # All on the CPU: a paged moment counts as there, and a CUDA kernel would be given pointers of both kinds.
        absmax, code = state[f"absmax{key[-1]}"].cpu(), state[f"qmap{key[-1]}"].cpu()
        moment = functional.dequantize_blockwise(moment.cpu(), absmax=absmax, code=code, blocksize=BLOCK)
    array: NDArray[np.float32] = moment.detach().float().cpu().numpy()
    return array


def _fill(state: dict[str, Any], key: str, moment: Tensor) -> None:
    """Put an fp32 `moment`, on the CPU, into a bitsandbytes state, quantised where the state is."""
    if state[key].dtype == torch.uint8:
        from bitsandbytes import functional

        code = state[f"qmap{key[-1]}"].cpu()
        moment, quantised = functional.quantize_blockwise(moment, code=code, blocksize=BLOCK)
        state[f"absmax{key[-1]}"].copy_(quantised.absmax)
    state[key].copy_(moment)
