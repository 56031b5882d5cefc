"""A request for a data report: the files, and the settings of a training that decide what becomes of their rows."""

import copy
import warnings
from typing import Any, Literal

import tyro
from pydantic import BaseModel, ConfigDict, Field

from lorafit.config import TrainConfig


def _same(name: str) -> Any:
    """Return a copy of the field `name` of TrainConfig: the same setting, with the same help, in another request."""
    return copy.copy(TrainConfig.model_fields[name])


with warnings.catch_warnings():  # the field `json` shadows a deprecated method of pydantic
    warnings.simplefilter("ignore", UserWarning)

    class DataRequest(BaseModel):
        """Look at data as a training would: formats, rejects, copies, lengths, and samples with what is learned marked."""

        model_config = ConfigDict(extra="forbid", protected_namespaces=())

        files: tyro.conf.Positional[list[str]] = Field([], description="Data files, folders, dataset IDs, or `demo`.")
        dataset_name: str | None = Field(None, description="Same as data given without a flag.")
        output: str | None = Field(
            None, description="HTML page to write the report to, also -o (default: the terminal)."
        )
        json: bool = Field(  # type: ignore[assignment]
            False, description="Print the report as JSON: counts, reasons, unused keys, and the text in the loss."
        )
        model_name: str = Field("demo", description="Model whose tokenizer and chat template are used.")
        dataset_split: str = _same("dataset_split")
        dataset_subset: str | None = _same("dataset_subset")
        encoding: str | None = _same("encoding")
        max_samples: int | None = _same("max_samples")
        val_size: float = _same("val_size")
        max_length: int = _same("max_length")
        field_map: str | None = _same("field_map")
        context_field: str | None = _same("context_field")
        train_on: Literal["all", "last"] = _same("train_on")
        thoughts: Literal["keep", "drop"] = _same("thoughts")
        chat_template: str | None = _same("chat_template")
        system_prompt: str | None = _same("system_prompt")
        date_string: str = _same("date_string")
        seed: int = Field(42, description="Random seed for choosing the rows that are shown.", ge=0, lt=2**32)
        trust_remote_code: bool = _same("trust_remote_code")
        hub: Literal["huggingface", "modelscope"] = _same("hub")
        hf_endpoint: str | None = _same("hf_endpoint")
        lang: Literal["en", "zh"] | None = _same("lang")

        @property
        def data_names(self) -> str:
            """The data of --dataset_name and of the positional arguments, separated by commas."""
            return ",".join([*([self.dataset_name] if self.dataset_name else []), *self.files])

        def as_config(self) -> TrainConfig:
            """Return the settings of a training with these values."""
            return TrainConfig(**self.model_dump(exclude={"files", "dataset_name", "output", "json"}))
