"""The model types of the installed transformers, and the defaults of their configs, read from its source.

The source is parsed, not imported: an import takes seconds and loads PyTorch, a parse takes 20 ms.
"""

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CONFIGS, MODELS = ("auto_mappings.py", "configuration_auto.py"), ("modeling_auto.py",)


@lru_cache(maxsize=1)
def config_classes() -> dict[str, str]:
    """Return the name of the config class of each model type; empty if transformers cannot be read."""
    return _mapping(CONFIGS, "CONFIG_MAPPING_NAMES")


@lru_cache(maxsize=16)
def classes_for(task: str) -> dict[str, str]:
    """Return the class of each model type for `task`, for example CAUSAL_LM; empty for an unknown task."""
    return _mapping(MODELS, f"MODEL_FOR_{task}_MAPPING_NAMES")


@lru_cache(maxsize=16)
def config_defaults(model_type: str) -> dict[str, Any]:
    """Return the defaults of the config class of `model_type`: its fields with a literal value, and its attribute_map.

    Files on the hub leave out what equals the default. An unknown type has no defaults. Values that the class computes
    are not among them.
    """
    name = config_classes().get(model_type)
    if name is None:
        return {}
    classes = _classes(_module_of(model_type))
    return _fields(name, classes) if name in classes else {}


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> dict[str, Any]:
    """Return the literal fields of the class `name`, with those of its bases in the same file."""
    found: dict[str, Any] = {}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= _fields(base.id, classes)
    for node in classes[name].body:
        if not isinstance(node, ast.AnnAssign | ast.Assign) or node.value is None:
            continue
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
        value = _literal(node.value)
        if isinstance(target, ast.Name) and value is not None:
            found[target.id] = value
    return found


def _module_of(model_type: str) -> Path:
    """Return the file of the config class of `model_type`."""
    special = _mapping(CONFIGS, "SPECIAL_MODEL_TYPE_TO_MODULE_NAME")
    folder = special.get(model_type, model_type.replace("-", "_"))
    return _root() / folder / f"configuration_{folder}.py"


@lru_cache(maxsize=16)
def _classes(file: Path) -> dict[str, ast.ClassDef]:
    tree = _parsed(file)
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)} if tree else {}


@lru_cache(maxsize=16)
def _mapping(files: tuple[str, ...], name: str) -> dict[str, str]:
    """Return the pairs of the ordered dictionary `name` in the first of `files` that lists it."""
    for file in files:
        tree = _parsed(_root() / "auto" / file)
        for node in tree.body if tree else ():
            names = node.targets if isinstance(node, ast.Assign) else ()
            if any(isinstance(target, ast.Name) and target.id == name for target in names):
                pairs = _pairs(node.value) if isinstance(node, ast.Assign) else {}
                if pairs:
                    return pairs
    return {}


def _pairs(value: ast.expr) -> dict[str, str]:
    listed = value.args[0] if isinstance(value, ast.Call) and value.args else value
    found = {}
    for entry in listed.elts if isinstance(listed, ast.List | ast.Tuple) else ():
        pair = _literal(entry)
        if isinstance(pair, tuple) and len(pair) == 2:
            found[str(pair[0])] = str(pair[1])
    return found


@lru_cache(maxsize=8)
def _parsed(file: Path) -> ast.Module | None:
    try:
        return ast.parse(file.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None


@lru_cache(maxsize=1)
def _root() -> Path:
    spec = find_spec("transformers")
    return Path(spec.origin).parent / "models" if spec and spec.origin else Path("transformers")


def _literal(value: ast.expr) -> Any:
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError):
        return None
