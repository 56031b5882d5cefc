"""Exceptions of mlx_lm's model code, as texts: it checks little, so settings that it does not know end in any of them."""

from lorafit.messages import _

CODE_ERRORS = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    SystemExit,
)  # exit: a missing package
SHOWN = 300  # characters: some name each tensor of a model


def error_text(error: BaseException) -> str:
    """Return an exception in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:SHOWN]


def other_way() -> str:
    """Return what to do with a model that mlx_lm does not compute."""
    return _("Export with --to merged, or upgrade mlx-lm: {command}").format(command="pip install -U mlx-lm")
