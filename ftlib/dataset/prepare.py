"""The data set before training: load it, check its rows, convert them, and hold some out for measuring."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlib.dataset import files
from ftlib.dataset.shapes import COLUMNS, UNUSUAL, BadRow, reader, unusual
from ftlib.errors import FtlibError
from ftlib.profiles import Data, Profile
from ftlib.rehearsal import HELD_OUT_FILE

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

DROPPED = "dropped_rows.jsonl"
PROBLEM = ["file", "row", "field", "found", "expected"]
PLACES_SHOWN = 5
LONGEST_SHOWN = 80
"""Characters of a text that a table shows."""


def load(profile: Profile, output_dir: Path) -> "tuple[Dataset, Dataset]":
    """The rows to train on and the rows to measure with: notebook 2 in one call. Dropped rows go to `output_dir`."""
    from datasets import load_dataset

    dataset = load_dataset(**source(profile.data), split="train")
    rows = conversations(dataset, profile.data, output_dir)
    return split(rows, profile.data.held_out_share, profile.train.seed)


def source(settings: Data) -> dict[str, Any]:
    """Arguments of `load_dataset`: the Hub's id and commit, or the files on this machine, which are read here.

    Raises:
        FtlibError: a local file is missing or broken: which, at which line, and what to do.
    """
    if settings.is_local:
        parquet, _ = files.convert(Path(settings.dataset))
        return {"path": "parquet", "data_files": str(parquet), "cache_dir": str(parquet.parent)}
    return {"path": settings.dataset, "revision": settings.revision}


class ReadRow(NamedTuple):
    """A row as it came, with its file and number, and the same in the published schema, or what is wrong with it."""

    place: tuple[str, int]
    raw: dict[str, Any]
    conversation: dict[str, Any] | None
    problem: dict[str, Any] | None


class Checked(NamedTuple):
    """What `check` finds: the bad rows, and what is unusual about rows that are trained on all the same."""

    problems: "pd.DataFrame"
    unusual: "pd.DataFrame"


def check(dataset: "Dataset", settings: Data, max_length: int) -> Checked:
    """Look for bad and unusual rows before anything is loaded that costs time or memory.

    Args:
        dataset: rows in one of the accepted shapes; see `shapes.SHAPES`.
        settings: where they come from, and what their columns hold.
        max_length: tokens that training keeps of a row.

    Returns:
        A row for each bad row (file, row, field, found, expected), and one for each unusual thing (what, rows, where,
        meaning).
    """
    import pandas as pd

    read = list(_read(dataset, settings))
    several = len({row.place[0] for row in read}) > 1
    places: dict[str, list[str]] = {what: [] for what in UNUSUAL}
    seen: set[str] = set()
    for (file, number), _, conversation, _ in read:
        if conversation:
            text = json.dumps(conversation, sort_keys=True)
            for what in unusual(conversation, max_length, copied=text in seen):
                places[what].append(f"row {number} of {file}" if several else f"row {number}")
            seen.add(text)
    found = pd.DataFrame(
        [(what, len(places[what]), places[what], meaning) for what, meaning in UNUSUAL.items() if places[what]],
        columns=["what", "rows", "where", "meaning"],
    )
    found["where"] = [", ".join(rows[:PLACES_SHOWN] + ["…"] * (len(rows) > PLACES_SHOWN)) for rows in found["where"]]
    return Checked(pd.DataFrame([row.problem for row in read if row.problem], columns=PROBLEM), found)


def conversations(dataset: "Dataset", settings: Data, output_dir: Path) -> "Dataset":
    """Convert the rows, whatever their shape, to conversations in the published schema.

    Args:
        dataset: rows in one of the accepted shapes; see `shapes.SHAPES`.
        settings: where they come from, and what becomes of bad rows.
        output_dir: where dropped rows are kept with the reasons, as `dropped_rows.jsonl`.

    Raises:
        FtlibError: a row is bad and the profile says "stop", or all rows are bad.
    """
    from datasets import Dataset, Features, List, Value

    read = list(_read(dataset, settings))
    bad = [row for row in read if row.problem]
    if bad and (settings.on_bad_row == "stop" or len(bad) == len(read)):
        told = "{file}, row {row}, {field}: found {found}, expected {expected}; fix it".format(**bad[0].problem or {})
        told += "" if settings.on_bad_row == "drop" else ', or leave such rows out with data.on_bad_row = "drop"'
        raise FtlibError(told + (f" ({len(bad)} bad rows in all)" if len(bad) > 1 else ""))
    _keep_dropped(bad, output_dir / DROPPED)
    text = Value("string")
    message = {"content": text, "role": text, "thinking": text}
    schema = Features(dict.fromkeys(COLUMNS[:-1], text) | {"messages": List(message)})
    return Dataset.from_list([row.conversation for row in read if row.conversation], features=schema)


def _read(dataset: "Dataset", settings: Data) -> Iterator[ReadRow]:
    """Convert every row, or say what is wrong with it."""
    if len(dataset) == 0:
        raise FtlibError(f"{settings.shown} has no rows; expected at least one")
    convert = reader(dataset.column_names, settings.columns)
    for place, row in zip(_places(dataset, settings), dataset, strict=True):
        try:
            yield ReadRow(place, row, convert(row), None)
        except BadRow as bad:
            yield ReadRow(place, row, None, dict(zip(PROBLEM, (*place, *bad.args), strict=True)))


def _places(dataset: "Dataset", settings: Data) -> list[tuple[str, int]]:
    """The file and number of each row: from 1 in a file, and as `dataset[number]` counts otherwise."""
    if settings.is_local:
        _, rows = files.convert(Path(settings.dataset))
        if sum(rows.values()) == len(dataset):
            return [(name, number) for name, count in rows.items() for number in range(1, count + 1)]
    return [(settings.shown, number) for number in range(len(dataset))]


def _keep_dropped(bad: list[ReadRow], path: Path) -> None:
    """Write the rows that are left out, with the reasons; whole or not at all, since each rank writes them."""
    path.unlink(missing_ok=True)
    if bad:
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        kept = [{**(row.problem or {}), "record": row.raw} for row in bad]
        lines = [json.dumps(record, ensure_ascii=False, default=str) for record in kept]
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
        unfinished.replace(path)


def split(dataset: "Dataset", held_out_share: float, seed: int) -> "tuple[Dataset, Dataset]":
    """Rows to train on and rows to measure with; no held-out prompt is asked in any turn of a training row.

    Args:
        dataset: rows in the published schema.
        held_out_share: share of the distinct prompts to keep from training; 0 trains on every row and measures with the
            120 questions that come with the package.
        seed: decides which prompts are held out.

    Raises:
        FtlibError: the shipped questions do not suit the data set, or one of the two sides would be empty.
    """
    if held_out_share == 0:
        return dataset, _shipped_questions(dataset)
    prompts = sorted(set(dataset["user"]))
    kept = set(random.Random(seed).sample(prompts, round(held_out_share * len(prompts))))
    held_out = dataset.select([row for row, prompt in enumerate(dataset["user"]) if prompt in kept])
    # A row that asks a held-out prompt only in an earlier turn is on neither side.
    train = dataset.select([row for row, asked in enumerate(_prompts(dataset)) if not asked & kept])
    if not len(held_out) or not len(train):
        raise FtlibError(
            f"data.held_out_share {held_out_share} of {len(prompts)} prompts leaves {len(train)} rows to train on and "
            f"{len(held_out)} to measure with; expected some of both"
        )
    return train, held_out


def _shipped_questions(dataset: "Dataset") -> "Dataset":
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
            "set data.held_out_share to hold out a share of the data set's own prompts instead"
        )
    return questions


def _prompts(dataset: "Dataset") -> list[set[str]]:
    """What each row asks, in any turn."""
    asked = [{turn["content"] for turn in messages if turn["role"] == "user"} for messages in dataset["messages"]]
    return [{prompt} | turns for prompt, turns in zip(dataset["user"], asked, strict=True)]


def held_out_questions() -> "Dataset":
    """The 120 questions that come with the package, in the published schema."""
    from datasets import Dataset

    return Dataset.from_list([json.loads(line) for line in HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()])


def token_lengths(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> "pd.DataFrame":
    """Language and tokens of each conversation, as the template renders it; characters and tokens of its reasoning."""
    import pandas as pd

    texts = [str(tokenizer.apply_chat_template(messages, tokenize=False)) for messages in dataset["messages"]]
    reasoning = pd.Series(dataset["analysis"][:]).fillna("")
    lengths = pd.DataFrame({"language": dataset["reasoning_language"][:]})
    lengths["tokens"] = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    lengths["reasoning_characters"] = reasoning.str.len()
    lengths["reasoning_tokens"] = [len(ids) for ids in tokenizer(list(reasoning))["input_ids"]]
    return lengths


def cut_rows(
    lengths: "pd.DataFrame", rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "pd.DataFrame":
    """The rows that training cuts off, the one that loses most first, with what they lose and how that begins.

    Args:
        lengths: the table of `token_lengths` for the same rows and tokenizer.
        rows: conversations in the published schema.
        tokenizer: renders them.
        max_length: tokens that training keeps of a row.
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
        content = f"{system}\n\n{row['developer']}" if row["developer"] else system
        others = [message for message in row["messages"] if message["role"] != "system"]
        asked = {"role": "system", "content": content, "thinking": None}
        return {"reasoning_language": language, "messages": [asked, *others]}

    return rows.map(ask)
