"""A small comparison of a base model and one adapter."""

from lorafit.data.conversation import Message
from lorafit.engines.base import LossSum
from lorafit.evaluation.compare import (
    Answer,
    AnswerStats,
    Comparison,
    ModelResult,
    Question,
    ValidationLosses,
)
from lorafit.evaluation.metrics import LossDifference, ReferenceScores
from lorafit.sampling import Sampling

BASE, TUNED = "我不是律师，建议咨询专业人士。", "我不是律师。《民法典》第一条<b>&《刑法》第九条"


def comparison(name: str = "run") -> Comparison:
    """Return a comparison with one question, answered by the base model and by the adapter `name`."""
    figures = AnswerStats(1, 15.0, 0, 1, 1, ReferenceScores(12.0, 34.0))
    losses = ValidationLosses(20, LossSum(280.0, 100), LossSum(190.0, 100), LossDifference(-0.9, -1.0, -0.8))
    question = Question([Message("user", "<script>alert(1)</script>")], "《民法典》第一条")
    sides = (
        ModelResult("base", [Answer(BASE, 9, False)], figures),
        ModelResult(name, [Answer(TUNED, 9, True)], figures, losses),
    )
    return Comparison(
        "a/base", "cpu, fp32", "1 of 1 questions", Sampling(0.0), [question], sides[0], [sides[1]], ["<note>"]
    )
