"""The measure: the same before and after, and low for the base as it is shipped."""

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from datasets import Dataset
from transformers import GptOssForCausalLM, PreTrainedTokenizerFast

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.dataset.harmony import Reply
from ftlib.errors import FtlibError
from ftlib.model import evaluation
from ftlib.model.generation import Score

ENGLISH = "The user asks for the capital of France. Let me think about it for a moment."
TINY = profiles.load("tiny")
SETTINGS = TINY.measure.model_copy(update={"max_new_tokens": 8, "batch_size": 4, "score_batch_size": 2})
LENGTH = TINY.train.max_length


def row(language: str | None, question: str, final: str) -> dict[str, Any]:
    said = [("system", f"reasoning language: {language}", None), ("user", question, None), ("assistant", final, "...")]
    messages = [{"content": content, "role": role, "thinking": thinking} for role, content, thinking in said]
    return {"reasoning_language": language, "user": question, "final": final, "messages": messages}


def results_of(*rows: dict[str, Any]) -> pd.DataFrame:
    """The results of a model that is not there: see `asked`."""
    return evaluation.evaluate(None, None, Dataset.from_list(list(rows)), SETTINGS, LENGTH)  # type: ignore[arg-type]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """Puts a model in place that reasons in English unless told to be silent, repeats the question, and never ends odd.

    It finds two nats in each character of a reference reply, and would have written the first itself.
    """
    batches: list[list[Any]] = []

    def parrot(
        model: object, tokenizer: object, conversations: Sequence[Any], max_new_tokens: int, streamer: Any
    ) -> list[Reply]:
        assert max_new_tokens == SETTINGS.max_new_tokens
        batches.append(list(conversations))
        for _ in range(1 + 16):  # the prompt, then token by token
            streamer.put(None)
        questions = [messages[-1]["content"] for messages in conversations]
        return [Reply("" if text == "silent" else ENGLISH, text, "", "odd" not in text) for text in questions]

    def score(model: object, tokenizer: object, conversations: Sequence[Any], max_length: int) -> list[Score]:
        assert 0 < len(conversations) <= SETTINGS.score_batch_size
        assert max_length == LENGTH
        references = [messages[-1]["content"] for messages in conversations]
        return [Score(2.0 * len(text), 1, len(text)) for text in references]

    monkeypatch.setattr(evaluation, "generate_replies", parrot)
    monkeypatch.setattr(evaluation, "score_replies", score)
    return batches


def test_batches_hold_similar_lengths_and_results_the_order_of_the_rows(
    asked: list[list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    questions = [f"{'very very ' * (37 * number % 11)}long question {number}" for number in range(10)]
    results = results_of(*(row("Spanish", question, "4" * number) for number, question in enumerate(questions)))
    assert results["user"].tolist() == results["final"].tolist() == questions
    assert results["tokens"].tolist() == list(range(10))
    assert [len(batch) for batch in asked] == [4, 4, 2]
    lengths = [len(messages[-1]["content"]) for batch in asked for messages in batch]
    assert lengths == sorted(lengths)
    assert {messages[-1]["role"] for batch in asked for messages in batch} == {"user"}, "no reference is shown"
    assert "asking questions 9 to 10 of 10" in capsys.readouterr().out


def test_what_is_measured_of_a_reply(asked: list[list[Any]]) -> None:
    results = results_of(
        row("ENGLISH", "five  is 5. ", "five is 5."),
        row("Spanish", "five", "Five"),
        row("German", "odd", "odd"),
        row("English", "silent", "7"),
        row("Klingon", "three", ""),
        row(None, "two", "two"),
    )
    assert results["language"].tolist() == ["English", "Spanish", "German", "English", "Klingon", ""]
    assert results["detected"].tolist() == ["English", "English", "English", "", "English", "English"]
    assert results["agrees"].tolist() == [True, False, False, False, pd.NA, pd.NA]
    assert results["exact"].tolist() == [True, False, True, False, pd.NA, True], "word for word, however it is spaced"
    assert results["complete"].tolist() == [True, True, False, True, True, True]
    assert results[["loss", "correct_tokens", "tokens"]].iloc[:2].to_numpy().tolist() == [[20, 1, 10], [8, 1, 4]]


def test_reasoning_is_faithful_where_it_names_what_the_answer_names(asked: list[list[Any]]) -> None:
    """The answer repeats the question: it names France in the first and Spain in the second, the reasoning France."""
    capitals = [row("French", f"What is the capital of {name}?", "?") for name in ("France", "Spain")]
    results = results_of(*capitals, row("French", "Whose capital is that of France?", "?"))
    assert results["faithful"].tolist() == [True, False, pd.NA], "the last is none of the rehearsal's questions"
    assert evaluation.summarise(results)["faithful"] == 1 / 2
    assert evaluation.by_language(results)["faithful"].tolist() == [1 / 2]


def test_progress_is_seen_while_a_batch_is_asked_and_leaves_one_line(
    asked: list[list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a saved notebook keeps, and nbval compares, does not depend on how long anything took."""
    shown: list[str] = []
    handle = SimpleNamespace(update=lambda line: shown.append(repr(line)))
    monkeypatch.setattr("IPython.display.display", lambda line, display_id: (shown.append(repr(line)), handle)[1])
    results_of(*(row("Spanish", str(number), "4") for number in range(3)))
    line = "asking questions 1 to 3 of 3"
    expected = ["", *(f", {n} of at most 8 tokens" for n in (0, 8, 16))]
    expected += [f", {n} reference replies scored" for n in (0, 2)]
    assert shown == [line + reached for reached in [*expected, ""]]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            {"measure": {"max_new_tokens": 100}},
            r"measure\.max_new_tokens was 128 .* and is 100 now; .*run 03_load_model",
        ),
        ({"data": {"template_date": "2025-01-01"}}, r"data\.template_date was 2025-08-05 .* and is 2025-01-01 now"),
        ({"train": {"max_length": 9}}, r"train\.max_length was 216"),
        ({"model": {"dtype": "bfloat16"}}, r"model\.dtype was float32"),
        ({"hub": {"model_revision": "0" * 40}}, r"hub\.model_revision was"),
    ],
)
def test_other_settings_than_before_training_are_refused_by_name(change: dict[str, Any], told: str) -> None:
    held_out = prepare.held_out_questions()
    baseline = {"questions": 120, "conditions": json.loads(json.dumps(evaluation.conditions(held_out, TINY)))}
    evaluation.check_same(baseline, held_out, TINY)
    changed = {name: getattr(TINY, name).model_copy(update=values) for name, values in change.items()}
    with pytest.raises(FtlibError, match=told):
        evaluation.check_same(baseline, held_out, TINY.model_copy(update=changed))


