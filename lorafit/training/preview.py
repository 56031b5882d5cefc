"""Preview of a run on this or a named machine: plan, model and data, before the model is downloaded or loaded.

No tensor library is imported. What is not on this disk is read from the hub in small pieces. If no hub answers, values
come from lorafit's catalogue, and a note says so.
"""

from collections import Counter
from dataclasses import dataclass, replace

from lorafit.config import TrainConfig
from lorafit.data.cache import use_writable_cache
from lorafit.data.dataset import load_cached
from lorafit.data.split import MAX_VALID_ROWS
from lorafit.engines.tokenizer import read_template
from lorafit.errors import ConfigError, DataError, HubError
from lorafit.hardware import detect
from lorafit.hardware.catalogue.clouds import INSTANCES
from lorafit.hardware.catalogue.find import machine_named
from lorafit.hardware.catalogue.lengths import known_lengths
from lorafit.hardware.catalogue.models import known_spec
from lorafit.hardware.detect import Machine
from lorafit.messages import _, clauses, listed
from lorafit.models.remote_spec import local_folder, remote_spec
from lorafit.models.spec import ModelSpec, read_config, read_spec
from lorafit.models.trainable import check_trainable
from lorafit.models.weight_files import require_folder
from lorafit.planner import calibrate
from lorafit.planner.data_stats import DataStats, data_stats
from lorafit.planner.memory_budget import per_process
from lorafit.planner.plan import Choice, Plan
from lorafit.planner.planner import PlanResult, alternatives, make_plan_result
from lorafit.progress import ProgressCallback, ignore_progress
from lorafit.training.initial_adapter import init_adapter, with_patterns, with_rank, with_targets
from lorafit.training.measure_lengths import fill_cache
from lorafit.training.preflight import check_positions, check_processes, check_targets, rank_notes
from lorafit.units import bytes_text, count_text


@dataclass(frozen=True)
class Preview:
    """A plan and its inputs. `others`: alternatives to the plan; `notes`: texts on inputs from the catalogue."""

    machine: Machine
    model: str
    spec: ModelSpec
    data: DataStats
    planned: PlanResult
    others: list[Choice]
    notes: list[str]

    @property
    def plan(self) -> Plan:
        return self.planned.plan


def preview_run(config: TrainConfig, machine_name: str | None, say: ProgressCallback = ignore_progress) -> Preview:
    """Return the preview of `config` on the machine named `machine_name` (None: this one). Raises LorafitErrors."""
    machine = machine_named(machine_name) if machine_name else detect.detect_machine()
    known = calibrate.load_calibration(machine, measure=calibrate.measure_matmul_gflops)
    machine = calibrate.with_metal_limit(machine, known)
    check_processes(config, machine, config.processes or 1)
    spec, notes = find_spec(config)
    start = None if config.resume else init_adapter(config)
    if start is not None:
        config = with_targets(with_rank(config, start), start, spec)
    check_targets(config.lora_targets, spec)
    data, more = find_data(config, say)
    more += check_positions(config.model_name, spec, data.longest_of_all, estimated=bool(more))
    more += rank_notes(config.lora_r, config.lora_targets, spec)
    planned = make_plan_result(config, per_process(machine, config.processes or 1), spec, data, known)
    if start is not None:
        planned = replace(planned, plan=with_patterns(planned.plan, start, new=True))
    return Preview(machine, config.model_name, spec, data, planned, alternatives(planned, known), [*notes, *more])


def find_spec(config: TrainConfig) -> tuple[ModelSpec, list[str]]:
    """Return the model's architecture, and notes if it is from the catalogue.

    Sources in order: this disk, the files' headers on the hub, the catalogue.
    Raises HubError if no hub answers and the catalogue lacks the model; ModelError.
    """
    folder = local_folder(config.model_name)
    if folder is not None:
        require_folder(folder)
        check_trainable(read_config(folder), folder, config.trust_remote_code)
        return read_spec(folder), []
    stand_in = known_spec(config.model_name)
    try:
        if config.model_name != "demo":
            return remote_spec(config.model_name, config.hub, config.hf_endpoint, config.trust_remote_code), []
    except HubError:
        if stand_in is None:
            raise
    assert stand_in is not None
    return stand_in, [
        _(
            "Model not on this disk and no hub reachable: its architecture is taken from "
            "lorafit's catalog (from its owner's config.json)."
        )
    ]


