"""The names of a plan's choices and the values of settings, as text for the user."""

from lorafit.messages import _, noted, translate

# In English the names stay as they are, because users type them as flags.
NAMES = (
    noted("machine"), noted("model"), noted("data"),
    noted("init_adapter"), noted("device"), noted("engine"), noted("quantization"), noted("precision"), noted("optimizer"), noted("path"),
    noted("processes"), noted("shard"), noted("token_budget"), noted("recompute"), noted("allocator"), noted("compile"),
    noted("steps"), noted("eval_steps"), noted("memory"), noted("time"), noted("plan"),
)  # fmt: skip


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
