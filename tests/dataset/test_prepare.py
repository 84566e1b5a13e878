"""The data before training: the schema is checked row by row, and nothing that is measured with is trained on."""

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from helpers import ROOT
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer
from trl.chat_template_utils import get_training_chat_template

from ftlib import profiles
from ftlib.dataset import prepare
from ftlib.dataset.harmony import IGNORED, pin_date, split_channels
from ftlib.dataset.shapes import COLUMNS, TEXT_COLUMNS
from ftlib.errors import FtlibError
from ftlib.profiles import Data

Said = dict[str, str | None]


def message(role: str, content: str | None = "something", thinking: str | None = None) -> Said:
    return {"content": content, "role": role, "thinking": thinking}


def row(*messages: Said, **columns: str | None) -> dict[str, Any]:
    texts = dict.fromkeys(COLUMNS[:-1], "something") | columns
    said = messages or (message("system"), message("user"), message("assistant", thinking="because"))
    return {**texts, "messages": list(said)}


def rows_of(*rows: dict[str, Any]) -> Dataset:
    return Dataset.from_list(list(rows))


@pytest.fixture
def settings() -> Data:
    return profiles.load("tiny").data


@pytest.fixture
def dropping(settings: Data) -> Data:
    return settings.model_copy(update={"on_bad_row": "drop"})


def own(settings: Data, place: Path, **changes: Any) -> Data:
    return Data.model_validate(settings.model_dump() | {"dataset": str(place), "revision": None} | changes)


def bad(rows: Dataset, settings: Data) -> dict[str, Any]:
    """What the check says of the one bad row, which stopping says, too."""
    found = prepare.check(rows, settings, 216).problems.to_dict("records")
    assert len(found) == 1
    told = {str(key): value for key, value in found[0].items()}
    assert refusal(rows, settings) == (
        "rehearsal/multilingual-thinking-sample, row {row}, {field}: found {found}, expected {expected}; fix it, or "
        'leave such rows out with data.on_bad_row = "drop"'.format(**told)
    )
    return told


def refusal(rows: Dataset, settings: Data) -> str:
    with tempfile.TemporaryDirectory() as folder:
        with pytest.raises(FtlibError) as raised:
            prepare.conversations(rows, settings, Path(folder))
        assert not list(Path(folder).iterdir()), "nothing is dropped where the run stops"
    assert "\n" not in str(raised.value)
    return str(raised.value)


def dropped(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / prepare.DROPPED).open(encoding="utf-8")]


@pytest.fixture
def prompts() -> Dataset:
    """A hundred rows, of which every two share a prompt."""
    return Dataset.from_list([row(user=f"question {number // 2}", final=str(number)) for number in range(100)])


def test_the_shipped_rows_are_in_the_schema_and_stay_as_they_are(
    sample: Dataset, settings: Data, tmp_path: Path
) -> None:
    for rows in (sample, prepare.held_out_questions()):
        assert prepare.check(rows, settings, 216).problems.empty
        assert prepare.conversations(rows, settings, tmp_path) is rows
    assert not list(tmp_path.iterdir())


def test_rows_with_and_without_system_message_and_of_several_turns_are_in_the_schema(settings: Data) -> None:
    turn = (message("user"), message("assistant", thinking="because"))
    rows = rows_of(row(), row(*turn), row(message("system"), *turn, *turn), row(message("developer"), *turn))
    assert prepare.check(rows, settings, 216).problems.empty


def test_a_row_may_come_without_instructions(settings: Data) -> None:
    assert prepare.check(rows_of(row(), row(developer=""), row(developer=None)), settings, 216).problems.empty


def test_published_columns_in_another_order_or_among_others_are_put_right(
    sample: Dataset, settings: Data, tmp_path: Path
) -> None:
    few = sample.select(range(3))
    mixed = few.select_columns(few.column_names[::-1]).add_column("source", ["a", "b", "c"])
    kept = prepare.conversations(mixed, settings, tmp_path)
    assert kept.column_names == sample.column_names
    assert list(kept) == list(few)


