"""Modelfiles: their Go templates, executed by Go itself, give the token IDs of the chat template of the training."""

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

from lorafit.data.conversation import Conversation, Message
from lorafit.data.render import place_system
from lorafit.engines.tokenizer import CHATML, ChatTokenizer, load_tokenizer
from lorafit.errors import ExportError
from lorafit.exporters.ollama import check
from lorafit.exporters.ollama.chat_format import ChatFormat
from lorafit.exporters.ollama.modelfile import go_template, modelfile
from lorafit.run_folders.adapter import ChatSettings

TRL = find_spec("trl")
TEMPLATES = Path((TRL.submodule_search_locations or [""])[0] if TRL else "") / "chat_templates"
DATE = "26 Jul 2024"
MARKER = re.compile(r"<[|｜][^<>\s{}'\"]+[|｜]>|</?[a-z_]+>|\[/?[A-Z_]+\]")
SHORT = {
    "chatml": CHATML,
    "llama2": "{% set s = '' %}{% if messages[0].role == 'system' %}{% set s = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (s if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
    "mistral, system in the last question": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
    "zephyr": "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "braces": "{% for m in messages %}{{ '{{' + m.role + '}}\u3000\"\"\"\n' + m.content + '\"\n{' }}{% endfor %}\r\\n\"{",
}
FROM_TRL = ("cohere2", "deepseekv3", "gemma", "gemma3", "gptoss", "llama3", "llama3_2", "phi3", "qwen2_5", "qwen3",
            "qwen3_5_think", "qwen3_instruct_2507")  # fmt: skip
WITHOUT_TEXT = {"idefics3", "llava_next", "smolvlm"}  # contents must be lists with images
needs_trl = pytest.mark.skipif(TRL is None, reason="trl, whose template files are read, is not installed")
Harness = Callable[[str, list[Conversation]], dict[str, Any]]


@pytest.fixture(scope="session")
def run_go(tmp_path_factory: pytest.TempPathFactory) -> Harness:
    """A function that executes a Modelfile's template over conversations, with Go's own text/template."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed (on Debian: apt-get install golang-go)")
    program = tmp_path_factory.mktemp("go") / "prompts"
    subprocess.run(["go", "build", "-o", program, "main.go"], cwd=ROOT / "tests" / "support" / "ollama", check=True)

    def run(text: str, conversations: list[Conversation]) -> dict[str, Any]:
        rows = [[{"role": m.role, "content": m.content} for m in turns] for turns in conversations]
        given = json.dumps({"modelfile": text, "conversations": rows})
        done = subprocess.run([program], input=given, capture_output=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return run


@pytest.fixture(scope="session")
def with_template(demo_folder: Path) -> Callable[[str], ChatTokenizer]:
    """A function that returns the demo's tokenizer with a chat template, and with its markers as special tokens."""
    demo = load_tokenizer(demo_folder)

    def make(template: str) -> ChatTokenizer:
        inner = copy.deepcopy(demo.inner)
        inner.add_tokens(sorted({"<s>", "</s>", *MARKER.findall(template)}), special_tokens=True)
        inner.bos_token, inner.eos_token = "<s>", "</s>"
        return ChatTokenizer(inner, demo.folder, template)

    return make


def template_named(name: str) -> str:
    return SHORT[name] if name in SHORT else (TEMPLATES / f"{name}.jinja").read_text("utf-8")


def prompts_differ(tokenizer: ChatTokenizer, system: str | None, run_go: Harness) -> list[str]:
    """Return the prompts of Go, for a training with the system prompt `system`, whose token IDs are not the training's."""
    conversations = list(check.conversations())
    bos = tokenizer.render_text([Message("user", "x")], True, DATE).startswith("<s>")
    text = modelfile(tokenizer, ChatSettings(system, DATE), "model.gguf", bos, 4096).text
    prompts = ["<s>" * bos + prompt for prompt in run_go(text, conversations)["prompts"]]
    found = [ids for ids, _spans in tokenizer.encode_many(prompts)]
    wanted = [tokenizer.prompt_ids(turns, DATE, system) for turns in conversations]
    return [prompt for prompt, ids, others in zip(prompts, found, wanted, strict=True) if ids != others]


@pytest.mark.parametrize("name", [*SHORT, *(pytest.param(name, marks=needs_trl) for name in FROM_TRL)])
def test_go_gives_the_token_ids_of_the_training(
    name: str, with_template: Callable[[str], ChatTokenizer], run_go: Harness
) -> None:
    tokenizer = with_template(template_named(name))
    for system in (None, '"你是律师。"\n只回答法律问题。\n"x"'):
        assert not prompts_differ(tokenizer, system, run_go)


