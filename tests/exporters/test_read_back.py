"""What was written is read back: layers, settings as llama.cpp reads them, and Modelfiles."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.gguf_models import make_source

from lorafit.engines.tokenizer import load_tokenizer
from lorafit.errors import ExportError
from lorafit.exporters.certificate import Ends
from lorafit.exporters.chat_files import require_plain
from lorafit.exporters.gguf.runtime import LlamaCpp
from lorafit.exporters.gguf.settings_check import require_settings_in
from lorafit.exporters.gguf.write import write_gguf
from lorafit.exporters.measure import _require_end
from lorafit.exporters.ollama.go_template import execute
from lorafit.exporters.ollama.modelfile import modelfile
from lorafit.exporters.ollama.read_back import require_modelfile
from lorafit.exporters.products import Product, add, probe_vector, product, require_same_layers
from lorafit.run_folders.adapter import ChatSettings

NAMES = {"a": "a.weight", "b": "b.weight"}
MESSAGES = [{"Role": "user", "Content": "q"}, {"Role": "assistant", "Content": "a"}]
needs_llama_cpp = pytest.mark.skipif(find_spec("xllamacpp") is None, reason="xllamacpp is not installed")


def layers(scale: float = 1.0, base: float = 1.0, names: str = "ab") -> dict[str, Product]:
    """Return the products of two layers by module."""
    random = np.random.default_rng(0)
    weight, delta = (random.standard_normal((6, 8)).astype(np.float32) for _part in range(2))
    return {name: product(np.float32(base) * weight, np.float32(0.02 * scale) * delta) for name in names}


def files(**changes: Any) -> dict[str, Product]:
    return {NAMES[name]: one for name, one in layers(**changes).items()}


def test_the_same_layers_pass_and_blocks_of_rows_are_one_layer() -> None:
    require_same_layers(files(), layers(), NAMES, "none")
    found: dict[str, Product] = {}
    whole = np.arange(24, dtype=np.float32).reshape(6, 4)
    for rows in (slice(0, 2), slice(2, 6)):
        add(found, "x", product(whole[rows], whole[rows]))
    assert np.allclose(found["x"].weight, whole @ probe_vector(4))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (files(scale=0.99), "a: adapter 1.0%"),
        (files(base=1.01), "a: base 1.0%"),
        (files(names="a"), "b: without the adapter"),
        (files(scale=float("nan")), "a: adapter nan"),
    ],
)
def test_another_scale_another_base_and_a_missing_layer_are_refused_by_name(
    found: dict[str, Product], said: str
) -> None:
    with pytest.raises(ExportError, match="not those") as refused:
        require_same_layers(found, layers(), NAMES, "none")
    assert said in str(refused.value.found)


def test_the_noise_of_another_rounding_to_4_bits_passes_and_the_base_before_it_does_not() -> None:
    require_same_layers(files(base=1.02), layers(), NAMES, "4bit")
    with pytest.raises(ExportError):
        require_same_layers(files(base=1.09), layers(), NAMES, "4bit")


@pytest.mark.parametrize(("live", "export", "ends"), [(3, 0, True), (4, 0, False), (4, 1, True), (12, 2, False)])
def test_a_few_lost_ends_say_nothing(live: int, export: int, ends: bool) -> None:
    found = Ends(3, 20, live, export)
    if ends:
        _require_end(found)
        return
    with pytest.raises(ExportError, match="do not end"):
        _require_end(found)


def test_a_template_with_tags_of_transformers_is_refused() -> None:
    require_plain("{% for m in messages %}{% if m.x %}{% continue %}{% endif %}{{ m.content }}{% endfor %}")
    with pytest.raises(ExportError, match="cannot read"):
        require_plain("{% generation %}{{ x }}{% endgeneration %}")


@needs_llama_cpp
@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("gemma3", {"sliding_window": 4096}, "attention.sliding_window: 8 != 4096"),
        ("gemma2", {"attn_logit_softcapping": 30.0}, "attn_logit_softcapping: 50.000000 != 30.0"),
        ("qwen3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope.scaling.type: None"),
        ("llama", {"rms_norm_eps": 1e-5}, "layer_norm_rms_epsilon"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "!="),
    ],
)  # fmt: skip
def test_settings_that_short_texts_do_not_show_are_compared(
    family: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    source = make_source(family, tmp_path / "model")
    report = write_gguf(source, tmp_path / "a.gguf", "f16")
    numbers = sum(int(np.prod(tensor.shape)) for tensor in report.tensors)
    with LlamaCpp(report.path, 64) as model:
        require_settings_in(model, source.config, numbers, "model")
        with pytest.raises(ExportError, match="other settings") as refused:
            require_settings_in(model, {**source.config, **change}, numbers, "model")
    assert said in str(refused.value.found)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ('a{{ "b\\n\\"}}\\U00003000" }}c', 'ab\n"}}\u3000c'),
        ("{{ if .System }}s{{ .System }}{{ else }}none{{ end }}", "none"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ .Role }}{{ .Content }};{{ end }}", "0userq;1assistanta;"),
        ('{{ $last := "" }}{{ range $i, $m := .Messages }}{{ $last = .Role }}{{ end }}{{ $last }}', "assistant"),
        ('{{ range $i, $m := .Messages }}{{ if eq .Role "user" }}u{{ else if eq .Role "x" }}x{{ else }}o{{ end }}{{ end }}', "uo"),
        ("{{ range $i, $m := .Messages }}{{ if and $.Messages (eq $i 1) }}last{{ end }}{{ end }}", "last"),
    ],
)  # fmt: skip
def test_the_part_of_gos_templates_that_modelfiles_use(template: str, wanted: str) -> None:
    assert execute(template, {"System": "", "Messages": MESSAGES}) == wanted


@pytest.mark.parametrize(
    "template", ["{{ if .System }}", "{{ .Tools }}", "{{ range .Messages }}{{ end }}", '{{ len "a" }}']
)
def test_a_template_of_another_kind_is_an_error(template: str) -> None:
    with pytest.raises((ValueError, LookupError)):
        execute(template, {"System": "x", "Messages": MESSAGES})


@pytest.mark.parametrize(
    ("old", "new", "command"),
    [
        ("FROM ./model.gguf", "FROM ./other.gguf", "FROM"),
        ("<|im_start|>assistant", "<|im_start|>bot", "TEMPLATE"),
        ("{{ .Content }}", "{{ .Text }}", "TEMPLATE"),
        ("{{ end }}{{ end }}", "{{ end }}", "TEMPLATE"),
        ('PARAMETER stop "<|im_end|>"\n', "", "stop"),
        ('stop "<|im_end|>"', 'stop "<|end|>"', "stop"),
        ('SYSTEM """只回答法律问题。"""\n', "", "TEMPLATE"),
    ],
)
def test_a_wrong_modelfile_is_refused_by_its_command(
    old: str, new: str, command: str, demo_folder: Path, tmp_path: Path
) -> None:
    tokenizer, chat = load_tokenizer(demo_folder), ChatSettings("只回答法律问题。")
    path = tmp_path / "Modelfile"
    (tmp_path / "model.gguf").touch()
    text = modelfile(tokenizer, chat, "model.gguf", False, 2048).text
    path.write_text(text, "utf-8")
    require_modelfile(path, tokenizer, chat, False)
    assert old in text
    path.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(ExportError, match="Modelfile") as refused:
        require_modelfile(path, tokenizer, chat, False)
    assert command in refused.value.what
