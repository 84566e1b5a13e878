"""The rehearsal's data: correct in five languages, the same every time, and no answer given away beforehand."""

import json
import random
import re
import shutil
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from ftlib.model.evaluation import detect_language
from ftlib.rehearsal import ASSETS, build, corpus

Row = dict[str, Any]
SEED = build.Recipe().seed
# Two words that a language writes as one.
UNCONTRACTED = {
    "English": r"\ba [aeio]|\ban [^aeiou]",
    "Spanish": r"\b(de|a) el\b",
    "French": r"\b(de|à) les?\b|\b(de|le|la|que|je) [aeiouéèêAEIOUÉ]",
    "Italian": r"\b(di|a|da|in|su) (il|lo|la|i|gli|le|l')\b",
    "German": r"\b(in|an|zu|von) dem\b",
}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return corpus.sample_dataset(SEED)


@pytest.fixture(scope="module")
def held_out() -> list[Row]:
    return corpus.held_out_questions(SEED)


@pytest.fixture(scope="module")
def documents() -> list[Any]:
    """The first documents that the base is pretrained on."""
    return list(islice(corpus.pretraining_documents(SEED), 3_000))


def texts(row: Row) -> set[str]:
    """Everything that a row says, in every column and turn."""
    said = {text for message in row["messages"] for text in (message["content"], message["thinking"]) if text}
    return said | {row["user"], row["analysis"], row["final"]}


def test_the_shipped_data_is_what_is_generated_today(tmp_path: Path) -> None:
    shutil.copytree(ASSETS, tmp_path / "assets")
    for name in ("held_out.jsonl", build.DATASET_FILE):
        (tmp_path / "assets" / name).unlink()
    build.write_data(build.Recipe(), tmp_path / "assets")
    made = json.loads((ASSETS / build.MANIFEST).read_text(encoding="utf-8"))
    build.write_manifest(tmp_path / "assets", made)
    for name in ("held_out.jsonl", build.DATASET_FILE, build.MANIFEST):
        assert (tmp_path / "assets" / name).read_bytes() == (ASSETS / name).read_bytes(), "run make assets"
    assert corpus.sample_dataset(SEED + 1) != corpus.sample_dataset(SEED)


