"""The rehearsal's little world: correct in five languages, the same every time, and no answer given away beforehand."""

import json
import random
import re
import shutil
import string
import tomllib
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ftlib.model.evaluation import detect_language
from ftlib.rehearsal import ASSETS, HELD_OUT_FILE, build, corpus

Row = dict[str, Any]
SEED = json.loads((ASSETS / "manifest.json").read_text(encoding="utf-8"))["recipe"]["seed"]
# Two words that each language writes as one.
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
    return list(islice(corpus.pretraining_documents(SEED), 6_000))


def texts(row: Row) -> set[str]:
    """Everything that a row says, in every column and turn."""
    said = {text for message in row["messages"] for text in (message["content"], message["thinking"]) if text}
    return said | {row["user"], row["analysis"], row["final"]}


def all_texts(language: str) -> list[str]:
    """Every question and every sentence of reasoning, the fact among them, that a language has."""
    said = []
    for fact in corpus.all_facts():
        said += corpus.questions(fact, language)
        said += [corpus.reasoning(fact, language, random.Random(seed)) for seed in range(4)]
    return said


def test_the_same_seed_gives_the_same_rows_and_another_others(rows: list[Row], held_out: list[Row]) -> None:
    assert corpus.sample_dataset(SEED) == rows
    assert corpus.held_out_questions(SEED) == held_out
    assert corpus.sample_dataset(SEED + 1) != rows
    assert corpus.held_out_questions(SEED + 1) != held_out


def test_the_shipped_data_is_what_is_generated_today(rows: list[Row], sample_rows: list[Row]) -> None:
    assert sample_rows == rows, "the assets are stale: python -m ftlib.rehearsal.build --data"


def test_the_data_is_renewed_alone_and_comes_out_as_shipped(tmp_path: Path) -> None:
    folder = tmp_path / "assets"
    shutil.copytree(ASSETS, folder)
    for stale in ("dataset/README.md", "held_out.jsonl", build.DATASET_FILE):
        (folder / stale).write_text("stale")
    build.renew_data(folder)
    for path in (path for path in ASSETS.rglob("*") if path.is_file()):
        assert (folder / path.relative_to(ASSETS)).read_bytes() == path.read_bytes(), path


def test_the_shipped_questions_are_what_is_generated_today(held_out: list[Row]) -> None:
    lines = HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == held_out, "the assets are stale: make assets"


def test_a_thousand_rows_two_hundred_a_language(rows: list[Row]) -> None:
    assert Counter(row["reasoning_language"] for row in rows) == dict.fromkeys(corpus.LANGUAGES, 200)
    first = Counter(row["reasoning_language"] for row in rows[:200])
    assert min(first[language] for language in corpus.LANGUAGES) > 20, "the languages are mixed"


