"""Does a model reason in the language it is asked for, and is its answer right? The same measure before and after."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from math import isnan, nan, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ftlib.dataset.harmony import Reply
from ftlib.errors import FtlibError
from ftlib.model.generation import Messages, Score, generate_replies, score_replies
from ftlib.profiles import Measure

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from py3langid.langid import LanguageIdentifier
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Always told apart: the published data set's languages, and one that it lacks.
LANGUAGES = ("English", "Spanish", "French", "Italian", "German", "Portuguese")
LONGEST_SHOWN = 300
"""Characters of a text that a table of examples shows."""


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE)


@lru_cache(maxsize=1)
def _language_names() -> dict[str, str]:
    """Code and English name of every language that can be identified."""
    from babel import Locale

    names = Locale("en").languages
    return {code: names[code] for code in _identifier().labels if code in names}


def _spelt(language: str) -> str:
    """A language's name as it is usually written, however it is capitalised here; one that is unknown as it is."""
    usual = {name.casefold(): name for name in _language_names().values()}
    return usual.get(language.strip().casefold(), language.strip())


def detect_language(text: str, languages: Iterable[str] = ()) -> str:
    """The language that a text is most likely in, among those in play; "" for a text without words.

    py3langid counts character sequences, and is sure from about a sentence on. It knows over a hundred languages and
    takes short Spanish for Galician, so it chooses among few.

    Args:
        text: what to identify.
        languages: English names of languages that are in play besides `LANGUAGES`; unknown ones are ignored.
    """
    if not any(character.isalpha() for character in text):
        return ""
    in_play = {*LANGUAGES, *map(_spelt, languages)}
    likeliest_first = (_language_names().get(code, "") for code, _ in _identifier().rank(text))
    return next(language for language in likeliest_first if language in in_play)


def evaluate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: "Dataset", settings: Measure, max_length: int
) -> "pd.DataFrame":
    """Ask every row's question anew, compare the reply with what the row asks for, and score the row's own reply.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with the template's date pinned.
        rows: rows in the published schema; the last message, the reference reply, is not shown to the model that is
            asked. `reasoning_language` is "" where a row asks for none.
        settings: how many questions to ask and replies to score at once, and where to cut a reply.
        max_length: tokens of a row that are scored, as many as training sees of it.

    Returns:
        One row a question, in the order of `rows`:
        language (asked for), user, analysis, final, reference (the row's final),
        detected (the language of the reasoning), agrees (it is the one asked for; NA where none is asked for, or one
        that cannot be identified), exact (the answer is the reference word for word; NA where that is empty), complete
        (the reply ended by itself),
        loss (mean over the tokens of the reference reply, given its question: of its reasoning and its answer, empty
        or not; NaN where there is no reply), correct_tokens (that the model would have written as well) and tokens.
        Over several rows, weigh the loss by tokens, as `summarise` does.
    """
    # Prompts of like length go together, which saves padding; the replies are put back in order.
    order = sorted(range(len(rows)), key=lambda index: len(str(rows[index]["messages"])))
    replies: dict[int, Reply] = {}
    scores: dict[int, Score] = {}
    for batch in _watched(_batches(order, settings.batch_size)):
        conversations = {index: rows[index]["messages"] for index in batch}
        questions = [_question(messages) for messages in conversations.values()]
        replies |= zip(batch, generate_replies(model, tokenizer, questions, settings.max_new_tokens), strict=True)
        answered = [index for index in batch if conversations[index][-1]["role"] == "assistant"]
        for scored in _batches(answered, settings.score_batch_size):
            references = [conversations[index] for index in scored]
            scores |= zip(scored, score_replies(model, tokenizer, references, max_length), strict=True)
    unscored = Score(nan, 0, 0)
    places = range(len(rows))
    return _results(rows, [replies[index] for index in places], [scores.get(index, unscored) for index in places])


