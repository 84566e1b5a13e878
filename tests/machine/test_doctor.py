"""A row for each thing that would go wrong later: "ok", or what to do; and never a traceback or a wait."""

import json
import os
import shutil
import socket
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from ftlib import profiles
from ftlib.azureml import skus
from ftlib.errors import FtlibError
from ftlib.machine import doctor, planner
from ftlib.model import architecture
from ftlib.rehearsal.hub import RehearsalHub
from ftlib.session import device, hub_client

TOKEN = "hf_" + "q" * 30
Usage = namedtuple("Usage", "total used free")
PUBLISHED_BYTES = architecture.bytes_on_disk(architecture.shape_of(profiles.load("gpt-oss-20b").hub))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A project's folder, a cache of its own, no token, and a Hub that nobody answers for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache/hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path


@pytest.fixture
def rehearsal(machine: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RehearsalHub]:
    with RehearsalHub(machine / "hub") as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A Hub that answers every path with `status` and, to whoami, with `account`."""
    answer: dict[str, Any] = {"status": 200, "account": {}, "siblings": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            model = {"id": "a/b", "siblings": answer["siblings"], "private": True}
            body = json.dumps(answer["account"] if "whoami" in self.path else model).encode()
            self.send_response(answer["status"])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield answer
    server.shutdown()
    server.server_close()


def account(role: str, orgs: list[dict[str, str]] | None = None, scopes: list[Any] | None = None) -> dict[str, Any]:
    token = {"role": role, "fineGrained": {"scoped": scopes or []}}
    return {"name": "ada", "orgs": orgs or [], "auth": {"accessToken": token}}


def scope(name: str, *permissions: str) -> dict[str, Any]:
    return {"entity": {"type": "user", "name": name}, "permissions": list(permissions)}


def rows(profile: str = "tiny", **changes: Any) -> dict[str, doctor.Check]:
    loaded = profiles.load(profile)
    hub = loaded.hub.model_copy(update=changes)
    frame = doctor.report(loaded.model_copy(update={"hub": hub}), Path("outputs").absolute())
    assert list(frame.columns) == ["check", "found", "verdict"]
    return {row[0]: doctor.Check(*row) for row in frame.itertuples(index=False)}


def test_a_rehearsal_is_ready(rehearsal: RehearsalHub, machine: Path) -> None:
    found = rows()
    assert list(found) == [
        *("Python", "packages", "device", "memory", "disk for downloads", "disk for outputs"),
        *("Hub", "token", "push target"),
    ]
    assert {check for check, row in found.items() if row.verdict != "ok"} == {"packages"}, "there is no lock here"
    assert found["Hub"].found == "a rehearsal Hub on this machine"
    assert found["push target"].found == "learner/gpt-oss-tiny-multilingual-reasoner"
    assert rehearsal.token not in str(found)
    assert str(machine) not in str(found)


@pytest.fixture
def volumes(machine: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Free bytes of two volumes, one for the cache and one for the rest; a test may change them."""
    free = {"cache": 12e9, "rest": 12e9}
    (machine / "cache/hub").mkdir(parents=True)
    monkeypatch.setattr(doctor, "_volume", lambda folder: hash(named(folder)))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(50e9, 38e9, free[named(folder)]))

    def named(folder: Path) -> str:
        return "cache" if folder.is_relative_to(machine / "cache") else "rest"

    return free


def test_the_20b_profile_asks_for_a_gpu_memory_and_disk(
    monkeypatch: pytest.MonkeyPatch, volumes: dict[str, float]
) -> None:
    gpu_machine(monkeypatch, 0)
    monkeypatch.setattr(device, "memory_bytes", lambda use_cpu: 25e9)
    found = rows("gpt-oss-20b")
    assert found["device"].found.startswith("no GPU, driver none, torch 2.")
    assert found["device"].verdict.startswith("use a machine with an NVIDIA GPU")
    large = profiles.load("gpt-oss-20b")
    planned = planner.plan(large, planner.rented(skus.get("Standard_NC96ads_A100_v4"), large))
    assert found["memory"].found == "no GPU"
    assert f"planned to take {planned.peak / 1e9:.0f} GB" in found["memory"].verdict, "the doctor and the plan agree"
    gpu_machine(monkeypatch, 1)
    assert rows("gpt-oss-20b")["memory"][1:] == (
        "25 GB",
        "training is planned to take 57 GB; first lower train.per_device_train_batch_size and train.max_length",
    )
    assert found["disk for downloads"].found == "12 GB free"
    assert found["disk for downloads"].verdict.startswith("make room for 14 GB of downloads, or set HF_HOME")
    assert found["disk for outputs"].verdict == "ok"


