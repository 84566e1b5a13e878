"""The data set before training: where it is, whether its rows can be trained on, and what is kept for measuring."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlib.dataset import files
from ftlib.dataset.shapes import COLUMNS, UNUSUAL, BadRow, columns_read, reader, unusual
from ftlib.errors import FtlibError
from ftlib.profiles import Data
from ftlib.rehearsal import HELD_OUT_FILE

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

DROPPED = "dropped_rows.jsonl"
PLACES_SHOWN = 5
LONGEST_SHOWN = 80
"""Characters of a text that a table shows."""


def source(settings: Data) -> dict[str, Any]:
    """What `load_dataset` needs: the Hub's id and the commit, or the files on this machine.

    Raises:
        FtlibError: a local file is missing or cannot be read: which, at which line, and what to do.
    """
    if settings.is_local:
        return files.load_arguments(Path(settings.dataset), columns_read(settings.columns))
    return {"path": settings.dataset, "revision": settings.revision}


class ReadRow(NamedTuple):
    """A row of the data set, and what reading it came to.

    Attributes:
        file: the local file's name, or the data set's id on the Hub.
        row: its number, counted from 1 in a file, and as `dataset[row]` counts for a data set on the Hub.
        raw: the row as it is.
        conversation: the same in the published schema; None for a bad row.
        problem: what is wrong with a bad row.
    """

    file: str
    row: int
    raw: dict[str, Any]
    conversation: dict[str, Any] | None
    problem: BadRow | None

    @property
    def told(self) -> dict[str, Any]:
        """Where a bad row is and what is wrong with it."""
        assert self.problem is not None
        field, found, expected = self.problem.args
        return {"file": self.file, "row": self.row, "field": field, "found": found, "expected": expected}


class Checked(NamedTuple):
    """What `check` finds.

    Attributes:
        problems: columns file, row, field, found and expected, as in `ReadRow`: a row for each bad one.
        unusual: columns what, rows (how many), where (the first of them) and meaning: a row for each thing that is
            unusual about rows that are trained on all the same.
    """

    problems: "pd.DataFrame"
    unusual: "pd.DataFrame"


def check(dataset: "Dataset", settings: Data, max_length: int) -> Checked:
    """Look for rows that are bad or unusual, before anything is loaded that costs time or memory.

    Args:
        dataset: rows as `load_dataset` gives them, in one of the shapes that `conversations` accepts.
        settings: where they come from, and what their columns hold.
        max_length: tokens of a row that are trained on.

    Raises:
        FtlibError: the columns have no accepted shape, or there are no rows.
    """
    import pandas as pd

    read = list(_read(dataset, settings))
    told = [row.told for row in read if row.problem]
    noted = [
        (what, len(places), _listed(places), UNUSUAL[what])
        for what, places in _unusual_places(read, max_length).items()
    ]
    return Checked(
        pd.DataFrame(told, columns=["file", "row", "field", "found", "expected"]),
        pd.DataFrame(noted, columns=["what", "rows", "where", "meaning"]),
    )


def _unusual_places(read: list[ReadRow], max_length: int) -> dict[str, list[str]]:
    """Where each unusual thing was found; a row of several files is named with its own."""
    several = len({row.file for row in read}) > 1
    places: dict[str, list[str]] = {what: [] for what in UNUSUAL}
    seen: set[str] = set()
    for row in read:
        if row.conversation:
            text = json.dumps(row.conversation, sort_keys=True)
            for what in unusual(row.conversation, max_length, copied=text in seen):
                places[what].append(f"row {row.row} of {row.file}" if several else f"row {row.row}")
            seen.add(text)
    return {what: found for what, found in places.items() if found}


def _listed(places: list[str]) -> str:
    return ", ".join([*places[:PLACES_SHOWN], *(["…"] if len(places) > PLACES_SHOWN else [])])


def conversations(dataset: "Dataset", settings: Data, output_dir: Path) -> "Dataset":
    """The rows as conversations in the published schema, whatever their shape was.

    Accepted are that schema; `messages` alone, with or without `thinking`, or with `<think>…</think>` at the beginning
    of a reply; `prompt` and `completion`, as texts or as lists of messages; and columns that `settings.columns` names.

    Args:
        dataset: rows as `load_dataset` gives them.
        settings: with `on_bad_row` "drop", bad rows are left out and kept with the reasons.
        output_dir: where they are kept, as `dropped_rows.jsonl`.

    Returns:
        Rows of reasoning_language ("" where none is asked for), developer, user, analysis, final and
        messages[content, role, thinking].

    Raises:
        FtlibError: a row is bad and the profile says "stop", or all of them are.
    """
    from datasets import Dataset

    read = list(_read(dataset, settings))
    bad = [row for row in read if row.problem]
    if bad and (settings.on_bad_row == "stop" or len(bad) == len(read)):
        raise FtlibError(_first_of(bad, settings))
    _keep_dropped(bad, output_dir / DROPPED)
    schema = _published_schema()
    if dataset.features == schema and all(row.conversation == row.raw for row in read):
        return dataset
    return Dataset.from_list([row.conversation for row in read if row.conversation], features=schema)


def _read(dataset: "Dataset", settings: Data) -> Iterator[ReadRow]:
    """Every row, with what is wrong with it."""
    if len(dataset) == 0:
        raise FtlibError(f"{settings.shown} has no rows; expected at least one")
    read = reader(dataset.column_names, settings.columns)
    for (file, number), row in zip(_places(dataset, settings), dataset, strict=True):
        try:
            yield ReadRow(file, number, row, read(row), None)
        except BadRow as problem:
            yield ReadRow(file, number, row, None, problem)


def _places(dataset: "Dataset", settings: Data) -> list[tuple[str, int]]:
    """File and number of each row; of rows that are not all of the files', only their number among those given."""
    if settings.is_local:
        paths = files.files(Path(settings.dataset))
        places = [(path.name, number) for path in paths for number in range(1, files.table(path).rows + 1)]
        if len(places) == len(dataset):
            return places
    return [(settings.shown, number) for number in range(len(dataset))]


