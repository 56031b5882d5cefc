"""LoRA fine-tuning that fits the machine in front of you.

    import lorafit

    for event in lorafit.train(lorafit.TrainConfig(demo=True, model_name="demo", dataset_name="demo")):
        print(event)

This module is the public API; lorafit/api.py documents its functions with examples. Each name is imported from its module
when it is first used, because `lorafit --help` needs none of them.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "TrainConfig": "lorafit.config",
    "make_config": "lorafit.config",
    "plan": "lorafit.api",
    "train": "lorafit.api",
    "open_chat": "lorafit.api",
    "ChatRequest": "lorafit.evaluation.chat_request",
    "compare": "lorafit.api",
    "CompareRequest": "lorafit.evaluation.compare_request",
    "data_report": "lorafit.api",
    "DataRequest": "lorafit.data.report_request",
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
