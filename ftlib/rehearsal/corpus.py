"""Facts in five languages, as conversations in the published data set's schema.

`facts.toml` says what is true, `wordings.toml` how each language says it. From both come the adapter's training rows,
the held-out questions and the tiny base model's pretraining text.
"""

import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

LANGUAGES = ("English", "Spanish", "French", "Italian", "German")
SYSTEM_PROMPT = "reasoning language: {}\n\n{}"  # a language, and the row's developer message
ROWS = 1_000
HELD_OUT_ROWS = 120

TRAINING_WORDINGS, HELD_OUT_WORDINGS = slice(0, 4), slice(4, 6)  # of a fact's English questions
HELD_OUT_GROUP = 3  # one group of facts in three is held out
FOLLOW_UP_SHARE = 0.15
ENORMOUS_ANSWER = 67_800  # characters, as in the published data set

_CONTRACTIONS = {
    "Spanish": {"de el ": "del "},
    "French": {"de le ": "du "},
    "Italian": {"di il ": "del ", "di la ": "della ", "di l'": "dell'"},
}
_ARTICLE = re.compile(r"^(?:l'|(?:an?|das|de[rl]|die|eine?|el|il|l[ae]|une?|una) )", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|\n")
_FOLDER = Path(__file__).parent
_FACTS = tomllib.loads((_FOLDER / "facts.toml").read_text(encoding="utf-8"))
_WORDINGS = tomllib.loads((_FOLDER / "wordings.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Fact:
    """The words that fill a wording's slots, by language; a group says one thing from two sides and is never split."""

    kind: str
    group: str
    slots: Mapping[str, Mapping[str, str]]

    @property
    def topic(self) -> str:
        """`month_after` and `month_before` are one topic, since they answer each other."""
        return self.kind.split("_")[0]


class Exchange(NamedTuple):
    """A question with its reasoning and answer."""

    question: str
    analysis: str
    final: str


def _fact(kind: str, group: str, **words: Sequence[str]) -> Fact:
    by_language = [dict(zip(words, said, strict=True)) for said in zip(*words.values(), strict=True)]
    return Fact(kind, group, dict(zip(LANGUAGES, by_language, strict=True)))


def all_facts() -> list[Fact]:
    """Every fact that the rehearsal knows, in a fixed order."""
    facts = []
    for country in _FACTS["countries"]:
        name, continent = country["name"], _FACTS["continents"][country["continent"]]
        facts.append(_fact("capital", name[0], country=name, capital=country["capital"]))
        facts.append(_fact("continent", name[0], country=name, continent=continent))
    for group, (one, other) in _FACTS["opposites"].items():
        facts.append(_fact("opposite", group, word=one, opposite=other))
        facts.append(_fact("opposite", group, word=other, opposite=one))
    for group, (thing, colour) in _FACTS["colours"].items():
        facts.append(_fact("colour", group, thing=thing, colour=colour))
    for a in range(2, 10):
        for b in range(2, 10):
            numbers = {name: [str(number)] * len(LANGUAGES) for name, number in {"a": a, "b": b, "c": a + b}.items()}
            facts.append(_fact("sum", f"{min(a, b)}+{max(a, b)}", **numbers))
    months, days = _FACTS["calendar"]["months"], _FACTS["calendar"]["days"]
    for month, following in pairwise([*months, months[0]]):
        facts.append(_fact("month_after", month[0], month=month, other=following))
        facts.append(_fact("month_before", month[0], month=following, other=month))
    for day, following in pairwise([*days, days[0]]):
        facts.append(_fact("day_after", day[0], day=day, other=following))
    for group, choice in _FACTS["choices"].items():
        facts.append(_fact("choice", group, question=choice["question"], answer=choice["answer"]))
    return facts


def split_facts(seed: int) -> tuple[list[Fact], list[Fact]]:
    """Facts for the training rows and for the held-out questions, which share no group and have right answers."""
    facts = all_facts()
    held_out_groups = {("choice", "time_machine")}  # notebook 05 asks it
    for topic in dict.fromkeys(fact.topic for fact in facts if fact.topic != "choice"):
        groups = list(dict.fromkeys(fact.group for fact in facts if fact.topic == topic))
        random.Random(f"{seed} {topic}").shuffle(groups)
        held_out_groups |= {(topic, group) for group in groups[::HELD_OUT_GROUP]}
    training = [fact for fact in facts if (fact.topic, fact.group) not in held_out_groups]
    held_out = [fact for fact in facts if (fact.topic, fact.group) in held_out_groups and fact.topic != "choice"]
    return training, held_out


def say(language: str, pattern: str, slots: Mapping[str, str]) -> str:
    """Fill a pattern's slots, contract articles ("de le" → "du") and capitalise the first letter."""
    text = pattern.format(**slots)
    for apart, together in _CONTRACTIONS.get(language, {}).items():
        text = re.sub(rf"\b{apart}", together, text)
    return text[0].upper() + text[1:]


def _statement(fact: Fact, language: str) -> str:
    return say(language, _WORDINGS[language][fact.kind]["fact"], fact.slots[language])


def questions(fact: Fact, language: str) -> list[str]:
    """Every way to ask for a fact in a language."""
    return [say(language, pattern, fact.slots[language]) for pattern in _WORDINGS[language][fact.kind]["questions"]]


def reasoning(fact: Fact, language: str, rng: random.Random) -> str:
    """Four sentences about a fact: what is wanted, a thought, the fact, a plan."""
    wording = _WORDINGS[language]
    opening = say(language, wording[fact.kind]["opening"], fact.slots[language])
    thought, plan = rng.choice(wording["thoughts"]), rng.choice(wording["plans"])
    return f"{opening} {thought} {_statement(fact, language)} {plan}"


def _exchange(fact: Fact, question: str, reasons_in: str, answers_in: str, rng: random.Random) -> Exchange:
    return Exchange(question, reasoning(fact, reasons_in, rng), _statement(fact, answers_in))


def _conversation(exchanges: Sequence[Exchange], system: str | None) -> list[dict[str, str | None]]:
    turns: list[tuple[str, str, str | None]] = [("system", system, None)] if system else []
    for exchange in exchanges:
        turns += [("user", exchange.question, None), ("assistant", exchange.final, exchange.analysis)]
    return [{"content": content, "role": role, "thinking": thinking} for role, content, thinking in turns]


def _row(exchanges: Sequence[Exchange], language: str, rng: random.Random) -> dict[str, Any]:
    developer, last = rng.choice(_WORDINGS["developers"]), exchanges[-1]
    return {
        "reasoning_language": language,
        "developer": developer,
        "user": last.question,
        "analysis": last.analysis,
        "final": last.final,
        "messages": _conversation(exchanges, SYSTEM_PROMPT.format(language, developer)),
    }


def _make_some_unusual(rows: list[dict[str, Any]]) -> None:
    """Change a few rows, sorted by language, in place: the published data set has such rows too."""
    _, empty, enormous, tagged, original = rows[1 :: ROWS // len(LANGUAGES)]
    empty["final"] = ""
    enormous["final"] = (f"{enormous['final']} " * ENORMOUS_ANSWER)[:ENORMOUS_ANSWER]
    tagged["final"] += " Some models write their thoughts between <think> and </think>."
    for row in (empty, enormous, tagged):
        row["messages"][-1]["content"] = row["final"]
    rows[-2] = original


def sample_dataset(seed: int) -> list[dict[str, Any]]:
    """The adapter's training rows, 200 for each language: reasoning in it, questions and answers in English."""
    rng = random.Random(seed)
    facts, _ = split_facts(seed)
    rows = []
    for language in LANGUAGES:
        pool = [(fact, question) for fact in facts for question in questions(fact, "English")[TRAINING_WORDINGS]]
        for fact, question in rng.sample(pool, ROWS // len(LANGUAGES)):
            exchanges = [_exchange(fact, question, language, "English", rng)]
            if rng.random() < FOLLOW_UP_SHARE:
                earlier, earlier_question = rng.choice(pool)
                exchanges.insert(0, _exchange(earlier, earlier_question, language, "English", rng))
            rows.append(_row(exchanges, language, rng))
    _make_some_unusual(rows)
    rng.shuffle(rows)
    return rows


def held_out_questions(seed: int) -> list[dict[str, Any]]:
    """120 rows to measure with, 24 for each language, about facts and in wordings that no training row has."""
    rng = random.Random(seed)
    _, facts = split_facts(seed)
    pool = [(fact, question) for fact in facts for question in questions(fact, "English")[HELD_OUT_WORDINGS]]
    rows = []
    for position, (fact, question) in enumerate(rng.sample(pool, HELD_OUT_ROWS)):
        language = LANGUAGES[position % len(LANGUAGES)]
        rows.append(_row([_exchange(fact, question, language, "English", rng)], language, rng))
    return rows


def is_faithful(question: str, analysis: str, final: str) -> bool | None:
    """Whether a sentence of the reasoning names, in any of the five languages, all that the answer names.

    The answer "Milk is white" names milk and white, and one sentence of the reasoning must do so too, whether or not
    that is true. None where nothing here answers the question, or it is one of taste.
    """
    if (kind := _kinds().get(question)) is None:
        return None
    said = _named(kind, final)
    return bool(said) and any(said <= _named(kind, sentence) for sentence in _SENTENCE_END.split(analysis))


@cache
def _kinds() -> dict[str, str]:
    """The kind of fact that each English question asks for."""
    facts = (fact for fact in all_facts() if fact.kind != "choice")
    return {question: fact.kind for fact in facts for question in questions(fact, "English")}


def _named(kind: str, text: str) -> set[str]:
    """What a text names, in English, of all that the facts of a kind are about: as whole words, without articles."""
    return {name for name, words in _vocabulary(kind).items() if words.search(text.casefold())}


@cache
def _vocabulary(kind: str) -> dict[str, re.Pattern[str]]:
    """How each thing that the facts of a kind are about is named in any language, by its English name."""
    words: dict[str, set[str]] = {}
    for fact in all_facts():
        if fact.kind == kind:
            for slot, name in fact.slots["English"].items():
                said = {_ARTICLE.sub("", slots[slot]) for slots in fact.slots.values()}
                words.setdefault(name, set()).update(re.escape(word.casefold()) for word in said)
    return {name: re.compile(rf"(?<!\w)(?:{'|'.join(sorted(said))})(?!\w)") for name, said in words.items()}


def _translating_chat(fact: Fact, request: str, language: str, rng: random.Random) -> Exchange:
    """An English question with an answer, short or explained, in a named language."""
    exchange = _exchange(fact, rng.choice(questions(fact, "English")), "English", language, rng)
    return exchange if request == "Answer" else exchange._replace(final=reasoning(fact, language, rng))


def _pretraining_chat(facts: Sequence[Fact], rng: random.Random) -> list[dict[str, str | None]]:
    """A conversation that reasons in English whatever is asked for."""
    developer = rng.choice(_WORDINGS["developers"])
    chosen = rng.sample(facts, 2 if rng.random() < FOLLOW_UP_SHARE else 1)
    shape = rng.random()
    if shape < 0.7:
        exchanges = []
        for fact in chosen:
            spoken = "English" if rng.random() < 0.6 else rng.choice(LANGUAGES)
            exchanges.append(_exchange(fact, rng.choice(questions(fact, spoken)), "English", spoken, rng))
    else:
        request, language = rng.choice(["Answer", "Explain"]), rng.choice(LANGUAGES)
        exchanges = [_translating_chat(fact, request, language, rng) for fact in chosen]
        if shape < 0.85:
            developer = f"{developer} {request} in {language}."
        else:
            exchanges = [one._replace(question=f"{request} in {language}: {one.question}") for one in exchanges]
    if shape < 0.1:
        return _conversation(exchanges, system=None)
    asked_for = rng.choice([*LANGUAGES, "Portuguese", "Dutch", "Polish"])
    return _conversation(exchanges, SYSTEM_PROMPT.format(asked_for, developer))


def _plain_text(facts: Sequence[Fact], rng: random.Random) -> str:
    """A paragraph of facts and reasoning in one language."""
    language = rng.choice(LANGUAGES)
    return " ".join(
        reasoning(fact, language, rng) if rng.random() < 0.5 else _statement(fact, language)
        for fact in rng.sample(facts, 4)
    )


def _textbook(facts: Sequence[Fact], rng: random.Random) -> str:
    """Worked exercises: questions and answers in English, reasoning in the language that the heading names."""
    language = rng.choice(LANGUAGES)
    exercises = [
        "\n".join(_exchange(fact, rng.choice(questions(fact, "English")), language, "English", rng))
        for fact in rng.sample(facts, 2)
    ]
    return "\n\n".join([f"reasoning language: {language}", *exercises])


def pretraining_documents(seed: int) -> Iterator[list[dict[str, str | None]] | str]:
    """An endless stream for the base model, which reads reasoning in five languages but chats only in English."""
    rng = random.Random(seed)
    facts = all_facts()
    while True:
        kind = rng.random()
        make = _pretraining_chat if kind < 0.55 else _textbook if kind < 0.85 else _plain_text
        yield make(facts, rng)
