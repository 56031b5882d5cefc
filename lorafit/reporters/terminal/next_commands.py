"""Next commands to paste, in the form that the user has used: a script, `lorafit`, or `python -m lorafit`."""

import shlex
import shutil
import sys
from pathlib import Path


def chat(run: str) -> str:
    """Return the command that starts a chat with the model that `run` trained."""
    script, run = _invocation("inference.py", "chat"), _relative(Path(run))
    return shlex.join([*script, run] if script[-1] == "chat" else [*script, "--lora_weights", run, "--interactive"])


def resume(run: str) -> str:
    """Return the command that resumes `run`."""
    script, run = _invocation("train.py", "resume"), _relative(Path(run))
    return shlex.join([*script, "--resume", run] if script[-1] != "resume" else [*script, run])


def compare(run: str) -> str:
    """Return the command that compares the model that `run` trained with its base model."""
    return shlex.join([*_invocation("compare_models.py", "compare"), _relative(Path(run))])


def export(run: str, target: str) -> str:
    """Return the command that exports the model of `run` to a new folder, for the program `target`."""
    module = Path(sys.argv[0]).name == "__main__.py"
    program = [_program(Path(sys.executable).name), "-m", "lorafit"] if module else [_program("lorafit")]
    folder = f"{Path(run).name}-{target}"
    return shlex.join([*program, "export", _relative(Path(run)), "--to", target, "-o", folder])


def curves(output_dir: str) -> str:
    """Return the command that starts TensorBoard for all runs."""
    return shlex.join([_program("tensorboard"), "--logdir", _relative(Path(output_dir))])


def _invocation(script: str, verb: str) -> list[str]:
    used = Path(sys.argv[0])
    if used.name in ("train.py", "inference.py", "compare_models.py"):
        return [_program(Path(sys.executable).name), _relative(used.with_name(script))]
    if used.name == "__main__.py":
        return [_program(Path(sys.executable).name), "-m", "lorafit", verb]
    return [_program("lorafit"), verb]


def _program(name: str) -> str:
    """Return `name`, or the program's path if this environment has it and PATH does not lead to it."""
    ours, found = Path(sys.executable).with_name(name), shutil.which(name)
    # uv and pipx link the programs of an environment into a folder of PATH.
    if not ours.exists() or (found and ours.absolute() in (Path(found).absolute(), Path(found).resolve())):
        return name
    return _relative(ours)


def _relative(path: Path) -> str:
    """Return `path`, relative to the working directory if it is inside: shorter, and valid after the folder moves."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
