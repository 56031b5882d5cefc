"""Shell completion: a script for bash or zsh that completes commands, flags and runs without starting Python."""

from collections.abc import Iterator, Mapping

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lorafit.cli.app import COMMANDS
from lorafit.cli.commands import DoctorFlags
from lorafit.cli.export import VerifyFlags
from lorafit.cli.flags import is_word
from lorafit.cli.plan import MachinesFlags, PlanFlags
from lorafit.cli.runs import DiffFlags, ListFlags, OrderFlags, RemoveFlags, ShowFlags
from lorafit.cli.transfer import BundleFlags, CloudFlags, FetchFlags
from lorafit.config import TrainConfig, choices, is_switch
from lorafit.data.report_request import DataRequest
from lorafit.errors import ConfigError
from lorafit.evaluation.chat_request import ChatRequest
from lorafit.evaluation.compare_request import CompareRequest
from lorafit.exporters.base import ExportRequest
from lorafit.messages import _, listed
from lorafit.registry import CLOUDS

SHELLS = ("bash", "zsh")
CLOUD_COMMANDS = [f"cloud {name}" for name in CLOUDS]
SETTINGS: dict[str, type[BaseModel]] = {
    "train": TrainConfig,
    "resume": TrainConfig,
    "chat": ChatRequest,
    "compare": CompareRequest,
    "data": DataRequest,
    "plan": PlanFlags,
    "machines": MachinesFlags,
    "runs": ListFlags,
    "runs list": ListFlags,
    "runs show": ShowFlags,
    "runs diff": DiffFlags,
    "runs stop": OrderFlags,
    "runs pause": OrderFlags,
    "runs continue": OrderFlags,
    "runs remove": RemoveFlags,
    "export": ExportRequest,
    "verify": VerifyFlags,
    "bundle": BundleFlags,
    "cloud": CloudFlags,
    **{place: CloudFlags for place in CLOUD_COMMANDS},
    "fetch": FetchFlags,
    "doctor": DoctorFlags,
}
RUN_FLAGS = ("resume", "lora_weights", "init_adapter")  # flags whose value is a run's folder
RUN_COMMANDS = (
    "resume",
    "chat",
    "compare",
    "runs show",
    "runs diff",
    "runs stop",
    "runs pause",
    "runs continue",
    "runs remove",
    "export",
    "bundle",
    *CLOUD_COMMANDS,
)  # commands with runs as arguments

SCRIPT = """\
# Completion of lorafit for {shell}, made by `lorafit --print_completion {shell}`.
{prologue}_lorafit_runs() {{
    local run
    for run in output/*/events.jsonl; do [[ -e $run ]] && printf '%s ' "${{run%/*}}"; done
}}
_lorafit() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words="" one
    # bash takes `--flag=value` for three words
    if [[ $word == "=" ]]; then word=""; elif [[ $before == "=" ]]; then before=${{COMP_WORDS[COMP_CWORD-2]}}; fi
    COMPREPLY=()
    if ((COMP_CWORD > 2)); then
        case "$command ${{COMP_WORDS[2]}}" in
            {subcommands}) command="$command ${{COMP_WORDS[2]}}" ;;
        esac
    fi
    if ((COMP_CWORD == 1)); then
        words="{commands}"
    else
        case "$command $before" in
{values}
            *) case "$command" in
{flags}
            esac ;;
        esac
    fi
    # not `compgen -W`, which would run what stands in a folder's name
    for one in $words; do [[ $one == "$word"* ]] && COMPREPLY+=("$one"); done
}}
complete -o default -F _lorafit lorafit
"""
ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
autoload -Uz bashcompinit && bashcompinit
"""


def script(shell: str) -> str:
    """Return the completion script for `shell`, to be sourced. Raise ConfigError for an unknown shell."""
    if shell not in SHELLS:
        raise ConfigError(
            _("Shell name missing or not supported."),
            where="--print_completion",
            found=shell or None,
            fix=_("Use one of: {known}.").format(known=listed(SHELLS)),
        )
    kinds = {command: _fields(kind) for command, kind in SETTINGS.items()}
    return SCRIPT.format(
        shell=shell,
        prologue=ZSH if shell == "zsh" else "",
        commands=" ".join([*COMMANDS, "--help", "--version", "--print_completion"]),
        subcommands="|".join(f'"{command}"' for command in kinds if " " in command) or '""',
        values="\n".join(_values(kinds)),
        flags="\n".join(_flags(kinds)),
    )


def _fields(kind: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the settings of `kind` that are flags and not positional arguments."""
    return {name: field for name, field in kind.model_fields.items() if not is_word(field)}


def _values(kinds: Mapping[str, Mapping[str, FieldInfo]]) -> Iterator[str]:
    """Yield a shell case for each set of flag values: fixed choices, runs, or none (the shell then offers files)."""
    cases = {" ".join(SHELLS): ['"--print_completion --print_completion"']}
    for command, fields in kinds.items():
        for name, field in fields.items():
            if not is_switch(field):
                words = "$(_lorafit_runs)" if name in RUN_FLAGS else " ".join(choices(field))
                cases.setdefault(words, []).append(f'"{command} --{name}"')
    for words, patterns in cases.items():
        yield f'            {"|".join(patterns)}) words="{words}" ;;'


def _flags(kinds: Mapping[str, Mapping[str, FieldInfo]]) -> Iterator[str]:
    """Yield a shell case for each command: its subcommands, runs and flags."""
    for command, fields in kinds.items():
        seconds = [other.split()[1] for other in kinds if other.startswith(f"{command} ")]
        runs = ["$(_lorafit_runs)latest"] if command in RUN_COMMANDS else []
        words = " ".join([*seconds, *runs, *(f"--{name}" for name in fields), "--help"])
        yield f'                "{command}") words="{words}" ;;'
