"""Compare requests: validation, resolution of names, and the run of the comparison. Cheap checks come first."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from pydantic import Field

from lorafit import registry
from lorafit.data.readers.registry import READERS
from lorafit.engines.base import Engine, Setup
from lorafit.errors import AdapterError, ConfigError, LorafitError
from lorafit.evaluation.compare import (
    Comparison,
    ModelUnderTest,
    Question,
    compare_models,
    questions_from_conversations,
    questions_from_file,
    questions_from_lines,
)
from lorafit.evaluation.model_request import (
    AnswerRequest,
    answering_tokenizer,
    base_name,
    choose_backend,
    read_questions,
)
from lorafit.evaluation.validation import TrainedRun, ValidationRows, load_validation_rows, read_trained, run_containing
from lorafit.hardware import detect
from lorafit.messages import _, listed
from lorafit.models.hub import FoundModel, find_model
from lorafit.models.positions import Positions
from lorafit.models.spec import read_spec
from lorafit.paths import require_utf8_name, user_path
from lorafit.progress import ProgressCallback
from lorafit.run_folders import directory
from lorafit.run_folders.adapter import read_chat_settings
from lorafit.run_folders.adapter_fit import check_shapes
from lorafit.run_folders.find_adapter import find_adapter, named_folder
from lorafit.sampling import Sampling

PAGE = "compare.html"


class CompareRequest(AnswerRequest):
    """Compare a base model with adapters for it: validation loss, and answers side by side."""

    adapters: tyro.conf.Positional[list[str]] = Field(
        [], description="Runs or adapters to compare; several: side by side."
    )
    lora_weights: str | None = Field(None, description="Same as an adapter given without a flag.")
    prompt: str | None = Field(None, description="Ask this question (default: the validation questions of the run).")
    test_file: str | None = Field(
        None, description="File of questions: JSON, JSON Lines or CSV with answers, or text with one question per line."
    )
    num_samples: int = Field(20, description="Highest number of questions to ask.", ge=1)
    output: str | None = Field(
        None,
        description="HTML page to write, also -o (default: compare.html in the run folder, or in the current folder).",
    )
    temperature: float = Field(0.0, description="Sampling temperature; 0: always the most likely token.", ge=0)
    max_new_tokens: int = Field(256, description="Longest answer in tokens.", ge=1)

    @property
    def adapter_names(self) -> list[str]:
        """The adapters of --lora_weights and of the positional arguments."""
        return [*([self.lora_weights] if self.lora_weights else []), *self.adapters]


@dataclass(frozen=True)
class AdapterRef:
    """An adapter folder, its name in the comparison, and its run (None if it is in no run folder)."""

    name: str
    folder: Path
    trained: TrainedRun | None


@dataclass(frozen=True)
class BaseModelRef:
    """The common base model, with the engine, device, precision and quantization that compute it."""

    found: FoundModel
    engine: str
    device: str
    precision: str
    quantization: str
    positions: Positions | None


def page_path(request: CompareRequest) -> Path:
    """Return the path of the HTML page: `output`, else in the folder of a single run, else in the working directory."""
    if request.output is not None:
        return user_path(request.output)
    runs = [run_containing(named_folder(name, Path(request.output_dir))) for name in request.adapter_names]
    return runs[0].comparison if len(runs) == 1 and runs[0] is not None else Path(PAGE)


def compare(request: CompareRequest, say: ProgressCallback) -> Comparison:
    """Run the comparison of `request`. Raises LorafitErrors."""
    _check(request)
    entrants = _adapter_refs(request.adapter_names, Path(request.output_dir))
    asked, source = _requested_questions(request)
    base = _base(request, entrants, say)
    notes: list[str] = []
    contestants = [_model_under_test(request, entrant, base, notes, say) for entrant in entrants]
    if asked is None:
        asked, source = _held_out_questions(contestants, notes)
    questions = asked[: request.num_samples]
    notes += _fairness_notes(contestants)
    sampling = Sampling(request.temperature, request.top_p, request.max_new_tokens, request.seed)
    sides, left_out = compare_models(contestants, questions, sampling, say)
    setting = [base.device, base.precision, *([base.quantization] if base.quantization != "none" else [])]
    source = _("questions: {n} of {total}, from {source}").format(n=len(questions), total=len(asked), source=source)
    name = base.found.folder.name if Path(base.found.name).is_absolute() else base.found.name  # pages are shared
    return Comparison(name, listed(setting), source, sampling, questions, sides[0], sides[1:], notes + left_out)


def _check(request: CompareRequest) -> None:
    if not request.adapter_names:
        fix = _("Name one or more, e.g. `lorafit compare latest` (`lorafit runs` lists them).")
        raise ConfigError(_("No run or adapter given."), fix=fix)
    if request.prompt is not None and request.test_file is not None:
        given = "--prompt, --test_file"
        what = _("{flags} cannot be used together.").format(flags=given)
        raise ConfigError(what, found=given, fix=_("Keep only one of them."))


def _adapter_refs(names: list[str], output_dir: Path) -> list[AdapterRef]:
    """Return the adapters of `names`, with unique names. Raises AdapterError, ConfigError, RunError."""
    entrants = []
    for name in names:
        path = named_folder(name, output_dir)
        folder, run = find_adapter(path, output_dir), run_containing(path)
        short = folder.absolute().name if run is None else _short(run, folder.absolute())
        entrants.append(AdapterRef(short, folder, None if run is None else read_trained(run)))
    times = Counter(entrant.name for entrant in entrants)
    return [e if times[e.name] == 1 else replace(e, name=str(e.folder)) for e in entrants]


def _short(run: directory.RunDir, folder: Path) -> str:
    """Return the name of the run, followed by the adapter's folder name unless it is the final adapter."""
    return run.name if folder.name == run.final_model.name else f"{run.name}/{folder.name}"