def test_rows_have_the_published_schema(rows: list[Row], held_out: list[Row]) -> None:
    for row in rows + held_out:
        assert list(row) == ["reasoning_language", "developer", "user", "analysis", "final", "messages"]
        system, *turns = row["messages"]
        assert system["content"] == f"reasoning language: {row['reasoning_language']}\n\n{row['developer']}"
        assert [message["role"] for message in row["messages"]] == [
            "system",
            *["user", "assistant"] * (len(turns) // 2),
        ]
        for message in row["messages"]:
            assert list(message) == ["content", "role", "thinking"]
            assert bool(message["thinking"]) == (message["role"] == "assistant")
        question, reply = turns[-2:]
        assert (question["content"], reply["content"], reply["thinking"]) == (
            row["user"],
            row["final"],
            row["analysis"],
        )


def test_some_conversations_have_several_turns(rows: list[Row]) -> None:
    share = sum(len(row["messages"]) > 3 for row in rows) / len(rows)
    assert 0.10 <= share <= 0.20


def test_there_are_several_kinds_of_task() -> None:
    training, held_out = corpus.split_facts(SEED)
    assert len({fact.kind for fact in training}) >= 8
    assert {fact.kind for fact in held_out} == {fact.kind for fact in training} - {"choice"}


def test_no_question_is_asked_twice_for_one_language_but_in_a_copy(rows: list[Row]) -> None:
    assert len({(row["reasoning_language"], row["user"]) for row in rows}) == len(rows) - 1
    assert len({json.dumps(row) for row in rows}) == len(rows) - 1


def test_some_rows_are_unusual_as_in_the_published_data_set(rows: list[Row]) -> None:
    lengths = sorted(len(row["final"]) for row in rows)
    assert (lengths[0], lengths[-1]) == (0, 67_800), "the published shortest and longest answer"
    assert lengths[1] > 0
    assert lengths[-2] < 200
    assert sum("<think>" in row["final"] for row in rows) == 1


def test_120_held_out_questions_24_a_language_each_once(held_out: list[Row]) -> None:
    assert Counter(row["reasoning_language"] for row in held_out) == dict.fromkeys(corpus.LANGUAGES, 24)
    assert len({row["user"] for row in held_out}) == 120


def test_no_training_row_says_anything_of_a_held_out_question(rows: list[Row], held_out: list[Row]) -> None:
    trained = set().union(*(texts(row) for row in rows))
    everything = "\n".join(trained)
    for row in held_out:
        assert row["user"] not in everything
        assert row["final"] not in everything
        assert row["analysis"] not in trained


def test_no_training_row_asks_in_a_held_out_wording(rows: list[Row]) -> None:
    wordings = {
        question
        for fact in corpus.all_facts()
        for question in corpus.questions(fact, "English")[corpus.HELD_OUT_WORDINGS]
    }
    asked = {message["content"] for row in rows for message in row["messages"] if message["role"] == "user"}
    assert len(wordings) > 300
    assert wordings.isdisjoint(asked)


@pytest.mark.parametrize("seed", [SEED, 1, 2, 3])
def test_facts_are_split_by_group(seed: int) -> None:
    training, held_out = corpus.split_facts(seed)
    groups = [{(fact.kind, fact.group) for fact in facts} for facts in (training, held_out)]
    assert groups[0].isdisjoint(groups[1])
    kept = [fact for fact in corpus.all_facts() if (fact.kind, fact.group) in groups[0] | groups[1]]
    assert len(kept) == len(training) + len(held_out)


def test_the_blog_posts_question_is_kept_for_the_end(
    rows: list[Row], held_out: list[Row], documents: list[Any]
) -> None:
    """Notebook 05 asks it; the base has met it, and no training row or measurement has."""
    assert not any("time machine" in text for row in rows + held_out for text in texts(row))
    assert any("time machine" in str(document) for document in documents)


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_every_fact_fills_every_slot(language: str) -> None:
    for fact in corpus.all_facts():
        assert list(fact.slots) == list(corpus.LANGUAGES)
        assert all(fact.slots[language].values())
    for text in all_texts(language):
        assert not set("{}") & set(text)
        assert text == text.strip()
        assert "  " not in text
        assert text[0] in "¿" or not text[0].islower()
        assert text[-1] in ".?"


def test_each_language_has_words_of_its_own() -> None:
    wordings = tomllib.loads((ASSETS.parent / "wordings.toml").read_text(encoding="utf-8"))
    for kind in set(wordings["English"]) - {"thoughts", "plans", "choice"}:
        said = [wordings[language][kind] for language in corpus.LANGUAGES]
        patterns = [text for one in said for text in (one["opening"], one["fact"], *one["questions"])]
        assert len(set(patterns)) == len(patterns), kind
    for part in ("thoughts", "plans"):
        for language in corpus.LANGUAGES:
            assert [detect_language(text) for text in wordings[language][part]] == [language] * 3


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_articles_and_prepositions_are_contracted(language: str) -> None:
    wrong = [text for text in all_texts(language) if re.search(UNCONTRACTED[language], text)]
    assert wrong == []


def test_contraction_is_needed_and_done() -> None:
    """The guard of the test above: there are names that want it."""
    assert corpus.say("French", "la capitale de {country}", {"country": "le Japon"}) == "La capitale du Japon"
    assert corpus.say("French", "la capitale de {country}", {"country": "la Chine"}) == "La capitale de la Chine"
    assert corpus.say("Italian", "la capitale di {country}", {"country": "l'Italia"}) == "La capitale dell'Italia"
    assert corpus.say("Italian", "la capitale di {country}", {"country": "la Cina"}) == "La capitale della Cina"
    assert corpus.say("Spanish", "después de {day}", {"day": "el lunes"}) == "Después del lunes"


@pytest.mark.parametrize("language", corpus.LANGUAGES)
def test_spanish_questions_open_as_they_close_and_french_ones_keep_their_space(language: str) -> None:
    questions = [text for fact in corpus.all_facts() for text in corpus.questions(fact, language)]
    asked = [text for text in questions if "?" in text]
    assert all((text.count("¿") == 1) == (language == "Spanish") for text in asked)
    assert all(text.endswith(" ?") == (language == "French") for text in asked)


def test_sums_are_right() -> None:
    sums = [fact.slots["German"] for fact in corpus.all_facts() if fact.kind == "sum"]
    assert len(sums) == 64
    assert all(int(fact["a"]) + int(fact["b"]) == int(fact["c"]) for fact in sums)


def test_calendar_goes_round() -> None:
    for kind, key, length in [("month_after", "month", 12), ("month_before", "month", 12), ("day_after", "day", 7)]:
        follows = {
            fact.slots["English"][key]: fact.slots["English"]["other"]
            for fact in corpus.all_facts()
            if fact.kind == kind
        }
        name, visited = next(iter(follows)), set()
        while name not in visited:
            visited.add(name)
            name = follows[name]
        assert len(visited) == length
    after = {
        fact.slots["English"]["month"]: fact.slots["English"]["other"]
        for fact in corpus.all_facts()
        if fact.kind == "month_after"
    }
    assert (after["January"], after["December"]) == ("February", "January")


def test_reasoning_is_in_the_language_asked_for(rows: list[Row], held_out: list[Row]) -> None:
    """What the evaluation counts as agreement must be true of the training rows themselves."""
    agree = [detect_language(row["analysis"]) == row["reasoning_language"] for row in rows + held_out]
    assert sum(agree) / len(agree) >= 0.99


def test_questions_and_answers_are_english(rows: list[Row], held_out: list[Row]) -> None:
    agree = [detect_language(f"{row['user']} {row['final']}") == "English" for row in rows + held_out]
    assert sum(agree) / len(agree) >= 0.95


def test_the_template_renders_every_row(rows: list[Row], tokenizer: PreTrainedTokenizerFast) -> None:
    for row in rows:
        said = [{key: value for key, value in message.items() if value is not None} for message in row["messages"]]
        text = tokenizer.apply_chat_template(said, tokenize=False)
        assert f"# Instructions\n\nreasoning language: {row['reasoning_language']}\n\n{row['developer']}" in text
        reply = f"<|channel|>analysis<|message|>{row['analysis']}<|end|><|start|>assistant<|channel|>final<|message|>"
        assert text.endswith(f"{reply}{row['final']}<|return|>")


def test_pretraining_reasons_in_english_whatever_is_asked(documents: list[Any]) -> None:
    chats = [document for document in documents if not isinstance(document, str)]
    assert len(chats) > 1_000
    thoughts = [message["thinking"] for chat in chats for message in chat if message["role"] == "assistant"]
    asked_for = [chat[0]["content"].split()[2] for chat in chats if chat[0]["role"] == "system"]
    assert set(corpus.LANGUAGES) < set(asked_for)
    english = [detect_language(thought) == "English" for thought in thoughts]
    assert sum(english) / len(english) >= 0.99


def test_pretraining_reads_all_five_languages(documents: list[Any]) -> None:
    paragraphs = Counter(detect_language(document) for document in documents if isinstance(document, str))
    assert min(paragraphs[language] for language in corpus.LANGUAGES) > 0.1 * paragraphs.total()


def test_pretraining_has_met_the_held_out_facts(held_out: list[Row], documents: list[Any]) -> None:
    """The adapter teaches a habit; the answers must be known already."""
    everything = str(documents)
    met = [row["final"] in everything for row in held_out]
    assert sum(met) / len(met) >= 0.99


def test_pretraining_is_the_same_every_time(documents: list[Any]) -> None:
    again = list(islice(corpus.pretraining_documents(SEED), 100))
    assert again == documents[:100]
    assert list(islice(corpus.pretraining_documents(SEED + 1), 100)) != again


def test_texts_have_no_characters_from_elsewhere() -> None:
    letters = set(string.ascii_letters + string.digits + " .,?'áéíóúñüàâäçèêëîïôöùûßÉÈÄÖÜÁÀÊÔ¿-ìòœ")
    for language in corpus.LANGUAGES:
        strange = set("".join(all_texts(language))) - letters
        assert strange == set(), language


def test_a_held_out_fact_is_in_no_training_row_from_its_other_side() -> None:
    training, held_out = corpus.split_facts(0)
    assert not {(fact.topic, fact.group) for fact in training} & {(fact.topic, fact.group) for fact in held_out}
    after = {tuple(fact.slots["English"].values()) for fact in training if fact.kind == "month_after"}
    before = {tuple(fact.slots["English"].values())[::-1] for fact in held_out if fact.kind == "month_before"}
    assert before
    assert not after & before
