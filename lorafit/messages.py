"""In which language does the program speak? gettext, English in the code, Chinese in locale/.

`_("text")` translates at the moment of the call, so the language must be set before anything is printed. What it returns
knows what it was made of: kept as a recipe (JSON), it can be said again in the language of whoever reads it later.
"""

import gettext
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")
_catalogues = {"zh": "zh_CN"}
_translation: gettext.NullTranslations = gettext.NullTranslations()
_language = "en"


def language_of(environ: dict[str, str] | os._Environ[str] = os.environ) -> str:
    """The language that the environment asks for: LORAFIT_LANG, then the locale's variables in POSIX order."""
    for name in ("LORAFIT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def set_language(language: str | None = None) -> str:
    """Speak `language` ("en" or "zh"; None: as the environment asks) from now on, and return it."""
    global _translation, _language
    _language = language or language_of()
    folder = Path(__file__).parent / "locale"
    catalogue = _catalogues.get(_language)
    _translation = gettext.translation("lorafit", folder, [catalogue]) if catalogue else gettext.NullTranslations()
    return _language


def language() -> str:
    """The language spoken now."""
    return _language


def _(text: str) -> str:
    """`text` in the language spoken now."""
    return _said(translate(text), {"text": text})


def joined(between: str, parts: Iterable[str]) -> str:
    """`parts` one after the other with `between` in between, as str.join()."""
    parts = list(parts)
    return _said(between.join(parts), {"between": recipe_of(between), "parts": [recipe_of(part) for part in parts]})


def listed(parts: Iterable[str]) -> str:
    """`parts` one after the other, with this language's comma between."""
    return joined(_(", "), parts)


def clauses(parts: Iterable[str]) -> str:
    """`parts` one after the other, with this language's semicolon between."""
    return joined(_("; "), parts)


def labelled(label: str, text: str) -> str:
    """`label: text`, with this language's colon."""
    return _("{label}: {text}").format(label=label, text=text)


def aside(text: str, more: str) -> str:
    """`text`, and `more` in brackets after it."""
    return _("{text} ({more})").format(text=text, more=more)


def translate(text: str) -> str:
    """A text that is not written at the call: the help of a setting (`what`, `how` and `Field` mark it)."""
    return _translation.gettext(text)


def noted(text: str) -> str:
    """`text` as it is, to be kept as a fact: it stands in the catalogue, and translate() says it."""
    return text


class Said(str):
    """A text in one language, with the recipe for another."""

    recipe: dict[str, Any]

    def format(self, *args: object, **facts: object) -> str:
        recipe = {**self.recipe, "with": {name: recipe_of(fact) for name, fact in facts.items()}}
        return _said(super().format(*args, **facts), recipe)


def _said(text: str, recipe: dict[str, Any]) -> Said:
    said = Said(text)
    said.recipe = recipe
    return said


def recipe_of(fact: object) -> Any:
    """JSON from which again() says `fact`; numbers and words that nobody translates stand for themselves."""
    if isinstance(fact, Said):
        return fact.recipe
    return fact if isinstance(fact, int | float | str) else str(fact)


def retranslate(recipe: Any) -> Any:
    """What `recipe` stands for, in the language spoken now. Raises LookupError, TypeError or ValueError for a broken one."""
    if not isinstance(recipe, dict):
        return recipe
    if "parts" in recipe:
        return joined(retranslate(recipe["between"]), [str(retranslate(part)) for part in recipe["parts"]])
    text = _said(translate(recipe["text"]), {"text": recipe["text"]})
    return (
        text.format(**{name: retranslate(fact) for name, fact in recipe["with"].items()}) if "with" in recipe else text
    )
