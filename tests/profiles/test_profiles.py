"""Profiles: the shipped two load, a person's own file changes only what it says, and mistakes are named."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from ftlib import profiles
from ftlib.errors import FtlibError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a profile file and returns its path."""

    def to_file(text: str, name: str = "mine.toml") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def refusal(name: str | Path) -> str:
    with pytest.raises(FtlibError) as raised:
        profiles.load(name)
    message = str(raised.value)
    assert "\n" not in message
    return message


WHOLE = ["gpt-oss-20b", "tiny"]
FAST = ["gpt-oss-20b-fast", "tiny-fast"]


def test_shipped_profiles_load() -> None:
    assert profiles.shipped() == sorted(WHOLE + FAST)
    for name in profiles.shipped():
        assert profiles.load(name).name == name


@pytest.mark.parametrize("name", WHOLE)
def test_every_shipped_value_is_read(name: str) -> None:
    """A value that the file holds and the profile does not would be decoration."""
    written = tomllib.loads((profiles.FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    profile = profiles.load(name).model_dump()
    profile["recipe"]["expert_layers"] = list(profile["recipe"]["expert_layers"])
    assert profile == {"name": name, **written}


def test_the_two_shipped_profiles_say_the_same_things() -> None:
    tiny, large = (tomllib.loads((profiles.FOLDER / f"{name}.toml").read_text()) for name in WHOLE)
    assert {section: list(values) for section, values in tiny.items()} == {
        section: list(values) for section, values in large.items()
    }


@pytest.mark.parametrize(("name", "fast"), list(zip(WHOLE, FAST, strict=True)))
def test_a_fast_profile_changes_how_it_is_computed_and_nothing_that_is_learned(name: str, fast: str) -> None:
    changed = set(profiles.compare(name, fast).index) - {"hub.push_target", "track.project"}
    assert changed
    assert changed <= {
        "model.attn_implementation",
        "model.experts_implementation",
        "train.per_device_train_batch_size",
        "train.train_sampling_strategy",
        "recipe.padding_free",
    }


def test_flex_attention_is_refused_on_a_cpu(write: Write) -> None:
    message = refusal(write('extends = "tiny"\n[model]\nattn_implementation = "flex_attention"\n'))
    assert ": model.attn_implementation = 'flex_attention' computes on a GPU alone" in message


def test_a_file_changes_only_what_it_says(write: Write) -> None:
    path = write('extends = "gpt-oss-20b"\n[train]\nlearning_rate = 1e-4\n[recipe]\nexpert_layers = []\n')
    profile, base = profiles.load(path), profiles.load("gpt-oss-20b")
    assert (profile.name, profile.train.learning_rate, profile.recipe.expert_layers) == ("mine", 1e-4, ())
    changed = profile.model_copy(update={"name": base.name, "train": base.train, "lora": base.lora})
    assert changed == base
    assert profile.train.model_copy(update={"learning_rate": 2e-4}) == base.train


def test_a_file_may_extend_a_file_beside_it_and_carry_a_name(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write('extends = "tiny"\n[train]\nseed = 1\nnum_train_epochs = 2\n', "first.toml")
    path = write('extends = "first.toml"\nname = "second-run"\n[train]\nseed = 2\n')
    monkeypatch.chdir("/")
    profile = profiles.load(path)
    assert (profile.name, profile.train.seed, profile.train.num_train_epochs) == ("second-run", 2, 2)
    assert profile.hub == profiles.load("tiny").hub


def test_a_whole_number_will_do_for_a_decimal_one(write: Write) -> None:
    assert profiles.load(write('extends = "tiny"\n[data]\nheld_out_share = 0\n')).data.held_out_share == 0.0


@pytest.mark.parametrize(
    ("name", "nearest"), [("tinny", "tiny"), ("gpt-oss-20", "gpt-oss-20b"), ("gtp-oss-20b", "gpt-oss-20b")]
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    message = refusal(name)
    assert repr(name) in message
    assert f"did you mean {nearest!r}?" in message


def test_a_name_like_no_other_is_refused_with_all_of_them() -> None:
    assert str(profiles.shipped()) in refusal("mistral")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "mine.toml: no such file" in refusal(tmp_path / "mine.toml")


@pytest.mark.parametrize(
    ("change", "found", "expected"),
    [
        ("[train]\nlearningrate = 1e-4", "unknown key train.learningrate", "did you mean 'learning_rate'?"),
        ("[train]\nwarmup_ratio = 0.03", "unknown key train.warmup_ratio", "did you mean 'warmup_share'?"),
        ("[track]\nxyz = 1", "unknown key track.xyz", "valid are ['project']"),
        ("[trian]\nseed = 1", "unknown key trian", "did you mean 'train'?"),
        ('[train]\nlearning_rate = "1e-4"', "train.learning_rate = '1e-4'", "valid number"),
        ("[train]\nnum_train_epochs = 1.5", "train.num_train_epochs = 1.5", "valid integer"),
        ("[train]\nbf16 = 1", "train.bf16 = 1", "valid boolean"),
        ("[train]\nlearning_rate = -1.0", "train.learning_rate = -1.0", "greater than 0"),
        ("[data]\nheld_out_share = 1.0", "data.held_out_share = 1.0", "less than 1"),
        ('[data]\ntemplate_date = "today"', "data.template_date = 'today'", "a real day as YYYY-MM-DD"),
        ('[data]\ntemplate_date = "2025-02-30"', "data.template_date = '2025-02-30'", "a real day as YYYY-MM-DD"),
        ('[data]\ndataset = "mine"', "data.dataset 'mine' is neither a Hub id", "a folder begins with './'"),
        ('[data]\ndataset = "a/b"', "data.revision is missing", "the commit of a/b, 40 hex digits"),
        (f'[data]\ndataset = "a.csv"\nrevision = "{"0" * 40}"', "data.revision 0000", "leave it out"),
        ('[data]\non_bad_row = "ignore"', "data.on_bad_row = 'ignore'", "'stop' or 'drop'"),
        ('[train]\nassistant_only_loss = "false"', "train.assistant_only_loss = 'false'", "without quotes"),
        ('[data.columns]\nquestion = "q"', "data.columns.question", "'prompt', 'response', 'system'"),
        ('[train]\nschedule = "cosin"', "train.lr_scheduler_type = 'cosin'", "'cosine_with_min_lr'"),
        ("[train]\nsave_steps = 0", "train.save_steps = 0", "greater than 0"),
        ('[hub]\nmodel = "a/b"', "hub.model_revision is missing", "add it"),
        ("extends = 3", "extends = 3", "or the path of a .toml file"),
        ('[model]\ndtype = "float16"', "model.dtype = 'float16'", "'bfloat16' or 'float32'"),
        ('[recipe]\nexpert_layers = ["7"]', "recipe.expert_layers.0 = '7'", "valid integer"),
        ("[recipe]\nexpert_layers = [-1]", "recipe.expert_layers.0 = -1", "greater than or equal to 0"),
        ('[hub]\nmodel = "gpt-oss-20b"', "hub.model = 'gpt-oss-20b'", "match pattern"),
        ('[hub]\nmodel_revision = "main"', "hub.model_revision = 'main'", "match pattern"),
        ('[hub]\nendpoint = "http://huggingface.co"', "hub.endpoint", "match pattern"),
        ('name = "../tiny"', "name = '../tiny'", "match pattern"),
        ("train = 3", "train = 3", "dictionary"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(write: Write, change: str, found: str, expected: str) -> None:
    extends = "" if change.startswith("extends") else 'extends = "tiny"\n'
    message = refusal(write(f"{extends}{change}\n"))
    assert found in message
    assert expected in message
    assert "mine.toml" in message


def test_a_missing_value_is_named_with_the_way_out(write: Write) -> None:
    text = (profiles.FOLDER / "tiny.toml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("learning_rate")]
    message = refusal(write("\n".join(lines)))
    assert "train.learning_rate is missing" in message
    assert str(profiles.shipped()) in message


@pytest.mark.parametrize("content", [b"[train\nseed = 1", b"[train]\nseed = ", b"\xff\xfe", b"seed = 1\nseed = 2"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    assert "not valid TOML" in refusal(tmp_path / "mine.toml")


def test_a_file_that_extends_itself_is_refused(write: Write) -> None:
    assert "extends itself" in refusal(write('extends = "mine.toml"'))
    write('extends = "mine.toml"', "other.toml")
    assert "extends itself" in refusal(write('extends = "other.toml"'))


def test_a_file_that_extends_an_unknown_name_is_refused(write: Write) -> None:
    assert "did you mean 'tiny'?" in refusal(write('extends = "tny"'))


def test_a_profile_cannot_be_changed_by_a_cell() -> None:
    profile = profiles.load("tiny")
    with pytest.raises(ValidationError):
        profile.train.learning_rate = 1.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        profile.train = profile.train  # type: ignore[misc]


@pytest.mark.parametrize(("world_size", "steps"), [(1, 4), (2, 2), (4, 1)])
def test_one_gpu_and_four_gather_the_same_rows(world_size: int, steps: int) -> None:
    assert profiles.load("gpt-oss-20b").accumulation_steps(world_size) == steps


@pytest.mark.parametrize("world_size", [3, 8])
def test_processes_that_do_not_divide_the_batch_are_refused(world_size: int) -> None:
    with pytest.raises(FtlibError, match=rf"effective_batch 16 is not a multiple .* 4 × {world_size} = "):
        profiles.load("gpt-oss-20b").accumulation_steps(world_size)


def test_compare_shows_exactly_what_differs() -> None:
    table = profiles.compare("tiny", "gpt-oss-20b")
    assert list(table.columns) == ["tiny", "gpt-oss-20b"]
    rates = [profiles.load(name).train.learning_rate for name in table.columns]
    assert table.loc["train.learning_rate"].tolist() == rates
    assert table.loc["recipe.expert_layers", "gpt-oss-20b"] == (7, 15, 23)
    tiny, large = profiles.load("tiny").model_dump(), profiles.load("gpt-oss-20b").model_dump()
    differing = {
        f"{section}.{key}"
        for section in set(tiny) - {"name"}
        for key in tiny[section]
        if tiny[section][key] != large[section][key]
    }
    assert set(table.index) == differing
    assert "lora.r" not in table.index


def test_a_profile_compared_with_itself_differs_in_nothing() -> None:
    assert profiles.compare("tiny", "tiny").empty


def test_a_local_data_set_lies_beside_the_file_that_names_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when another file, somewhere else, extends that one; and it inherits no commit."""
    path = write('extends = "tiny"\n[data]\ndataset = "rows/mine.jsonl"\n')
    (path.parent / "sub").mkdir()
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
    assert profiles.section_of("learning_rate") == "train"
    assert profiles.section_of("learning") == ""
