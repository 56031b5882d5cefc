"""Command lines of small trainings."""

from pathlib import Path

SETTINGS: dict[str, object] = {
    "dataset_name": "demo", "max_samples": 40, "max_length": 96, "effective_batch": 4, "lora_r": 4, "lora_dropout": 0.1,
    "lang": "en",
}  # fmt: skip


def train_flags(model: Path, output: Path, **settings: object) -> list[str]:
    """Return the flags of a training of `model` in the folder `output`; `settings` add to SETTINGS or replace them."""
    named = {**SETTINGS, "model_name": model, "output_dir": output, **settings}
    return [word for name, value in named.items() for word in (f"--{name}", str(value))]