def test_other_questions_than_before_training_are_refused() -> None:
    held_out = prepare.held_out_questions()
    baseline = {"questions": 120, "conditions": evaluation.conditions(held_out, TINY)}
    faster = TINY.model_copy(update={"measure": TINY.measure.model_copy(update={"batch_size": 1})})
    evaluation.check_same(baseline, held_out, faster)
    with pytest.raises(FtlibError, match=r"number of held-out questions was 120 .* and is 60 now"):
        evaluation.check_same(baseline, held_out.select(range(60)), TINY)
    with pytest.raises(FtlibError, match="digest of the held-out questions was"):
        evaluation.check_same(baseline, prepare.ask_for_language(held_out, "Dutch"), TINY)
    with pytest.raises(FtlibError, match=r"hub\.model was not recorded"):  # a record of an earlier version
        evaluation.check_same({"questions": 120}, held_out, TINY)


def test_nothing_measured_is_told_as_nothing(asked: list[list[Any]]) -> None:
    results = results_of(row("", "one", ""), row("", "odd", ""))
    assert list(evaluation.by_language(results).columns) == ["language", *evaluation.SHARES]
    summary = evaluation.summarise(results)
    assert json.loads(json.dumps(summary, allow_nan=False)) == {
        **{"questions": 2, "agreement": None, "agreement_low": None, "agreement_high": None, "exact": None},
        **{"faithful": None, "unfinished": 1, "loss": None, "token_accuracy": None, "by_language": []},
    }
    assert evaluation.share(summary["agreement"]) == evaluation.share(summary["faithful"]) == "not measured"


def test_a_summary_weighs_by_reply_and_by_token(asked: list[list[Any]]) -> None:
    rows = [row("English", "1", "1"), row("English", "odd", "no"), row("French", "4", "four"), row("Klingon", "", "5")]
    summary = evaluation.summarise(results_of(*rows))
    assert summary["agreement"] == 2 / 3
    assert (summary["agreement_low"], summary["agreement_high"]) == evaluation.wilson_interval(2, 3)
    assert (summary["questions"], summary["exact"], summary["unfinished"]) == (4, 1 / 4, 1)
    assert summary["loss"] == (1 * 2 + 2 * 4 + 4 * 8 + 1 * 2) / 8
    assert summary["token_accuracy"] == 4 / 8
    english, _, klingon = summary["by_language"]
    assert tuple(english.values()) == ("English", 2, 1, *evaluation.wilson_interval(2, 2), 0.5, None, 0.5)
    assert (klingon["questions"], klingon["agreement"], klingon["low"], klingon["exact"]) == (1, None, None, 0)
    assert evaluation.share(summary["agreement"]) == "67%"


def test_wilsons_interval_is_the_published_one_and_contains_the_share_itself() -> None:
    # R. G. Newcombe, Two-sided confidence intervals for the single proportion, Statistics in Medicine 17 (1998).
    assert evaluation.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert evaluation.wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=5e-5)
    for n in range(1, 121):
        for successes in range(n + 1):
            low, high = evaluation.wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1


def test_examples_are_put_side_by_side(asked: list[list[Any]]) -> None:
    after = results_of(row("French", "two", "2"), row("Spanish", "one", "1"), row("Spanish", "three", "3" * 301))
    before = [
        {"language": "Spanish", "user": "three", "analysis": "Let me see. " * 99, "final": "0"},
        {"language": "French", "user": "two", "analysis": "Hm.", "final": "0"},
    ]
    table = evaluation.compare(before, after)
    assert table.iloc[1].tolist() == ["French", "two", "Hm.", ENGLISH, "two", "2"]
    assert table.loc[0, "reference"] == "3" * 300 + "…"
    assert table.loc[0, "reasoning before"] == ("Let me see. " * 25).rstrip() + "…"


def test_the_base_reasons_in_english_and_knows_the_answers(
    base_model: GptOssForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What the adapter is there to change, and what it must keep, however many are asked at once."""
    questions = prepare.held_out_questions().select(range(25))
    results = evaluation.evaluate(base_model, tokenizer, questions, TINY.measure, LENGTH)
    assert results.groupby("language")["agrees"].mean()["English"] == 1
    assert results["agrees"].mean() <= 0.30
    assert results["exact"].mean() >= 0.80
    assert results["faithful"].all()
    assert results["complete"].all()

    one_by_one = TINY.measure.model_copy(update={"batch_size": 1, "score_batch_size": 1})
    alone = evaluation.evaluate(base_model, tokenizer, questions.select(range(4)), one_by_one, LENGTH)
    pd.testing.assert_frame_equal(alone, results[:4], check_exact=False, atol=1e-4)
