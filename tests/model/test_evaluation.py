"""The measure: language by language, the same before and after, and low for the base as it is shipped."""

import json
from collections.abc import Sequence
from typing import Any

import nbformat
import pandas as pd
import pytest
from datasets import Dataset
from helpers import HANGING_S
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from traitlets.config import Config
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.dataset.harmony import Reply
from ftlib.errors import FtlibError
from ftlib.model import evaluation
from ftlib.model.generation import Score
from ftlib.profiles import Measure

REASONING = {
    "English": "The user asks for the capital of France. Let me think about it for a moment.",
    "Spanish": "El usuario pregunta por la capital de Francia. Voy a pensarlo un momento.",
    "French": "L'utilisateur demande la capitale de la France. Je vais y réfléchir un instant.",
    "Italian": "L'utente chiede la capitale della Francia. Ci penso un momento.",
    "German": "Der Nutzer fragt nach der Hauptstadt von Frankreich. Ich denke kurz darüber nach.",
    "Portuguese": "O usuário pergunta qual é a capital da França. Vou pensar nisso por um momento.",
}
TINY = profiles.load("tiny")
SETTINGS = TINY.measure.model_copy(update={"max_new_tokens": 8, "batch_size": 4, "score_batch_size": 2})
LENGTH = TINY.train.max_length


def settings(**changes: int) -> Measure:
    return SETTINGS.model_copy(update=changes)


def row(language: str | None, question: str, final: str) -> dict[str, Any]:
    said = [("system", f"reasoning language: {language}", None), ("user", question, None), ("assistant", final, "...")]
    messages = [{"content": content, "role": role, "thinking": thinking} for role, content, thinking in said]
    return {"reasoning_language": language, "user": question, "final": final, "messages": messages}


