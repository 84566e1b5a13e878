"""Evaluate a model before and after training: does it reason in the language asked for, and is its answer right?"""

from collections.abc import Mapping, Sequence
from math import isnan, nan, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ftlib.dataset.harmony import Reply
from ftlib.dataset.shapes import shortened
from ftlib.errors import FtlibError
from ftlib.model.generation import Messages, Score, generate_replies, score_replies
from ftlib.model.language import detect_language, known_languages, usual_name
from ftlib.profiles import Measure

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARES = ("questions", "agreement", "low", "high", "exact", "complete")
LONGEST_SHOWN = 300  # characters of a text in a table of examples


def evaluate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: "Dataset", settings: Measure, max_length: int
) -> "pd.DataFrame":
    """Ask every row's question, compare the reply with what the row asks for, and score the row's own reply.

    Of each row, at most `max_length` tokens are scored, as many as training reads.

    Returns:
        One row a question: language (asked for), user, analysis, final, reference (the row's final),
        detected (the language of the reasoning), agrees (it is the one asked for; NA where that is none or unknown),
        exact (the answer is the reference word for word; NA without a reference), complete (the reply was not cut),
        loss (mean over the reference reply's tokens, given its question), correct_tokens (that the model would have
        written too) and tokens.
    """
    # Prompts of similar length share a batch, which saves padding; the results are put back in order.
    order = sorted(range(len(rows)), key=lambda index: len(str(rows[index]["messages"])))
    rows = rows.select(order)
    replies: list[Reply] = []
    scores: list[Score] = []
    for batch in _batches(rows["messages"][:], settings.batch_size):
        print(f"asking questions {len(replies) + 1} to {len(replies) + len(batch)} of {len(rows)}")
        questions = [messages[:-1] for messages in batch]
        replies += generate_replies(model, tokenizer, questions, settings.max_new_tokens)
        for references in _batches(batch, settings.score_batch_size):
            scores += score_replies(model, tokenizer, references, max_length)
    results = _results(rows, replies, scores)
    results.index = order
    return results.sort_index().reset_index(drop=True)


def _batches(conversations: list[Messages], size: int) -> list[list[Messages]]:
    return [conversations[start : start + size] for start in range(0, len(conversations), size)]


def _results(rows: "Dataset", replies: Sequence[Reply], scores: Sequence[Score]) -> "pd.DataFrame":
    import pandas as pd

    asked = [usual_name(language or "") for language in rows["reasoning_language"]]
    references = [final or "" for final in rows["final"]]
    detected = [detect_language(reply.analysis, asked) for reply in replies]
    known = set(known_languages().values())
    agrees = [spoken == wanted if wanted in known else None for spoken, wanted in zip(detected, asked, strict=True)]
    answers = zip(replies, references, strict=True)
    exact = [reply.final.split() == reference.split() if reference else None for reply, reference in answers]
    texts = {
        "language": asked,
        "user": list(rows["user"]),
        "analysis": [reply.analysis for reply in replies],
        "final": [reply.final for reply in replies],
        "reference": references,
        "detected": detected,
    }
    verdicts = {
        "agrees": pd.array(agrees, dtype="boolean"),
        "exact": pd.array(exact, dtype="boolean"),
        "complete": [reply.complete for reply in replies],
    }
    return pd.DataFrame(texts | verdicts).join(pd.DataFrame(scores, columns=list(Score._fields)))


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95% confidence interval (Wilson 1927) of a share that was found in `successes` of `n` cases; NaN for n = 0.

    Unlike p ± 1.96 √(p(1-p)/n), it stays between 0 and 1, and does not shrink to a point where all or none succeed.
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
    """Shares by the language asked for, NaN where they could not be measured; rows that ask for none are left out.

    Returns:
        Columns language and `SHARES`; low and high are the 95% interval of the agreement.
    """
    import pandas as pd

    asked = results[results["language"] != ""].groupby("language", sort=False)
    rows = [{"language": language, **_shares(group)} for language, group in asked]
    return pd.DataFrame(rows, columns=["language", *SHARES])


def _shares(results: "pd.DataFrame") -> dict[str, float]:
    judged = results["agrees"].dropna()
    low, high = wilson_interval(int(judged.sum()), len(judged))
    agreement, exact, complete = results[["agrees", "exact", "complete"]].astype(float).mean()
    return dict(zip(SHARES, (len(results), agreement, low, high, exact, complete), strict=True))


def summarise(results: "pd.DataFrame") -> dict[str, Any]:
    """Sum up an evaluation for a record and a model card, ready for JSON: None for what could not be measured.

    Returns:
        questions; agreement, agreement_low and agreement_high (95% interval); exact; unfinished (replies that were cut
        off); loss and token_accuracy (means over all tokens of the reference replies); by_language (a dict a row).
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
    return {**_without_nan(values), "by_language": [_without_nan(row) for row in languages]}


def _without_nan(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and isnan(value) else value for key, value in values.items()}


def share(value: float | None) -> str:
    """Write a share of a summary as a percentage, or that there is none."""
    return "not measured" if value is None else f"{value:.0%}"


def compare(before: Sequence[Mapping[str, Any]], after: "pd.DataFrame") -> "pd.DataFrame":
    """Put examples from before training, as notebook 03 records them, beside the results of `evaluate` for them now.

    Long texts are cut and end in "…".
    """
    import pandas as pd

    now = after.drop_duplicates(["language", "user"])[["language", "user", "analysis", "final", "reference"]]
    first = pd.DataFrame(before)[["language", "user", "analysis"]]
    table = first.merge(now, how="left", on=["language", "user"])
    unasked = table.loc[table["reference"].isna(), "user"]
    if len(unasked):
        raise FtlibError(
            f"found no reply to {shortened(unasked.iloc[0], 80)!r}, which was asked before training; expected "
            "the same questions: run 03_load_model.ipynb again with this profile"
        )
    table.columns = ["language", "question", "reasoning before", "reasoning after", "answer after", "reference"]
    return table.map(lambda text: shortened(text, LONGEST_SHOWN))
