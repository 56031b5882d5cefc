"""The number of samples in a step, from the settings that decide it."""

from lorafit.config import TrainConfig
from lorafit.errors import ConfigError
from lorafit.messages import _


def resolve_effective_batch(config: TrainConfig) -> int:
    """Return the samples per step: effective_batch, batch_size x gradient_accumulation_steps, or the default.

    The default is 16, or 8 with `demo`. Raise ConfigError if all three settings are given and disagree.
    """
    size, accumulation, effective = config.batch_size, config.gradient_accumulation_steps, config.effective_batch
    if size is None or accumulation is None:
        return effective or (8 if config.demo else 16)
    if effective is not None and effective != size * accumulation:
        raise ConfigError(
            _("effective_batch differs from batch_size x gradient_accumulation_steps."),
            where="batch_size x gradient_accumulation_steps, effective_batch",
            found=f"{size} x {accumulation} = {size * accumulation}, effective_batch = {effective}",
            fix=_(
                "Remove one of the three, or make batch_size x gradient_accumulation_steps equal to effective_batch."
            ),
        )
    return size * accumulation