@pytest.mark.parametrize("name", SHORT)
def test_a_system_prompt_that_a_modelfile_cannot_hold_is_in_the_template(
    name: str, with_template: Callable[[str], ChatTokenizer], run_go: Harness
) -> None:
    assert not prompts_differ(with_template(template_named(name)), '宽　空格 """ {{ .System }}\n', run_go)


def test_the_demo_with_its_default_system_prompt(demo_folder: Path, run_go: Harness) -> None:
    tokenizer = load_tokenizer(demo_folder)
    conversations = list(check.conversations())
    made = modelfile(tokenizer, ChatSettings(), "demo-q8_0.gguf", False, 2048)
    found = run_go(made.text, conversations)
    assert not made.notes
    assert "SmolLM" in found["prompts"][0]
    for turns, prompt in zip(conversations, found["prompts"], strict=True):
        assert tokenizer.encode_with_offsets(prompt)[0] == tokenizer.prompt_ids(turns, DATE)
    commands = [command for command in found["commands"] if command[0] != "template"]
    assert commands == [["from", "./demo-q8_0.gguf"], ["stop", "<|im_end|>"], ["num_ctx", "2048"]]


def test_the_conversations_cover_lengths_languages_and_letters_of_templates() -> None:
    conversations = list(check.conversations())
    assert len(conversations) == len({tuple(m.content for m in turns) for turns in conversations}) == 200
    assert {sum(m.role == "user" for m in turns) for turns in conversations} == {1, 2, 3, 4, 5, 6}
    assert 90 <= sum(turns[0].role == "system" for turns in conversations) <= 110
    for role in ("system", "user", "assistant"):
        assert {m.content for turns in conversations for m in turns if m.role == role} == set(check.TEXTS)
    assert all(m.content == m.content.strip() for turns in conversations for m in turns)


@needs_trl
def test_every_template_of_trl_for_text_has_a_faithful_form(with_template: Callable[[str], ChatTokenizer]) -> None:
    refused, tokenizer = set(), with_template(CHATML)
    for path in TEMPLATES.glob("*.jinja"):
        if path.stem.endswith("_training"):
            continue
        try:
            check.faithful_format(ChatTokenizer(tokenizer.inner, tokenizer.folder, path.read_text("utf-8")), DATE)
        except ExportError:
            refused.add(path.stem)
    assert refused == WITHOUT_TEXT


@pytest.mark.parametrize(
    ("template", "found"),
    [
        ("{% for m in messages %}[Round {{ loop.index }}] {{ m.content }}\n{% endfor %}", "messages, at character"),
        ("{% for m in messages %}{{ m.content | replace('第二行', '') }}|{% endfor %}", r"in the training, '第二行"),
        ("{% for m in messages %}{{ m.content | upper }}|{% endfor %}", "no message of the role user"),
        ("{{ messages[-1].content }}", "no message of the role user"),
        ("{% if messages | length > 9 %}{{ raise_exception('long') }}{% endif %}" + CHATML, "chat template: long"),
        ("{% set f = '%d %b' %}{{ strftime_now(f) }}" + CHATML, "the date of the day"),
    ],
    ids=["number of the turn", "words", "upper case", "last message only", "length", "date"],
)
def test_a_template_without_a_faithful_form_is_refused(
    template: str, found: str, with_template: Callable[[str], ChatTokenizer]
) -> None:
    with pytest.raises(ExportError, match="cannot be written as a template of Ollama") as caught:
        check.faithful_format(with_template(template), DATE)
    assert re.search(found, str(caught.value.found))
    assert "--to gguf" in str(caught.value.fix)


def test_a_date_in_the_template_is_that_of_the_training(with_template: Callable[[str], ChatTokenizer]) -> None:
    tokenizer = with_template("{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}" + CHATML)
    assert check.faithful_format(tokenizer, "01 Feb 2025")[0].start.startswith("01 Feb 2025<|im_start|>user")


def test_a_bos_token_that_ollama_would_add_must_be_in_the_chat_template(
    with_template: Callable[[str], ChatTokenizer],
) -> None:
    with pytest.raises(ExportError, match="cannot be written") as caught:
        modelfile(with_template(CHATML), ChatSettings(), "model.gguf", True, 4096)
    assert "bos token" in str(caught.value.found)
    text = modelfile(with_template(SHORT["mistral"]), ChatSettings(), "model.gguf", False, 4096).text
    assert 'TEMPLATE """{{ if $.System }}<s>[INST] ' in text