def _first_of(bad: list[ReadRow], settings: Data) -> str:
    first = bad[0].told
    place = f"{first['file']}, row {first['row']}, {first['field']}"
    dropping = "" if settings.on_bad_row == "drop" else ', or leave such rows out with data.on_bad_row = "drop"'
    others = f" ({len(bad)} bad rows in all)" if len(bad) > 1 else ""
    return f"{place}: found {first['found']}, expected {first['expected']}; fix it{dropping}{others}"


def _keep_dropped(bad: list[ReadRow], path: Path) -> None:
    """Write the rows that are left out, with the reasons, whole or not at all."""
    path.unlink(missing_ok=True)
    if bad:
        unfinished = path.with_suffix(f".{os.getpid()}.part")  # each rank writes the same
        lines = [json.dumps(row.told | {"record": row.raw}, ensure_ascii=False, default=str) for row in bad]
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
        unfinished.replace(path)


def _published_schema() -> "Features":
    from datasets import Features, List, Value

    text = Value("string")
    message = {"content": text, "role": text, "thinking": text}
    return Features(dict.fromkeys(COLUMNS[:-1], text) | {"messages": List(message)})


def split(dataset: "Dataset", held_out_share: float, seed: int) -> "tuple[Dataset, Dataset]":
    """Rows to train on and rows to measure with; no prompt that is measured is asked in any turn of a training row.

    Args:
        dataset: rows in the published schema.
        held_out_share: share of the distinct prompts to keep from training. 0 trains on every row and measures with the
            120 questions that come with the package, 24 in each of the published data set's five languages.
        seed: decides which prompts are kept.

    Raises:
        FtlibError: the shipped questions do not suit the data set, or the share keeps nothing or everything.
    """
    if held_out_share == 0:
        if not any(dataset["reasoning_language"]):
            raise FtlibError(
                "no row asks for a reasoning language, which is what the shipped questions measure; set "
                "data.held_out_share, to 0.1 say, to measure with the data set's own prompts"
            )
        questions = held_out_questions()
        shared = set().union(*_prompts(dataset)) & set(questions["user"])
        if shared:
            raise FtlibError(
                f"{len(shared)} of the shipped held-out questions are in the data set, such as {min(shared)!r}; "
                "set data.held_out_share to keep a share of the data set's own prompts instead"
            )
        return dataset, questions
    prompts = sorted(set(dataset["user"]))
    kept = set(random.Random(seed).sample(prompts, round(held_out_share * len(prompts))))
    held_out = dataset.select([row for row, prompt in enumerate(dataset["user"]) if prompt in kept])
    # A row about something else that has such a prompt in an earlier turn is used for neither.
    train = dataset.select([row for row, asked in enumerate(_prompts(dataset)) if not asked & kept])
    if not len(held_out) or not len(train):
        raise FtlibError(
            f"data.held_out_share {held_out_share} of {len(prompts)} prompts leaves {len(train)} rows to train on and "
            f"{len(held_out)} to measure with; expected some of both"
        )
    return train, held_out


