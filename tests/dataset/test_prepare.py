"""The data before training: rows are checked and converted, and nothing that is measured with is trained on."""

import copy
import json
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.dataset.harmony import pin_date
from ftlib.dataset.shapes import COLUMNS
from ftlib.errors import FtlibError
from ftlib.profiles import Data

IGNORED = -100
Message = dict[str, str | None]


def message(role: str, content: str = "something", thinking: str | None = None) -> Message:
    return {"content": content, "role": role, "thinking": thinking}


def published(number: int, final: str = "") -> dict[str, Any]:
    question = f"question {number}"
    said = [message("system"), message("user", question), message("assistant", final, thinking="because")]
    return dict(zip(COLUMNS, ("French", "something", question, "because", final, said), strict=True))


def prompt(question: str, answer: str = "a", **more: Any) -> dict[str, Any]:
    return {"prompt": question, "completion": answer, **more}


def rows_of(*rows: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(rows))


@pytest.fixture
def settings() -> Data:
    return profiles.load("tiny").data


@pytest.fixture
def own(settings: Data, tmp_path: Path) -> Callable[..., tuple[Data, Dataset]]:
    """Settings for somebody's own files, and what is loaded by them."""

    def write(**files: list[dict[str, Any]]) -> tuple[Data, Dataset]:
        folder = tmp_path / "mine"
        folder.mkdir()
        for name, rows in files.items():
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        here = settings.model_copy(update={"dataset": str(folder), "revision": None})
        return here, load_dataset(**prepare.source(here), split="train")

    return write


def test_the_shipped_rows_are_in_the_schema_and_stay_as_they_are(
    sample: Dataset, settings: Data, tmp_path: Path
) -> None:
    for rows in (sample, prepare.held_out_questions()):
        assert prepare.check(rows, settings, 216).problems.empty
        kept = prepare.conversations(rows, settings, tmp_path)
        assert list(kept) == list(rows)
        assert kept.features == sample.features
    assert not list(tmp_path.iterdir())


def test_unusual_rows_are_trained_on_and_noted(own: Callable[..., Any], tmp_path: Path) -> None:
    lines = [published(number, f"answer {number}") for number in range(100)]
    lines[3], lines[51] = published(3), published(51, "more " * 13_560)
    lines[70], lines[85] = lines[7], published(85, "Write <think> first.")
    lines += lines[10:16]
    here, rows = own(rows=lines)
    found = prepare.check(rows, here, 216)
    assert found.problems.empty
    assert found.unusual[["what", "rows", "where"]].to_numpy().tolist() == [
        ["an empty answer", 1, "row 4"],
        ["a copy", 7, "row 71, row 101, row 102, row 103, row 104, …"],
        ["<think> inside a text", 1, "row 86"],
        ["an enormous row", 1, "row 52"],
    ]
    train, _ = prepare.split(prepare.conversations(rows, here, tmp_path), 0, seed=0)
    assert list(train) == lines


def test_the_same_conversation_written_differently_is_a_copy(settings: Data) -> None:
    rows = rows_of(prompt("q", "a", thinking="t"), prompt("q", "a", thinking="u"), prompt("q", "<think>t</think>a"))
    found = prepare.check(rows, settings, 216).unusual
    assert found[["what", "where"]].to_numpy().tolist() == [["a copy", "row 2"]]


