"""In which language does the program speak? gettext, English in the code, Chinese in locale/.

`_("text")` translates at the moment of the call, so the language must be set before anything is printed.
"""

import gettext
import os
from collections.abc import Iterable
from pathlib import Path

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
    return _translation.gettext(text)


def listed(parts: Iterable[str]) -> str:
    """`parts` one after the other, with this language's comma between."""
    return _(", ").join(parts)


def clauses(parts: Iterable[str]) -> str:
    """`parts` one after the other, with this language's semicolon between."""
    return _("; ").join(parts)


def labelled(label: str, text: str) -> str:
    """`label: text`, with this language's colon."""
    return _("{label}: {text}").format(label=label, text=text)


def translate(text: str) -> str:
    """A text that is not written at the call: the help of a setting (`what`, `how` and `Field` mark it)."""
    return _translation.gettext(text)
