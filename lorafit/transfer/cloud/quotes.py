"""Quotes for a run on the machines of a platform: whether the run fits, its time, and its price."""

from lorafit.config import TrainConfig
from lorafit.errors import LorafitError
from lorafit.hardware.catalogue.find import machine_named
from lorafit.hardware.catalogue.nvidia import OLDEST_CAPABILITY
from lorafit.messages import _, listed
from lorafit.training.preview import preview_run
from lorafit.transfer.cloud.base import Quote
from lorafit.transfer.cloud.prices import price_of


def quotes(config: TrainConfig, machines: tuple[str, ...]) -> list[Quote]:
    """Return one quote per machine.

    If a run cannot be planned (no tokenizer on this disk, no hub reachable), `words` of the quote holds the reason.
    """
    return [quote_for(config, machine) for machine in machines]


def quote_for(config: TrainConfig, machine: str) -> Quote:
    """Return the quote for `machine`, by the plan for it."""
    gpus = machine_named(machine).gpus
    gpu = f"{len(gpus)} x {gpus[0].name}" if len(gpus) > 1 else gpus[0].name
    try:
        look = preview_run(config, machine)
    except LorafitError as error:
        return Quote(machine, gpu, fits=False, details=error.what)
    plan, time = look.plan, look.planned.estimate
    numbers = listed(word for word in (plan.precision, plan.quantization) if word != "none")
    if (gpus[0].compute_capability or OLDEST_CAPABILITY) < OLDEST_CAPABILITY:
        numbers = _("{numbers}; needs PyTorch for CUDA 12.6: newer builds start with Turing").format(numbers=numbers)
    return Quote(machine, gpu, True, numbers, time.total, time.low, time.high, price_of(machine))
