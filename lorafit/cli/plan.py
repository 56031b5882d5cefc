"""What do `lorafit plan` and `lorafit machines` do at a terminal? Flags to a verb, and what comes back shown."""

import json as as_json
import warnings
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from lorafit.cli.app import OK
from lorafit.cli.flags import share_out
from lorafit.cli.parse import parse, train_config
from lorafit.planner.table import cells, times
from lorafit.reporters.terminal.catalogue import show_machines, show_tables
from lorafit.reporters.terminal.plan import show_plan
from lorafit.reporters.terminal.status import status_line
from lorafit.training.preview import Preview, preview_run

with warnings.catch_warnings():  # pydantic has an old method `json`, which nobody needs here
    warnings.simplefilter("ignore", UserWarning)

    class PlanFlags(BaseModel):
        """What a run would be: what fits, how long it takes, and why. All flags of `lorafit train` are taken too."""

        model_config = ConfigDict(extra="forbid", protected_namespaces=())

        machine: str | None = Field(
            None, description="Plan for this machine, e.g. `M1 Pro 16GB`, `RTX 3090`, `p3.2xlarge` (None: this one)."
        )
        table: bool = Field(False, description="Which machine trains which model, and how long the guide's data take.")
        json: bool = Field(False, description="Print the plan as JSON.")  # type: ignore[assignment]


class MachinesFlags(BaseModel):
    """The machines that `lorafit plan --machine` knows, with memory, speeds and where the figures are from."""

    lang: Literal["en", "zh"] | None = Field(None, description="Language to speak (None: by locale).")


def plan(argv: list[str]) -> int:
    """`plan [--machine NAME] [--table] [--json] [flags of a training]`."""
    words, own, others = share_out(PlanFlags, argv)
    flags = parse(PlanFlags, own, "plan")
    config = train_config([*words, *others], "plan")
    console = Console(highlight=False)
    if flags.table:
        show_tables(cells(config), times(config), console)
        return OK
    with status_line(Console(stderr=True, highlight=False)) as say:
        look = preview_run(config, flags.machine, say)
    if flags.json:
        print(as_json.dumps(facts(look), ensure_ascii=False, indent=1))
    else:
        show_plan(look, console)
    return OK


def machines(argv: list[str]) -> int:
    parse(MachinesFlags, argv, "machines")
    show_machines(Console(highlight=False))
    return OK


def facts(look: Preview) -> dict[str, Any]:
    """The plan and what it rests on, as JSON holds it."""
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
