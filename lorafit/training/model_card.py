"""The files beside an adapter's weights: tokenizer, chat settings and model card."""

from pathlib import Path

from lorafit import __version__
from lorafit.config import TrainConfig
from lorafit.data.sources import named_paths
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.messages import _
from lorafit.planner.effective_batch import resolve_effective_batch
from lorafit.run_folders.adapter import ChatSettings, write_chat_settings

SETTINGS = ("dataset_name", "dataset_subset", "dataset_split", "num_epochs", "max_steps", "effective_batch",
            "learning_rate", "max_length", "lora_r", "lora_alpha", "lora_dropout", "lora_targets", "quantization", "seed")  # fmt: skip


def add_chat_files(
    folder: Path, config: TrainConfig, base_model: str, run: str, tokenizer: ChatTokenizer, untrained_end: str
) -> None:
    """Write into an adapter's `folder` the files that are needed to use the adapter on another machine.

    `untrained_end` is that of ChatSettings.
    """
    tokenizer.save(folder)
    settings = ChatSettings(config.system_prompt, config.date_string, base_model, run, untrained_end)
    write_chat_settings(folder, settings)
    (folder / "README.md").write_text(model_card(config, base_model, run), "utf-8")


def model_card(config: TrainConfig, base_model: str, run: str) -> str:
    """Return a README.md with the YAML front matter that model hubs read."""
    data = ",".join(name if path is None else path.name for name, path in named_paths(config.dataset_name))
    values = {
        **config.model_dump(include=set(SETTINGS)),
        "effective_batch": resolve_effective_batch(config),
        "dataset_name": data,
    }
    shown = [name for name in SETTINGS if name != "dataset_subset" or values[name] is not None]
    rows = "\n".join(f"| {name} | {_('automatic') if values[name] is None else values[name]} |" for name in shown)
    use = _("Chat with the fine-tuned model, in the folder of this file:")
    how = _("A LoRA adapter for `{base}`, trained with lorafit {version} (run `{run}`).")
    return f"""---
base_model: {base_model}
library_name: peft
tags: [lora, lorafit]
---
# {run}

{how.format(base=base_model, version=__version__, run=run)}

{use}

    lorafit chat .

| | |
|---|---|
{rows}
"""
