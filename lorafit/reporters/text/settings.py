"""The names of a plan's choices for the user: the flags in English, words in Chinese."""

from lorafit.messages import noted, translate

# In English the names stay as they are, because users type them as flags.
NAMES = (
    noted("machine"), noted("model"), noted("data"),
    noted("device"), noted("engine"), noted("quantization"), noted("precision"), noted("optimizer"), noted("path"),
    noted("processes"), noted("shard"), noted("token_budget"), noted("recompute"), noted("allocator"), noted("compile"),
    noted("steps"), noted("eval_steps"), noted("memory"), noted("time"), noted("plan"),
)  # fmt: skip


def choice_name(name: str) -> str:
    """Return the name of the plan's choice `name` in the user's language; an unknown name stays as it is."""
    return translate(name) if name in NAMES else name
