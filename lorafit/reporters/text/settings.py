"""The names of a plan's choices and the values of settings, as text for the user."""

from lorafit.messages import _, noted, translate
from lorafit.units import bytes_text, seconds_text

# In English the names stay as they are, because users type them as flags.
NAMES = (
    noted("machine"), noted("model"), noted("data"),
    noted("init_adapter"), noted("device"), noted("engine"), noted("quantization"), noted("precision"), noted("optimizer"), noted("adapter"), noted("kernels"), noted("path"),
    noted("processes"), noted("shard"), noted("token_budget"), noted("recompute"), noted("allocator"), noted("compile"),
    noted("steps"), noted("eval_steps"), noted("memory"), noted("time"), noted("plan"),
)  # fmt: skip
# Fields of a plan that are no settings, so that nobody types their names.
FIELDS = {
    "available_bytes": noted("available memory"),
    "predicted_peak_bytes": noted("peak memory"),
    "predicted_seconds": noted("time"),
    "predicted_step_seconds": noted("time per step"),
    "predicted_tokens_per_second": noted("tokens/s"),
}


def field_name(name: str) -> str:
    """Return the name of a field of the plan in the user's language; a setting keeps its name."""
    return translate(FIELDS[name]) if name in FIELDS else name


def field_text(name: str, value: object) -> str:
    """Return the value of a field of the plan or of a setting, with its unit if the field is in FIELDS."""
    if name in FIELDS and name.endswith("_bytes") and isinstance(value, int):
        return bytes_text(value)
    if name in FIELDS and name.endswith("_seconds") and isinstance(value, float):
        return seconds_text(value)
    return f"{value:,.0f}" if name in FIELDS and isinstance(value, float) else value_text(value)


def choice_name(name: str) -> str:
    """Return the name of the plan's choice `name` in the user's language; an unknown name stays as it is."""
    return translate(name) if name in NAMES else name


def value_text(value: object) -> str:
    """Return the value of a setting for the user. None means that the program chooses it."""
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if value is None:
        return _("automatic")
    return f"{value:g}" if isinstance(value, float) else str(value)
