"""Profiles: the shipped ones load, a file of your own changes only what it says, and mistakes are named in one line."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.profiles import library
from ftlib.profiles.schema import Lora, Train

Write = Callable[..., Path]
WHOLE = ["gpt-oss-20b", "tiny"]
FAST = ["gpt-oss-20b-fast", "tiny-fast"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a profile file and returns its path."""

    def to_file(text: str, name: str = "mine.toml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def refusal(name: str | Path) -> str:
    with pytest.raises(FtlibError) as raised:
        profiles.load(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_shipped_profiles_load_with_every_value_that_they_hold() -> None:
    """A value that the file holds and the profile does not would be decoration."""
    assert profiles.shipped() == sorted(WHOLE + FAST)
    written = {name: tomllib.loads((profiles.FOLDER / f"{name}.toml").read_text()) for name in profiles.shipped()}
    for name in WHOLE:
        profile = profiles.load(name).model_dump()
        profile["recipe"]["expert_layers"] = list(profile["recipe"]["expert_layers"])
        assert profile == {"name": name, **written[name]}
    keys = [{section: list(values) for section, values in written[name].items()} for name in WHOLE]
    assert keys[0] == keys[1], "both say the same things"
    for name, fast in zip(WHOLE, FAST, strict=True):
        changed = {key.split(".")[1] for key in profiles.compare(name, fast).index} - {"push_target", "project"}
        assert changed
        assert changed <= {
            *("attn_implementation", "experts_implementation", "padding_free"),
            *("per_device_train_batch_size", "train_sampling_strategy"),
        }, "a fast profile learns the same"


@pytest.mark.parametrize("section", [Train, Lora])
def test_what_a_section_declares_exists_in_the_library(section: type[Train] | type[Lora]) -> None:
    assert {*section.model_fields, *section.not_for_profiles} <= library.arguments(section.call).keys()


def test_arguments_are_those_of_the_libraries() -> None:
    """They are read from source; the classes themselves are the proof."""
    import dataclasses

    from peft import LoraConfig
    from trl import SFTConfig

    for call in (SFTConfig, LoraConfig):
        accepted = {field.name for field in dataclasses.fields(call) if field.init}
        assert library.arguments(call.__name__).keys() == accepted


def test_a_file_changes_only_what_it_says(write: Write) -> None:
    text = 'extends = "gpt-oss-20b"\n[train]\nlearning_rate = 1e-4\n[recipe]\nexpert_layers = []\n'
    profile, base = profiles.load(write(text)), profiles.load("gpt-oss-20b")
    assert (profile.name, profile.train.learning_rate, profile.recipe.expert_layers) == ("mine", 1e-4, ())
    assert profile.train.model_copy(update={"learning_rate": 2e-4}) == base.train
    assert profile.model_copy(update={part: getattr(base, part) for part in ("name", "train", "recipe")}) == base


def test_a_file_may_extend_a_file_beside_it_and_carry_a_name(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write('extends = "tiny"\n[train]\nseed = 1\nnum_train_epochs = 2\n', "first.toml")
    path = write('extends = "first.toml"\nname = "second-run"\n[train]\nseed = 2\n')
    monkeypatch.chdir("/")
    profile = profiles.load(path)
    assert (profile.name, profile.train.seed, profile.train.num_train_epochs) == ("second-run", 2, 2)
    assert profile.hub == profiles.load("tiny").hub


def test_what_else_the_libraries_accept_reaches_their_calls(write: Write) -> None:
    path = write('extends = "tiny"\n[train]\nweight_decay = 0.1\nmax_steps = 3\n[lora]\nlora_dropout = 0.1\n')
    profile = profiles.load(path)
    train, tiny = dict(profile.train), dict(profiles.load("tiny").train)
    assert train == tiny | {"weight_decay": 0.1, "max_steps": 3}
    assert dict(profile.lora)["lora_dropout"] == 0.1


REFUSED = [
    ("[train]\nwieght_decay = 0.1", "train.wieght_decay: SFTConfig has no such argument; did you mean 'weight_decay'?"),
    ("[train]\nwarmup_ratio = 0.03", "train.warmup_ratio: SFTConfig has no such argument; did you mean 'warmup_"),
    ("[lora]\ndropout = 0.1", "lora.dropout: LoraConfig has no such argument; did you mean 'lora_dropout'?"),
    ('[train]\nweight_decay = "0.1"', "train.weight_decay = '0.1': input should be a valid number"),
    ('[train]\noutput_dir = "x"', "train.output_dir cannot be set in a profile; leave it out"),
    ('[lora]\ntask_type = "CAUSAL_LM"', "lora.task_type cannot be set in a profile"),
    ("[track]\nxyz = 1", "unknown key track.xyz; valid are ['project']"),
    ("[trian]\nseed = 1", "unknown key trian; did you mean 'train'?"),
    ('[train]\nlearning_rate = "1e-4"', "'1e-4': input should be a valid number; write it without quotes"),
    ("[train]\nnum_train_epochs = 1.5", "train.num_train_epochs = 1.5: input should be a valid integer"),
    ("[data]\nheld_out_share = 1.0", "data.held_out_share = 1.0: input should be less than 1"),
    ('[data]\ntemplate_date = "2025-02-30"', "data.template_date = '2025-02-30': expected a real day as YYYY-MM-DD"),
    ('[data]\ndataset = "mine"', "data.dataset 'mine' is neither a Hub id such as 'name/data' nor a path"),
    ('[data]\ndataset = "a/b"', "data.revision is missing: add the commit of a/b, 40 hex digits"),
    (f'[data]\ndataset = "a.csv"\nrevision = "{"0" * 40}"', "belongs to no local file; leave it out"),
    ('[data.columns]\nquestion = "q"', "'prompt', 'response', 'system'"),
    ('[model]\ndtype = "float16"', "model.dtype = 'float16': input should be 'bfloat16' or 'float32'"),
    ('[model]\nattn_implementation = "flex_attention"', "model.attn_implementation = 'flex_attention' needs a GPU"),
    ("[recipe]\nexpert_layers = [-1]", "recipe.expert_layers.0 = -1: input should be greater than or equal to 0"),
    ('[hub]\nmodel = "a/b"', "hub.model_revision is missing; add it, or let the file extend one of"),
    ('[hub]\nendpoint = "http://huggingface.co"', "hub.endpoint = 'http://huggingface.co': string should match"),
    ('name = "../tiny"', "name = '../tiny': string should match pattern"),
    ("train = 3", "train = 3: input should be a valid dictionary"),
    ("extends = 3", "extends = 3: expected one of"),
    ('extends = "mine.toml"', "mine.toml extends itself; let it extend one of"),
    ('extends = "tny"', "profile 'tny' is unknown; did you mean 'tiny'?"),
    ("[train\nseed = 1", "not valid TOML: Expected"),
    *(
        (f"[{old.replace('.', ']' + chr(10))} = 1", f"{old} is now called {new}")
        for old, new in profiles.RENAMED.items()
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_a_mistake_is_named_with_what_is_allowed(write: Write, change: str, message: str) -> None:
    extends = "" if change.startswith("extends") else 'extends = "tiny"\n'
    assert message in refusal(write(f"{extends}{change}\n"))


def test_new_names_exist() -> None:
    values = profiles.load("tiny").model_dump()
    for new in profiles.RENAMED.values():
        found = values
        for key in new.split("."):
            found = found[key]


UNKNOWN = [
    ("gtp-oss-20b", "did you mean 'gpt-oss-20b'?"),
    ("mistral", "valid are ['gpt-oss-20b'"),
    ("no.toml", "no such file"),
]


@pytest.mark.parametrize(("name", "hint"), UNKNOWN)
def test_an_unknown_profile_is_refused_with_those_that_there_are(name: str, hint: str) -> None:
    assert hint in refusal(name)


def test_a_missing_value_is_named_with_the_way_out(write: Write) -> None:
    lines = (profiles.FOLDER / "tiny.toml").read_text(encoding="utf-8").splitlines()
    message = refusal(write("\n".join(line for line in lines if not line.startswith("learning_rate"))))
    assert f"train.learning_rate is missing; add it, or let the file extend one of {profiles.shipped()}" in message


def test_a_profile_cannot_be_changed_by_a_cell() -> None:
    with pytest.raises(ValidationError):
        profiles.load("tiny").train.learning_rate = 1.0  # type: ignore[misc]


def test_one_gpu_and_four_gather_the_same_rows() -> None:
    profile = profiles.load("gpt-oss-20b")
    assert [profile.accumulation_steps(processes) for processes in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(FtlibError, match=r"effective_batch_size 16 is not a multiple of .* 4 × 3 = 12; change one"):
        profile.accumulation_steps(3)


def test_compare_shows_exactly_what_differs() -> None:
    table = profiles.compare("tiny", "gpt-oss-20b")
    assert list(table.columns) == ["tiny", "gpt-oss-20b"]
    assert table.loc["recipe.expert_layers", "gpt-oss-20b"] == (7, 15, 23)
    tiny, large = profiles.load("tiny").model_dump(), profiles.load("gpt-oss-20b").model_dump()
    keys = [(section, key) for section in set(tiny) - {"name"} for key in tiny[section]]
    assert set(table.index) == {f"{part}.{key}" for part, key in keys if tiny[part][key] != large[part][key]}


def test_a_local_data_set_lies_beside_the_file_that_names_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when another file, somewhere else, extends that one; and it inherits no commit."""
    path = write('extends = "tiny"\n[data]\ndataset = "rows/mine.jsonl"\n')
    monkeypatch.chdir("/")
    for asked in (path, write('extends = "../mine.toml"\n', "sub/other.toml")):
        data = profiles.load(asked).data
        assert (data.dataset, data.revision) == (str(path.parent / "rows/mine.jsonl"), None)
        assert (data.is_local, data.shown) == (True, "mine.jsonl")


@pytest.mark.parametrize("dataset", ["./rows", "../rows", "~/rows", "/rows", "a.json", "b/c.parquet"])
def test_a_path_is_told_from_a_hub_id(write: Write, dataset: str) -> None:
    data = profiles.load(write(f'extends = "tiny"\n[data]\ndataset = "{dataset}"\n')).data
    assert data.is_local
    assert Path(data.dataset).is_absolute()


def test_a_key_is_found_in_its_section() -> None:
    found = [
        profiles.section_of(key) for key in ("learning_rate", "weight_decay", "lora_dropout", "columns", "learning")
    ]
    assert found == ["train", "train", "lora", "data", ""]