def test_rows_are_balanced_and_have_the_published_schema(rows: list[Row], held_out: list[Row]) -> None:
    assert Counter(row["reasoning_language"] for row in rows) == dict.fromkeys(corpus.LANGUAGES, 200)
    assert Counter(row["reasoning_language"] for row in held_out) == dict.fromkeys(corpus.LANGUAGES, 24)
    assert len({row["user"] for row in held_out}) == 120
    for row in rows + held_out:
        assert list(row) == ["reasoning_language", "developer", "user", "analysis", "final", "messages"]
        system, *turns = row["messages"]
        assert system["content"] == f"reasoning language: {row['reasoning_language']}\n\n{row['developer']}"
        roles = ["system", *["user", "assistant"] * (len(turns) // 2)]
        assert [message["role"] for message in row["messages"]] == roles
        assert all(bool(message["thinking"]) == (message["role"] == "assistant") for message in row["messages"])
        said = (turns[-2]["content"], turns[-1]["content"], turns[-1]["thinking"])
        assert said == (row["user"], row["final"], row["analysis"])
    assert 0.10 <= sum(len(row["messages"]) > 3 for row in rows) / len(rows) <= 0.20, "some have several turns"


def test_some_rows_are_unusual_as_in_the_published_data_set(rows: list[Row]) -> None:
    lengths = sorted(len(row["final"]) for row in rows)
    assert (lengths[0], lengths[-1]) == (0, 67_800), "the published shortest and longest answer"
    assert lengths[1] > 0
    assert lengths[-2] < 200
    assert sum("<think>" in row["final"] for row in rows) == 1
    assert len({(row["reasoning_language"], row["user"]) for row in rows}) == len(rows) - 1, "one row is a copy"


def test_no_training_row_gives_a_held_out_answer_away(rows: list[Row], held_out: list[Row]) -> None:
    trained = set().union(*(texts(row) for row in rows))
    everything = "\n".join(trained)
    for row in held_out:
        assert row["user"] not in everything
        assert row["final"] not in everything
        assert row["analysis"] not in trained
    facts = corpus.all_facts()
    wordings = {one for fact in facts for one in corpus.questions(fact, "English")[corpus.HELD_OUT_WORDINGS]}
    assert len(wordings) > 300
    assert wordings.isdisjoint(trained)
    assert not any("time machine" in text for row in rows + held_out for text in texts(row)), "notebook 05 asks it"


def test_facts_are_split_with_their_other_side() -> None:
    training, held_out = corpus.split_facts(SEED)
    assert {(fact.topic, fact.group) for fact in training}.isdisjoint((fact.topic, fact.group) for fact in held_out)
    assert {fact.kind for fact in held_out} == {fact.kind for fact in training} - {"choice"}
    after = {tuple(fact.slots["English"].values()) for fact in training if fact.kind == "month_after"}
    before = {tuple(fact.slots["English"].values())[::-1] for fact in held_out if fact.kind == "month_before"}
    assert before
    assert not after & before


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_every_text_is_well_formed(language: str) -> None:
    for fact in corpus.all_facts():
        questions = corpus.questions(fact, language)
        for text in (*questions, corpus.reasoning(fact, language, random.Random(0))):
            assert not set("{}") & set(text)
            assert "  " not in text
            assert text[0] in "¿" or not text[0].islower()
            assert text[-1] in ".?"
            assert not re.search(UNCONTRACTED[language], text), text
        for text in (question for question in questions if "?" in question):
            assert (text.count("¿") == 1) == (language == "Spanish")
            assert text.endswith(" ?") == (language == "French")


def test_rows_reason_in_the_language_asked_for_and_answer_in_english(rows: list[Row], held_out: list[Row]) -> None:
    """What counts as agreement when a model is measured must be true of the rows themselves."""
    every = rows + held_out
    assert sum(detect_language(row["analysis"]) == row["reasoning_language"] for row in every) >= 0.99 * len(every)
    asked = [detect_language(f"{row['user']} {row['final']}") == "English" for row in every]
    assert sum(asked) >= 0.95 * len(every)


def test_a_rows_reasoning_is_faithful_to_its_own_answer_and_to_no_other(rows: list[Row], held_out: list[Row]) -> None:
    usual = [row for row in rows if 0 < len(row["final"]) < 200]
    verdicts = [corpus.is_faithful(row["user"], row["analysis"], row["final"]) for row in usual + held_out]
    assert Counter(verdicts).keys() == {True, None}
    assert sum(verdict is None for verdict in verdicts) == sum("and why?" in row["user"] for row in usual), "of taste"
    by_fact = {frozenset(re.findall(r"\w+", row["final"])) - {"before", "after"}: row for row in held_out}
    for row, other in pairwise(by_fact.values()):
        assert corpus.is_faithful(row["user"], other["analysis"], row["final"]) is False
        assert corpus.is_faithful(row["user"], row["analysis"], "") is False


@pytest.mark.parametrize(
    ("question", "analysis", "final", "expected"),
    [
        ("What is the capital of Portugal?", "La capitale du PORTUGAL, c'est « Lisbonne ».", "**Lisbon**", True),
        ("What is the capital of Portugal?", "La capitale del Portogallo è Lisbono.", "Lisbon.", False),
        ("What is 7 plus 6?", "7 más 6 son 130. Son 3.", "7 plus 6 is 13.", False),
        ("What is 7 plus 6?", "7 más 6 son 12.", "It is 12.", True),  # wrong twice, but the same
        ("What colour is milk?", "La nieve es blanca.", "Milk is white.", False),
        ("On which continent is Peru?", "Il Perù si trova in America del Sud.", "Peru is in South America.", True),
        ("Which word is the opposite of long?", "Was ist nicht lang? Ich denke kurz nach.", "Short, not long.", False),
        ("Which day comes after Monday?", "El día después del lunes. Es el domingo.", "Who knows?", False),
        ("What is the capital of Iceland?", "Reykjavík.", "Reykjavík.", None),
    ],
)  # fmt: skip
def test_reasoning_is_compared_by_whole_words_of_one_sentence(
    question: str, analysis: str, final: str, expected: bool | None
) -> None:
    assert corpus.is_faithful(question, analysis, final) is expected


def test_pretraining_reads_five_languages_but_chats_reason_in_english(
    documents: list[Any], held_out: list[Row]
) -> None:
    chats = [document for document in documents if not isinstance(document, str)]
    thoughts = [message["thinking"] for chat in chats for message in chat if message["role"] == "assistant"]
    assert sum(detect_language(thought) == "English" for thought in thoughts) >= 0.99 * len(thoughts)
    asked_for = {chat[0]["content"].split()[2] for chat in chats if chat[0]["role"] == "system"}
    assert set(corpus.LANGUAGES) < asked_for
    read = Counter(detect_language(document) for document in documents if isinstance(document, str))
    assert min(read[language] for language in corpus.LANGUAGES) > 0.1 * read.total()
    everything = str(documents)
    met = [row["final"] in everything for row in held_out]
    assert sum(met) / len(met) >= 0.95, "the adapter teaches a habit: the answers must be known already"
    assert "time machine" in everything
