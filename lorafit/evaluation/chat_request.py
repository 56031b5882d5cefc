"""A request to chat with a model: its check, and the chat that it opens."""

from collections.abc import Iterator
from pathlib import Path

import tyro
from pydantic import Field

from lorafit import registry
from lorafit.engines.base import Engine, Setup
from lorafit.errors import ConfigError
from lorafit.evaluation.chat import Chat
from lorafit.evaluation.model_request import AnswerRequest, answering_tokenizer, base_name, choose_backend
from lorafit.hardware import detect
from lorafit.messages import _, listed
from lorafit.models.hub import find_model
from lorafit.models.spec import read_spec
from lorafit.paths import require_utf8_name
from lorafit.progress import ProgressCallback
from lorafit.run_folders.adapter import ChatSettings, read_chat_settings
from lorafit.run_folders.adapter_fit import check_shapes
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.sampling import Sampling


class ChatRequest(AnswerRequest):
    """Talk to a model, with the adapter of a run or as it is."""

    adapter: tyro.conf.Positional[list[str]] = Field(
        [],
        description="Name or folder of a run, `latest`, or an adapter's folder (default: the base model alone).",
    )
    lora_weights: str | None = Field(None, description="Same as an adapter given without a flag.")
    interactive: bool = Field(False, description="Interactive chat (the default without --prompt and --test_file).")
    prompt: str | None = Field(None, description="Answer this question and exit; only the answer is printed.")
    test_file: str | None = Field(None, description="Text file with one question per line; the answers are JSON Lines.")
    output: str | None = Field(None, description="File for the answers to --test_file (default: the terminal).")


def check_request(request: ChatRequest) -> None:
    """Raise ConfigError if `request` asks for two things at once."""
    asked = {"--interactive": request.interactive, "--prompt": request.prompt, "--test_file": request.test_file}
    given = [flag for flag, value in asked.items() if value not in (None, False)]
    if len(given) > 1:
        what = _("{flags} cannot be used together.").format(flags=listed(given))
        raise ConfigError(what, found=listed(given), fix=_("Keep only one of them."))
    named = [*request.adapter, *([request.lora_weights] if request.lora_weights else [])]
    if len(named) > 1:
        raise ConfigError(
            _("Only one adapter can answer."),
            found=listed(named),
            fix=_("Compare several adapters: {command}").format(command="lorafit compare RUN RUN"),
        )
    if request.output is not None and request.test_file is None:
        fix = _("Add --test_file FILE, or remove --output.")
        raise ConfigError(_("--output works only with --test_file."), found=request.output, fix=fix)


def open_chat(request: ChatRequest, say: ProgressCallback) -> Chat:
    """Open a chat with the model that `request` names. Raise LorafitErrors, most of them before it is loaded."""
    machine = detect.detect_machine()
    detect.check_machine(machine)
    name = request.lora_weights or next(iter(request.adapter), None)
    adapter = None if name is None else find_adapter(name, Path(request.output_dir))
    base = find_model(base_name(request, adapter), hub=request.hub, endpoint=request.hf_endpoint, say=say)
    require_utf8_name(base.folder)
    spec = read_spec(base.folder)
    if adapter is not None:
        check_shapes(adapter, spec)
    way = choose_backend(request, machine, spec)
    settings = ChatSettings() if adapter is None else read_chat_settings(adapter)
    tokenizer = answering_tokenizer(request, adapter, base.folder, settings)
    say(_("Loading {model} on {device} ...").format(model=base.name, device=way.device))
    engine: Engine = registry.load(registry.ENGINES[way.engine]).open(
        Setup(base.folder, base.name, way.device, way.precision, trust_remote_code=request.trust_remote_code)
    )
    if adapter is not None:
        engine.load_adapter(adapter)
    return Chat(
        engine,
        tokenizer,
        Sampling(request.temperature, request.top_p, request.max_new_tokens, request.seed),
        date_string=settings.date_string,
        system_prompt=request.system_prompt or settings.system_prompt,
        has_adapter=adapter is not None,
        positions=spec.positions,
    )


def answers(chat: Chat, questions: list[str]) -> Iterator[dict[str, str]]:
    """Yield {"question": ..., "answer": ...} for each question; each starts a new conversation."""
    chat.check_questions(questions)
    for question in questions:
        yield {"question": question, "answer": chat.answer(question)}
