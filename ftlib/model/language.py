"""The language measure: which language is a text written in?"""

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Always told apart: the published data set's languages, and one that it lacks.
LANGUAGES = ("English", "Spanish", "French", "Italian", "German", "Portuguese")


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


@cache
def known_languages() -> dict[str, str]:
    """English names of the languages that can be detected, by language code."""
    from babel import Locale

    names = Locale("en").languages
    return {code: names[code] for code in _identifier().labels if code in names}


def usual_name(language: str) -> str:
    """A language's name with its usual capitals, such as "French" for "FRENCH"."""
    return language.strip().title()


def detect_language(text: str, languages: Iterable[str] = ()) -> str:
    """Name the likeliest of `LANGUAGES` and `languages` that a text is in; "" for a text without words.

    py3langid counts character sequences and needs about a sentence. It knows over a hundred languages, and left to
    itself mistakes short Spanish for Galician.
    """
    if not any(character.isalpha() for character in text):
        return ""
    candidates = {*LANGUAGES, *map(usual_name, languages)}
    likeliest_first = (known_languages().get(code, "") for code, _ in _identifier().rank(text))
    return next(language for language in likeliest_first if language in candidates)
