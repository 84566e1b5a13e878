"""The data set before training: load it, check its rows, convert them, and hold some out for measuring."""

import json
import os
import random
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlib.dataset import files
from ftlib.dataset.shapes import COLUMNS, UNUSUAL, BadRow, reader, shortened, unusual
from ftlib.errors import FtlibError, printable
from ftlib.profiles import Data, Profile, Train
from ftlib.rehearsal import HELD_OUT_FILE

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

DROPPED = "dropped_rows.jsonl"
PROBLEM = ["file", "row", "field", "found", "expected"]
UNREAD = "It is not trained on. data.columns in the profile says what a column is."
PLACES_SHOWN = 5
Place = tuple[str, int]  # file, and number in it
Row = dict[str, Any]


def load(profile: Profile, output_dir: Path) -> "tuple[Dataset, Dataset]":
    """The rows to train on and the rows to measure with: notebook 2 in one call. Dropped rows go to `output_dir`."""
    from datasets import load_dataset

    dataset = load_dataset(**source(profile.data), split="train")
    rows = conversations(dataset, profile.data, output_dir)
    if unread := _unread(dataset, profile.data):
        print(f"not trained on: {unread}")
    return split(rows, profile.data.held_out_share, profile.train.seed)


def source(settings: Data) -> dict[str, Any]:
    """Arguments of `load_dataset`: the Hub's id and commit, or files on this machine, read as by `files.convert`."""
    if settings.is_local:
        parquet, _ = files.convert(Path(settings.dataset))
        return {"path": "parquet", "data_files": str(parquet), "cache_dir": str(parquet.parent)}
    return {"path": settings.dataset, "revision": settings.revision}


class Checked(NamedTuple):
    """What `check` finds: the bad rows, and what is unusual about rows that are trained on all the same."""

    problems: "pd.DataFrame"  # file, row, field, found, expected
    unusual: "pd.DataFrame"  # what, rows, where, meaning


def check(dataset: "Dataset", settings: Data, max_length: int) -> Checked:
    """Look for bad and unusual rows before anything costs time; training keeps `max_length` tokens of each."""
    import pandas as pd

    good, bad = _read(dataset, settings)
    several = len({file for file, _ in good} | {row["file"] for row in bad}) > 1
    places: dict[str, list[str]] = {what: [] for what in UNUSUAL}
    seen: set[str] = set()
    for (file, number), row in good.items():
        text = json.dumps(row, sort_keys=True)
        for what in unusual(row, max_length, copied=text in seen):
            places[what].append(f"row {number} of {file}" if several else f"row {number}")
        seen.add(text)
    unread = _unread(dataset, settings)
    found = [("a column that is not read", len(dataset), unread, UNREAD)] if unread else []
    for what, rows in places.items():
        if rows:
            where = ", ".join(rows[:PLACES_SHOWN] + ["…"] * (len(rows) > PLACES_SHOWN))
            found.append((what, len(rows), where, UNUSUAL[what]))
    table = pd.DataFrame(found, columns=["what", "rows", "where", "meaning"])
    return Checked(pd.DataFrame(bad, columns=PROBLEM), table)


def conversations(dataset: "Dataset", settings: Data, output_dir: Path) -> "Dataset":
    """Convert the rows, whatever their shape, to conversations in the published schema.

    Rows that are dropped are kept in `output_dir`, with the reasons, as `dropped_rows.jsonl`.

    Raises:
        FtlibError: a row is bad and the profile says "stop", or all rows are bad.
    """
    from datasets import Dataset, Features, List, Value

    good, bad = _read(dataset, settings)
    if bad and (settings.on_bad_row == "stop" or not good):
        told = "{file}, row {row}, {field}: found {found}, expected {expected}; fix it".format(**bad[0])
        told += "" if settings.on_bad_row == "drop" else ', or leave such rows out with data.on_bad_row = "drop"'
        raise FtlibError(told + (f" ({len(bad)} bad rows in all)" if len(bad) > 1 else ""))
    _keep_dropped(bad, output_dir / DROPPED)
    text = Value("string")
    message = {"content": text, "role": text, "thinking": text}
    schema = Features(dict.fromkeys(COLUMNS[:-1], text) | {"messages": List(message)})
    return Dataset.from_list(list(good.values()), features=schema)