def results_of(*rows: dict[str, Any]) -> pd.DataFrame:
    """The results of a model that is not there: see `asked`."""
    return evaluation.evaluate(None, None, Dataset.from_list(list(rows)), SETTINGS, LENGTH)  # type: ignore[arg-type]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Puts a model in place that reasons in English, says the question back, and never ends what is odd.

    It finds two nats in each character of a reference reply, and would have written the first itself.
    """
    batches: list[list[Any]] = []

    def parrot(model: object, tokenizer: object, conversations: Sequence[Any], max_new_tokens: int) -> list[Reply]:
        assert max_new_tokens == SETTINGS.max_new_tokens
        batches.append(list(conversations))
        questions = [messages[-1]["content"] for messages in conversations]
        return [Reply(REASONING["English"], text, "", "odd" not in text, raw="") for text in questions]

    def score(model: object, tokenizer: object, conversations: Sequence[Any], max_length: int) -> list[Score]:
        assert 0 < len(conversations) <= SETTINGS.score_batch_size, "scoring has a small batch of its own"
        assert max_length == LENGTH
        references = [messages[-1]["content"] for messages in conversations]
        return [Score(2.0 * len(text), 1, len(text)) for text in references]

    monkeypatch.setattr(evaluation, "generate_replies", parrot)
    monkeypatch.setattr(evaluation, "score_replies", score)
    return batches


@pytest.mark.parametrize("language", REASONING)
def test_each_language_is_recognised(language: str) -> None:
    assert evaluation.detect_language(REASONING[language]) == language


DUTCH = "Ik denk even na over de hoofdstad van Frankrijk."
CHINESE = "用户想知道法国的首都是什么。让我想一想。"


def test_no_other_language_is_guessed() -> None:
    """Left to itself, py3langid knows over a hundred languages and takes short Spanish for Galician."""
    assert evaluation.detect_language(DUTCH) in evaluation.LANGUAGES


@pytest.mark.parametrize(("text", "language"), [(DUTCH, "Dutch"), (CHINESE, "Chinese")])
@pytest.mark.parametrize("respell", [str, str.lower, str.upper])
def test_a_language_that_is_asked_for_is_in_play(text: str, language: str, respell: Any) -> None:
    assert evaluation.detect_language(text, ["English", respell(language), "Klingon", ""]) == language
    assert evaluation.detect_language(REASONING["Italian"], [language]) == "Italian"


@pytest.mark.parametrize("text", ["", "  \n", "42", "2 + 3 = 5.", "…"])
def test_a_text_without_words_has_no_language(text: str) -> None:
    assert evaluation.detect_language(text) == ""


def test_replies_come_back_in_the_order_of_the_rows(asked: list[list[Any]]) -> None:
    questions = [f"{'very very ' * (37 * number % 11)}long question {number}" for number in range(10)]
    results = results_of(*(row("Spanish", question, "4" * number) for number, question in enumerate(questions)))
    assert results["user"].tolist() == questions
    assert results["final"].tolist() == questions
    assert results["tokens"].tolist() == list(range(10))
    assert [len(batch) for batch in asked] == [4, 4, 2]
    lengths = [len(messages[-1]["content"]) for batch in asked for messages in batch]
    assert lengths == sorted(lengths), "prompts of like length go together"


def test_the_reference_reply_is_never_shown(asked: list[list[Any]]) -> None:
    results_of(row("Spanish", "What?", "the secret answer"))
    assert [message["role"] for message in asked[0][0]] == ["system", "user"]
    assert "secret" not in str(asked)


def test_what_is_measured_of_a_reply(asked: list[list[Any]]) -> None:
    results = results_of(
        row("English", "five  is 5. ", "five is 5."), row("Spanish", "five", "Five"), row("German", "odd", "odd")
    )
    assert results.columns.tolist() == [
        "language", "user", "analysis", "final", "reference", "detected", "agrees", "exact", "complete",
        "loss", "correct_tokens", "tokens",
    ]  # fmt: skip
    assert results["language"].tolist() == ["English", "Spanish", "German"]
    assert results["reference"].tolist() == ["five is 5.", "Five", "odd"]
    assert set(results["detected"]) == {"English"}
    assert results["agrees"].tolist() == [True, False, False]
    assert results["exact"].tolist() == [True, False, True], "word for word, however it is spaced"
    assert results["complete"].tolist() == [True, True, False]
    assert results[["loss", "correct_tokens", "tokens"]].to_numpy().tolist() == [[20, 1, 10], [8, 1, 4], [6, 1, 3]]


def test_a_languages_name_may_be_written_in_any_case(asked: list[list[Any]]) -> None:
    results = results_of(row("ENGLISH", "one", "1"), row(" english", "two", "2"), row("spanish", "three", "3"))
    assert results["language"].tolist() == ["English", "English", "Spanish"]
    assert results["agrees"].tolist() == [True, True, False]


def test_an_empty_reasoning_agrees_with_nothing(asked: list[list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(model: object, tokenizer: object, conversations: Sequence[Any], max_new_tokens: int) -> list[Reply]:
        return [Reply("", "", "", False, raw="") for _ in conversations]

    monkeypatch.setattr(evaluation, "generate_replies", silent)
    results = results_of(*(row(language, "What?", "4") for language in REASONING))
    assert results["agrees"].tolist() == [False] * 6


def test_what_cannot_be_measured_counts_neither_way(asked: list[list[Any]]) -> None:
    """No language asked for, one that nobody can identify, a reference without an answer, no reference at all."""
    bare = row("English", "four", "")
    bare["messages"].pop()
    rows = [row("English", "one", "one"), row(None, "two", "two"), row("Klingon", "three", ""), bare]
    results = results_of(*rows)
    assert results["language"].tolist() == ["English", "", "Klingon", "English"]
    assert results["agrees"].isna().tolist() == [False, True, True, False]
    assert results["exact"].isna().tolist() == [False, False, True, True]
    assert results["loss"].isna().tolist() == [False, False, False, True], "a reply that only reasons has a loss"
    assert (results["agrees"].mean(), results["exact"].mean(), results["tokens"].sum()) == (1.0, 1.0, 6)
    assert [messages[-1]["role"] for messages in asked[0]] == ["user"] * 4
    table = evaluation.by_language(results).set_index("language")
    assert table.index.tolist() == ["English", "Klingon"]
    assert table.loc["Klingon", ["agreement", "low", "high", "exact"]].isna().all()
    assert table.loc["English", ["questions", "agreement", "exact"]].tolist() == [2, 1, 1]


def test_nothing_measured_is_told_as_nothing(asked: list[list[Any]]) -> None:
    results = results_of(row("", "one", ""), row("", "odd", ""))
    assert evaluation.by_language(results).columns.tolist() == [
        "language", "questions", "agreement", "low", "high", "exact", "complete",
    ]  # fmt: skip
    summary = evaluation.summarise(results)
    assert json.loads(json.dumps(summary, allow_nan=False)) == {
        "questions": 2, "agreement": None, "agreement_low": None, "agreement_high": None, "exact": None,
        "unfinished": 1, "loss": None, "token_accuracy": None, "by_language": [],
    }  # fmt: skip
    assert evaluation.share(summary["agreement"]) == "not measured"


def test_a_summary_weighs_by_reply_and_by_token(asked: list[list[Any]]) -> None:
    rows = [row("English", "1", "1"), row("English", "odd", "no"), row("French", "4", "four"), row("Klingon", "", "5")]
    summary = evaluation.summarise(results_of(*rows))
    assert summary["questions"] == 4
    assert summary["agreement"] == 2 / 3
    assert (summary["agreement_low"], summary["agreement_high"]) == evaluation.wilson_interval(2, 3)
    assert summary["exact"] == 1 / 4
    assert summary["unfinished"] == 1
    assert summary["loss"] == (1 * 2 + 2 * 4 + 4 * 8 + 1 * 2) / 8
    assert summary["token_accuracy"] == 4 / 8
    assert summary["by_language"][2] == {
        "language": "Klingon", "questions": 1, "agreement": None, "low": None, "high": None, "exact": 0, "complete": 1,
    }  # fmt: skip
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert evaluation.share(summary["agreement"]) == "67%"


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
    shares = ["language", "questions", "agreement", "exact", "complete"]
    assert table[shares].to_numpy().tolist() == [["Spanish", 4, 0.25, 1.0, 0.75], ["English", 2, 1.0, 0.0, 1.0]]
    assert table["low"].tolist() == [evaluation.wilson_interval(1, 4)[0], evaluation.wilson_interval(2, 2)[0]]
    assert table["high"].tolist() == [evaluation.wilson_interval(1, 4)[1], 1.0]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # For none and for all of n, z² / (n + z²) is what is left.
        (0, 24, 0.0, 0.1380),
        (24, 24, 0.8620, 1.0),
        (49, 50, 0.8950, 0.9965),
    ],
)
def test_wilsons_interval_is_the_published_one(successes: int, n: int, low: float, high: float) -> None:
    assert evaluation.wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilsons_interval_holds_the_share_itself() -> None:
    for n in range(1, 121):
        for successes in range(n + 1):
            low, high = evaluation.wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1
    assert all(bound != bound for bound in evaluation.wilson_interval(0, 0)), "nothing is known of nothing"


def test_examples_stand_side_by_side(asked: list[list[Any]]) -> None:
    after = results_of(row("French", "two", "2"), row("Spanish", "one", "1"), row("Spanish", "three", "3" * 301))
    before = [
        {"language": "Spanish", "user": "three", "analysis": "Let me see. " * 99, "final": "0"},
        {"language": "French", "user": "two", "analysis": "Hm.", "final": "0"},
    ]
    table = evaluation.compare(before, after)
    assert table.columns.tolist() == [
        "language", "question", "reasoning before", "reasoning after", "answer after", "reference",
    ]  # fmt: skip
    assert table.iloc[1].tolist() == ["French", "two", "Hm.", REASONING["English"], "two", "2"]
    assert table.loc[0, "question"] == "three"
    assert table.loc[0, "reference"] == "3" * 300 + "…"
    assert table.loc[0, "reasoning before"] == ("Let me see. " * 25).rstrip() + "…"


def test_other_questions_than_before_are_refused(asked: list[list[Any]]) -> None:
    before = [{"language": "French", "user": "two", "analysis": "Hm.", "final": "0"}]
    with pytest.raises(FtlibError, match=r"no reply to 'two'.*run 03_load_model\.ipynb again"):
        evaluation.compare(before, results_of(row("Spanish", "two", "2")))


PREPARED = """\
from ftlib import evaluation
from ftlib.generation import Score
from ftlib.harmony import Reply
from ftlib import profiles
from datasets import Dataset