@pytest.mark.parametrize("column", COLUMNS[:-1])
def test_a_row_that_lacks_a_column_is_read_by_its_messages(column: str, settings: Data, tmp_path: Path) -> None:
    kept = prepare.conversations(Dataset.from_list([row()]).remove_columns(column), settings, tmp_path)
    assert kept[0]["final"] == kept[0]["messages"][-1]["content"] == "something"
    assert kept[0]["analysis"] == kept[0]["messages"][-1]["thinking"] == "because"


def test_columns_of_no_accepted_shape_are_listed(settings: Data) -> None:
    rows = Dataset.from_list([row()]).remove_columns("messages")
    assert refusal(rows, settings).startswith("the data set has columns ['reasoning_language', 'developer',")
    with pytest.raises(FtlibError, match="the data set has columns"):
        prepare.check(rows, settings, 216)


def published(number: int, final: str) -> dict[str, Any]:
    question = f"question {number}"
    said = message("system"), message("user", question), message("assistant", final, thinking="because")
    return row(*said, user=question, analysis="because", final=final)


def test_unusual_rows_are_trained_on_and_noted(settings: Data, tmp_path: Path) -> None:
    lines = [published(number, f"answer {number}") for number in range(1000)]
    lines[93], lines[512] = published(93, ""), published(512, "more " * 13_560)
    lines[700], lines[850] = lines[7], published(850, "Write <think> first.")
    (tmp_path / "own.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    here = own(settings, tmp_path / "own.jsonl", on_bad_row="stop")
    rows = load_dataset(**prepare.source(here), split="train", cache_dir=str(tmp_path / "cache"))
    found = prepare.check(rows, here, 216)
    assert found.problems.empty
    assert found.unusual[["what", "rows", "where"]].to_numpy().tolist() == [
        ["an empty answer", 1, "row 94"],
        ["a copy", 1, "row 701"],
        ["<think> inside a text", 1, "row 851"],
        ["an enormous row", 1, "row 513"],
    ]
    train, _ = prepare.split(prepare.conversations(rows, here, tmp_path), 0, seed=0)
    assert list(train) == lines


def test_of_many_unusual_rows_the_first_are_named(settings: Data) -> None:
    found = prepare.check(Dataset.from_list([published(number, "") for number in range(7)]), settings, 216)
    assert found.unusual["rows"].tolist() == [7]
    assert found.unusual["where"].tolist() == ["row 0, row 1, row 2, row 3, row 4, …"]


def test_no_rows_at_all_are_refused(settings: Data) -> None:
    rows = Dataset.from_list([row()]).select([])
    assert refusal(rows, settings) == "rehearsal/multilingual-thinking-sample has no rows; expected at least one"


@pytest.mark.parametrize("column", TEXT_COLUMNS)
@pytest.mark.parametrize("found", ["", "  ", None])
def test_an_empty_field_is_named_with_its_row(column: str, found: str | None, settings: Data) -> None:
    assert bad(rows_of(row(), row(**{column: found})), settings) == {
        "file": "rehearsal/multilingual-thinking-sample",
        "row": 1,
        "field": column,
        "found": "nothing",
        "expected": "text",
    }


@pytest.mark.parametrize(
    "roles",
    [
        ["user"],
        ["system"],
        ["assistant", "user"],
        ["user", "assistant", "user"],
        ["user", "user", "assistant"],
        ["user", "system", "assistant"],
        ["system", "system", "user", "assistant"],
        ["user", "developer", "user", "assistant"],
    ],
)
def test_roles_out_of_order_are_named_with_their_row(roles: list[str], settings: Data) -> None:
    wrong = row(*(message(role, thinking="because") for role in roles))
    told = bad(rows_of(row(), row(), wrong), settings)
    assert (told["row"], told["field"], told["found"]) == (2, "messages", f"roles {roles}")


@pytest.mark.parametrize("content", ["", None])
def test_a_message_without_content_is_named(content: str | None, settings: Data) -> None:
    wrong = row(message("user", content), message("assistant", thinking="because"))
    told = bad(rows_of(row(), wrong), settings)
    assert (told["row"], told["field"], told["found"]) == (1, "messages[0].content", "nothing")


def prompt(question: str, answer: str = "a") -> dict[str, str]:
    return {"prompt": question, "completion": answer}


def test_stopping_names_the_first_bad_row_and_counts_the_others(settings: Data, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    lines = [prompt("q"), prompt("q", ""), prompt(""), prompt("<|end|>")]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert refusal(Dataset.from_list(lines), own(settings, file)) == (
        "own.jsonl, row 2, completion: found nothing, expected an answer, or reasoning; fix it, or leave such "
        'rows out with data.on_bad_row = "drop" (3 bad rows in all)'
    )


def test_dropped_rows_are_kept_whole_with_the_reasons(dropping: Data, tmp_path: Path) -> None:
    rows = Dataset.from_list([prompt("q1"), prompt("¿q2?", "<|return|>"), prompt(" ")])
    kept = prepare.conversations(rows, dropping, tmp_path)
    assert kept["user"][:] == ["q1"]
    assert kept.column_names == list(COLUMNS)
    place = {"file": "rehearsal/multilingual-thinking-sample"}
    assert dropped(tmp_path) == [
        place
        | {
            "row": 1,
            "field": "completion",
            "found": "the marker <|return|>",
            "expected": "text without markers, which the template writes itself",
            "record": rows[1],
        },
        place | {"row": 2, "field": "prompt", "found": "nothing", "expected": "text", "record": rows[2]},
    ]
    assert "¿q2?" in (tmp_path / prepare.DROPPED).read_text(encoding="utf-8"), "to be read by people"
    assert prepare.check(rows, dropping, 216).problems["row"].tolist() == [1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [prepare.DROPPED]


def test_a_record_that_json_does_not_know_is_kept_as_text(dropping: Data, tmp_path: Path) -> None:
    moment = datetime(2025, 8, 5, 12)
    rows = Dataset.from_list([prompt("q1") | {"at": moment}, prompt("") | {"at": moment}])
    prepare.conversations(rows, dropping, tmp_path)
    assert dropped(tmp_path)[0]["record"] == prompt("") | {"at": str(moment)}


def test_what_was_dropped_last_time_is_forgotten(dropping: Data, tmp_path: Path) -> None:
    rows = Dataset.from_list([prompt("q1"), prompt("")])
    prepare.conversations(rows, dropping, tmp_path)
    assert len(dropped(tmp_path)) == 1
    prepare.conversations(rows.select([0]), dropping, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bad_row_of_the_published_schema_is_dropped(dropping: Data, sample: Dataset, tmp_path: Path) -> None:
    rows = Dataset.from_list([*sample.select(range(3)), sample[3] | {"user": ""}], features=sample.features)
    kept = prepare.conversations(rows, dropping, tmp_path)
    assert list(kept) == list(sample.select(range(3)))
    assert kept.features == sample.features
    assert [line["row"] for line in dropped(tmp_path)] == [3]


def test_where_every_row_is_bad_dropping_stops_too(dropping: Data) -> None:
    assert refusal(Dataset.from_list([prompt(""), prompt("q", "")]), dropping) == (
        "rehearsal/multilingual-thinking-sample, row 0, prompt: found nothing, expected text; fix it "
        "(2 bad rows in all)"
    )


def test_the_same_conversation_written_otherwise_is_a_copy(settings: Data) -> None:
    thought = [message("user", "q"), message("assistant", "a", thinking="t")]
    tagged = [message("user", "q"), message("assistant", "<think>t</think>a")]
    other = [message("user", "q"), message("assistant", "a", thinking="another thought")]
    found = prepare.check(Dataset.from_list([{"messages": said} for said in (thought, other, tagged)]), settings, 216)
    assert found.problems.empty
    assert found.unusual[["what", "rows", "where"]].to_numpy().tolist() == [["a copy", 1, "row 2"]]


def test_published_rows_in_a_local_file_are_the_same_rows(sample: Dataset, settings: Data, tmp_path: Path) -> None:
    sample.select(range(50)).to_json(tmp_path / "own.jsonl")
    here = own(settings, tmp_path / "own.jsonl")
    rows = load_dataset(**prepare.source(here), split="train", cache_dir=str(tmp_path / "cache"))
    kept = prepare.conversations(rows, here, tmp_path)
    assert kept.features == sample.features
    assert list(kept) == list(sample.select(range(50)))


def test_the_example_is_whole_and_made_for_the_tiny_model(
    sample: Dataset, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    example = profiles.load(ROOT / "notebooks/examples/own_data.toml").data
    rows = load_dataset(**prepare.source(example), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["messages"]
    assert all(found.empty for found in prepare.check(rows, example, 216))
    kept = prepare.conversations(rows, example, tmp_path)
    assert set(Counter(kept["reasoning_language"]).values()) == {48}
    assert all(kept["analysis"])
    assert prepare.token_lengths(kept, tokenizer)["tokens"].max() <= example.max_length
    train, held_out = prepare.split(kept, example.held_out_share, seed=0)
    assert (len(train), len(held_out)) == (191, 49)


def test_reasoning_beside_a_prompt_comes_from_a_file_as_it_is(settings: Data, tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    lines = [prompt("q1") | {"thinking": "42"}, prompt("q2") | {"thinking": None}]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    rows = load_dataset(**prepare.source(own(settings, file)), split="train", cache_dir=str(tmp_path / "cache"))
    assert prepare.conversations(rows, own(settings, file), tmp_path)["analysis"][:] == ["42", ""]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in (lines[0], prompt("q2") | {"thinking": 42})))
    with pytest.raises(FtlibError, match=r"own.jsonl, line 2: thinking is no text, in own.jsonl, line 1 it is one"):
        prepare.source(own(settings, file))


def test_a_field_that_is_blank_is_no_reason_to_refuse_a_row(settings: Data) -> None:
    said = [message("user", "q"), message("assistant", "a") | {"reasoning_content": " \n", "weight": "", "tools": []}]
    assert prepare.check(Dataset.from_list([{"messages": said}]), settings, 216).problems.empty


def test_rows_of_several_files_are_numbered_in_each(settings: Data, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(prompt(q))}\n" for q in ("q1", "", "q2")))
    (tmp_path / "b.jsonl").write_text("".join(f"{json.dumps(prompt(q))}\n" for q in ("q3", "q1", "<|call|>")))
    here = own(settings, tmp_path)
    rows = load_dataset(**prepare.source(here), split="train", cache_dir=str(tmp_path / "cache"))
    found = prepare.check(rows, here, 216)
    assert found.problems[["file", "row"]].to_numpy().tolist() == [["a.jsonl", 2], ["b.jsonl", 3]]
    assert found.unusual["where"].tolist() == ["row 2 of b.jsonl"]
    few = prepare.check(rows.select([0, 1]), here, 216).problems
    assert few[["file", "row"]].values.tolist() == [[tmp_path.name, 1]], "of some rows, the number among them"


def test_a_data_set_on_the_hub_is_named_with_its_commit(settings: Data) -> None:
    assert prepare.source(settings) == {"path": settings.dataset, "revision": settings.revision}
    assert settings.revision


def test_share_0_measures_nothing_where_no_language_is_asked_for(settings: Data, tmp_path: Path) -> None:
    rows = prepare.conversations(Dataset.from_list([prompt("q1"), prompt("q2")]), settings, tmp_path)
    with pytest.raises(FtlibError, match=r"no row asks for a reasoning language.*set data.held_out_share, to 0.1 say"):
        prepare.split(rows, 0, seed=0)
    train, held_out = prepare.split(rows, 0.5, seed=0)
    assert {*train["user"], *held_out["user"]} == {"q1", "q2"}
    asked = Dataset.from_list([prompt("q1") | {"reasoning_language": "French"}, prompt("q2")])
    assert len(prepare.split(prepare.conversations(asked, settings, tmp_path), 0, seed=0)[1]) == 120


def test_share_0_trains_on_every_row_and_measures_with_the_shipped_questions(sample: Dataset) -> None:
    train, held_out = prepare.split(sample, 0, seed=0)
    assert train is sample
    assert len(held_out) == 120
    assert set(Counter(held_out["reasoning_language"]).values()) == {24}
    assert set(train["user"]).isdisjoint(held_out["user"])
    assert held_out.column_names == sample.column_names


def test_a_shipped_question_among_the_training_rows_is_refused(sample_rows: list[dict[str, Any]]) -> None:
    question = prepare.held_out_questions()["user"][7]
    rows = Dataset.from_list([*sample_rows[:5], {**sample_rows[5], "user": question}])
    with pytest.raises(FtlibError) as raised:
        prepare.split(rows, 0, seed=0)
    assert "1 of the shipped held-out questions are in the data set" in str(raised.value)
    assert repr(question) in str(raised.value)
    assert "data.held_out_share" in str(raised.value)


def test_a_shipped_question_in_an_earlier_turn_is_refused(sample_rows: list[dict[str, Any]]) -> None:
    question = prepare.held_out_questions()["user"][7]
    before = [message("user", question), message("assistant", "That.")]
    row = sample_rows[5]
    said = [row["messages"][0], *before, *row["messages"][1:]]
    with pytest.raises(FtlibError, match="1 of the shipped held-out questions are in the data set"):
        prepare.split(Dataset.from_list([*sample_rows[:5], {**row, "messages": said}]), 0, seed=0)


def test_a_share_is_kept_by_prompt(prompts: Dataset) -> None:
    train, held_out = prepare.split(prompts, 0.2, seed=0)
    assert (len(train), len(held_out)) == (80, 20)
    assert set(train["user"]).isdisjoint(held_out["user"])
    assert sorted([*train["final"], *held_out["final"]], key=int) == prompts["final"][:]


def test_a_kept_prompt_is_in_no_turn_of_a_training_row(sample: Dataset) -> None:
    train, held_out = prepare.split(sample, 0.2, seed=0)
    said = {turn["content"] for messages in train["messages"] for turn in messages if turn["role"] == "user"}
    assert said.isdisjoint(held_out["user"])


def test_the_seed_alone_decides_what_is_kept(prompts: Dataset) -> None:
    held_out = [prepare.split(prompts, 0.2, seed)[1]["final"][:] for seed in (3, 3, 4)]
    assert held_out[0] == held_out[1]
    assert held_out[0] != held_out[2]
    _, from_reversed = prepare.split(prompts.select(range(99, -1, -1)), 0.2, seed=3)
    assert sorted(from_reversed["final"][:]) == sorted(held_out[0]), "the order of the rows does not"


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_a_share_that_keeps_nothing_or_everything_is_refused(prompts: Dataset, share: float) -> None:
    with pytest.raises(FtlibError, match=f"held_out_share {share} of 50 prompts"):
        prepare.split(prompts, share, seed=0)


def test_lengths_are_those_of_the_tokens_that_training_sees(
    sample: Dataset, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = sample.select(range(20))
    lengths = prepare.token_lengths(rows, tokenizer)
    assert list(lengths.columns) == ["language", "characters", "tokens"]
    assert lengths["language"].tolist() == rows["reasoning_language"][:]
    for messages, tokens, characters in zip(rows["messages"], lengths["tokens"], lengths["characters"], strict=True):
        assert tokens == len(tokenizer.apply_chat_template(messages)["input_ids"])
        assert characters == len(tokenizer.apply_chat_template(messages, tokenize=False))


def test_another_language_is_asked_for_and_nothing_else_changes(sample: Dataset) -> None:
    rows = sample.select(range(10))
    asked = prepare.ask_for_language(rows, "Portuguese")
    assert set(asked["reasoning_language"]) == {"Portuguese"}
    for before, after in zip(rows, asked, strict=True):
        system = message("system", f"reasoning language: Portuguese\n\n{before['developer']}")
        assert after["messages"] == [system, *before["messages"][1:]]
        unchanged = set(before) - {"messages", "reasoning_language"}
        assert {column: before[column] for column in unchanged} == {column: after[column] for column in unchanged}
        assert f"reasoning language: {before['reasoning_language']}\n" in before["messages"][0]["content"]


def test_a_row_without_instructions_is_asked_for_its_language_alone(settings: Data, tmp_path: Path) -> None:
    rows = prepare.conversations(Dataset.from_list([prompt("q1")]), settings, tmp_path)
    asked = prepare.ask_for_language(rows, "French")[0]["messages"]
    assert asked == [message("system", "reasoning language: French"), message("user", "q1"), message("assistant", "a")]


def test_cut_rows_are_told_with_what_they_lose(sample: Dataset, tokenizer: PreTrainedTokenizerFast) -> None:
    enormous = max(range(len(sample)), key=lambda number: len(sample[number]["final"]))
    rows = sample.select([*range(20), enormous])
    lengths = prepare.token_lengths(rows, tokenizer)
    limit = int(lengths["tokens"].nlargest(3).iloc[-1]) - 1
    cut = prepare.cut_rows(lengths, rows, tokenizer, limit)
    assert cut.index.name == "row"
    assert set(cut.index) == {number for number, tokens in enumerate(lengths["tokens"]) if tokens > limit}
    assert cut["tokens"].is_monotonic_decreasing, "the row that loses most comes first"
    assert len(cut) >= 3
    for number, told in cut.iterrows():
        text = str(tokenizer.apply_chat_template(rows[number]["messages"], tokenize=False))
        tokens = tokenizer.apply_chat_template(rows[number]["messages"])["input_ids"]
        assert told.tolist()[:2] == [len(tokens), len(tokens) - limit]
        lost = text.removeprefix(tokenizer.decode(tokens[:limit]))
        assert told["text_cut"] == (lost if len(lost) <= 80 else f"{lost[:80]}…")
    assert cut["text_cut"].str.endswith("<|return|>").any(), "a short end is shown whole"
    assert prepare.cut_rows(lengths, rows, tokenizer, lengths["tokens"].max()).empty


# What is trained on. ------------------------------------------------------------------------------------------------

OPENING = [message("system", "Be brief."), message("user", "Capital of France?")]
EARLIER = [message("assistant", "Paris.", thinking="Dropped by the template."), message("user", "And of Spain?")]
WITHOUT = row(*OPENING, message("assistant", "Madrid."))
TURNS = row(*OPENING, *EARLIER, message("assistant", "Madrid."))
WITH = row(*OPENING, *EARLIER, message("assistant", "Madrid.", thinking="Piensa en España."))
UNANSWERED = row(*OPENING, message("assistant", "", thinking="Piensa en España."))
MIXES = {
    "without": [WITHOUT],
    "with": [WITH],
    "first with": [WITH, WITHOUT, TURNS],
    "first without": [TURNS, WITH],
    "an empty answer": [UNANSWERED, WITH],
}


def rendered(reply: Said) -> str:
    """The last message as the template writes it."""
    analysis = (
        f"<|start|>assistant<|channel|>analysis<|message|>{reply['thinking']}<|end|>" if reply["thinking"] else ""
    )
    return f"{analysis}<|start|>assistant<|channel|>final<|message|>{reply['content']}<|return|>"


@pytest.fixture
def training_template(shipped_tokenizer: PreTrainedTokenizerFast) -> str:
    return pin_date(get_training_chat_template(shipped_tokenizer), "2025-08-05")


@pytest.fixture
def trainer(
    tokenizer: PreTrainedTokenizerFast, training_template: str, tmp_path: Path
) -> Callable[[Dataset, bool], SFTTrainer]:
    """A trainer as in notebook 4, over a model of next to nothing."""
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 8}
    few = {"num_attention_heads": 1, "num_key_value_heads": 1, "num_local_experts": 1, "num_experts_per_tok": 1}
    training_tokenizer = copy.deepcopy(tokenizer)
    training_tokenizer.chat_template = training_template

    def build(rows: Dataset, assistant_only_loss: bool) -> SFTTrainer:
        model = GptOssForCausalLM(GptOssConfig(vocab_size=len(tokenizer), **shape, **few))
        arguments = SFTConfig(
            output_dir=str(tmp_path / "trainer"),
            max_length=400,
            assistant_only_loss=assistant_only_loss,
            router_aux_loss_coef=0.0,
            activation_checkpointing=False,
            bf16=False,
            use_cpu=True,
            report_to="none",
        )
        return SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=rows.select_columns("messages"),
            processing_class=training_tokenizer,
        )

    return build


def batch(trainer: SFTTrainer) -> list[tuple[list[int], list[int]]]:
    """All rows as one batch of the trainer: tokens and labels of each."""
    rows = trainer.train_dataset
    padded = trainer.data_collator([rows[number] for number in range(len(rows))])
    return list(zip(padded["input_ids"].tolist(), padded["labels"].tolist(), strict=True))


@pytest.mark.parametrize("mix", MIXES)
def test_a_row_without_reasoning_renders_no_analysis_message(
    mix: str,
    shipped_tokenizer: PreTrainedTokenizerFast,
    training_template: str,
    trainer: Callable[..., SFTTrainer],
    settings: Data,
    tmp_path: Path,
) -> None:
    rows = Dataset.from_list([{"messages": row["messages"]} for row in MIXES[mix]])
    kept = prepare.conversations(rows, settings, tmp_path)
    mapped = trainer(kept, True).train_dataset
    for number, messages in enumerate(kept["messages"]):
        published = shipped_tokenizer.apply_chat_template(messages, tokenize=False)
        training = shipped_tokenizer.apply_chat_template(messages, chat_template=training_template, tokenize=False)
        trained = shipped_tokenizer.decode(mapped[number]["input_ids"])
        for text in (published, training, trained):
            assert text.endswith("<|end|>" + rendered(messages[-1]))
            assert text.count("<|channel|>analysis") == (1 if messages[-1]["thinking"] else 0)


@pytest.mark.parametrize("mix", MIXES)
def test_with_the_mask_only_what_the_assistant_says_is_trained_on(
    mix: str, tokenizer: PreTrainedTokenizerFast, trainer: Callable[..., SFTTrainer]
) -> None:
    examples = batch(trainer(Dataset.from_list(MIXES[mix]), True))
    for (tokens, labels), row in zip(examples, MIXES[mix], strict=True):
        reply = rendered(row["messages"][-1])
        end = tokens.index(tokenizer.convert_tokens_to_ids("<|return|>")) + 1
        begin = end - len(tokenizer(reply, add_special_tokens=False)["input_ids"])
        assert tokenizer.decode(tokens[begin:end]) == reply
        assert labels[begin:end] == tokens[begin:end], "every token of the reasoning, the answer and its stop token"
        assert set(labels[end:]) <= {IGNORED}, "no padding"
        before = list(zip(tokens[:begin], labels[:begin], strict=True))
        trained = tokenizer.decode([token for token, label in before if label != IGNORED])
        several = row["messages"][2]["content"] == "Paris."
        assert trained == ("<|start|>assistant<|channel|>final<|message|>Paris.<|end|>" if several else "")
        untrained = split_channels(tokenizer.decode([token for token, label in before if label == IGNORED]))
        asked = ["system", "developer", "user", "user"] if several else ["system", "developer", "user"]
        assert [segment.role for segment in untrained if segment.closed] == asked
        assert "Be brief." in untrained[1].content


@pytest.mark.parametrize("mix", MIXES)
def test_without_the_mask_everything_but_padding_is_trained_on(
    mix: str, tokenizer: PreTrainedTokenizerFast, trainer: Callable[..., SFTTrainer]
) -> None:
    for tokens, labels in batch(trainer(Dataset.from_list(MIXES[mix]), False)):
        padding = tokenizer.pad_token_id
        assert labels == [IGNORED if token == padding else token for token in tokens]
        assert tokens.count(tokenizer.convert_tokens_to_ids("<|return|>")) == 1


def test_the_training_template_writes_the_same_text(
    sample: Dataset, tokenizer: PreTrainedTokenizerFast, training_template: str
) -> None:
    assert training_template != tokenizer.chat_template
    assert "{%- generation %}" in training_template
    assert len(sample) == 1000
    for messages in sample["messages"]:
        training = tokenizer.apply_chat_template(messages, chat_template=training_template, tokenize=False)
        assert training == tokenizer.apply_chat_template(messages, tokenize=False)
