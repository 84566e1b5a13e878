"""`start(profile)`: the right Hub, folders and rank; and nothing of the person's own seen, kept or sent.

Each test starts in a Python of its own, because what it looks at happens at import and to the environment.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunPython = Callable[..., Any]

PLANTED = "hf_planted_by_the_test"
TWO_RANKS = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}

# Stands between the rehearsal Hub and its clients, and keeps what they send.
SPY = """
import json, os, sys, uvicorn
sent, Config = [], uvicorn.Config
def spied(app, **settings):
    async def gate(scope, receive, send):
        async def overheard():
            message = await receive()
            sent.append(message.get("body", b"").decode("latin-1"))
            return message
        sent.append(repr((scope["path"], scope["query_string"], scope["headers"])))
        await app(scope, overheard, send)
    return Config(gate, **settings)
uvicorn.Config = spied
"""


def refused(code: str) -> str:
    """Code that prints, as JSON, the message of the FtlibError that `code` raises."""
    return (
        "import json\nfrom ftlib import start\nfrom ftlib.errors import FtlibError\n"
        f"try:\n    {code}\nexcept FtlibError as error:\n    print(json.dumps(str(error)))\n"
    )


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def persons_own(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who is logged in, sits behind a proxy and has settings of their own."""
    home = tmp_path / "home"
    for cache in (home / "hf", home / ".cache/huggingface"):
        cache.mkdir(parents=True)
        (cache / "token").write_text(PLANTED)
        (cache / "stored_tokens").write_text(f"[mine]\nhf_token = {PLANTED}\n")
    return {
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": PLANTED,
        "HF_TOKEN_PATH": str(home / "hf/token"),
        "HF_HUB_CACHE": str(home / "hf/hub"),
        "HF_HUB_OFFLINE": "1",
        "HUGGING_FACE_HUB_TOKEN": PLANTED,
        "HUGGINGFACE_HUB_CACHE": str(home / "hf/hub"),
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "NO_PROXY": "",
        "no_proxy": "",
    }


def test_a_rehearsal_neither_sees_nor_sends_nor_keeps_what_is_the_persons_own(
    run_python: RunPython, project: Path, persons_own: dict[str, str]
) -> None:
    home = Path(persons_own["HOME"])
    before = files_below(home)
    told = run_python(
        SPY
        + """
from ftlib import start
session = start("tiny")
environment = dict(os.environ)
from huggingface_hub import HfApi, constants, get_token, hf_hub_download
from datasets import config, load_dataset
api = HfApi()
repo = api.create_repo("mine").repo_id
api.upload_file(path_or_fileobj=b"adapter", path_in_repo="file", repo_id=repo)
hf_hub_download(repo, "file")
rows = len(load_dataset("rehearsal/multilingual-thinking-sample", split="train"))
print(json.dumps({
    "environment": environment, "sent": sent, "token": get_token(), "account": api.whoami()["name"], "repo": repo,
    "rows": rows, "caches": [constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH, str(config.HF_DATASETS_CACHE)],
    "says": session.hub_description, "url": session.hub_url,
}))
""",
        **persons_own,
    )
    output = project / "outputs/tiny"
    assert (told["account"], told["repo"], told["rows"]) == ("learner", "learner/mine", 1000)
    assert told["token"].startswith("rehearsal_")
    assert PLANTED not in json.dumps(told), "the token is still in the environment, or was sent"
    assert len(told["sent"]) > 10
    assert any(told["token"] in request for request in told["sent"]), "the spy did not listen"
    assert {name for name in told["environment"] if name.startswith("HUGGING")} == set()
    assert told["environment"]["HF_ENDPOINT"] == told["url"]
    assert told["url"].startswith("http://127.0.0.1:")
    assert "rehearsal Hub on this machine" in told["says"]
    for cache in told["caches"]:
        assert Path(cache).is_relative_to(output / "huggingface")
    assert files_below(home) == before, "something was written to the person's home"
    written = files_below(project)
    assert any("multilingual-thinking-sample" in path for path in written)
    for secret in (PLANTED, told["token"]):
        assert not [path for path, content in written.items() if secret.encode() in content]


def test_the_real_hub_is_met_with_the_persons_own_token_and_cache(
    run_python: RunPython, persons_own: dict[str, str]
) -> None:
    told = run_python(
        """
import json, os
from ftlib import start
session = start("gpt-oss-20b")
from huggingface_hub import constants, get_token
print(json.dumps([get_token(), constants.HF_HUB_CACHE, constants.ENDPOINT, session.hub_url, session.hub_description]))
""",
        **persons_own,
    )
    hub = "https://huggingface.co"
    assert told == [PLANTED, persons_own["HF_HUB_CACHE"], hub, hub, f"the Hub is {hub}"]


