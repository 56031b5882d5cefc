"""What can go wrong that a user can mend? One tree of errors, each with words and a remedy.

    LorafitError            shown without a traceback
    ├── ConfigError         a flag, a YAML key or their combination
    ├── DataError           a data file, a row, a split
    ├── ModelError          a base model's folder: weights, tokenizer, shape
    ├── HubError            a hub that does not answer, or answers no
    ├── AdapterError        an adapter that does not fit what it is put on
    ├── RunError            a run's folder: checkpoints, resume, two writers
    ├── DiskError           no room, no permission
    ├── HardwareError       a device that is missing or computes wrongly
    ├── DoesNotFit          the plan finds no way to fit the machine's memory
    └── EngineError         the engine failed (engines/base.py adds OutOfMemory)

Any other exception is our own bug and keeps its traceback.
"""


class LorafitError(Exception):
    """An error for a user: what happened, where, what was found there, what to do about it."""

    def __init__(self, what: str, *, where: object = None, found: object = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.found = None if found is None else str(found)
        self.fix = fix

    @property
    def brief(self) -> str:
        """What happened and what was found, in one line."""
        return " ".join(filter(None, (self.what, self.found)))

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.where, self.found, self.fix) if part)


class ConfigError(LorafitError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(LorafitError):
    """A data file or split is missing, empty, broken or of no known format."""


class ModelError(LorafitError):
    """A base model's folder lacks something, or is of a kind that cannot be trained."""


class HubError(LorafitError):
    """A model or data hub is out of reach, does not know the name, or wants permission."""


class AdapterError(LorafitError):
    """An adapter does not belong to this base model, or its files are damaged."""


class RunError(LorafitError):
    """A run's folder cannot be written, read or gone on with."""


class DiskError(LorafitError):
    """The disk is full or may not be written."""


class HardwareError(LorafitError):
    """A device is missing, or its self-test gave a wrong answer."""


class DoesNotFit(LorafitError):
    """No plan fits the machine's memory."""


class EngineError(LorafitError):
    """The engine failed in a way that trying again does not cure."""
