"""LoRA fine-tuning that fits the machine in front of you.

    import lorafit

    for event in lorafit.train(lorafit.TrainConfig(demo=True, model_name="demo", dataset_name="demo")):
        print(event)

What is here is the public API. Names come from their modules when first asked for: `lorafit --help` needs none of them.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "TrainConfig": "lorafit.config",
    "make_config": "lorafit.config",
    "train": "lorafit.api",
    "open_chat": "lorafit.api",
    "ChatRequest": "lorafit.api",
    "runs": "lorafit.api",
    "doctor": "lorafit.api",
    "read_events": "lorafit.events",
    "Event": "lorafit.events",
    "Plan": "lorafit.planner.plan",
    "LorafitError": "lorafit.errors",
    "set_language": "lorafit.messages",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lorafit' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
