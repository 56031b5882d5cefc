"""One validation question, answered by the base model and by the fine-tuned model."""

from collections.abc import Iterator, Sequence

from lorafit.config import TrainConfig
from lorafit.data.conversation import Conversation
from lorafit.engines.base import Engine
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.errors import ModelError
from lorafit.evaluation.chat import Chat
from lorafit.events import Answered, Event, Stage, Warned
from lorafit.messages import _
from lorafit.models.positions import Positions
from lorafit.sampling import Sampling

SAMPLING = Sampling(temperature=0.0, max_new_tokens=120)


def show_answers(
    engine: Engine,
    tokenizer: ChatTokenizer,
    positions: Positions | None,
    conversations: Sequence[Conversation],
    config: TrainConfig,
    step: int,
) -> Iterator[Event]:
    """Yield the greedy answers to one validation question, with the adapter off and on.

    The question is the first conversation of exactly one user and one assistant message. Without one, yield nothing. If
    the question is longer than the model's positions, yield a warning.
    """
    questions = [turns[-2].content for turns in conversations if [t.role for t in turns] == ["user", "assistant"]]
    if not questions:
        return
    yield Stage(step=step, text=_("Asking the base and the fine-tuned model a validation question (not trained on)"))
    chat = Chat(
        engine,
        tokenizer,
        SAMPLING,
        system_prompt=config.system_prompt,
        date_string=config.date_string,
        has_adapter=True,
        positions=positions,
    )
    answers = {}
    try:
        for on in (False, True):
            chat.adapter_on = on
            answers[on] = chat.answer(questions[0])
    except ModelError as error:
        yield Warned(step=step, text=error.brief)
        return
    yield Answered(step=step, question=questions[0], base=answers[False], tuned=answers[True])