@pytest.mark.parametrize(
    ("template", "notes"),
    [
        (CHATML, []),
        ("{% if tools %}{{ tools }}{% endif %}" + CHATML, ["Tools"]),
        (CHATML.replace("m.content", "m.content | trim"), ["white space"]),
        (CHATML.replace("m.content", "m.content.split('</think>')[-1].lstrip()"), ["white space", "thoughts"]),
    ],
    ids=["none", "tools", "white space", "thoughts"],
)
def test_notes_say_what_the_go_template_does_not_do(
    template: str, notes: list[str], with_template: Callable[[str], ChatTokenizer]
) -> None:
    found = check.faithful_format(with_template(template), DATE)[1]
    assert len(found) == len(notes)
    assert all(word in note for word, note in zip(notes, found, strict=True))


def test_a_system_message_of_the_user_replaces_that_of_the_training(
    with_template: Callable[[str], ChatTokenizer], run_go: Harness
) -> None:
    for system in ("你是律师。", "你是　律师。"):
        made = modelfile(with_template(CHATML), ChatSettings(system), "model.gguf", False, 4096)
        own = [Message("system", "You are a cook."), Message("user", "x")]
        without, found = run_go(made.text, [own[1:], own])["prompts"]
        assert without.startswith(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nx<|im_end|>")
        assert found.startswith("<|im_start|>system\nYou are a cook.<|im_end|>\n<|im_start|>user\nx<|im_end|>")
        assert ("SYSTEM" in made.text) == ("\u3000" not in system)


def test_a_system_prompt_is_written_as_the_chat_template_writes_it(
    with_template: Callable[[str], ChatTokenizer], run_go: Harness
) -> None:
    trims = with_template(CHATML.replace("m.content", "m.content | trim"))
    assert 'SYSTEM """你是律师。"""' in modelfile(trims, ChatSettings(" 你是律师。\n"), "m.gguf", False, 1).text
    assert (
        'SYSTEM """ 你是律师。\n"""'
        in modelfile(with_template(CHATML), ChatSettings(" 你是律师。\n"), "m.gguf", False, 1).text
    )
    changes = with_template(CHATML.replace("m.content", "m.content | replace('　', ' ')"))
    with pytest.raises(ExportError, match="cannot be written"):
        modelfile(changes, ChatSettings("你是　律师。"), "m.gguf", False, 1)


def test_a_last_answer_is_continued_and_a_first_one_has_an_empty_question(
    with_template: Callable[[str], ChatTokenizer], run_go: Harness
) -> None:
    """Ollama removes the oldest messages of a conversation that is too long, so that an answer may be the first."""
    made = modelfile(
        with_template(CHATML.replace("m.role == 'assistant' and", "false and")), ChatSettings(), "m.gguf", False, 1
    )
    begun, cut = run_go(
        made.text,
        [[Message("user", "x"), Message("assistant", "y")], [Message("assistant", "y"), Message("user", "z")]],
    )["prompts"]
    question, answer = "<|im_start|>user\n{}<|im_end|>\n", "<|im_start|>assistant\n"
    assert begun == question.format("x") + answer + "y"
    assert cut == question.format("") + answer + "y<|im_end|>\n" + question.format("z") + answer


def test_texts_of_a_template_are_written_as_they_are_where_go_and_ollama_keep_them() -> None:
    texts = ChatFormat("<s>A", "<s>B", "C 法\n", "D", "E", "F", False)
    text = go_template(texts, "<s>")
    assert text.startswith("{{ if $.System }}B{{ $.System }}C 法\n{{ else }}A{{ end }}")
    odd = ChatFormat("{{", "x{", '"""', "\u3000", '\\"\n\u200b', "F", False)
    assert '{{ "{{" }}' in go_template(odd)
    assert '{{ "\\U00003000" }}' in go_template(odd)


def test_the_format_renders_as_the_training_places_a_system_prompt() -> None:
    turns = place_system([Message("user", "x"), Message("assistant", "y"), Message("user", "z")], "s", True)
    texts = ("<", "<<", "::", "|", "/", ">")
    assert ChatFormat(*texts, system_last=False).render(turns) == "<<s::x|y/z>"
    assert ChatFormat(*texts, system_last=True).render(turns) == "<x|y/s::z>"
