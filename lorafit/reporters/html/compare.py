"""The HTML page of a comparison; its template is compare.html."""

from lorafit.evaluation.compare import Comparison
from lorafit.messages import _, labelled
from lorafit.reporters.html.page import render
from lorafit.reporters.text import compare as words


def comparison_page(comparison: Comparison) -> str:
    """Return the comparison as HTML."""
    facts: dict[str, object] = {
        "title": words.title(comparison),
        "subtitle": words.subtitle(comparison),
        "names": [side.name for side in comparison.results],
        "lines": words.lines(comparison),
        "notes": comparison.notes,
        "questions": [_asked(comparison, place) for place in range(len(comparison.questions))],
        "questions_title": _("Questions and answers"),
        "legend": words.legend(comparison),
        "reference_title": labelled(_("reference"), ""),
    }
    return render("compare.html", facts)


def _asked(comparison: Comparison, place: int) -> dict[str, object]:
    """Return the template's values for one question."""
    question = comparison.questions[place]
    answers = [
        {
            "name": side.name,
            "pieces": words.answer_pieces(comparison, side, place),
            "note": words.answer_note(side.answers[place]),
        }
        for side in comparison.results
    ]
    return {"text": words.question_text(place + 1, question), "reference": question.reference, "answers": answers}