def gpu_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, driver: str = "580.95.05", cuda: str | None = "13.0"
) -> None:
    """What the driver and torch say on a machine with A100s."""
    import torch

    installed = [device.InstalledGpu("NVIDIA A100 80GB PCIe", driver, 81_920, 81_000)] * gpus
    usable = gpus if cuda and int(driver[:3]) >= device.OLDEST_DRIVER[int(cuda[:2])] else 0
    monkeypatch.setattr(device, "installed_gpus", lambda: installed)
    monkeypatch.setattr(device, "gpus", lambda: usable)
    monkeypatch.setattr(torch.version, "cuda", cuda)


@pytest.mark.parametrize(
    ("machine", "found", "advice"),
    [
        ({"gpus": 0}, "no GPU, driver none", "use a machine with an NVIDIA GPU and its driver, or rehearse with"),
        ({"gpus": 1, "cuda": None}, "for CPUs", "install torch's CUDA build"),
        (
            {"gpus": 4, "driver": "550.54.15"},
            "4 × NVIDIA A100 80GB PCIe, driver 550.54.15",
            "needs driver 580",
        ),
    ],
)
def test_a_gpu_profile_is_refused_where_torch_sees_no_gpu(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], found: str, advice: str
) -> None:
    gpu_machine(monkeypatch, **machine)
    with pytest.raises(FtlibError, match=f"^profile gpt-oss-20b computes on a GPU: found .*{found}.*{advice}"):
        doctor.check_compute(profiles.load("gpt-oss-20b"))
    doctor.check_compute(profiles.load("tiny"))


def test_a_driver_that_says_less_or_nothing_is_no_reason_to_refuse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Containers may lack nvidia-smi, an old driver may have a compatible CUDA beside it, and memory may be shared."""
    monkeypatch.setattr(device, "gpus", lambda: 2)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert device.installed_gpus() == []
    assert device.driver()[1] == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device.visible_gpus() == ["0", "1"]
    monkeypatch.setattr(device, "installed_gpus", lambda: [device.InstalledGpu("GB10", "470.1", 0, 0)])
    assert device.driver()[1] == ""
    monkeypatch.undo()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GB10, 580.95.05, [N/A], [N/A]'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert device.installed_gpus() == [device.InstalledGpu("GB10", "580.95.05", 0, 0)]


def test_a_gpu_profile_needs_a_compiler_and_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Triton, which computes the loss, would look for them in the middle of the first update."""
    gpu_machine(monkeypatch, 1)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "clang" else None)
    doctor.check_compute(profiles.load("gpt-oss-20b"))
    (tmp_path / "Python.h").unlink()
    with pytest.raises(FtlibError, match=r"found clang, without Python's headers; install both"):
        doctor.check_compute(profiles.load("gpt-oss-20b"))
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FtlibError, match=r"found no C compiler, with Python's headers; install both"):
        doctor.check_compute(profiles.load("gpt-oss-20b"))


def test_flex_attention_must_fail_where_it_would_stop_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo import config

    gpu_machine(monkeypatch, 1)
    monkeypatch.setattr(device, "memory_bytes", lambda use_cpu: 80e9)
    # Not by monkeypatch, which would delete what torch keeps in a place of its own.
    with config.patch(recompile_limit=8, fail_on_recompile_limit_hit=False):
        assert rows("gpt-oss-20b-fast")["flex attention"].verdict.startswith("run start(profile) first")
        doctor.check_compute(profiles.load("gpt-oss-20b-fast"))  # before a run: its kernels call start
        device.compile_for_many_shapes()
        assert rows("gpt-oss-20b-fast")["flex attention"] == ("flex attention", "compiled for up to 64 shapes", "ok")


