"""`lorafit compare`: validation losses and answers of a base model and its adapters, notes on omissions, and the page.

The model is a tiny random Llama with the demo's tokenizer, trained for a few steps.
"""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from rich.cells import cell_len
from rich.console import Console
from support import tiny
from support.comparisons import BASE, comparison

from lorafit import api
from lorafit.cli.app import main
from lorafit.errors import AdapterError, ConfigError, DataError
from lorafit.evaluation.chat_request import ChatRequest
from lorafit.evaluation.compare import (
    Answer,
    answer_stats,
    questions_from_file,
    sample_losses,
)
from lorafit.evaluation.compare_request import CompareRequest
from lorafit.events import Finished, read_events
from lorafit.reporters.html.compare import comparison_page
from lorafit.reporters.terminal.compare import show_comparison
from lorafit.reporters.text.compare import lines, split_answer

Output = pytest.CaptureFixture[str]
SHORT = ["--num_samples", "2", "--max_new_tokens", "6"]


def rows(count: int) -> str:
    values = (
        {"question": f"第{i}个问题？", "answer": f"《民法典》第{i}条。" + "可以。" * (i % 4)} for i in range(count)
    )
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in values)


def trained(model: Path, folder: Path, **changes: object) -> Path:
    """Train with the rows in `folder`/rows.jsonl and return the run folder."""
    (folder / "rows.jsonl").write_text(rows(24), "utf-8")
    settings: dict[str, object] = {
        "model_name": model, "dataset_name": folder / "rows.jsonl", "max_steps": 6, "effective_batch": 4, "val_size": 5,
        "learning_rate": 0.05, "lora_r": 4, "max_length": 64, "output_dir": folder / "output", "lang": "en",
    }  # fmt: skip
    words = [word for name, value in {**settings, **changes}.items() for word in (f"--{name}", str(value))]
    before = set((folder / "output").glob("*"))
    assert main(["train", "--no_supervisor", *words]) == 0
    (run,) = set((folder / "output").glob("*")) - before
    return run