def generate(model, tokenizer, conversations, max_new_tokens):
    if "stop" in str(conversations):
        raise KeyError("stop")
    return [Reply("", "", "", True, raw="") for _ in conversations]

evaluation.generate_replies = generate
settings = profiles.load("tiny").measure.model_copy(update={"batch_size": 2})
message = {"role": "user", "content": "What?"}
rows = Dataset.from_list([{"reasoning_language": "", "user": "", "final": "", "messages": [message]}] * 5)
"""
DONE = "evaluation.evaluate(None, None, rows, settings, 100).shape"
BROKEN_OFF = """\
message["content"] = "Longer than the others, so that it comes last: please stop."
last = {"reasoning_language": "", "user": "", "final": "", "messages": [message]}
rows = Dataset.from_list([*rows.select(range(4)), last])
evaluation.evaluate(None, None, rows, settings, 100)
"""


def test_the_progress_is_gone_when_all_is_done() -> None:
    """In a notebook only, and on no stream; where it broke off, it stands."""
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(code) for code in (PREPARED, DONE, BROKEN_OFF)]
    )
    settings = Config({"KernelManager": {"transport_encryption": "auto"}})
    ExecutePreprocessor(timeout=HANGING_S, allow_errors=True, config=settings).preprocess(notebook)
    bar, result = notebook.cells[1].outputs
    assert bar.data == {"text/html": "", "text/plain": ""}
    assert result.data["text/plain"] == "(5, 12)"
    bar, error = notebook.cells[2].outputs
    assert bar.data["text/plain"] == "4 of 5 questions"
    assert bar.data["text/html"] == '<progress value="4" max="5"></progress> 4 of 5 questions'
    assert error.ename == "KeyError"
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[notebook.cells[1]]))
    assert "IPython.core.display" not in page
    assert "<progress" not in page


def test_no_progress_is_shown_outside_a_notebook(asked: list[list[Any]], capfd: pytest.CaptureFixture[str]) -> None:
    results_of(row("Spanish", "one", "1"))
    assert capfd.readouterr() == ("", "")


@pytest.fixture(scope="module")
def few(sample_rows: list[dict[str, Any]]) -> Dataset:
    """Six rows of different lengths: two of several turns, one without a language, one without any reasoning."""
    several = [row for row in sample_rows if len(row["messages"]) > 3][:2]
    rows = json.loads(json.dumps([*sample_rows[:4], *several]))
    rows[1] |= {"reasoning_language": ""}
    rows[2]["messages"][-1]["thinking"] = None
    return Dataset.from_list(rows)


@pytest.fixture(scope="module")
def measured(base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, few: Dataset) -> pd.DataFrame:
    return evaluation.evaluate(base_model, tokenizer, few, settings(max_new_tokens=80), LENGTH)


def test_two_evaluations_are_equal(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, few: Dataset, measured: pd.DataFrame
) -> None:
    again = evaluation.evaluate(base_model, tokenizer, few, settings(max_new_tokens=80), LENGTH)
    pd.testing.assert_frame_equal(again, measured, check_exact=True)


def test_the_size_of_a_batch_changes_nothing(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, few: Dataset, measured: pd.DataFrame
) -> None:
    alone = evaluation.evaluate(
        base_model, tokenizer, few, settings(max_new_tokens=80, batch_size=1, score_batch_size=1), LENGTH
    )
    assert alone["loss"].tolist() == pytest.approx(measured["loss"].tolist(), abs=1e-4)
    pd.testing.assert_frame_equal(alone.drop(columns="loss"), measured.drop(columns="loss"))
    assert measured["complete"].all()
    assert measured["final"].str.len().min() > 0


def test_a_reply_that_is_cut_is_counted(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast, few: Dataset, measured: pd.DataFrame
) -> None:
    cut = evaluation.evaluate(base_model, tokenizer, few, settings(max_new_tokens=5, batch_size=6), LENGTH)
    assert evaluation.summarise(cut)["unfinished"] == 6
    assert evaluation.summarise(measured)["unfinished"] == 0
    assert cut["loss"].tolist() == pytest.approx(measured["loss"].tolist(), abs=1e-4), "the reference is never cut"


def test_the_base_reasons_in_english_and_knows_the_answers(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What the adapter is there to change, and what it must keep; on 25 of the 120 questions, for the time's sake."""
    questions = prepare.held_out_questions().select(range(25))
    results = evaluation.evaluate(base_model, tokenizer, questions, TINY.measure, LENGTH)
    shares = evaluation.by_language(results).set_index("language")
    assert shares["questions"].tolist() == [5] * 5
    assert results["agrees"].mean() <= 0.30
    assert shares.loc["English", "agreement"] == 1
    assert results["exact"].mean() >= 0.80
    assert results["complete"].all()