def _requested_questions(request: CompareRequest) -> tuple[list[Question] | None, str]:
    """Return the questions of --prompt or --test_file, or None, and the name of their source."""
    if request.prompt is not None:
        return questions_from_lines([request.prompt]), "--prompt"
    if request.test_file is None:
        return None, ""
    path = user_path(request.test_file)
    asked = questions_from_file(path) if path.suffix.lower() in READERS else questions_from_lines(read_questions(path))
    return asked, path.name


def _held_out_questions(contestants: list[ModelUnderTest], notes: list[str]) -> tuple[list[Question], str]:
    for contestant in contestants:
        if contestant.validation_rows is not None:
            source = _("validation set of {run}").format(run=contestant.name)
            return questions_from_conversations(contestant.validation_rows.conversations), source
    fix = _("Give questions with --prompt TEXT or --test_file FILE.")
    raise ConfigError(_("No validation questions available."), found="\n".join(notes), fix=fix)


def _base(request: CompareRequest, entrants: list[AdapterRef], say: ProgressCallback) -> BaseModelRef:
    """Return the common base model. Raises LorafitErrors, among them AdapterError for different base models.

    Precision and quantization are those of the first run if its engine and device are chosen and precision is `auto`.
    """
    machine = detect.detect_machine()
    detect.check_machine(machine)
    names = {base_name(request, entrant.folder) for entrant in entrants}
    if len(names) > 1:
        raise AdapterError(
            _("These adapters have different base models."),
            found=listed(sorted(names)),
            fix=_("Compare only adapters of the same base model."),
        )
    found = find_model(names.pop(), hub=request.hub, endpoint=request.hf_endpoint, say=say)
    require_utf8_name(found.folder)
    spec = read_spec(found.folder)
    for entrant in entrants:
        check_shapes(entrant.folder, spec)
    way = choose_backend(request, machine, spec)
    plan = entrants[0].trained.plan if entrants[0].trained else None
    if plan is not None and (plan.engine, plan.device) == way[:2] and request.precision == "auto":
        return BaseModelRef(found, way.engine, way.device, plan.precision, plan.quantization, spec.positions)
    return BaseModelRef(found, *way, "none", spec.positions)


def _model_under_test(
    request: CompareRequest, entrant: AdapterRef, base: BaseModelRef, notes: list[str], say: ProgressCallback
) -> ModelUnderTest:
    """Prepare `entrant` for the comparison. Add a note to `notes` if its validation rows are not available."""
    trust = request.trust_remote_code
    settings = read_chat_settings(entrant.folder)
    tokenizer = answering_tokenizer(request, entrant.folder, base.found.folder, settings)

    def open_engine() -> Engine:
        say(_("Loading {model} on {device} ...").format(model=base.found.name, device=base.device))
        engine: Engine = registry.load(registry.ENGINES[base.engine]).open(_setup(base, entrant.trained, trust))
        engine.load_adapter(entrant.folder)
        return engine

    return ModelUnderTest(
        name=entrant.name,
        open=open_engine,
        tokenizer=tokenizer,
        date_string=settings.date_string,
        system_prompt=request.system_prompt or settings.system_prompt,
        validation_rows=_held_out(entrant, base, trust, notes, say),
        positions=base.positions,
    )


def _setup(base: BaseModelRef, trained: TrainedRun | None, trust: bool) -> Setup:
    """Return the engine setup. With a plan, the engine also checks its arithmetic on this model, as for training."""
    numbers = {"device": base.device, "precision": base.precision, "quantization": base.quantization}
    plan = None if trained is None else replace(trained.plan, **numbers, engine=base.engine, optimizer="adamw")  # type: ignore[arg-type]
    found = base.found
    return Setup(found.folder, found.name, base.device, base.precision, base.quantization, trust, plan)


def _held_out(
    entrant: AdapterRef, base: BaseModelRef, trust: bool, notes: list[str], say: ProgressCallback
) -> ValidationRows | None:
    if entrant.trained is None:
        text = _("{name} is not in a run folder, so its validation rows are unknown: no validation loss.")
        notes.append(text.format(name=entrant.name))
        return None
    say(_("Reading {name}").format(name=entrant.trained.config.dataset_name))
    try:
        return load_validation_rows(
            entrant.trained, base.found.folder, trust, say
        )  # tokenizer of the base, as in training
    except LorafitError as error:
        reason = " ".join(part for part in (error.what, error.where, error.found) if part)
        notes.append(_("{name}: no validation loss. {reason}").format(name=entrant.name, reason=reason))
        return None


def _fairness_notes(contestants: list[ModelUnderTest]) -> list[str]:
    """Return notes on differences that make the comparison of several adapters unfair."""
    notes = []
    if len({c.validation_rows.digest for c in contestants if c.validation_rows}) > 1:
        notes.append(
            _("The runs have different validation rows: one run may have trained on validation rows of another.")
        )
    if len({(c.system_prompt, c.date_string) for c in contestants}) > 1:
        notes.append(_("The adapters have different system prompts or dates; the base model uses those of the first."))
    return notes
