"""Evaluate a model before and after training: the language of its reasoning, its answers, and whether these agree."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from math import isnan, nan, sqrt
from operator import attrgetter
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from ftlib.dataset.harmony import Reply
from ftlib.dataset.shapes import shortened
from ftlib.errors import FtlibError
from ftlib.model.generation import Messages, Score, generate_replies, score_replies
from ftlib.model.language import detect_language, known_languages, usual_name
from ftlib.profiles import Measure, Profile
from ftlib.rehearsal import corpus

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHARES = ("questions", "agreement", "low", "high", "exact", "faithful", "complete")
LONGEST_SHOWN = 300  # characters of a text in a table of examples
TOKENS_A_LINE = 8  # by which a batch of replies grows before its line of progress changes
# Values of a profile that change what is measured; how many questions are asked at once does not.
CONDITIONS = (
    *("hub.model", "hub.model_revision", "model.dtype", "data.template_date", "train.max_length"),
    *("measure.attn_implementation", "measure.experts_implementation", "measure.max_new_tokens"),
)


def evaluate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: "Dataset", settings: Measure, max_length: int
) -> "pd.DataFrame":
    """Ask every row's question, compare the reply with what the row asks for, and score the row's own reply.

    Of each row, at most `max_length` tokens are scored, as many as training reads.

    Returns:
        One row a question: language (asked for), user, analysis, final, reference (the row's final),
        detected (the language of the reasoning), agrees (it is the one asked for; NA where that is none or unknown),
        exact (the answer is the reference word for word; NA without a reference), faithful (the reasoning names what
        the answer names; NA where the question is none of the rehearsal's), complete (the reply was not cut),
        loss (mean over the reference reply's tokens, given its question), correct_tokens (that the model would have
        written too) and tokens.
    """
    import pandas as pd

    # Prompts of similar length share a batch, which saves padding; the results are put back in order.
    order = sorted(range(len(rows)), key=lambda index: len(str(rows[index]["messages"])))
    rows = rows.select(order)
    replies: list[Reply] = []
    scores: list[Score] = []
    for batch in _batches(rows["messages"][:], settings.batch_size):
        asking = f"asking questions {len(replies) + 1} to {len(replies) + len(batch)} of {len(rows)}"
        progress = _Progress(asking, settings.max_new_tokens)
        questions = [messages[:-1] for messages in batch]
        replies += generate_replies(model, tokenizer, questions, settings.max_new_tokens, streamer=progress)
        for references in _batches(batch, settings.score_batch_size):
            progress.show(f", {len(scores)} reference replies scored")
            scores += score_replies(model, tokenizer, references, max_length)
        progress.show("")
    results = judge(rows, replies).join(pd.DataFrame(scores, columns=list(Score._fields)))
    results.index = order
    return results.sort_index().reset_index(drop=True)


class _Line(str):
    """A text that a notebook shows without quotes."""

    __repr__ = str.__str__


class _Progress:
    """A line that a notebook shows, and changes while a batch is asked; in the end it reads as in the beginning."""

    def __init__(self, line: str, longest: int) -> None:
        from IPython.display import display

        self._line, self._longest = line, longest
        self._handle = display(_Line(line), display_id=True)  # type: ignore[no-untyped-call]
        self._tokens = -1  # `generate` puts the prompt first

    def put(self, tokens: object) -> None:
        """One token more of each reply, from `generate`."""
        self._tokens += 1
        if self._tokens % TOKENS_A_LINE == 0:
            self.show(f", {self._tokens} of at most {self._longest} tokens")

    def end(self) -> None:
        """The last reply has ended."""

    def show(self, reached: str) -> None:
        """Add to the line how far things are, in place of what was added before."""
        if self._handle:
            self._handle.update(_Line(self._line + reached))


def _batches(conversations: list[Messages], size: int) -> list[list[Messages]]:
    return [conversations[start : start + size] for start in range(0, len(conversations), size)]


def judge(rows: "Dataset", replies: Sequence[Reply]) -> "pd.DataFrame":
    """Compare replies with what their rows ask for; the columns are those of `evaluate`, without the scores."""
    import pandas as pd

    asked = [usual_name(language or "") for language in rows["reasoning_language"]]
    references = [final or "" for final in rows["final"]]
    detected = [detect_language(reply.analysis, asked) for reply in replies]
    known = set(known_languages().values())
    agrees = [spoken == wanted if wanted in known else None for spoken, wanted in zip(detected, asked, strict=True)]
    answers = zip(replies, references, strict=True)
    exact = [reply.final.split() == reference.split() if reference else None for reply, reference in answers]
    said = [(reply.analysis, reply.final) for reply in replies]
    faithful = [corpus.is_faithful(question, *both) for question, both in zip(rows["user"], said, strict=True)]
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
        "faithful": pd.array(faithful, dtype="boolean"),
        "complete": [reply.complete for reply in replies],
    }
    return pd.DataFrame(texts | verdicts)


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
    rows = [{"language": language, **shares(group)} for language, group in asked]
    return pd.DataFrame(rows, columns=["language", *SHARES])


def shares(results: "pd.DataFrame") -> dict[str, float]:
    """`SHARES` of all results, NaN where they could not be measured."""
    judged = results["agrees"].dropna()
    low, high = wilson_interval(int(judged.sum()), len(judged))
    agreement, *others = results[["agrees", "exact", "faithful", "complete"]].astype(float).mean()
    return dict(zip(SHARES, (len(results), agreement, low, high, *others), strict=True))


def summarise(results: "pd.DataFrame") -> dict[str, Any]:
    """Sum up an evaluation for a record and a model card, ready for JSON: None for what could not be measured.

    Returns:
        questions; agreement, agreement_low and agreement_high (95% interval); exact; faithful; unfinished (replies that
        were cut off); loss and token_accuracy (means over all tokens of the reference replies); by_language (a dict a
        row).
    """
    found = shares(results)
    tokens = int(results["tokens"].sum())
    values = {
        "questions": found["questions"],
        "agreement": found["agreement"],
        "agreement_low": found["low"],
        "agreement_high": found["high"],
        "exact": found["exact"],
        "faithful": found["faithful"],
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


def conditions(held_out: "Dataset", profile: Profile) -> dict[str, Any]:
    """What two measurements must share to be compared: the base, the settings and, as a digest, the questions."""
    rows = json.dumps(held_out.to_list(), sort_keys=True)
    digest = hashlib.sha256(rows.encode()).hexdigest()
    return {key: attrgetter(key)(profile) for key in CONDITIONS} | {"digest of the held-out questions": digest[:16]}


def check_same(baseline: Mapping[str, Any], held_out: "Dataset", profile: Profile) -> None:
    """Refuse to compare with a baseline, the record of notebook 03, of other `conditions`.

    Raises:
        FtlibError: names the first value that differs.
    """
    number = "number of held-out questions"
    before = {number: baseline.get("questions")} | baseline.get("conditions", {})
    for name, now in ({number: len(held_out)} | conditions(held_out, profile)).items():
        if (then := before.get(name, "not recorded")) != now:
            raise FtlibError(
                f"{name} was {then} when 03_load_model.ipynb measured the base and is {now} now; expected the same: "
                "change it back, or run 03_load_model.ipynb again"
            )


def compare(before: Sequence[Mapping[str, Any]], after: "pd.DataFrame") -> "pd.DataFrame":
    """Put examples from before training, as notebook 03 records them, beside the results of `evaluate` for them now.

    Long texts are cut and end in "…".
    """
    import pandas as pd

    now = after.drop_duplicates(["language", "user"])[["language", "user", "analysis", "final", "reference"]]
    first = pd.DataFrame(before)[["language", "user", "analysis"]]
    table = first.merge(now, how="left", on=["language", "user"])
    table.columns = ["language", "question", "reasoning before", "reasoning after", "answer after", "reference"]
    return table.map(lambda text: shortened(text, LONGEST_SHOWN))
