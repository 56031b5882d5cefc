"""AdamW for the adapter weights, with an optimizer state that every engine can read."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lorafit.engines.moments import MOMENTS, Arrays, read_moments, write_moments
from lorafit.engines.torch.device import Device
from lorafit.planner.plan import Plan

STATES = {"adamw": MOMENTS, "paged_adamw_8bit": ("state1", "state2")}
RAW = ("state1", "state2", "absmax1", "absmax2")
BLOCK = 256  # elements that share a scale in bitsandbytes' 8-bit state


class TorchOptimizer:
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
            from bitsandbytes.optim.adamw import PagedAdamW8bit  # slow to import (1 s), and not on every platform

            self._torch = PagedAdamW8bit(parameters.values(), **options)
        else:
            self._torch = torch.optim.AdamW(parameters.values(), fused=device.fused_adamw, **options)
        for index, parameter in enumerate(parameters.values()):
            self._init_state(index, parameter)

    def _init_state(self, index: int, parameter: nn.Parameter) -> None:
        """Allocate zero optimizer state now: out of memory at the first update would leave some weights not updated."""
        if self.kind == "adamw":
            step = torch.zeros((), device=parameter.device)
            self._torch.state[parameter] = {"step": step, **{key: torch.zeros_like(parameter) for key in MOMENTS}}
        else:
            self._torch.init_state(self._torch.param_groups[0], parameter, 0, index)  # type: ignore[attr-defined]

    def update(self, lr: float) -> None:
        """Make one bias-corrected update of every parameter from its .grad."""
        for group in self._torch.param_groups:
            group["lr"] = lr
        self._torch.step()

    def drop_gradients(self) -> None:
        """Set every .grad to None."""
        self._torch.zero_grad(set_to_none=True)

    def save(self, folder: Path) -> None:
        """Write the optimizer state as fp32 under the parameters' names, and 8-bit states raw beside it."""
        states = self._states()
        quantised = {name: state for name, state in states.items() if "absmax1" in state}
        raw = {f"{name}.raw.{key}": s[key].detach().cpu().numpy() for name, s in quantised.items() for key in RAW}
        write_moments(folder, self.moments(), float(next(iter(states.values()))["step"]), self.kind, raw)

    def moments(self) -> dict[str, Arrays]:
        """Return the moments [moment][parameter] in fp32, under AdamW's names."""
        states = self._states().items()
        return {plain: {name: _as_fp32(state, key) for name, state in states} for plain, key in self._keys()}

    def load(self, folder: Path) -> None:
        """Read the optimizer state, from raw 8-bit states if they exist.

        Raises AdapterError if names or shapes differ.
        """
        shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        moments, updates, stored = read_moments(folder, shapes)
        for name, state in self._states().items():
            if self.kind == "adamw":
                state["step"].fill_(updates)
            else:
                state["step"] = updates
            if "absmax1" in state and f"{name}.raw.absmax1" in stored:
                for key in RAW:
                    state[key].copy_(torch.from_numpy(stored[f"{name}.raw.{key}"]))
                continue
            for plain, key in self._keys():
                _fill(state, key, torch.from_numpy(moments[plain][name]))

    def _states(self) -> dict[str, dict[str, Any]]:
        return {name: self._torch.state[parameter] for name, parameter in self.parameters.items()}

    def _keys(self) -> list[tuple[str, str]]:
        """Return pairs of AdamW's name and this optimizer's name of each moment."""
        return list(zip(MOMENTS, STATES[self.kind], strict=True))


def _as_fp32(state: dict[str, Any], key: str) -> NDArray[np.float32]:
    moment: Tensor = state[key]
    if moment.dtype == torch.uint8:
        from bitsandbytes import functional

        # All on the CPU: a paged state reports the CPU as its device, and a CUDA kernel would get pointers of both.
        absmax, code = state[f"absmax{key[-1]}"].cpu(), state[f"qmap{key[-1]}"].cpu()
        moment = functional.dequantize_blockwise(moment.cpu(), absmax=absmax, code=code, blocksize=BLOCK)
    array: NDArray[np.float32] = moment.detach().float().cpu().numpy()
    return array


def _fill(state: dict[str, Any], key: str, moment: Tensor) -> None:
    """Copy an fp32 `moment` on the CPU into a state; quantize it if the state is quantized."""
    if state[key].dtype == torch.uint8:
        from bitsandbytes import functional

        code = state[f"qmap{key[-1]}"].cpu()
        moment, quantised = functional.quantize_blockwise(moment, code=code, blocksize=BLOCK)
        state[f"absmax{key[-1]}"].copy_(quantised.absmax)
    state[key].copy_(moment)