def _read(dataset: "Dataset", settings: Data) -> tuple[dict[Place, Row], list[Row]]:
    """The good rows, converted, by file and number; and of each bad one what is wrong with it, and the row itself."""
    if len(dataset) == 0:
        raise FtlibError(f"{settings.shown} has no rows; expected at least one")
    convert = reader(dataset.column_names, settings.columns).convert
    _check_types(dataset, settings)
    good: dict[Place, Row] = {}
    bad: list[Row] = []
    for place, row in zip(_places(dataset, settings), dataset, strict=True):
        try:
            good[place] = convert(row)
        except BadRow as problem:
            told = map(printable, problem.args)
            bad.append(dict(zip(PROBLEM, (*place, *told), strict=True)) | {"record": row})
    return good, bad


def _check_types(dataset: "Dataset", settings: Data) -> None:
    for role, name in settings.columns.items():
        values = [value for value in dataset[name] if value is not None]
        texts = any(isinstance(value, str) for value in values)
        messages = any(isinstance(value, list) and value and isinstance(value[0], dict) for value in values)
        if values and not texts and not (messages and role in ("prompt", "response")):
            found = f"found {type(values[0]).__name__} in every row, such as {shortened(repr(values[0]))}"
            expected = "text, or a list of messages" if role in ("prompt", "response") else "text"
            raise FtlibError(f"data.columns.{role} = {name!r}: {found}, expected {expected}; name another column")


def _unread(dataset: "Dataset", settings: Data) -> str:
    """The columns that nothing reads, each with its share of all the text."""
    read = reader(dataset.column_names, settings.columns).columns.values()
    if not (left := [name for name in dataset.column_names if name not in read]):
        return ""
    characters = {name: sum(map(_characters, dataset[name])) for name in dataset.column_names}
    total = max(1, sum(characters.values()))
    left.sort(key=characters.__getitem__, reverse=True)
    return ", ".join(f"{shortened(name, 30)!r} ({characters[name] / total:.0%} of the text)" for name in left)


