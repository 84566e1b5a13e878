"""The measure: language by language, the same before and after, and low for the base as it is shipped."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib import data, evaluation, profiles
from ftlib.harmony import Reply
from ftlib.profiles import Generate

REASONING = {
    "English": "The user asks for the capital of France. Let me think about it for a moment.",
    "Spanish": "El usuario pregunta por la capital de Francia. Voy a pensarlo un momento.",
    "French": "L'utilisateur demande la capitale de la France. Je vais y réfléchir un instant.",
    "Italian": "L'utente chiede la capitale della Francia. Ci penso un momento.",
    "German": "Der Nutzer fragt nach der Hauptstadt von Frankreich. Ich denke kurz darüber nach.",
    "Portuguese": "O usuário pergunta qual é a capital da França. Vou pensar nisso por um momento.",
}
SETTINGS = Generate(max_new_tokens=8, batch_size=4)


def row(language: str, question: str, final: str) -> dict[str, Any]:
    said = [("system", f"reasoning language: {language}", None), ("user", question, None), ("assistant", final, "...")]
    messages = [{"content": content, "role": role, "thinking": thinking} for role, content, thinking in said]
    return {"reasoning_language": language, "user": question, "final": final, "messages": messages}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Puts a model in place that reasons in English, says the question back, and never ends what is odd."""
    batches: list[list[Any]] = []

    def parrot(model: object, tokenizer: object, conversations: Sequence[Any], max_new_tokens: int) -> list[Reply]:
        assert max_new_tokens == SETTINGS.max_new_tokens
        batches.append(list(conversations))
        questions = [messages[-1]["content"] for messages in conversations]
        return [Reply(REASONING["English"], text, "", "odd" not in text, raw="") for text in questions]

    monkeypatch.setattr(evaluation, "generate_replies", parrot)
    return batches


@pytest.mark.parametrize("language", REASONING)
def test_each_language_is_recognised(language: str) -> None:
    assert evaluation.detect_language(REASONING[language]) == language


def test_no_other_language_is_guessed() -> None:
    """Left to itself, py3langid knows 97 languages and takes short Spanish for Galician."""
    assert evaluation.detect_language("Ik denk even na over de hoofdstad van Frankrijk.") in evaluation.LANGUAGE_CODES


@pytest.mark.parametrize("text", ["", "  \n", "42", "2 + 3 = 5.", "…"])
def test_a_text_without_words_has_no_language(text: str) -> None:
    assert evaluation.detect_language(text) == ""


def test_replies_come_back_in_the_order_of_the_rows(asked: list[list[Any]]) -> None:
    questions = [f"{'very ' * (37 * number % 11)}long question {number}" for number in range(10)]
    rows = Dataset.from_list([row("Spanish", question, "4") for question in questions])
    results = evaluation.evaluate(None, None, rows, SETTINGS)  # type: ignore[arg-type]
    assert results["user"].tolist() == questions
    assert results["final"].tolist() == questions
    assert [len(batch) for batch in asked] == [4, 4, 2]
    lengths = [len(messages[-1]["content"]) for batch in asked for messages in batch]
    assert lengths == sorted(lengths), "prompts of like length go together"


def test_the_reference_reply_is_never_shown(asked: list[list[Any]]) -> None:
    rows = Dataset.from_list([row("Spanish", "What?", "the secret answer")])
    evaluation.evaluate(None, None, rows, SETTINGS)  # type: ignore[arg-type]
    assert [message["role"] for message in asked[0][0]] == ["system", "user"]
    assert "secret" not in str(asked)


def test_what_is_measured_of_a_reply(asked: list[list[Any]]) -> None:
    rows = [row("English", "five  is 5. ", "five is 5."), row("Spanish", "five", "Five"), row("German", "odd", "odd")]
    results = evaluation.evaluate(None, None, Dataset.from_list(rows), SETTINGS)  # type: ignore[arg-type]
    assert set(results.columns) == {
        "language", "user", "analysis", "final", "detected", "agrees", "exact", "complete",
    }  # fmt: skip
    assert results["language"].tolist() == ["English", "Spanish", "German"]
    assert set(results["detected"]) == {"English"}
    assert results["agrees"].tolist() == [True, False, False]
    assert results["exact"].tolist() == [True, False, True], "word for word, however it is spaced"
    assert results["complete"].tolist() == [True, True, False]


def test_an_empty_reasoning_agrees_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(model: object, tokenizer: object, conversations: Sequence[Any], max_new_tokens: int) -> list[Reply]:
        return [Reply("", "", "", False, raw="") for _ in conversations]

    monkeypatch.setattr(evaluation, "generate_replies", silent)
    rows = Dataset.from_list([row(language, "What?", "4") for language in REASONING])
    assert not evaluation.evaluate(None, None, rows, SETTINGS)["agrees"].any()  # type: ignore[arg-type]


def test_shares_by_language() -> None:
    results = pd.DataFrame(
        {
            "language": ["Spanish", "English", "Spanish", "English", "Spanish", "Spanish"],
            "agrees": [True, True, False, True, False, False],
            "exact": [True, False, True, False, True, True],
            "complete": [True, True, True, True, True, False],
        }
    )
    table = evaluation.by_language(results)
    assert table.columns.tolist() == ["language", "questions", "agreement", "exact", "complete"]
    assert table.to_numpy().tolist() == [["Spanish", 4, 0.25, 1.0, 0.75], ["English", 2, 1.0, 0.0, 1.0]]


def test_the_base_reasons_in_english_and_knows_the_answers(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What the adapter is there to change, and what it must keep; on 25 of the 120 questions, for the time's sake."""
    questions = data.held_out_questions().select(range(25))
    settings = profiles.load("tiny").generate.model_copy(update={"batch_size": 25})
    results = evaluation.evaluate(base_model, tokenizer, questions, settings)
    shares = evaluation.by_language(results).set_index("language")
    assert shares["questions"].tolist() == [5] * 5
    assert results["agrees"].mean() <= 0.30
    assert shares.loc["English", "agreement"] == 1
    assert results["exact"].mean() >= 0.80
    assert results["complete"].all()
