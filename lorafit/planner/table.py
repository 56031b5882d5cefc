"""The two tables of the macOS guide, computed: models per machine and training times, beside the guide's figures."""

from dataclasses import dataclass

from lorafit.config import TrainConfig
from lorafit.data.split import MAX_VALID_ROWS
from lorafit.errors import ConfigError, DoesNotFit
from lorafit.hardware.catalogue.find import machine_named
from lorafit.hardware.catalogue.lengths import LAWYER_LLAMA
from lorafit.hardware.catalogue.models import known_spec
from lorafit.models.spec import ModelSpec
from lorafit.planner.data_stats import DataStats
from lorafit.planner.planner import PlanResult, make_plan_result

# Model size in the tables -> the model that represents it.
MODELS = {
    "1B": "meta-llama/Llama-3.2-1B-Instruct", "3B": "meta-llama/Llama-3.2-3B-Instruct",
    "7B": "Qwen/Qwen2.5-7B-Instruct", "8B": "meta-llama/Llama-3.1-8B-Instruct",
    "13B": "meta-llama/Llama-2-13b-chat-hf", "32B": "Qwen/Qwen2.5-32B-Instruct",
    "70B": "meta-llama/Llama-3.3-70B-Instruct",
}  # fmt: skip
# Machine -> the largest model that the guide trains on it; "" where the guide does not say.
GUIDE_MODELS = {
    "M1 8GB": "1B", "M1 Pro 16GB": "3B", "M1 Max 32GB": "3B", "M2 8GB": "1B", "M2 24GB": "3B", "M2 Pro 16GB": "3B",
    "M2 Max 96GB": "7B", "M3 Pro 18GB": "3B", "M3 Max 64GB": "7B", "M3 Max 128GB": "13B", "M4 Max 128GB": "",
    "M2 Ultra 192GB": "", "M5 Max 128GB": "", "T4": "", "RTX 3060 12GB": "", "RTX 3090": "3B", "RTX 4090": "",
    "A100 80GB": "", "H100": "",
}  # fmt: skip
# The guide's times, Llama-3.2-3B on lawyer_llama_data, 3 epochs: (machine, max_length, quantization, hours from, to).
GUIDE_HOURS = [
    ("M1 16GB", 256, "auto", 48, 72), ("M1 Pro 16GB", 384, "auto", 24, 36), ("M2 Max 32GB", 512, "auto", 12, 18),
    ("M3 Max 64GB", 512, "auto", 8, 12), ("RTX 3090", 512, "4bit", 9, 12),
]  # fmt: skip
TIMED = "3B"


@dataclass(frozen=True)
class ModelOnMachine:
    """The plan for one model on one machine; `planned` is None if the model does not fit."""

    machine: str
    model: str
    planned: PlanResult | None


@dataclass(frozen=True)
class GuideTime:
    """The guide's time for one machine beside the planned time; `padding` is one reason for the difference."""

    machine: str
    max_length: int
    guide_hours: tuple[int, int]
    planned: PlanResult | None
    padding: float  # tokens with padding to max_length over real tokens


def lawyer_llama(max_length: int) -> DataStats:
    """Return the statistics of the guide's data set from the catalogue, truncated to `max_length` tokens."""
    lengths = LAWYER_LLAMA.sample(LAWYER_LLAMA.rows, max_length)
    return DataStats(
        lengths[MAX_VALID_ROWS:], lengths[:MAX_VALID_ROWS], "", LAWYER_LLAMA.target_share, LAWYER_LLAMA.source
    )


def cells(config: TrainConfig) -> list[ModelOnMachine]:
    """Return the plans of every model on every machine with the settings of `config`."""
    data = lawyer_llama(config.max_length)
    return [
        ModelOnMachine(machine, model, _planned(config, machine, _spec(model), data))
        for machine in GUIDE_MODELS
        for model in MODELS
    ]


def times(config: TrainConfig) -> list[GuideTime]:
    """Return the guide's second table: its times and the planned ones."""
    rows = []
    for machine, length, quantization, low, high in GUIDE_HOURS:
        data = lawyer_llama(length)
        settings = config.model_copy(update={"max_length": length, "quantization": quantization})
        planned = _planned(settings, machine, _spec(TIMED), data)
        padding = length / float(data.train_lengths.mean())
        rows.append(GuideTime(machine, length, (low, high), planned, padding))
    return rows


def settings_text(planned: PlanResult) -> str:
    """Return precision or quantization, token budget and recomputed layers in short.

    Examples: "4bit 2048" without recomputed layers, "4bit 2048 r12" with 12.
    """
    layout = planned.chosen.layout
    numbers = layout.precision if layout.quantization == "none" else layout.quantization
    recompute = f" r{layout.recompute}" if layout.recompute else ""
    return f"{numbers} {planned.chosen.token_budget}{recompute}"


def _spec(model: str) -> ModelSpec:
    spec = known_spec(MODELS[model])
    assert spec is not None
    return spec


def _planned(config: TrainConfig, machine: str, spec: ModelSpec, data: DataStats) -> PlanResult | None:
    try:
        return make_plan_result(config, machine_named(machine), spec, data)
    except (DoesNotFit, ConfigError):
        return None