def _characters(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return sum(map(_characters, inner))


def _places(dataset: "Dataset", settings: Data) -> list[Place]:
    """The file and number of each row: from 1 in a file, and as `dataset[number]` counts otherwise."""
    if settings.is_local:
        _, rows = files.convert(Path(settings.dataset))
        if sum(rows.values()) == len(dataset):
            return [(name, number) for name, count in rows.items() for number in range(1, count + 1)]
    return [(settings.shown, number) for number in range(len(dataset))]


def _keep_dropped(bad: list[Row], path: Path) -> None:
    """Write the rows that are left out, with the reasons; whole or not at all, since each rank writes them."""
    path.unlink(missing_ok=True)
    if bad:
        unfinished = path.with_suffix(f".{os.getpid()}.part")
        lines = [json.dumps(row, ensure_ascii=False, default=str) for row in bad]
        unfinished.write_text("\n".join(lines) + "\n", encoding="utf-8")
        unfinished.replace(path)


def split(dataset: "Dataset", held_out_share: float, seed: int) -> "tuple[Dataset, Dataset]":
    """Rows to train on and rows to measure with; no held-out prompt is asked in any turn of a training row.

    Of the distinct prompts, a `held_out_share` is kept from training; 0 trains on every row and measures with the 120
    questions that come with the package.

    Raises:
        FtlibError: the shipped questions do not suit the data set, or one of the two sides would be empty.
    """
    if held_out_share == 0:
        return dataset, _shipped_questions(dataset)
    prompts = list(dict.fromkeys(map(_normalised, sorted(set(dataset["user"])))))
    kept = set(random.Random(seed).sample(prompts, round(held_out_share * len(prompts))))
    held_out = dataset.select([row for row, prompt in enumerate(dataset["user"]) if _normalised(prompt) in kept])
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
    wordings = {_normalised(question): question for question in questions["user"]}
    if shared := set().union(*_prompts(dataset)) & set(wordings):
        raise FtlibError(
            f"{len(shared)} of the shipped held-out questions are in the data set, such as {wordings[min(shared)]!r}; "
            "set data.held_out_share to hold out a share of the data set's own prompts instead"
        )
    return questions


def _prompts(dataset: "Dataset") -> list[set[str]]:
    """What each row asks, in any turn, normalised."""
    turns = [[turn["content"] for turn in messages if turn["role"] == "user"] for messages in dataset["messages"]]
    return [set(map(_normalised, [prompt, *asked])) for prompt, asked in zip(dataset["user"], turns, strict=True)]


def _normalised(prompt: str) -> str:
    """The same for prompts that differ by blanks, case or Unicode form alone."""
    return " ".join(unicodedata.normalize("NFKC", prompt).casefold().split())


def held_out_questions() -> "Dataset":
    """The 120 questions that come with the package, in the published schema."""
    from datasets import Dataset

    return Dataset.from_list([json.loads(line) for line in HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()])


def trainable(rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", settings: Train) -> "Dataset":
    """Leave out the rows of which cutting to `max_length` leaves no token to learn from, as TRL does without a word.

    `tokenizer` has TRL's training template, which marks what the assistant says.

    Raises:
        FtlibError: no row is left.
    """
    kept = list(range(len(rows))) if settings.max_length > 1 else []  # the first token is never predicted
    if kept and settings.assistant_only_loss:
        from_end = (settings.model_extra or {}).get("truncation_mode") == "keep_end"
        window = slice(-settings.max_length, None) if from_end else slice(settings.max_length)
        encoded: Any = tokenizer.apply_chat_template(rows["messages"][:], return_assistant_tokens_mask=True)
        kept = [row for row, mask in enumerate(encoded["assistant_masks"]) if any(mask[window])]
    if not kept:
        seen = "reply" if settings.assistant_only_loss else "text"
        found = f"train.max_length = {settings.max_length} leaves no {seen} to learn from in any of {len(rows)} rows"
        raise FtlibError(f"{found}; expected more tokens: raise it")
    if len(kept) == len(rows):
        return rows
    print(f"{len(rows) - len(kept)} of {len(rows)} rows are left out: max_length cuts off the whole reply")
    return rows.select(kept)


def token_lengths(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> "pd.DataFrame":
    """Language and tokens of each conversation, as the template renders it; characters and tokens of its reasoning."""
    import pandas as pd

    reasoning = pd.Series(dataset["analysis"][:]).fillna("")
    lengths = pd.DataFrame({"language": dataset["reasoning_language"][:]})
    lengths["tokens"] = [len(ids) for ids in _tokens(dataset, tokenizer)]
    lengths["reasoning_characters"] = reasoning.str.len()
    lengths["reasoning_tokens"] = [len(ids) for ids in tokenizer(list(reasoning))["input_ids"]]
    return lengths


def _tokens(dataset: "Dataset", tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[int]]:
    for messages in dataset["messages"]:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
        yield tokenizer(text, add_special_tokens=False)["input_ids"]


def cut_rows(
    lengths: "pd.DataFrame", rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> "pd.DataFrame":
    """The rows of which training keeps only `max_length` tokens, the longest first, with how the lost text begins.

    `lengths` is the table of `token_lengths` for the same rows and tokenizer.
    """
    cut = lengths.loc[lengths["tokens"] > max_length, ["tokens"]].rename_axis("row")
    cut = cut.sort_values("tokens", ascending=False, kind="stable")
    lost = [tokenizer.decode(ids[max_length:]) for ids in _tokens(rows.select(cut.index), tokenizer)]
    return cut.assign(tokens_cut=cut["tokens"] - max_length, text_cut=[shortened(str(text)) for text in lost])


def ask_for_language(rows: "Dataset", language: str) -> "Dataset":
    """The same questions, each asking for reasoning in another language."""

    def ask(row: Row) -> Row:
        content = f"reasoning language: {language}\n\n{row['developer']}".rstrip()
        others = [message for message in row["messages"] if message["role"] != "system"]
        asked = {"role": "system", "content": content, "thinking": None}
        return {"reasoning_language": language, "messages": [asked, *others]}

    return rows.map(ask)
