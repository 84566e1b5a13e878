"""The language measure tells the languages apart that are in play."""

import pytest

from ftlib.model.language import LANGUAGES, detect_language

REASONING = {
    "English": "The user asks for the capital of France. Let me think about it for a moment.",
    "Spanish": "El usuario pregunta por la capital de Francia. Voy a pensarlo un momento.",
    "French": "L'utilisateur demande la capitale de la France. Je vais y réfléchir un instant.",
    "Italian": "L'utente chiede la capitale della Francia. Ci penso un momento.",
    "German": "Der Nutzer fragt nach der Hauptstadt von Frankreich. Ich denke kurz darüber nach.",
    "Portuguese": "O usuário pergunta qual é a capital da França. Vou pensar nisso por um momento.",
}
DUTCH = "Ik denk even na over de hoofdstad van Frankrijk."
CHINESE = "用户想知道法国的首都是什么。让我想一想。"


def test_each_language_is_recognised_and_no_other_is_guessed() -> None:
    assert {language: detect_language(text) for language, text in REASONING.items()} == {x: x for x in LANGUAGES}
    assert detect_language(DUTCH) in LANGUAGES


@pytest.mark.parametrize(("text", "language"), [(DUTCH, "Dutch"), (CHINESE, "CHINESE"), (DUTCH, " dutch ")])
def test_a_language_that_is_asked_for_is_considered(text: str, language: str) -> None:
    assert detect_language(text, ["Klingon", "", language]) == language.strip().title()
    assert detect_language(REASONING["Italian"], [language]) == "Italian"


@pytest.mark.parametrize("text", ["", "  \n", "2 + 3 = 5."])
def test_a_text_without_words_has_no_language(text: str) -> None:
    assert detect_language(text) == ""
