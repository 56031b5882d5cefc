"""What is exported: an adapter with its base model, by name, made at its first use and then kept."""

import json
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

from exports.adapters import rewrite, train
from exports.models import LLAMA_3, MARKED, NO_BOS, change_weights, conversations, make_base, onto_grid
from lorafit.cli.app import main


@dataclass(frozen=True)
class Recipe:
    """How to make a source: a `base` with changes of its settings or weights, and an adapter rewritten with settings."""

    family: str
    base: dict[str, Any] = field(default_factory=dict)
    weights: Callable[[Any], Any] | None = None
    adapter: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def _with_head(tensors: dict[str, Any]) -> dict[str, Any]:
    """Add a head that equals the embedding, as some files of models with a tied head have."""
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}


def _large_weight(tensors: dict[str, Any]) -> dict[str, Any]:
    name = "model.layers.1.self_attn.v_proj.weight"  # a row that its head's output matrix ignores
    tensors[name][3, 3] = 1e5
    tensors["model.layers.1.self_attn.o_proj.weight"][:, [3, 67]] = 0
    return tensors


PATTERN = {"rank_pattern": {"down_proj": 2, "q_proj": 16}}
RECIPES: dict[str, Recipe] = {
    **{name: Recipe(name) for name in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "mixtral",
                                       "qwen3_moe", "granite", "olmo2", "glm4")},
    "llama, bf16": Recipe("llama", {"dtype": "bfloat16"}),
    "qwen2, bf16": Recipe("qwen2", {"dtype": "bfloat16"}),
    "llama, tied": Recipe("llama", {"tie_word_embeddings": True}, _with_head),
    "llama 3": Recipe("llama", {"rope_parameters": LLAMA_3}),
    "llama, marks": Recipe("llama", {"template": MARKED}),
    "llama, no bos": Recipe("llama", {"template": NO_BOS}),
    "llama, rslora": Recipe("llama", adapter={"use_rslora": True, "r": 16}),
    "qwen3, rslora": Recipe("qwen3", adapter={"use_rslora": True, "r": 16}),
    "llama, ranks": Recipe("llama", adapter=PATTERN),
    "mistral, ranks": Recipe("mistral", adapter=PATTERN),
    "llama, r 64": Recipe("llama", adapter={"r": 64}),
    "llama, small": Recipe("llama", adapter={"size": 0.4}),
    "qwen2, small": Recipe("qwen2", adapter={"size": 0.4}),
    "llama, large": Recipe("llama", adapter={"size": 2.0}),
    "llama, another run": Recipe("llama", training={"seed": 1}),
    "llama, Q4_0 grid": Recipe("llama", weights=onto_grid("Q4_0")),
    "llama, faint": Recipe("llama", {"dtype": "bfloat16"}, adapter={"size": 0.01}),
    "llama, large weight": Recipe("llama", weights=_large_weight),
}  # fmt: skip


# Runs of `lorafit train`, with validation rows: the base (a recipe, or the demo model) and flags.
RUNS: dict[str, tuple[str | None, str]] = {
    "run": ("llama", "--precision fp32"),
    "run, 4 bits": ("llama", "--precision fp32 --quantization 4bit"),
    "run, 4 bits, bf16": ("qwen2, bf16", "--precision bf16 --quantization 4bit"),
    "demo": (None, "--precision fp32"),
}
SETTINGS = "--lora_r 8 --learning_rate 0.0005 --effective_batch 4 --max_length 160 --val_size 8 --device cpu"
STEPS = {"demo": 8}


class Sources:
    """The folders of bases and adapters, below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, count()
        self.made: dict[str, Path] = {}

    def adapter(self, name: str) -> Path:
        """Return the folder of the adapter, or of the run, `name`."""
        if name in RUNS:
            return self._once(f"run of {name}", lambda folder: self._run(name, folder))
        recipe = RECIPES[name]
        trained = self._once(
            f"adapter {self._base_name(recipe)} {recipe.training}",
            lambda folder: train(self.base(name), folder, **recipe.training),
        )
        if not recipe.adapter:
            return trained
        return self._once(f"adapter of {name}", lambda folder: rewrite(trained, folder, **recipe.adapter))

    def base(self, name: str) -> Path:
        """Return the folder of the base model of `name`."""
        recipe = RECIPES[name]
        return self._once(self._base_name(recipe), lambda folder: self._make_base(recipe, folder))

    def _base_name(self, recipe: Recipe) -> str:
        return f"{recipe.family} {recipe.base} {recipe.weights}"

    def _make_base(self, recipe: Recipe, folder: Path) -> Path:
        make_base(folder, recipe.family, **recipe.base)
        if recipe.weights is not None:
            change_weights(folder, recipe.weights)
        return folder

    def _run(self, name: str, folder: Path) -> Path:
        """Train as the command does, and return the run's folder. Raises RuntimeError with what it printed."""
        base, flags = RUNS[name]
        folder.mkdir()
        rows = [{"instruction": turns[0].content, "output": turns[1].content}
                for seed in range(3) for turns in conversations(seed)]  # fmt: skip
        (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
        words = ["--model_name", "demo" if base is None else str(self.base(base)), "--max_steps", str(STEPS.get(name, 16)),
                 "--dataset_name", str(folder / "rows.json"), "--output_dir", str(folder / "output")]  # fmt: skip
        said = StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = main(["train", "--no_supervisor", *words, *SETTINGS.split(), *flags.split()])
        if status:
            raise RuntimeError(said.getvalue())
        (output,) = (folder / "output").iterdir()
        return output

    def _once(self, key: str, make: Callable[[Path], Path]) -> Path:
        """Return what `make` made of a new folder when it was first called with this key."""
        if key not in self.made:
            self.made[key] = make(self.folder / str(next(self.numbers)))
        return self.made[key]