def _prompts(dataset: "Dataset") -> list[set[str]]:
    """What is asked in each row, in earlier turns, too."""
    said = [{turn["content"] for turn in messages if turn["role"] == "user"} for messages in dataset["messages"]]
    return [{prompt} | turns for prompt, turns in zip(dataset["user"], said, strict=True)]


def held_out_questions() -> "Dataset":
    """The 120 questions that come with the package, in the published schema."""
    from datasets import Dataset

    lines = HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()
    return Dataset.from_list([json.loads(line) for line in lines])


def token_lengths(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> "pd.DataFrame":
    """How long each conversation is, as rendered by the tokenizer's template.

    Returns:
        One row a conversation: language, characters, tokens.
    """
    import pandas as pd

    texts = [str(tokenizer.apply_chat_template(messages, tokenize=False)) for messages in dataset["messages"]]
    tokens = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    characters = [len(text) for text in texts]
    return pd.DataFrame({"language": list(dataset["reasoning_language"]), "characters": characters, "tokens": tokens})


def cut_rows(
    lengths: "pd.DataFrame", rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "pd.DataFrame":
    """The rows that training cuts, and what they lose.

    Args:
        lengths: what `token_lengths` gives for the same rows.
        rows: conversations in the published schema.
        tokenizer: as for `token_lengths`.
        max_length: tokens that training keeps of a row.

    Returns:
        Index row, the row that loses most first; columns tokens, tokens_cut and text_cut, how what is lost begins.
    """
    cut = lengths.loc[lengths["tokens"] > max_length, ["tokens"]].rename_axis("row")
    cut = cut.sort_values("tokens", ascending=False, kind="stable")
    texts = [str(tokenizer.apply_chat_template(rows[row]["messages"], tokenize=False)) for row in cut.index.tolist()]
    tokens = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    lost = [str(tokenizer.decode(ids[max_length:])) for ids in tokens]
    shown = [text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…" for text in lost]
    return cut.assign(tokens_cut=cut["tokens"] - max_length, text_cut=shown)


def ask_for_language(rows: "Dataset", language: str) -> "Dataset":
    """The same questions, each asking for reasoning in another language."""
    system = f"reasoning language: {language}"

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        instructions = [system, row["developer"]] if row["developer"] else [system]
        asked = {"role": "system", "content": "\n\n".join(instructions), "thinking": None}
        others = [message for message in row["messages"] if message["role"] != "system"]
        return {"reasoning_language": language, "messages": [asked, *others]}

    return rows.map(ask)