def _batches(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _question(messages: Messages) -> Messages:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _results(rows: "Dataset", replies: Sequence[Reply], scores: Sequence[Score]) -> "pd.DataFrame":
    import pandas as pd

    asked = [_spelt(language or "") for language in rows["reasoning_language"]]
    references = [final or "" for final in rows["final"]]
    detected = [detect_language(reply.analysis, asked) for reply in replies]
    known = set(_language_names().values())
    agrees = [spoken == wanted if wanted in known else None for spoken, wanted in zip(detected, asked, strict=True)]
    exact = [
        _same(reply.final, reference) if reference else None
        for reply, reference in zip(replies, references, strict=True)
    ]
    return pd.DataFrame(
        {
            "language": asked,
            "user": list(rows["user"]),
            "analysis": [reply.analysis for reply in replies],
            "final": [reply.final for reply in replies],
            "reference": references,
            "detected": detected,
            "agrees": pd.array(agrees, dtype="boolean"),
            "exact": pd.array(exact, dtype="boolean"),
            "complete": [reply.complete for reply in replies],
            "loss": [score.loss for score in scores],
            "correct_tokens": [score.correct_tokens for score in scores],
            "tokens": [score.tokens for score in scores],
        }
    )


def _same(answer: str, reference: str) -> bool:
    return answer.split() == reference.split()


def _watched(batches: Sequence[list[int]]) -> Iterator[list[int]]:
    """Hand out the batches; in a notebook, show how many questions are done, in a line that is gone at the end."""
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    if not hasattr(get_ipython(), "kernel"):
        yield from batches
        return
    # Empty at first as at last: a saved notebook keeps what was shown last, and nbval compares it with the first.
    nothing = {"text/html": "", "text/plain": ""}
    line: Any = display(nothing, raw=True, display_id=True)  # type: ignore[no-untyped-call]
    total, done = sum(map(len, batches)), 0
    for batch in batches:
        told = f"{done} of {total} questions"
        bar = f'<progress value="{done}" max="{total}"></progress> {told}'
        line.update({"text/html": bar, "text/plain": told}, raw=True)
        yield batch
        done += len(batch)
    line.update(nothing, raw=True)


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The range in which a share lies with 95% confidence, when it was found in `successes` of `n` cases.

    With p = successes / n and z = 1.96, the bounds are (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike
    p ± z √(p(1-p)/n), they stay between 0 and 1, and do not meet in one point where all or none succeed.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, Journal of the American
    Statistical Association 22 (1927), 209-212.

    Returns:
        The lower and the upper bound; NaN both where `n` is 0.
    """
    if n == 0:
        return nan, nan
    z, p = NormalDist().inv_cdf(0.975), successes / n
    centre = p + z**2 / (2 * n)
    reach = z * sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    # Rounding may carry a bound a hair past 0 or 1, or past p itself where all or none succeed.
    return min(p, max(0.0, (centre - reach) / scale)), max(p, min(1.0, (centre + reach) / scale))


def by_language(results: "pd.DataFrame") -> "pd.DataFrame":
    """Shares by language asked for, in the order in which they first come up; rows that ask for none are left out.

    Returns:
        Columns language, questions, agreement, low and high (its 95% interval), exact, complete; all but the first two
        are shares from 0 to 1, NaN where they could not be measured.
    """
    import pandas as pd

    columns = ["language", "questions", "agreement", "low", "high", "exact", "complete"]
    asked = results[results["language"] != ""].groupby("language", sort=False)
    return pd.DataFrame([{"language": language, **_shares(group)} for language, group in asked], columns=columns)


def _shares(results: "pd.DataFrame") -> dict[str, float]:
    judged = results["agrees"].dropna()
    low, high = wilson_interval(int(judged.sum()), len(judged))
    return {
        "questions": len(results),
        "agreement": _mean(judged),
        "low": low,
        "high": high,
        "exact": _mean(results["exact"].dropna()),
        "complete": _mean(results["complete"]),
    }


def _mean(values: "pd.Series[Any]") -> float:
    return float(values.mean()) if len(values) else nan


def summarise(results: "pd.DataFrame") -> dict[str, Any]:
    """What a record and a model card say of an evaluation, ready for JSON: None for what could not be measured.

    Returns:
        questions; agreement, agreement_low and agreement_high (95% interval); exact; unfinished (replies that did not
        end by themselves); loss and token_accuracy (means over all tokens of the reference replies, so a long reply
        counts for more); by_language (the table of that name, a dict a row).
    """
    shares = _shares(results)
    tokens = int(results["tokens"].sum())
    values = {
        "questions": shares["questions"],
        "agreement": shares["agreement"],
        "agreement_low": shares["low"],
        "agreement_high": shares["high"],
        "exact": shares["exact"],
        "unfinished": int((~results["complete"]).sum()),
        "loss": float((results["loss"] * results["tokens"]).sum()) / tokens if tokens else nan,
        "token_accuracy": int(results["correct_tokens"].sum()) / tokens if tokens else nan,
    }
    languages = by_language(results).to_dict("records")
    return {**_known(values), "by_language": [_known(row) for row in languages]}


def _known(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and isnan(value) else value for key, value in values.items()}


def share(value: float | None) -> str:
    """Write a share of a summary as a percentage, or that there is none."""
    return "not measured" if value is None else f"{value:.0%}"


def compare(before: Sequence[Mapping[str, Any]], after: "pd.DataFrame") -> "pd.DataFrame":
    """Put examples from before training beside what the model says now; long texts are cut, and end in "…".

    Args:
        before: examples with language, user and analysis, as the record of notebook 03 keeps them.
        after: results of `evaluate` for the same questions.

    Returns:
        Columns language, question, reasoning before, reasoning after, answer after, reference.

    Raises:
        FtlibError: a question of `before` was not asked again.
    """
    import pandas as pd

    first_asked = after.drop_duplicates(["language", "user"]).to_dict("records")
    now = {(row["language"], row["user"]): row for row in first_asked}
    table = []
    for example in before:
        asked = example["language"], example["user"]
        if asked not in now:
            raise FtlibError(
                f"found no reply to {_shortened(example['user'], 80)!r}, which was asked before training; expected "
                "the same questions: run 03_load_model.ipynb again with this profile"
            )
        texts = {
            "language": example["language"],
            "question": example["user"],
            "reasoning before": example["analysis"],
            "reasoning after": now[asked]["analysis"],
            "answer after": now[asked]["final"],
            "reference": now[asked]["reference"],
        }
        table.append({column: _shortened(text, LONGEST_SHOWN) for column, text in texts.items()})
    return pd.DataFrame(table)


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[:longest].rstrip() + "…"
