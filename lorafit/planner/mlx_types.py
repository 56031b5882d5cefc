"""Whether the installed mlx_lm has a model's type, read from its files: an import of MLX takes a second."""

import ast
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from lorafit.config import TrainConfig
from lorafit.errors import ModelError
from lorafit.messages import _
from lorafit.models.spec import ModelSpec
from lorafit.planner.plan import Choice


def supported_engine(config: TrainConfig, chosen: Choice, spec: ModelSpec) -> Choice:
    """Return `chosen`, or PyTorch if mlx_lm was chosen but does not have the model's type.

    Raise ModelError if the user asked for MLX, or if the files are quantized for it. Where mlx_lm is not installed, as
    in a plan for another machine, every type counts as known.
    """
    if chosen.value != "mlx" or has_type(spec.model_type):
        return chosen
    if config.engine == "mlx" or spec.packed is not None:
        raise ModelError(
            _("The installed mlx-lm does not have this model type."),
            where=config.model_name,
            found=f"model_type: {spec.model_type}",
            fix=_("Upgrade it: `{command}`").format(command="pip install -U mlx-lm")
            if spec.packed is not None
            else _("Use --engine torch, or upgrade it: `{command}`").format(command="pip install -U mlx-lm"),
        )
    text = _("⚠️  Using PyTorch's MPS: the installed mlx-lm does not have the model type {kind} (`{command}`)")
    return replace(chosen, value="torch", reason=text.format(kind=spec.model_type, command="pip install -U mlx-lm"))


def has_type(kind: str) -> bool:
    """Return whether mlx_lm has the model type `kind`; True if mlx_lm is not installed."""
    found = find_spec("mlx_lm")
    if found is None or found.origin is None:
        return True
    folder = Path(found.origin).parent
    return (folder / "models" / f"{_renamed(folder / 'utils.py').get(kind, kind)}.py").is_file()


@lru_cache(maxsize=1)
def _renamed(file: Path) -> dict[str, str]:
    """Return mlx_lm's table of the types that the module of another type computes."""
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.parse(file.read_text("utf-8")).body:
            names = node.targets if isinstance(node, ast.Assign) else ()
            if any(isinstance(name, ast.Name) and name.id == "MODEL_REMAPPING" for name in names):
                table = ast.literal_eval(node.value) if isinstance(node, ast.Assign) else {}
                return {str(name): str(other) for name, other in table.items()}
    return {}