def test_what_is_downloaded_already_needs_no_more_room(
    monkeypatch: pytest.MonkeyPatch, volumes: dict[str, float]
) -> None:
    revision = profiles.load("gpt-oss-20b").hub.model_revision
    cached = {("openai/gpt-oss-20b", revision): 20_000_000_000}
    monkeypatch.setattr(doctor, "_downloaded", lambda model, revision: cached[model, revision])
    assert rows("gpt-oss-20b")["disk for downloads"].verdict == "ok"


def test_only_the_pinned_revision_counts_as_downloaded(machine: Path) -> None:
    snapshot = machine / "cache/hub/models--openai--gpt-oss-20b/snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(bytes(1234))
    assert doctor._downloaded("openai/gpt-oss-20b", "a" * 40) == 1234
    assert doctor._downloaded("openai/gpt-oss-20b", "b" * 40) == 0
    assert doctor._downloaded("openai/gpt-oss-120b", "a" * 40) == 0


def test_where_the_hub_can_be_asked_the_models_own_size_counts(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published repository holds the weights three times; two of them are in folders and not for transformers."""
    hub["siblings"] = [
        {"rfilename": "model-00000-of-00002.safetensors", "size": 4_800_000_000},
        {"rfilename": "config.json", "size": 1_806},
        {"rfilename": "original/model.safetensors", "size": 13_800_000_000},
        {"rfilename": "metal/model.bin", "size": 13_800_000_000},
    ]
    profile = profiles.load("gpt-oss-20b")
    assert doctor._to_download(profile) == PUBLISHED_BYTES, "this process speaks to another Hub"
    ours = profile.hub.model_copy(update={"endpoint": constants.ENDPOINT})
    profile = profile.model_copy(update={"hub": ours})
    assert doctor._to_download(profile) == 4_800_001_806
    monkeypatch.setattr(doctor, "_downloaded", lambda model, revision: 4_000_000_000)
    assert doctor._to_download(profile) == 800_001_806
    hub["status"] = 503
    assert doctor._to_download(profile) == PUBLISHED_BYTES - 4_000_000_000


def test_one_volume_must_hold_the_sum(machine: Path, volumes: dict[str, float]) -> None:
    profile = profiles.load("gpt-oss-20b")
    volumes |= {"cache": 14e9, "rest": 2e9}
    doctor.check_disk(profile, machine / "outputs")
    volumes["cache"] = 13e9
    with pytest.raises(FtlibError, match=r"^disk for downloads: found 13 GB free, expected more; make room for 14 GB"):
        doctor.check_disk(profile, machine / "outputs")
    volumes |= {"cache": 15e9, "rest": 0.9e9}
    with pytest.raises(
        FtlibError, match=r"^disk for outputs: found 0.9 GB free, .* 1.7 GB of outputs, or name another"
    ):
        doctor.check_disk(profile, machine / "outputs")
    volumes["cache"] = 14e9
    with pytest.raises(FtlibError, match=r"make room for 15 GB of downloads and outputs, or set HF_HOME"):
        doctor.check_disk(profile, machine / "cache/outputs")
    volumes["cache"] = 16e9
    doctor.check_disk(profile, machine / "cache/outputs")


def test_a_rehearsals_downloads_lie_among_its_outputs(machine: Path, volumes: dict[str, float]) -> None:
    volumes |= {"cache": 0, "rest": 1.1e9}
    doctor.check_disk(profiles.load("tiny"), machine / "outputs")
    volumes["rest"] = 1.0e9
    with pytest.raises(FtlibError, match="downloads and outputs"):
        doctor.check_disk(profiles.load("tiny"), machine / "outputs")


@pytest.mark.parametrize(("name", "weights"), [("gpt-oss-20b", 15_040_512), ("tiny", 110_592)])
def test_what_is_written_grows_with_the_adapter(name: str, weights: int) -> None:
    """The blog post's adapter has 15,040,512 weights: 60 MB, and 180 MB with what the optimizer keeps."""
    profile = profiles.load(name)
    assert planner.bytes_to_write(profile, architecture.shape_of(profile.hub)) == 1e9 + weights * 4 * (2 + 3 * 3)


def test_an_old_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert doctor._python() == ("Python", "3.10.4", "install Python 3.11 or later")


def test_packages_that_differ_from_the_lock_are_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", {"torch": "2.13.0+cpu", "trl": "0.9"}.__getitem__)
    monkeypatch.setattr(doctor, "PackageNotFoundError", KeyError)
    (machine / "notebooks").mkdir()
    (machine / "requirements.lock").write_text(
        "# a comment == of ours\ntorch==2.13.0  # via trl\ntrl==1.16.0\nabsent==1.0\n"
        "other==1.0 ; sys_platform == 'win32'\n"
    )
    row = doctor._packages()
    assert row.found == "2 of 3 differ: trl 0.9, absent missing"
    assert row.verdict == "run `pip install -r requirements.lock`"


def test_without_a_network_the_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = rows("gpt-oss-20b")
    assert found["Hub"].found.startswith("https://huggingface.co is out of reach (")
    assert "network" in found["Hub"].verdict
    assert found["token"].verdict == "it can be checked once the Hub is within reach"
    assert TOKEN not in str(found)


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT_S", 0.2)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        waited: list[float] = []
        ask = HfApi.model_info

        def watched(api: HfApi, *arguments: Any, **settings: Any) -> Any:
            waited.append(settings["timeout"])
            return ask(api, *arguments, **settings)

        monkeypatch.setattr(HfApi, "model_info", watched)
        assert "out of reach" in rows("gpt-oss-20b")["Hub"].found
        assert set(waited) == {hub_client.TIMEOUT_S}


def test_no_token_says_how_to_log_in_and_still_looks_for_the_hub(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    found = rows("gpt-oss-20b")
    assert (found["token"].found, found["Hub"].verdict) == ("none", "ok")
    assert "hf auth login" in found["token"].verdict


def test_a_refused_token_is_told(hub: dict[str, Any]) -> None:
    hub["status"] = 401
    found = rows("gpt-oss-20b")
    assert found["Hub"].found == "https://huggingface.co answers 401 for openai/gpt-oss-20b"
    assert found["token"].found == "found; the Hub answers 401 to it"


@pytest.mark.parametrize(
    ("owner", "target", "writes"),
    [
        (account("write"), "thing", True),
        (account("write"), "ada/thing", True),
        (account("read"), "thing", False),
        (account("write"), "lab/thing", False),
        (account("write", [{"name": "lab", "roleInOrg": "write"}]), "lab/thing", True),
        (account("write", [{"name": "lab", "roleInOrg": "read"}]), "lab/thing", False),
        (account("fineGrained", scopes=[scope("ada", "repo.content.read", "repo.write")]), "thing", True),
        (account("fineGrained", scopes=[scope("ada/thing", "repo.write")]), "thing", True),
        (account("fineGrained", scopes=[scope("ada", "repo.content.read")]), "thing", False),
        (account("fineGrained", scopes=[scope("lab", "repo.write")]), "thing", False),
    ],
)
def test_whether_the_token_may_write_to_the_target(
    hub: dict[str, Any], owner: dict[str, Any], target: str, writes: bool
) -> None:
    hub["account"] = owner
    row = rows("gpt-oss-20b", push_target=target)["push target"]
    assert row.found == (target if "/" in target else f"ada/{target}")
    assert (row.verdict == "ok") is writes


def test_memory_and_name_are_the_cpus_where_the_profile_leaves_the_gpu_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(device, "gpus", lambda: 4)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA A100 80GB PCIe")
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 0)
    assert device.describe(count=4) == "4 × NVIDIA A100 80GB PCIe"
    assert "cores of" in device.describe(use_cpu=True)
    assert device.memory_bytes(use_cpu=True) > 1e9
    assert device.peak_memory_bytes() > 1e7, "the process's own, as nothing was put on the GPU"
