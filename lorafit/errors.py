"""Errors that a user can fix. They form one tree; each error has a message and a fix.

    LorafitError            shown without a traceback
    ├── ConfigError         a flag, a YAML key or their combination
    ├── DataError           a data file, a row, a split
    ├── ModelError          a base model's folder: weights, tokenizer, architecture
    ├── HubError            a hub that does not respond or refuses the request
    ├── AdapterError        an adapter that does not fit the base model
    ├── RunError            a run's folder: checkpoints, resume, a second writer
    ├── DiskError           no space or no permission
    ├── HardwareError       a device that is missing or gives wrong results
    ├── DoesNotFit          no plan fits the machine's memory
    └── EngineError         the engine failed (engines/base.py adds OutOfMemory)

Any other exception is a bug in lorafit and keeps its traceback.
"""

from lorafit.messages import sentences


class LorafitError(Exception):
    """An error for the user: `what` happened, `where`, what was `found` there, and how to `fix` it."""

    def __init__(self, what: str, *, where: object = None, found: object = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.found = None if found is None else str(found)
        self.fix = fix

    @property
    def brief(self) -> str:
        """Return what happened and what was found, in one line."""
        return sentences(filter(None, (self.what, self.found)))

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.where, self.found, self.fix) if part)


class ConfigError(LorafitError):
    """A setting is unknown, of the wrong type, or contradicts another."""


class DataError(LorafitError):
    """A data file or split is missing, empty, damaged or of an unknown format."""


class ModelError(LorafitError):
    """A base model's folder is incomplete, or its architecture is not supported."""


class HubError(LorafitError):
    """A model or dataset hub cannot be reached, does not know the ID, or requires permission."""


class AdapterError(LorafitError):
    """An adapter does not belong to this base model, or its files are damaged."""


class ExportError(LorafitError):
    """An export cannot be made, or does not compute what the adapter does."""


class RunError(LorafitError):
    """A run's folder cannot be written, read or resumed."""


class DiskError(LorafitError):
    """The disk is full or not writable."""


class HardwareError(LorafitError):
    """A device is missing, or its self-test gives a wrong result."""


class DoesNotFit(LorafitError):
    """No plan fits the machine's memory."""


class EngineError(LorafitError):
    """The engine failed in a way that a retry does not fix."""