def test_starting_again_changes_nothing(run_python: RunPython, project: Path) -> None:
    same, settings = run_python("""
import json, os
from ftlib import start
first = start("tiny")
settings = dict(os.environ)
import huggingface_hub
same = [start("tiny") is first, start(first.profile) is first, dict(os.environ) == settings]
print(json.dumps([same, settings]))
""")
    assert same == [True, True, True]
    output = project / "outputs/tiny"
    assert settings["TRACKIO_DIR"] == str(output / "trackio")
    assert settings["GOMP_SPINCOUNT"] == "1000"
    resolved = json.loads((output / "profile.json").read_text())
    assert (resolved["name"], resolved["recipe"]["effective_batch_size"]) == ("tiny", 16)


def test_another_output_root_in_one_kernel_is_refused(run_python: RunPython) -> None:
    assert "writes to outputs/tiny; restart it" in run_python(refused('start("tiny"); start("tiny", "elsewhere")'))


def test_a_second_profile_in_one_kernel_is_refused(run_python: RunPython) -> None:
    message = run_python(refused('start("gpt-oss-20b"); start("tiny")'))
    assert message == (
        "this kernel already works with profile gpt-oss-20b and writes to outputs/gpt-oss-20b; "
        "restart it to change either"
    )


@pytest.mark.parametrize("profile", ["tiny", "gpt-oss-20b"])
def test_a_client_that_was_imported_too_early_is_refused(run_python: RunPython, profile: str) -> None:
    """It has read HF_ENDPOINT, HF_HOME and the token by then, and would speak to another Hub than it is told."""
    message = run_python(refused(f'import huggingface_hub; start("{profile}")'))
    assert "imported before start" in message
    assert "restart the kernel" in message


def test_an_early_client_that_speaks_to_the_right_hub_will_do(run_python: RunPython) -> None:
    code = 'import json, huggingface_hub; from ftlib import start; print(json.dumps(start("gpt-oss-20b").hub_url))'
    assert run_python(code, HF_ENDPOINT="https://huggingface.co") == "https://huggingface.co"


def test_a_wrong_profile_leaves_nothing_behind(run_python: RunPython, project: Path) -> None:
    assert "did you mean 'tiny'?" in run_python(refused('start("tinny")'))
    assert not (project / "outputs").exists()


PLACES = """
import json
from pathlib import Path
from ftlib import start
session = start("gpt-oss-20b"{arguments})
inside, outside = session.adapter_dir / "README.md", Path("/elsewhere/secret/file")
print(json.dumps([str(session.output_dir), session.relative(inside), session.relative(outside)]))
"""


@pytest.mark.parametrize("place", [".", "notebooks", "notebooks/deeper"])
def test_outputs_are_the_same_from_every_folder_of_the_project(
    run_python: RunPython, project: Path, place: str
) -> None:
    """papermill runs a notebook in the project's folder, Jupyter and nbval in the notebook's own."""
    (project / place).mkdir(exist_ok=True)
    output, inside, outside = run_python(PLACES.format(arguments=""), folder=project / place)
    assert output == str(project / "outputs/gpt-oss-20b")
    assert inside == "outputs/gpt-oss-20b/adapter/README.md"
    assert outside == "file"
    assert [path.name for path in (project / "outputs").iterdir()] == ["gpt-oss-20b"]


def test_outputs_go_where_they_are_told_to(run_python: RunPython, project: Path, tmp_path: Path) -> None:
    assert run_python(PLACES.format(arguments=', "other"'))[0] == str(project / "other/gpt-oss-20b")
    assert run_python(PLACES.format(arguments=f', "{tmp_path}/far"'))[0] == str(tmp_path / "far/gpt-oss-20b")


RANKS = """
import json
from ftlib import start
session = start("{profile}")
session.record("04_train_lora", global_step=63)
print(json.dumps([session.rank, session.local_rank, session.world_size, session.is_main, {more}]))
"""
# A process that is to use a GPU, on a machine where torch would see those that are left visible.
GPUS = """
import json, os, sys
from ftlib import device, start
session = start("gpt-oss-20b")
chosen_before_torch = "torch" not in sys.modules
device.check_gpu = lambda: None
print(json.dumps([session.gpus, os.environ.get("CUDA_VISIBLE_DEVICES"), session.device, chosen_before_torch]))
"""


