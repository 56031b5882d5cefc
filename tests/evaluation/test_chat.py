"""Conversations: streaming of whole characters, the history, the transcript, and switching the adapter."""

from collections.abc import Iterator, Sequence
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafit.data.conversation import Conversation, Message
from lorafit.engines.base import Engine
from lorafit.errors import EngineError
from lorafit.evaluation.chat import BROKEN, WINDOW, Chat, text_pieces
from lorafit.sampling import Sampling

STOP = 256


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


class ByteTokens:
    """A tokenizer whose tokens are the bytes of UTF-8, so that a Chinese character takes three."""

    stop_ids = frozenset({STOP})

    def __init__(self) -> None:
        self.asked: list[tuple[Conversation, str, str | None]] = []

    def prompt_ids(self, messages: Conversation, date_string: str, system_prompt: str | None = None) -> list[int]:
        self.asked.append((messages, date_string, system_prompt))
        return list(messages[-1].content.encode())

    def decode(self, ids: list[int]) -> str:
        return decode(ids)


class Echo:
    """An engine that answers with the question, or with 基座 while the adapter is off."""

    def __init__(self) -> None:
        self.on = True
        self.sampling: Sampling | None = None

    def set_adapter(self, on: bool) -> None:
        self.on = on

    def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Iterator[int]:
        self.sampling = sampling
        if bytes(prompt_ids) == b"fail":
            raise EngineError("no")
        yield from prompt_ids if self.on else "基座".encode()


@pytest.fixture
def tokens() -> ByteTokens:
    return ByteTokens()


@pytest.fixture
def engine() -> Echo:
    return Echo()


@pytest.fixture
def chat(engine: Echo, tokens: ByteTokens) -> Chat:
    return Chat(
        cast(Engine, engine), tokens, Sampling(), date_string="26 Jul 2024", system_prompt="简短回答", has_adapter=True
    )


def test_a_chinese_character_split_over_tokens_comes_whole() -> None:
    assert list(text_pieces("你好, a".encode(), decode)) == ["你", "好", ",", " ", "a"]


def test_of_an_answer_cut_inside_a_character_only_that_one_is_missing() -> None:
    assert list(text_pieces("你好".encode()[:-1], decode)) == ["你"]


def test_a_character_across_the_end_of_the_window_comes_whole() -> None:
    text = "a" * (WINDOW - 1) + "法" * (2 * WINDOW)
    assert "".join(text_pieces(text.encode(), decode)) == text


@given(st.text(st.characters(codec="utf-8", exclude_characters=BROKEN), max_size=200), st.integers(1, 4))
@settings(deadline=None, max_examples=50)
def test_pieces_are_the_text_whatever_the_tokens(text: str, size: int) -> None:
    data = text.encode()
    vocabulary = [data[i : i + size] for i in range(0, len(data), size)]
    pieces = list(text_pieces(range(len(vocabulary)), lambda ids: decode([b for i in ids for b in vocabulary[i]])))
    assert "".join(pieces) == text
    assert not any(BROKEN in piece for piece in pieces)


def test_a_decoder_that_drops_the_first_space_loses_none_between_words() -> None:
    words = [f" w{i}" for i in range(3 * WINDOW)]
    pieces = text_pieces(range(len(words)), lambda ids: "".join(words[i] for i in ids).removeprefix(" "))
    assert "".join(pieces) == "".join(words)[1:]


def test_a_conversation_is_remembered_and_sent_again(chat: Chat, tokens: ByteTokens) -> None:
    assert "".join(chat.reply("一")) == "一"
    assert "".join(chat.reply("二")) == "二"
    messages, date_string, system_prompt = tokens.asked[-1]
    assert [m.role for m in messages] == ["user", "assistant", "user"]
    assert (date_string, system_prompt) == ("26 Jul 2024", "简短回答")


def test_the_transcript_is_a_row_that_training_reads(chat: Chat) -> None:
    list(chat.reply("一"))
    assert chat.transcript() == [Message("system", "简短回答"), Message("user", "一"), Message("assistant", "一")]


def test_reset_forgets(chat: Chat, tokens: ByteTokens) -> None:
    list(chat.reply("一"))
    chat.reset()
    list(chat.reply("二"))
    assert tokens.asked[-1][0] == [Message("user", "二")]


def test_an_interrupted_answer_is_remembered_as_far_as_it_was_shown(chat: Chat) -> None:
    pieces = chat.reply("一二三")
    assert next(pieces) == "一"
    pieces.close()
    assert chat.transcript()[-1] == Message("assistant", "一")


def test_a_question_that_failed_is_not_remembered(chat: Chat) -> None:
    with pytest.raises(EngineError):
        list(chat.reply("fail"))
    assert chat.transcript()[1:] == []


def test_answer_neither_sees_nor_changes_the_history(chat: Chat, tokens: ByteTokens) -> None:
    list(chat.reply("一"))
    before = chat.transcript()
    assert chat.answer("二") == "二"
    assert tokens.asked[-1][0] == [Message("user", "二")]
    assert chat.transcript() == before


def test_the_adapter_is_switched_off_and_on(chat: Chat) -> None:
    assert chat.adapter_on
    chat.adapter_on = False
    assert chat.answer("一") == "基座"
    chat.adapter_on = True
    assert chat.answer("一") == "一"


def test_the_tokenizers_stop_ids_end_an_answer(chat: Chat, engine: Echo) -> None:
    chat.answer("一")
    assert engine.sampling is not None
    assert engine.sampling.stop_ids == {STOP}
