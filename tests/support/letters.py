"""A tokenizer whose tokens can be counted by hand. It needs no tensor library, so that a process starts quickly."""

from collections.abc import Iterable, Sequence

from lorafit.data.conversation import Conversation


class Letters:
    """One token per character. A turn is the first letter of its role, its content and the end-of-turn token ■."""

    takes_system = True
    end_of_turn = "■"
    knows_thoughts = False
    generation_prompt = "a"
    thought_switch = None

    def render_text(self, messages: Conversation, add_generation_prompt: bool, date_string: str) -> str:
        return "".join(f"{turn.role[0]}{turn.content}■" for turn in messages) + "a" * add_generation_prompt

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return [ord(c) for c in text], [(i, i + 1) for i in range(len(text))]

    def encode_many(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        return [self.encode_with_offsets(text) for text in texts]

    def special_token_at(self, text: str, at: int) -> str:
        return ""

    def plain_text(self, text: str) -> str:
        return text

    def decode_with_special(self, ids: Iterable[int]) -> str:
        return "".join(map(chr, ids))