@pytest.fixture
def four_gpus(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine whose driver lists four GPUs."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/nvidia-smi"
    program.write_text(
        "#!/bin/sh\nfor gpu in 0 1 2 3; do echo 'NVIDIA A100 80GB PCIe, 580.95.05, 81920, 81000'; done\n"
    )
    program.chmod(0o755)
    return {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}


def test_one_process_records(run_python: RunPython, project: Path) -> None:
    assert run_python(RANKS.format(profile="gpt-oss-20b", more="session.gpus")) == [0, 0, 1, True, 0]
    record = project / "outputs/gpt-oss-20b/records/04_train_lora.json"
    assert json.loads(record.read_text()) == {"global_step": 63}


def test_one_process_uses_one_gpu_and_knows_of_the_others(run_python: RunPython, four_gpus: dict[str, str]) -> None:
    """With more than one in sight Trainer would wrap the model, and the loss would meet tensors on two GPUs."""
    assert run_python(GPUS, **four_gpus) == [4, "0", "cuda:0", True]
    assert run_python(GPUS, **four_gpus, CUDA_VISIBLE_DEVICES="2,3") == [2, "2", "cuda:0", True]
    assert run_python(GPUS, **four_gpus, CUDA_VISIBLE_DEVICES="GPU-8a,GPU-9b,-1,0") == [2, "GPU-8a", "cuda:0", True]
    for nobody in ("", "NoDevFiles", "7", "-1,0"):
        assert run_python(GPUS, **four_gpus, CUDA_VISIBLE_DEVICES=nobody)[:2] == [0, nobody]


def test_each_of_several_ranks_has_a_gpu_of_its_own(run_python: RunPython, four_gpus: dict[str, str]) -> None:
    environment = TWO_RANKS | {"RANK": "5", "WORLD_SIZE": "8"}
    assert run_python(GPUS, **environment, **four_gpus) == [4, None, "cuda:1", True]


def test_a_notebook_says_which_gpu_it_uses_and_how_to_train_on_all(
    run_python: RunPython, four_gpus: dict[str, str]
) -> None:
    told = """
import contextlib, io, json
from ftlib import session, start
session._executed_cells = lambda: {cells}
with contextlib.redirect_stdout(io.StringIO()) as printed:
    start("{profile}")
print(json.dumps(printed.getvalue()))
"""
    said = run_python(told.format(cells=["start()"], profile="gpt-oss-20b"), **four_gpus)
    assert said.startswith("using one of 4 GPUs; to train on more: ")
    assert said.endswith("ftlib run --profile gpt-oss-20b\n")
    assert run_python(told.format(cells=[], profile="gpt-oss-20b"), **four_gpus) == "", "not a notebook"
    assert run_python(told.format(cells=["start()"], profile="tiny"), **four_gpus) == "", "tiny computes on the CPU"


def test_without_a_gpu_no_model_is_loaded(run_python: RunPython) -> None:
    """42 GB would go into the machine's memory, and training on from there on its CPU."""
    message = run_python(refused('start("gpt-oss-20b").device'))
    assert message.startswith("found no GPU that torch can use (driver none, torch 2.")
    assert "expected one; use a machine with an NVIDIA GPU" in message


def test_a_profile_with_flex_attention_stops_where_it_would_no_longer_compile(run_python: RunPython) -> None:
    told = """
import json
from ftlib import start
start("{profile}")
from torch._dynamo import config
print(json.dumps([config.recompile_limit, config.fail_on_recompile_limit_hit]))
"""
    assert run_python(told.format(profile="gpt-oss-20b-fast")) == [64, True]
    assert run_python(told.format(profile="gpt-oss-20b")) == [8, False], "others compile as torch has it"


def test_another_rank_writes_nothing(run_python: RunPython, project: Path) -> None:
    environment = TWO_RANKS | {"RANK": "5", "WORLD_SIZE": "8"}
    assert run_python(RANKS.format(profile="gpt-oss-20b", more=0), **environment) == [5, 1, 8, False, 0]
    assert files_below(project) == {}


def test_ranks_on_a_cpu_stay_there(run_python: RunPython, project: Path) -> None:
    assert run_python(RANKS.format(profile="tiny", more="session.device"), **TWO_RANKS) == [1, 1, 2, False, "cpu"]
    output = project / "outputs/tiny"
    assert not (output / "records").exists()
    assert not (output / "profile.json").exists()


def test_a_record_that_is_not_there_names_the_notebook_to_run(run_python: RunPython) -> None:
    message = run_python(refused('start("gpt-oss-20b").read_record("03_load_model")'))
    assert "run 03_load_model.ipynb to its end first" in message
    assert os.sep + "outputs" not in message, "no path of the machine belongs in a notebook"


def test_importing_the_package_imports_nothing_heavy(run_python: RunPython) -> None:
    heavy = {"torch", "transformers", "datasets", "huggingface_hub", "peft", "trl", "trackio", "pandas", "matplotlib"}
    loaded = run_python("import json, sys; import ftlib; print(json.dumps(sorted(sys.modules)))")
    assert heavy & set(loaded) == set()


@pytest.mark.parametrize(
    ("address", "installed", "trackers"),
    [
        ("azureml://westeurope.api.azureml.ms/mlflow/v1.0/subscriptions/s", True, ["trackio", "mlflow"]),
        ("azureml://westeurope.api.azureml.ms/mlflow/v1.0/subscriptions/s", False, ["trackio"]),
        ("http://127.0.0.1:5000", True, ["trackio"]),
        ("", True, ["trackio"]),
    ],
)
def test_mlflow_keeps_curves_beside_trackio_on_azures_compute_alone(
    address: str, installed: bool, trackers: list[str], run_python: RunPython
) -> None:
    told = run_python(
        """
import importlib.util, json, os
if os.environ["INSTALLED"] == "False":
    importlib.util.find_spec = lambda name: None
from ftlib import start
session = start("tiny")
print(json.dumps([session.trackers, os.environ["MLFLOW_MAX_LOG_PARAMS"]]))
""",
        MLFLOW_TRACKING_URI=address,
        INSTALLED=str(installed),
    )
    assert told == [trackers, "200"]