def find_data(config: TrainConfig, say: ProgressCallback = ignore_progress) -> tuple[DataStats, list[str]]:
    """Return the lengths of the rows, and notes if they are from the catalogue.

    Sources in order: the cache, a child process that tokenizes the data, the catalogue. Without a tokenizer on this
    disk only the catalogue is used. Raises ConfigError, HubError or DataError if no source has the data.
    """
    folder = local_folder(config.model_name)
    stand_in = _from_catalogue(config)
    if folder is None:
        if stand_in is None:
            raise _no_tokenizer(config)
        return stand_in, [_("The model's tokenizer is not on this disk: row lengths are estimates from the catalog.")]
    template = read_template(config.chat_template)
    try:
        found = load_cached(config, folder, template)
        if found is None:
            if note := use_writable_cache():
                say(note)
            say(_("Counting the tokens of {name} (once)").format(name=config.dataset_name))
            fill_cache(config, folder)
            found = load_cached(config, folder, template)
    except (HubError, DataError):
        if stand_in is None:
            raise
        text = _("Data not on this disk and no hub reachable: row lengths are estimates from the catalog.")
        return stand_in, [text]
    assert found is not None
    if config.resume is None:
        found.thoughts.check()
    return data_stats(found), []


def _from_catalogue(config: TrainConfig) -> DataStats | None:
    known = known_lengths(config.dataset_name)
    if known is None:
        return None
    rows = min(known.rows, config.max_samples or known.rows)
    valid = min(int(config.val_size if config.val_size >= 1 else config.val_size * rows), rows - 1)
    valid = min(valid, MAX_VALID_ROWS) if config.val_size < 1 else valid
    lengths = known.sample(rows, config.max_length)
    return DataStats(lengths[valid:], lengths[:valid], "", known.target_share, known.source)


def _no_tokenizer(config: TrainConfig) -> ConfigError:
    return ConfigError(
        _("Row lengths in tokens are unknown: the model's tokenizer is not on this disk."),
        where=f"{config.model_name}, {config.dataset_name}",
        fix=_("Download it first: `lorafit train --demo --dry_run`")
        if config.model_name == "demo"
        else _("Download the model first with `lorafit train --dry_run`, or plan with `--model_name demo`."),
    )


def preview_facts(look: Preview) -> list[Choice]:
    """Return a line each on the machine, the model and the data."""
    machine, spec, lengths = look.machine, look.spec, look.data.train_lengths
    counted = Counter(f"{gpu.name} {bytes_text(gpu.memory_bytes)}" for gpu in machine.gpus)
    gpus = listed(f"{count} x {name}" if count > 1 else name for name, count in counted.items()) or _("no GPU")
    known = _("cores: {cores}, memory: {memory}, available: {available}; {gpus}")
    # Only a GPU was named: the number of cores is assumed.
    if machine.described and machine.gpus and machine.chip not in (instance.name for instance in INSTANCES):
        known = _("memory: {memory}, available: {available}; {gpus}")
    memory = known.format(
        cores=machine.cores, memory=bytes_text(machine.memory_bytes), available=bytes_text(machine.available_bytes),
        gpus=gpus,
    )  # fmt: skip
    model = _("layers: {layers}, parameters: {parameters}, weight files: {size}").format(
        layers=spec.layers, parameters=count_text(spec.parameters), size=bytes_text(spec.weight_bytes)
    )
    more = [_("active for each token: {count} parameters").format(count=count_text(spec.active_parameters))]
    more = more if spec.expert_weights else []
    if spec.other_parameters:
        text = _("not loaded, because text does not need them: {count} parameters")
        more.append(text.format(count=count_text(spec.other_parameters)))
    data = _("per row: mean {mean:.0f} tokens, longest {longest}; tokens in the loss: {share:.0%}").format(
        mean=float(lengths.mean()), longest=int(lengths.max()), share=look.data.target_share
    )
    return [
        Choice("machine", machine.chip, memory),
        Choice("model", look.model, clauses([model, *more])),
        Choice("data", _("rows: {rows}").format(rows=count_text(len(lengths))), data),
    ]
