"""Messages in the user's language by gettext: English in the code, Chinese in locale/.

`_("text")` translates when it is called, so the language must be set before anything is printed. It returns a `TranslatedText` with
a recipe (JSON), from which retranslate() makes the text again in another language.
"""

import contextlib
import gettext
import io
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")
OLDER = "lorafit-0.1"  # the catalog of texts that only the plan.json files of version 0.1 hold
_catalogues = {"zh": "zh_CN"}
_translation: gettext.NullTranslations = gettext.NullTranslations()
_language = "en"


def language_of(environ: dict[str, str] | os._Environ[str] = os.environ) -> str:
    """Return the language set in `environ`: by LORAFIT_LANG, then by the locale variables in POSIX order."""
    for name in ("LORAFIT_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def set_language(language: str | None = None) -> str:
    """Set the current language ("en" or "zh"; None: from the environment) and return it."""
    global _translation, _language
    _language = language or language_of()
    folder = Path(__file__).parent / "locale"
    catalogue = _catalogues.get(_language)
    _translation = gettext.translation("lorafit", folder, [catalogue]) if catalogue else gettext.NullTranslations()
    if catalogue:
        _translation.add_fallback(gettext.translation(OLDER, folder, [catalogue]))
    return _language


def language() -> str:
    """Return the current language."""
    return _language


@contextlib.contextmanager
def speaking(other: str) -> Iterator[None]:
    """Inside, the current language is `other`."""
    before = _language
    set_language(other)
    try:
        yield
    finally:
        set_language(before)


def _(text: str) -> str:
    """Return `text` in the current language."""
    return _with_recipe(translate(text), {"text": text})


def joined(between: str, parts: Iterable[str]) -> str:
    """Return `parts` joined by `between`, as str.join() does."""
    parts = list(parts)
    return _with_recipe(
        between.join(parts), {"between": recipe_of(between), "parts": [recipe_of(part) for part in parts]}
    )


def listed(parts: Iterable[str]) -> str:
    """Return `parts` joined by the language's comma."""
    return joined(_(", "), parts)


def phrases(parts: Iterable[str]) -> str:
    """Return `parts` joined by the comma between clauses, which in Chinese differs from that of listed()."""
    return _chained(parts, noted("{first}, {second}"))


def sentences(parts: Iterable[str]) -> str:
    """Return whole sentences in a row, with a space between them in English and none in Chinese."""
    return _chained(parts, noted("{first} {second}"))


def _chained(parts: Iterable[str], pair: str) -> str:
    first, *rest = list(parts) or [""]
    for part in rest:
        first = _with_recipe(translate(pair), {"text": pair}).format(first=first, second=part)
    return first


def clauses(parts: Iterable[str]) -> str:
    """Return `parts` joined by the language's semicolon."""
    return joined(_("; "), parts)


def labelled(label: str, text: str) -> str:
    """Return `label: text` with the language's colon."""
    return _("{label}: {text}").format(label=label, text=text)


def aside(text: str, more: str) -> str:
    """Return `text` followed by `more` in parentheses."""
    return _("{text} ({more})").format(text=text, more=more)


def translate(text: str) -> str:
    """Return the translation of a text that is not a literal at the call, such as the help of a setting.

    Calls of `what`, `how`, `Field` and `noted` mark these texts for the catalog.
    """
    return _translation.gettext(text)


def noted(text: str) -> str:
    """Return `text` unchanged. The call marks it for the catalog, so that translate() can translate it later."""
    return text


def use_utf8() -> None:
    """Let stdin, stdout and stderr use UTF-8 in a process that another process of lorafit reads and writes."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def utf8_words(words: Iterable[str]) -> list[bytes]:
    """Return the words of a command in UTF-8: Python itself fails on a translated word where the locale is ASCII."""
    return [word.encode("utf-8", "surrogateescape") for word in words]


class TranslatedText(str):
    """A text in one language, with the `recipe` that makes it in another language."""

    recipe: dict[str, Any]

    def format(self, *args: object, **facts: object) -> str:
        recipe = {**self.recipe, "with": {name: recipe_of(fact) for name, fact in facts.items()}}
        return _with_recipe(super().format(*args, **facts), recipe)


def _with_recipe(text: str, recipe: dict[str, Any]) -> TranslatedText:
    said = TranslatedText(text)
    said.recipe = recipe
    return said


def recipe_of(fact: object) -> Any:
    """Return JSON from which retranslate() makes `fact`; numbers and untranslated text represent themselves."""
    if isinstance(fact, TranslatedText):
        return fact.recipe
    return fact if isinstance(fact, int | float | str) else str(fact)


def retranslate(recipe: Any) -> Any:
    """Return the value of `recipe` in the current language.

    Raise LookupError, TypeError or ValueError for an invalid recipe.
    """
    if not isinstance(recipe, dict):
        return recipe
    if "parts" in recipe:
        return joined(retranslate(recipe["between"]), [str(retranslate(part)) for part in recipe["parts"]])
    text = _with_recipe(translate(recipe["text"]), {"text": recipe["text"]})
    return (
        text.format(**{name: retranslate(fact) for name, fact in recipe["with"].items()}) if "with" in recipe else text
    )
