"""Does a model reason in the language it is asked for, and is its answer right? The same measure before and after."""

from functools import lru_cache
from typing import TYPE_CHECKING

from ftlib.generation import generate_replies
from ftlib.harmony import Reply
from ftlib.profiles import Generate

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from py3langid.langid import LanguageIdentifier
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# The data set's languages, and one that it lacks.
LANGUAGE_CODES = {"English": "en", "Spanish": "es", "French": "fr", "Italian": "it", "German": "de", "Portuguese": "pt"}


@lru_cache(maxsize=1)
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE)
    identifier.set_languages(list(LANGUAGE_CODES.values()))
    return identifier


def detect_language(text: str) -> str:
    """The language that a text is most likely in, among those in play; "" for a text without words.

    py3langid counts character sequences, and is sure from about a sentence on.
    """
    if not any(character.isalpha() for character in text):
        return ""
    code, _ = _identifier().classify(text)
    return next(language for language, known in LANGUAGE_CODES.items() if known == code)


def evaluate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rows: "Dataset", settings: Generate
) -> "pd.DataFrame":
    """Ask every row's question anew and compare the reply with what the row asks for.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, with the template's date pinned.
        rows: rows in the published schema; the last message, the reference reply, is not shown to the model.
        settings: how many prompts to generate together and where to cut a reply.

    Returns:
        One row a question, in the order of `rows`: language, user, analysis, final, detected, agrees (the reasoning is
        in the language asked for), exact (the answer is the reference word for word), complete (it ended by itself).
    """
    import pandas as pd

    # Prompts of like length go together, which saves padding; the replies are put back in order.
    order = sorted(range(len(rows)), key=lambda index: len(str(rows[index]["messages"])))
    replies: dict[int, Reply] = {}
    for start in range(0, len(order), settings.batch_size):
        batch = order[start : start + settings.batch_size]
        conversations = [rows[index]["messages"][:-1] for index in batch]
        replies |= zip(batch, generate_replies(model, tokenizer, conversations, settings.max_new_tokens), strict=True)
    frame = pd.DataFrame(
        {
            "language": list(rows["reasoning_language"]),
            "user": list(rows["user"]),
            "analysis": [replies[index].analysis for index in range(len(rows))],
            "final": [replies[index].final for index in range(len(rows))],
            "complete": [replies[index].complete for index in range(len(rows))],
        }
    )
    frame["detected"] = frame["analysis"].map(detect_language)
    frame["agrees"] = frame["detected"] == frame["language"]
    frame["exact"] = [_same(final, reference) for final, reference in zip(frame["final"], rows["final"], strict=True)]
    return frame


def _same(answer: str, reference: str) -> bool:
    return answer.split() == reference.split()


def by_language(results: "pd.DataFrame") -> "pd.DataFrame":
    """Shares by language, in the order in which the languages first come up.

    Returns:
        Columns language, questions, agreement, exact, complete; the last three are shares from 0 to 1.
    """
    shares = results.groupby("language", sort=False).agg(
        questions=("agrees", "size"),
        agreement=("agrees", "mean"),
        exact=("exact", "mean"),
        complete=("complete", "mean"),
    )
    return shares.reset_index()
