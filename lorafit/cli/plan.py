"""The commands `lorafit plan` and `lorafit machines`."""

import json as as_json
import sys
import warnings
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lorafit import api
from lorafit.cli.app import OK
from lorafit.cli.flags import split_flags
from lorafit.cli.parse import parse, train_config
from lorafit.messages import _
from lorafit.reporters.terminal.catalogue import show_machines, show_tables
from lorafit.reporters.terminal.console import open_console
from lorafit.reporters.terminal.encoding import writable_json
from lorafit.reporters.terminal.plan import show_plan
from lorafit.reporters.terminal.status import status_line
from lorafit.training.preview import Preview

with warnings.catch_warnings():  # the field `json` shadows a deprecated method of pydantic
    warnings.simplefilter("ignore", UserWarning)

    class PlanFlags(BaseModel):
        """Flags of `plan` besides those of `lorafit train`, all of which `plan` accepts too."""

        model_config = ConfigDict(extra="forbid", protected_namespaces=())

        machine: str | None = Field(
            None,
            description="Machine to plan for, e.g. `M1 Pro 16GB`, `RTX 3090`, `p3.2xlarge`, or the figures of its GPU: "
            "`24GB 165TFLOPS 1008GB/s` (default: this machine).",
        )
        table: bool = Field(
            False,
            description="Tables of the models that each machine can train, with times for the macOS guide's data.",
        )
        json: bool = Field(False, description="Print the plan as JSON.")  # type: ignore[assignment]


class MachinesFlags(BaseModel):
    """Flags of `machines`, which lists the machines for `lorafit plan --machine`, with memory, speeds and sources."""

    lang: Literal["en", "zh"] | None = Field(None, description="Language of the messages (default: from the locale).")


def plan(argv: list[str]) -> int:
    """Run `plan [--machine NAME] [--table] [--json] [flags of train]` and return the exit code."""
    words, own, others = split_flags(PlanFlags, argv)
    more = _("Besides these, `plan` takes all flags of `lorafit train`.")
    flags = parse(PlanFlags, own, "plan", more=more)
    config = train_config([*words, *others], "plan")
    console = open_console()
    if flags.table:
        show_tables(*api.plan_table(config), console)
        return OK
    with status_line(open_console(stderr=True)) as say:
        look = api.plan(config, flags.machine, say)
    if flags.json:
        print(writable_json(as_json.dumps(preview_json(look), ensure_ascii=False, indent=1), sys.stdout))
    else:
        show_plan(look, console)
    return OK


def machines(argv: list[str]) -> int:
    """Run `machines`: print the catalog of machines."""
    parse(MachinesFlags, argv, "machines")
    show_machines(api.machines(), open_console())
    return OK


def preview_json(look: Preview) -> dict[str, Any]:
    """Return the plan and its inputs as JSON values. The model's list of linear layers is left out."""
    spec = {name: value for name, value in asdict(look.spec).items() if name != "linears"}
    return {
        "machine": asdict(look.machine),
        "model": {"name": look.model, **spec},
        "data": {"rows": len(look.data.train_lengths), "mean_tokens": float(look.data.train_lengths.mean())},
        "plan": asdict(look.plan),
        "estimate": asdict(look.planned.estimate),
        "others": [asdict(other) for other in look.others],
        "notes": look.notes,
    }
