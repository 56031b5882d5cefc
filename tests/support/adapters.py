"""Adapters of random numbers for tests, with ranks and scales that differ from layer to layer."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorafit.run_folders.adapter import (
    AdapterConfig,
    lora_names,
    read_adapter,
    read_plain_config,
    write_adapter,
)


def random_like(adapter: Path, target: Path, seed: int, *, modules: int | None = None, **settings: Any) -> Path:
    """Write into `target` an adapter on the first `modules` layers of `adapter` (None: all), and return `target`.

    Its MLP has rank 6 and alpha 3, its attention rank 3; `settings` are those of AdapterConfig.
    """
    known, tensors = read_adapter(adapter)
    rng = np.random.default_rng(seed)
    names = read_plain_config(adapter).target_modules[:modules]
    patterns = {"rank_pattern": {"up_proj": 6, "down_proj": 6}, "alpha_pattern": {"up_proj": 3.0, "down_proj": 3.0}}
    config = AdapterConfig(**{"base_model": known.base_model, "r": 3, "alpha": 5.0, "dropout": 0.0, "target_modules": names,
                              **patterns, **settings})  # fmt: skip
    found = {}
    for module in names:
        a, b = (tensors[name].shape for name in lora_names(module))
        values = (
            rng.normal(0, 0.05, (config.rank_of(module), a[1])),
            rng.normal(0, 0.2, (b[0], config.rank_of(module))),
        )
        found |= dict(zip(lora_names(module), (value.astype(np.float32) for value in values), strict=True))
    write_adapter(target, config, found)
    return target


def deltas_of(adapter: Path) -> dict[str, NDArray[np.float64]]:
    """Return scale x B A of each layer in float64."""
    config, tensors = read_adapter(adapter)
    found = {}
    for module in read_plain_config(adapter).target_modules:
        a, b = (tensors[name].astype(np.float64) for name in lora_names(module))
        found[module] = config.scale_of(module) * (b @ a)
    return found