def test_a_column_that_nothing_reads_is_named_with_its_share(
    own: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [prompt(f"q{number}", tools=[{"name": "tool"}, None], id=number, note="") for number in range(10)]
    here, rows = own(rows=lines)
    unread = "'tools' (57% of the text), 'id' (0% of the text), 'note' (0% of the text)"
    found = prepare.check(rows, here, 216).unusual
    assert found[["what", "rows", "where"]].to_numpy().tolist() == [["a column that is not read", 10, unread]]
    tiny = profiles.load("tiny")
    prepare.load(tiny.model_copy(update={"data": here.model_copy(update={"held_out_share": 0.2})}), tmp_path)
    assert capsys.readouterr().out == f"not trained on: {unread}\n", "where nobody looks at notebook 2, too"


def test_rows_of_several_files_are_numbered_in_each(own: Callable[..., Any]) -> None:
    here, rows = own(a=[prompt("q1"), prompt(""), prompt("q2")], b=[prompt("q3"), prompt("q1"), prompt("<|call|>")])
    found = prepare.check(rows, here, 216)
    assert found.problems[["file", "row"]].to_numpy().tolist() == [["a.jsonl", 2], ["b.jsonl", 3]]
    assert found.unusual["where"].tolist() == ["row 2 of b.jsonl"]
    few = prepare.check(rows.select([0, 1]), here, 216).problems
    assert few[["file", "row"]].to_numpy().tolist() == [["mine", 1]], "of some rows, the number among them"


def test_the_table_of_problems_holds_nothing_that_acts_on_a_terminal(settings: Data) -> None:
    key = f"\x1b[2J{'k' * 1000}"
    rows = rows_of({"messages": [message("user"), {**message("assistant"), key: "\x1b[31m"}]})
    (found,) = prepare.check(rows, settings, 216).problems[["field", "found"]].to_numpy().tolist()
    assert found == [rf"messages[1].\x1b[2J{'k' * 76}…", r"'\x1b[31m'"]


def test_stopping_names_the_first_bad_row_and_counts_them(own: Callable[..., Any], tmp_path: Path) -> None:
    here, rows = own(rows=[prompt("q"), prompt("q", ""), prompt(""), prompt("<|end|>")])
    with pytest.raises(FtlibError, match=r'leave such rows out with data.on_bad_row = "drop" \(3 bad rows in all\)$'):
        prepare.conversations(rows, here, tmp_path)
    assert not (tmp_path / prepare.DROPPED).exists(), "nothing is dropped where the run stops"
    with pytest.raises(FtlibError, match="mine has no rows; expected at least one"):
        prepare.conversations(rows.select([]), here, tmp_path)


def test_dropped_rows_are_kept_whole_with_the_reasons(settings: Data, tmp_path: Path) -> None:
    dropping, moment = settings.model_copy(update={"on_bad_row": "drop"}), datetime(2025, 8, 5, 12)
    rows = rows_of(prompt("q1", at=moment), prompt("¿q2?", "<|return|>", at=moment))
    kept = prepare.conversations(rows, dropping, tmp_path)
    assert kept["user"][:] == ["q1"]
    assert kept.column_names == list(COLUMNS)
    written = (tmp_path / prepare.DROPPED).read_text(encoding="utf-8")
    assert json.loads(written) == {
        "file": "rehearsal/multilingual-thinking-sample",
        "row": 1,
        "field": "completion",
        "found": "the marker <|return|>",
        "expected": "text without markers, which the template writes itself",
        "record": prompt("¿q2?", "<|return|>", at=str(moment)),
    }
    assert "¿q2?" in written, "to be read by people"
    assert [path.name for path in tmp_path.iterdir()] == [prepare.DROPPED]
    prepare.conversations(rows.select([0]), dropping, tmp_path)
    assert not list(tmp_path.iterdir()), "what was dropped last time is forgotten"


def test_a_data_set_on_the_hub_is_named_with_its_commit(settings: Data) -> None:
    assert settings.revision
    assert prepare.source(settings) == {"path": settings.dataset, "revision": settings.revision}


def test_loading_converts_and_splits_as_the_profile_says(own: Callable[..., Any], tmp_path: Path) -> None:
    here, _ = own(rows=[prompt(f"q{number}") for number in range(10)] + [prompt("")])
    tiny = profiles.load("tiny")
    data = here.model_copy(update={"held_out_share": 0.2, "on_bad_row": "drop"})
    train, held_out = prepare.load(tiny.model_copy(update={"data": data}), tmp_path)
    assert sorted([*train["user"], *held_out["user"]]) == [f"q{number}" for number in range(10)]
    assert len(held_out) == 2
    assert (tmp_path / prepare.DROPPED).exists()


def test_share_0_trains_on_every_row_and_measures_with_the_shipped_questions(sample: Dataset) -> None:
    train, held_out = prepare.split(sample, 0, seed=0)
    assert train is sample
    assert set(Counter(held_out["reasoning_language"]).values()) == {24}
    assert len(held_out) == 120
    assert set(train["user"]).isdisjoint(held_out["user"])


@pytest.mark.parametrize("earlier", [False, True], ids=["asked", "asked in an earlier turn"])
def test_a_shipped_question_among_the_training_rows_is_refused(sample: Dataset, earlier: bool) -> None:
    question, row = prepare.held_out_questions()["user"][7], sample[5]
    before = [message("user", question), message("assistant")] if earlier else []
    row |= {"messages": [*before, *row["messages"][1:]]} if earlier else {"user": question}
    with pytest.raises(FtlibError) as raised:
        prepare.split(rows_of(*sample.select(range(5)), row), 0, seed=0)
    assert "1 of the shipped held-out questions are in the data set, such as " + repr(question) in str(raised.value)


def test_a_held_out_prompt_is_in_no_turn_of_a_training_row() -> None:
    rows = rows_of(*(published(number // 2, str(number)) for number in range(100)))
    train, held_out = prepare.split(rows, 0.2, seed=0)
    assert (len(train), len(held_out)) == (80, 20)
    assert set(train["user"]).isdisjoint(held_out["user"])
    assert sorted([*train["final"], *held_out["final"]], key=int) == rows["final"][:]
    talks = [row | {"messages": [message("user", f"question {n}"), *row["messages"]]} for n, row in enumerate(rows)]
    train, held_out = prepare.split(rows_of(*talks), 0.2, seed=0)
    asked = {said["content"] for messages in train["messages"] for said in messages if said["role"] == "user"}
    assert len(train) < 80
    assert asked.isdisjoint(held_out["user"]), "in earlier turns, neither"


VARIANTS = ["Where is Curaçao?", "where is  Curaçao? ", "Where is Curac\u0327ao?", "Where\u00a0is Curaçao？"]


def test_prompts_that_differ_in_form_alone_are_the_same_prompt() -> None:
    rows = rows_of(*(published(0) | {"user": f"{number} {text}"} for number in range(12) for text in VARIANTS))
    train, held_out = prepare.split(rows, 0.25, seed=0)
    assert (len(train), len(held_out)) == (36, 12)
    numbers = [{text.split()[0] for text in side["user"]} for side in (train, held_out)]
    assert numbers[0].isdisjoint(numbers[1])
    question = prepare.held_out_questions()["user"][7]
    for variant in (f" {question}", question.upper(), question.replace(" ", "\u00a0")):
        with pytest.raises(FtlibError, match="1 of the shipped held-out questions are in the data set") as raised:
            prepare.split(rows_of(published(0) | {"user": variant}), 0, seed=0)
        assert repr(question) in str(raised.value)


def test_the_seed_alone_decides_what_is_held_out() -> None:
    rows = rows_of(*(published(number, str(number)) for number in range(50)))
    held_out = [set(prepare.split(rows, 0.2, seed)[1]["final"]) for seed in (3, 3, 4)]
    assert held_out[0] == held_out[1] != held_out[2]
    assert set(prepare.split(rows.select(range(49, -1, -1)), 0.2, seed=3)[1]["final"]) == held_out[0]
    with pytest.raises(FtlibError, match="of 50 prompts leaves 0 rows to train on"):
        prepare.split(rows, 0.999, seed=0)


def test_lengths_are_those_that_training_sees(sample: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = sample.select(range(20))
    lengths = prepare.token_lengths(rows, tokenizer)
    assert list(lengths.columns) == ["language", "tokens", "reasoning_characters", "reasoning_tokens"]
    for row, (language, tokens, characters, reasoning) in zip(rows, lengths.itertuples(index=False), strict=True):
        assert language == row["reasoning_language"]
        assert tokens == len(tokenizer.apply_chat_template(row["messages"])["input_ids"])
        assert characters == len(row["analysis"])
        assert reasoning == len(tokenizer(row["analysis"])["input_ids"])


def test_cut_rows_are_told_with_what_they_lose(sample: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = sample.select([*range(20), max(range(len(sample)), key=lambda number: len(sample[number]["final"]))])
    lengths = prepare.token_lengths(rows, tokenizer)
    limit = int(lengths["tokens"].nlargest(3).iloc[-1]) - 1
    cut = prepare.cut_rows(lengths, rows, tokenizer, limit)
    assert sorted(cut.index) == [number for number, tokens in enumerate(lengths["tokens"]) if tokens > limit]
    assert cut["tokens"].is_monotonic_decreasing, "the row that loses most comes first"
    for number, told in cut.iterrows():
        text = str(tokenizer.apply_chat_template(rows[number]["messages"], tokenize=False))
        tokens = tokenizer.apply_chat_template(rows[number]["messages"])["input_ids"]
        lost = text.removeprefix(tokenizer.decode(tokens[:limit]))
        shown = lost if len(lost) <= 80 else f"{lost[:80]}…"
        assert told.tolist() == [len(tokens), len(tokens) - limit, shown]
    assert prepare.cut_rows(lengths, rows, tokenizer, lengths["tokens"].max()).empty


def test_another_language_is_asked_for_and_nothing_else_changes(
    sample: Dataset, settings: Data, tmp_path: Path
) -> None:
    plain = prepare.conversations(rows_of(prompt("q1")), settings, tmp_path)
    for rows in (sample.select(range(5)), plain):
        for before, after in zip(rows, prepare.ask_for_language(rows, "Portuguese"), strict=True):
            system = f"reasoning language: Portuguese\n\n{before['developer']}".rstrip()
            others = [said for said in before["messages"] if said["role"] != "system"]
            messages = [message("system", system), *others]
            assert after == before | {"reasoning_language": "Portuguese", "messages": messages}


# What is trained on.

OPENING = [message("system", "Be brief."), message("user", "Capital of France?")]
EARLIER = [message("assistant", "Paris.", thinking="The template drops this."), message("user", "And of Spain?")]
REASONED = message("assistant", "Madrid.", thinking="Piensa en España.")
MIXES = {
    "without reasoning": [*OPENING, message("assistant", "Madrid.")],
    "several turns, without": [*OPENING, *EARLIER, message("assistant", "Madrid.")],
    "several turns, with": [*OPENING, *EARLIER, REASONED],
    "an empty answer": [*OPENING, REASONED | {"content": ""}],
}


@pytest.fixture(scope="session")
def training_tokenizer(
    tokenizer: PreTrainedTokenizerFast, shipped_tokenizer: PreTrainedTokenizerFast
) -> PreTrainedTokenizerFast:
    """As in notebook 4; not to be changed."""
    training_tokenizer = copy.deepcopy(tokenizer)
    training_tokenizer.chat_template = pin_date(get_training_chat_template(shipped_tokenizer), "2025-08-05")
    return training_tokenizer


def test_rows_with_nothing_left_to_learn_from_are_left_out_and_counted(
    training_tokenizer: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = message("user", "Capital of France?"), message("user", "Well, " * 300)
    rows = rows_of(*({"messages": [asked, REASONED]} for asked in (short, long, short)))
    train = profiles.load("tiny").train
    masked = train.model_copy(update={"assistant_only_loss": True})
    assert prepare.trainable(rows, training_tokenizer, train) is rows, "of a cut question, something can be learnt"
    assert not capsys.readouterr().out
    kept = prepare.trainable(rows, training_tokenizer, masked)
    assert list(kept) == [rows[0], rows[2]]
    assert capsys.readouterr().out == "1 of 3 rows are left out: max_length cuts off the whole reply\n"
    at_its_end = type(masked)(**masked.model_dump(), truncation_mode="keep_end")
    assert prepare.trainable(rows, training_tokenizer, at_its_end) is rows
    for settings, seen in ((train, "text"), (masked, "reply")):
        with pytest.raises(FtlibError, match=f"max_length = 1 leaves no {seen} to learn from in any of 3 rows"):
            prepare.trainable(rows, training_tokenizer, settings.model_copy(update={"max_length": 1}))
    with pytest.raises(FtlibError, match="max_length = 20 leaves no reply"):
        prepare.trainable(rows, training_tokenizer, masked.model_copy(update={"max_length": 20}))


@pytest.mark.parametrize("masked", [True, False], ids=["assistant_only_loss", "all tokens"])
def test_the_loss_sees_what_the_profile_says(
    masked: bool, tokenizer: PreTrainedTokenizerFast, training_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """As notebook 4's trainer batches it, over a model of next to nothing."""
    counts = ("hidden_layers", "attention_heads", "key_value_heads", "local_experts", "experts_per_tok")
    shape = {"hidden_size": 8, "intermediate_size": 8, "head_dim": 8} | {f"num_{count}": 1 for count in counts}
    plain: dict[str, Any] = {"router_aux_loss_coef": 0.0, "bf16": False, "use_cpu": True, "report_to": "none"}
    plain |= {"activation_checkpointing": False}
    trainer = SFTTrainer(
        GptOssForCausalLM(GptOssConfig(vocab_size=len(tokenizer), **shape)),
        SFTConfig(str(tmp_path), max_length=400, assistant_only_loss=masked, **plain),
        train_dataset=rows_of(*({"messages": said} for said in MIXES.values())),
        processing_class=training_tokenizer,
    )
    batch = trainer.data_collator(list(trainer.train_dataset))
    for tokens, labels, said in zip(batch["input_ids"], batch["labels"], MIXES.values(), strict=True):
        assert labels.tolist() == tokens.where(labels != IGNORED, IGNORED).tolist()
        expected = str(tokenizer.apply_chat_template(said, tokenize=False))
        if masked:
            reply = said[-1]
            analysis = f"<|start|>assistant<|channel|>analysis<|message|>{reply['thinking']}<|end|>"
            final = f"<|start|>assistant<|channel|>final<|message|>{reply['content']}<|return|>"
            earlier = "<|start|>assistant<|channel|>final<|message|>Paris.<|end|>" if len(said) > 3 else ""
            expected = earlier + (analysis if reply["thinking"] else "") + final  # no empty analysis
        assert tokenizer.decode(tokens[labels != IGNORED]) == expected
