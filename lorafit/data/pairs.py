"""Questions and answers under other names than the documented keys, as public data sets have them."""

from dataclasses import dataclass

from lorafit.data.conversation import BadRow
from lorafit.data.fields import Fields, keys_text
from lorafit.messages import _, listed

# Names in lower case. A question of a line goes with an answer of the same line.
NAMES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("instruction", "prompt", "question", "query", "q", "ask", "input", "problem", "inquiry", "inputs",
         "指令", "问题", "提问", "问", "输入", "咨询", "题目", "提示"),
        ("output", "response", "answer", "completion", "a", "reply", "solution", "targets",
         "输出", "答案", "回答", "答", "回复", "解答", "答复"),
    ),
    (
        ("human", "user", "patient", "client", "customer", "用户", "患者", "病人", "客户", "人类"),
        ("assistant", "bot", "gpt", "model", "doctor", "lawyer", "agent", "助手", "医生", "律师", "客服", "机器人"),
    ),
    (("src", "source", "source_text", "原文"), ("tgt", "target", "target_text", "译文")),
)  # fmt: skip
ALONE = (("context", "response"), ("document", "summary"), ("article", "highlights"), ("文章", "摘要"))
ORDERS = ("instruction", "prompt", "指令")  # names of a question that a further text may follow
INPUTS = ("input", "context", "输入")


@dataclass(frozen=True)
class Pair:
    """The keys of a row's question and answer, and of the text that follows the question, if there is one."""

    question: str
    answer: str
    input: str = ""


def find_pair(row: Fields) -> Pair | None:
    """Return the keys of the row's question and answer, or None. Raises BadRow if several readings are possible."""
    keys = {str(key).strip().casefold(): str(key) for key in row.row}
    found = [
        Pair(keys[question], keys[answer])
        for questions, answers in NAMES
        for question in questions
        for answer in answers
        if question in keys and answer in keys
    ]
    found = found or [Pair(keys[one], keys[other]) for one, other in ALONE if one in keys and other in keys]
    orders = [pair for pair in found if pair.question.strip().casefold() in ORDERS]
    rest = {pair.question.strip().casefold() for pair in found} - set(ORDERS)
    if len(orders) == 1 and rest <= set(INPUTS):
        further = next((keys[name] for name in INPUTS if name in keys), "")
        return Pair(orders[0].question, orders[0].answer, further)
    if len(found) > 1:
        ways = listed(f"--field_map {pair.question}=question,{pair.answer}=answer" for pair in found[:3])
        names = keys_text(dict.fromkeys(name for pair in found for name in (pair.question, pair.answer)))
        raise BadRow(_("question and answer are not clear, keys found: {found}; choose one of: {ways}").format(
            found=names, ways=ways))  # fmt: skip
    return found[0] if found else None