@pytest.fixture(scope="module")
def shared_run(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(chat_model, tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(shared_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, which a test may change."""
    return Path(shutil.copytree(shared_run, tmp_path / shared_run.name))


@pytest.fixture(scope="module")
def damaged(shared_run: Path, chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run whose base model has a damaged weight file, so that loading the model fails."""
    folder = tmp_path_factory.mktemp("damaged")
    base = shutil.copytree(chat_model, folder / "base")
    (base / "model.safetensors").write_bytes(b"damaged")
    run = Path(shutil.copytree(shared_run, folder / shared_run.name))
    for path in run.rglob("adapter_config.json"):
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    return run


# losses and statistics


def test_losses_are_those_of_transformers_and_a_plain_loop(tmp_path: Path) -> None:
    folder = tiny.save_model("llama", tmp_path)
    samples = tiny.make_samples(5)
    seen: list[tuple[int, int]] = []
    found = sample_losses(tiny.open_engine(folder, None), samples, lambda *place: seen.append(place))
    plain = transformers.AutoModelForCausalLM.from_pretrained(folder)
    for sample, loss in zip(samples, found, strict=True):
        ids = torch.from_numpy(sample.input_ids).long()
        with torch.no_grad():
            logits = plain(input_ids=ids[None]).logits[0]
        nats = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[1:], reduction="none")
        assert loss == pytest.approx(float(nats[torch.from_numpy(sample.target_mask)[1:]].sum()), rel=1e-5)
    assert seen[-1] == (5, 5)


def test_what_is_counted_about_answers() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rapidfuzz")
    answers = [Answer("《民法典》第一条", 9, False), Answer("《刑法》第二条规定", 6, True), Answer("不知道", 3, False)]
    found = answer_stats(answers, ["《民法典》第一条", "《民法典》第二条", None], [])
    assert (found.answers, found.citing, found.same_citation, found.truncated) == (3, 2, 1, 1)
    assert found.characters == pytest.approx((8 + 9 + 3) / 3)
    assert found.likeness is not None
    without = answer_stats(answers, [None] * 3, [])
    assert (without.same_citation, without.likeness) == (None, None)


# whole comparisons


def test_a_run_is_compared_with_its_base_on_the_rows_it_held_out(run: Path, capsys: Output) -> None:
    assert main(["compare", str(run), *SHORT]) == 0
    done = capsys.readouterr()
    finished = next(e for e in read_events(run / "events.jsonl") if isinstance(e, Finished))
    assert finished.valid_loss_before is not None
    assert finished.valid_loss_after is not None
    assert f"{finished.valid_loss_before:.4f}" in done.out
    assert f"{finished.valid_loss_after:.4f}" in done.out
    assert str(run / "compare.html") in done.out
    assert "\x1b" not in done.out
    html = (run / "compare.html").read_text("utf-8")
    assert f"{finished.valid_loss_after:.4f}" in html
    assert html.count('<article class="card question">') == 2


def test_comparing_again_gives_the_same_and_the_flag_is_as_good_as_the_name(run: Path, shared_run: Path) -> None:
    request = {"num_samples": 2, "max_new_tokens": 6}
    one = api.compare(CompareRequest(adapters=[str(run)], **request))
    again = api.compare(CompareRequest(lora_weights=str(run / "final_model"), **request))
    assert one == again
    assert one.base.answers != one.tuned[0].answers
    losses = one.tuned[0].losses
    assert losses is not None
    assert losses.rows == 5
    assert losses.difference is not None
    assert losses.difference.mean == pytest.approx(losses.tuned.mean - losses.base.mean)


def test_the_held_out_questions_are_asked_as_training_asked_them_and_chat_answers_the_same(run: Path) -> None:
    found = api.compare(CompareRequest(adapters=[str(run)], num_samples=3, max_new_tokens=6))
    asked = ChatRequest(lora_weights=str(run), temperature=0, max_new_tokens=6)
    chat = api.open_chat(asked)
    assert [chat.answer(q.text).strip() for q in found.questions] == [a.text for a in found.tuned[0].answers]
    chat.adapter_on = False
    assert [chat.answer(q.text).strip() for q in found.questions] == [a.text for a in found.base.answers]
    assert all(q.reference and q.reference.startswith("《民法典》") for q in found.questions)


def test_several_adapters_are_compared_with_one_base(run: Path, tmp_path: Path, capsys: Output) -> None:
    away = shutil.copytree(run / "final_model", tmp_path / "away")
    flags = ["-o", str(tmp_path / "new" / "page.html"), *SHORT]
    assert main(["compare", str(run), str(away), str(run / "best_model"), *flags]) == 0
    text = capsys.readouterr().out
    assert f"{run.name}/best_model" in text
    assert "away is not in a run folder" in text
    html = (tmp_path / "new" / "page.html").read_text("utf-8")
    assert html.count("<h4>") == 2 * 4


def test_a_bare_run_name_and_latest_mean_a_run_of_the_output_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    asked = {"temperature": 0, "max_new_tokens": 6}
    wanted = api.open_chat(ChatRequest(lora_weights=str(run), **asked)).answer("你好")
    for name in (run.name, "latest", f"{run.name}/final_model"):
        chat = api.open_chat(ChatRequest(adapter=[name], output_dir=str(tmp_path), **asked))
        assert chat.has_adapter
        assert chat.answer("你好") == wanted
    assert main(["chat", run.name, "--output_dir", str(tmp_path), "--prompt", "你好", "--max_new_tokens", "4"]) == 0
    capsys.readouterr()
    with pytest.raises(AdapterError, match="No adapter found"):
        api.open_chat(ChatRequest(adapter=[run.name], **asked))  # its output folder is another one
    with pytest.raises(AdapterError) as caught:
        api.open_chat(ChatRequest(adapter=[f"{run.name}x"], output_dir=str(tmp_path), **asked))
    assert run.name in str(caught.value.fix)


def test_the_page_of_a_run_compared_by_its_bare_name_does_not_stop_its_removal(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = ["--output_dir", str(tmp_path)]
    assert main(["compare", run.name, *folder, *SHORT]) == 0
    done = capsys.readouterr()
    assert f"validation set of {run.name}" in done.out
    assert (run / "compare.html").is_file()
    assert not list(Path().iterdir())
    assert main(["runs", "remove", run.name, "--yes", *folder]) == 0, capsys.readouterr().err
    assert not run.exists()


def test_an_adapter_without_its_run_only_answers(run: Path, tmp_path: Path) -> None:
    away = shutil.copytree(run / "final_model", tmp_path / "away")
    found = api.compare(CompareRequest(adapters=[str(away)], prompt="你好", max_new_tokens=4))
    assert found.tuned[0].losses is None
    assert "no validation loss" in found.notes[0]
    with pytest.raises(ConfigError, match="No validation questions"):
        api.compare(CompareRequest(adapters=[str(away)]))


def test_the_loss_is_left_out_where_the_data_are_missing_or_changed(
    run: Path, shared_run: Path, tmp_path: Path
) -> None:
    data, settings = tmp_path / "rows.jsonl", run / "config.yaml"
    data.write_text(rows(24), "utf-8")
    settings.write_text(settings.read_text("utf-8").replace(str(shared_run.parents[1] / data.name), str(data)), "utf-8")
    request = CompareRequest(adapters=[str(run)], prompt="你好", max_new_tokens=4)
    assert api.compare(request).tuned[0].losses is not None
    data.write_text(rows(30), "utf-8")
    other = api.compare(request)
    assert other.tuned[0].losses is None
    assert "changed after training" in other.notes[0]
    assert f"{data}: rows: 24, sha256 " in other.notes[0]
    data.unlink()
    gone = api.compare(request)
    assert gone.tuned[0].losses is None
    assert str(data) in gone.notes[0]


def test_validation_rows_of_their_own_and_a_template_of_the_users_are_found_again(
    chat_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "valid.jsonl").write_text(rows(30).split("\n", 24)[24], "utf-8")
    (tmp_path / "chat.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        "utf-8",
    )
    own = {"valid_dataset": tmp_path / "valid.jsonl", "chat_template": tmp_path / "chat.jinja"}
    found = api.compare(CompareRequest(adapters=[str(trained(chat_model, tmp_path, **own))], max_new_tokens=4))
    losses = found.tuned[0].losses
    assert losses is not None
    assert losses.rows == 6
    assert sorted(q.text for q in found.questions) == [f"第{i}个问题？" for i in range(24, 30)]


def test_runs_with_other_validation_rows_get_a_note(shared_run: Path, chat_model: Path, tmp_path: Path) -> None:
    other = trained(chat_model, tmp_path, val_size=3)
    found = api.compare(CompareRequest(adapters=[str(shared_run), str(other)], prompt="你好", max_new_tokens=4))
    assert "different validation rows" in found.notes[0]
    assert [side.losses.rows for side in found.tuned if side.losses] == [5, 3]
    held_out = next(line for line in lines(found) if line.label == "validation loss")
    assert held_out.cells[0].text == ""
    assert all("→" in cell.text for cell in held_out.cells[1:])


def test_a_file_with_answers_has_references_and_a_text_file_has_none(run: Path, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(rows(3), "utf-8")
    (tmp_path / "q.txt").write_text("一\n\n二\n", "utf-8")
    common = {"adapters": [str(run)], "max_new_tokens": 4}
    data = api.compare(CompareRequest(test_file=str(tmp_path / "q.jsonl"), num_samples=2, **common))
    assert [q.text for q in data.questions] == ["第0个问题？", "第1个问题？"]
    assert data.base.stats.same_citation is not None
    text = api.compare(CompareRequest(test_file=str(tmp_path / "q.txt"), **common))
    assert [q.reference for q in text.questions] == [None, None]
    assert text.base.stats.likeness is None
    assert not [line.label for line in lines(text) if "ROUGE-L" in line.label]


# wrong input


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], ["No run or adapter given"]),
        (["no/such/run"], ["no/such/run"]),
        (["RUN", "--prompt", "a", "--test_file", "b"], ["--prompt, --test_file cannot be used together"]),
        (["RUN", "--test_file", "no/such.jsonl"], ["no/such.jsonl"]),
        (["RUN", "--test_file", "empty.txt"], ["no question", "empty.txt"]),
        (["RUN", "--test_file", "empty.jsonl"], ["empty"]),
        (["RUN", "--num_samples", "0"], ["num_samples"]),
        (["RUN", "--num_sample", "3"], ["Did you mean `--num_samples`"]),
        (["RUN", "--output", "."], ["folder"]),
    ],
)
def test_wrong_input_is_reported_before_a_model_is_loaded(
    flags: list[str], words: list[str], damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n \n")
    Path("empty.jsonl").write_text("")
    assert main(["compare", *(str(damaged) if flag == "RUN" else flag for flag in flags)]) == 2
    text = capsys.readouterr().err
    assert all(word in text for word in words), text
    assert "Traceback" not in text
    assert "model.safetensors" not in text, "a model was loaded"


def test_a_damaged_base_model_is_named(damaged: Path, capsys: Output) -> None:
    assert main(["compare", str(damaged), *SHORT]) == 2
    text = capsys.readouterr().err
    assert "model.safetensors" in text
    assert "Traceback" not in text


def test_adapters_of_different_bases_are_refused(run: Path, tmp_path: Path) -> None:
    away = Path(shutil.copytree(run / "final_model", tmp_path / "away"))
    config = json.loads((away / "adapter_config.json").read_text())
    (away / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "other/base"}))
    with pytest.raises(AdapterError, match="different base models"):
        api.compare(CompareRequest(adapters=[str(run), str(away)]))


