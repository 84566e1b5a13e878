"""Every mistake of the table gets exit code 1 and one line that says what to do, and changes nothing that was there.

The command line runs in this process, and so do the cells of the real notebooks, as far as where the mistake has to be
found: before any model is loaded.
"""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from datasets import Dataset, disable_progress_bars
from filelock import FileLock
from helpers import NOTEBOOKS
from helpers.bad_inputs import CASES, Case
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

from ftlib import cli, profiles
from ftlib.model import checkpoints, publish
from ftlib.runner import execution
from ftlib.session import hub_client, kernel, manifest, session

TOKEN = "hf_neverShownNeverShownNeverShown"
REQUEST = httpx2.Request("GET", "https://hub/api")
ROWS = Dataset.from_list([{"messages": [{"role": "user", "content": "Hi"}]}])


class World:
    """A project with a finished run, a Hub that takes everything, room on the disk, and what a case makes of these."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.output, self._patch = root / "outputs/mine", monkeypatch
        # How far each notebook comes: to the variables that its checks stand before.
        self.reach = {"02_explore_dataset": ["rows", "held_out"], "04_train_lora": ["repo"]}
        self.held: list[Any] = []
        (root / "notebooks").mkdir()
        for folder in ("notebooks", "records", "adapter"):
            (self.output / folder).mkdir(parents=True)
        for name in NOTEBOOKS:
            (self.output / "notebooks" / f"{name}.ipynb").write_text(f"finished {name}")
            (self.output / "records" / f"{name}.json").write_text('{"base_bytes": 1}')
        self._seal("adapter", [name for name in publish.ADAPTER_FILES if name != manifest.NAME])
        self.role("write")

    def _seal(self, folder: str, names: list[str]) -> None:
        for name in names:
            (self.output / folder / name).write_text(f"finished {name}")
        manifest.write(self.output / folder, set(names) - {"README.md"})

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.output.rglob("*") if path.is_file()}

    # What a case may make of it

    def no_token(self, _: None) -> None:
        self._patch.delenv("HF_TOKEN")

    def role(self, role: str) -> None:
        account = {"name": "learner", "orgs": [], "auth": {"accessToken": {"role": role}}}
        self._patch.setattr(hub_client, "whoami", lambda token: account)

    def answer(self, status: int) -> None:
        self._fail(HfHubHTTPError(TOKEN, response=httpx2.Response(status, request=REQUEST)))

    def lost(self, kind: str) -> None:
        self._fail(getattr(httpx2, kind)(TOKEN, request=REQUEST))

    def _fail(self, error: Exception) -> None:
        def fail(token: str) -> None:
            raise error

        self._patch.setattr(hub_client, "whoami", fail)

    def free_bytes(self, *later: int) -> None:
        """What the disk has at each look at it, the last for good."""
        looks = list(later)
        self._patch.setattr(
            shutil, "disk_usage", lambda folder: SimpleNamespace(free=looks.pop(0) if len(looks) > 1 else looks[0])
        )

    def change(self, name: str) -> None:
        (self.output / name).write_text("changed")

    def remove(self, name: str) -> None:
        (self.output / name).unlink()

    def no_checkpoint(self, _: None) -> None:
        self.reach["04_train_lora"].append("last_checkpoint")

    def checkpoint(self, rows: Dataset = ROWS) -> None:
        """One that tiny's recipe has left."""
        self.no_checkpoint(None)
        folder = "checkpoints/checkpoint-3"
        (self.output / folder).mkdir(parents=True)
        run: Any = SimpleNamespace(profile=profiles.load("tiny"))
        progress = {"seconds": 1, "recipe": checkpoints._recipe(run, rows)}
        self._seal(folder, ["adapter_model.safetensors"])
        (self.output / folder / checkpoints.PROGRESS).write_text(json.dumps(progress))

    def checkpoint_of_other_rows(self, _: None) -> None:
        self.checkpoint(Dataset.from_list([{"messages": [{"role": "user", "content": "Bye"}]}]))

    def another_trains(self, _: None) -> None:
        self.checkpoint()
        self._patch.setattr(session, "CLAIM_TIMEOUT_S", 0.1)
        lock = FileLock(self.output / "training.lock")
        lock.acquire()
        self.held.append(lock)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    def missing(*arguments: Any, **settings: Any) -> None:
        raise RepositoryNotFoundError("missing", response=httpx2.Response(404, request=REQUEST))

    monkeypatch.chdir(tmp_path)
    for name in ("TRACKIO_DIR", "HF_HUB_DISABLE_TELEMETRY", "MLFLOW_MAX_LOG_PARAMS", "GOMP_SPINCOUNT"):
        # What start() sets is taken back.
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(session, "_connect", lambda profile, output_dir: ("http://127.0.0.1:9", []))
    monkeypatch.setattr(session, "_current", None)
    monkeypatch.setattr(HfApi, "model_info", missing)
    disable_progress_bars()
    world = World(tmp_path, monkeypatch)
    world.free_bytes(10**12)
    return world


@pytest.fixture
def in_this_process(world: World, notebooks: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Lets `ftlib run` execute a notebook's cells here; "given" of the result is what papermill would inject."""
    papermill = {"given": ""}

    def execute(name: str, parameters: dict[str, Any], folder: Path) -> None:
        cells = ["", notebooks.cells(name)[0], f"# Parameters\n{papermill['given']}\n"]
        monkeypatch.setattr(kernel, "executed_cells", lambda: cells)
        current = session.start(parameters["profile"], parameters["output_root"])
        namespace = {"session": current, "profile": current.profile, "resume": parameters.get("resume")}
        namespace |= {"checkpoints": checkpoints, "train_dataset": ROWS}
        for variable in world.reach[name]:
            notebooks.run(name, variable, namespace)

    monkeypatch.setattr(execution, "_execute", execute)
    return papermill


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_mistake_gets_one_line_and_changes_nothing(
    case: Case,
    world: World,
    in_this_process: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extends = "" if "extends" in case.profile else 'extends = "tiny"\n'
    for name, content in {"mine.toml": extends + case.profile, **case.files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    in_this_process["given"] = case.given
    if case.circumstance:
        method, argument = case.circumstance
        getattr(world, method)(*argument if isinstance(argument, tuple) else (argument,))
    before = world.files()
    monkeypatch.setattr(sys, "argv", ["ftlib", *case.command])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr().err.splitlines()
    lines = [line for line in said if not line.endswith("; trying again")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    position = 0
    for part in case.message:
        assert part in lines[0][position:], lines[0]
        position = lines[0].index(part, position) + len(part)
    assert TOKEN not in "".join(said)
    assert str(tmp_path) not in lines[0]
    after = world.files()
    assert {path: after.get(path) for path in before} == before


@pytest.mark.parametrize("notebook", ["02_explore_dataset", "04_train_lora"])
def test_without_a_mistake_nothing_is_refused(
    notebook: str, world: World, in_this_process: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the table would prove nothing: the same world, the same cells, and good rows."""
    rows = next(case for case in CASES if case.name == "too small a share").files["rows.jsonl"]
    (tmp_path / "rows.jsonl").write_text(str(rows))
    (tmp_path / "mine.toml").write_text('extends = "tiny"\n[data]\ndataset = "rows.jsonl"\nheld_out_share = 0.5\n')
    if notebook == "04_train_lora":
        world.checkpoint()
    in_this_process["given"] = 'profile = "mine.toml"'
    monkeypatch.setattr(sys, "argv", ["ftlib", "run", notebook, "--profile", "mine.toml"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