def test_a_row_without_an_answer_is_named_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text(rows(2) + '{"question": "没有答案"}\n', "utf-8")
    with pytest.raises(DataError) as caught:
        questions_from_file(tmp_path / "q.jsonl")
    assert str(caught.value.where).endswith("q.jsonl:3")


def test_all_turns_before_the_last_answer_are_asked(tmp_path: Path) -> None:
    turns = [
        {"role": r, "content": c} for r, c in (("user", "甲"), ("assistant", "乙"), ("user", "丙"), ("assistant", "丁"))
    ]
    (tmp_path / "q.jsonl").write_text(json.dumps({"messages": turns}), "utf-8")
    (question,) = questions_from_file(tmp_path / "q.jsonl")
    assert [turn.content for turn in question.turns] == ["甲", "乙", "丙"]
    assert (question.text, question.reference) == ("丙", "丁")


# the page and the terminal


def test_the_page_escapes_everything_and_asks_nothing_of_a_network() -> None:
    html = comparison_page(comparison("<img src=x>"))
    assert not re.search(r"<(script|img|b|note)\b", html)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert not re.search(r"https?:|\bsrc=|\bhref=|url\(|@import", html.replace("&lt;img src=x&gt;", ""))
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html


def test_the_page_marks_statutes_and_what_both_say() -> None:
    html = comparison_page(comparison())
    assert (
        '<mark class="agrees">《民法典》第一条</mark>&lt;b&gt;&amp;<mark class="differs">《刑法》第九条</mark>' in html
    )
    question, base = comparison().questions[0], Answer("我不是律师，建议去问", 9, False)
    assert split_answer(Answer(BASE, 9, False), question, base)[0] == ("我不是律师，建议", "same")
    assert [kind for _text, kind in split_answer(Answer(BASE, 9, False), question, None)] == ["plain"]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    show_comparison(comparison("llama-lora-20261124_075418"), console)
    text = out.getvalue()
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert "-0.9000" in text
    assert "[-1.0000, -0.8000]" in text


def test_a_pipe_gets_whole_lines_without_control_characters() -> None:
    out = io.StringIO()
    show_comparison(comparison(), Console(file=out, width=40))
    text = out.getvalue()
    assert "\x1b" not in text
    assert f"base: {BASE}" in text.splitlines()
    assert "⚠ <note>" in text.splitlines()
