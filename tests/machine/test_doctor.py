"""The doctor's rows: "ok" or what to do, and never a traceback or a long wait."""

import shutil
import socket
from collections import namedtuple
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from huggingface_hub import constants

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.machine import doctor, planner, workshop
from ftlib.model import architecture
from ftlib.rehearsal.hub import RehearsalHub
from ftlib.session import device, hub_client

TOKEN = "hf_" + "q" * 30
LARGE = "gpt-oss-20b"
Usage = namedtuple("Usage", "total used free")


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


def rows(profile: str = "tiny", section: str = "hub", **changes: Any) -> dict[str, doctor.Check]:
    loaded = profiles.load(profile)
    changed = getattr(loaded, section).model_copy(update=changes)
    frame = doctor.report(loaded.model_copy(update={section: changed}), Path("outputs").absolute())
    return {row[0]: doctor.Check(*row) for row in frame.itertuples(index=False)}


def test_rehearsal_is_ready(rehearsal: RehearsalHub, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.azure, "rows", lambda: [("Azure's", "as it should be", "ok")])
    asked = ["Python", "packages", "Azure's", "device", "arguments", "memory", "disk for downloads"]
    found = rows()
    assert list(found) == [*asked, "disk for outputs", "model", "data set", "push target"]
    assert {check for check, row in found.items() if row.verdict != "ok"} == {"packages"}, "there is no lock here"
    assert found["push target"].found == "learner/gpt-oss-tiny-multilingual-reasoner"
    assert rehearsal.token not in str(found)
    assert str(machine) not in str(found)


def test_large_profile_asks_for_memory_as_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    large = profiles.load(LARGE)
    planned = sum(planner.memory(large, architecture.shape_of(large.hub)).values())
    gpu_machine(monkeypatch, 0)
    found = rows(LARGE)
    assert found["device"].verdict.startswith("use a machine with an NVIDIA GPU")
    assert found["memory"].found == "no GPU"
    assert found["memory"].verdict.startswith(f"training is planned to take {planner.gb(planned)}")
    gpu_machine(monkeypatch, 1)
    for memory, verdict in ((planned - 1, "training is planned to take "), (planned, "ok")):
        monkeypatch.setattr(device, "memory_bytes", lambda use_cpu, memory=memory: memory)
        assert rows(LARGE)["memory"].verdict.startswith(verdict)


def gpu_machine(
    monkeypatch: pytest.MonkeyPatch, gpus: int, driver: str = "580.95.05", cuda: str | None = "13.0"
) -> None:
    """What the driver and torch say on a machine with A100s."""
    import torch

    installed = [device.InstalledGpu("NVIDIA A100 80GB PCIe", driver, 81_920, 81_000)] * gpus
    usable = gpus if gpus and cuda and int(driver[:3]) >= device.OLDEST_DRIVER[int(cuda[:2])] else 0
    monkeypatch.setattr(device, "installed_gpus", lambda: installed)
    monkeypatch.setattr(device, "gpus", lambda: usable)
    monkeypatch.setattr(torch.version, "cuda", cuda)


@pytest.mark.parametrize(
    ("gpus", "driver", "cuda", "says"),
    [
        (0, "", "13.0", "no GPU, driver none.*; use a machine with an NVIDIA GPU and its driver, or rehearse with"),
        (1, "580.95.05", None, "for CPUs; install torch's CUDA build"),
        (4, "550.54.15", "13.0", "4 × NVIDIA A100 80GB PCIe, driver 550.54.15.* needs driver 580"),
    ],
)
def test_gpu_profile_is_refused_where_torch_sees_no_gpu(
    monkeypatch: pytest.MonkeyPatch, gpus: int, driver: str, cuda: str | None, says: str
) -> None:
    gpu_machine(monkeypatch, gpus, driver, cuda)
    with pytest.raises(FtlibError, match=f"^profile gpt-oss-20b computes on a GPU: found .*{says}"):
        doctor.check_compute(profiles.load(LARGE))
    doctor.check_compute(profiles.load("tiny"))


def test_gpu_profile_needs_a_compiler_and_headers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Triton, which computes the loss, would look for them in the middle of the first update."""
    gpu_machine(monkeypatch, 1)
    (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name == "clang" else None)
    doctor.check_compute(profiles.load(LARGE))
    (tmp_path / "Python.h").unlink()
    with pytest.raises(FtlibError, match=r"found clang, without Python's headers; install both"):
        doctor.check_compute(profiles.load(LARGE))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FtlibError, match=r"found no C compiler, without Python's headers; install both"):
        doctor.check_compute(profiles.load(LARGE))


def test_a_compiler_that_is_named_and_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Triton would not look for another."""
    gpu_machine(monkeypatch, 1)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/gcc" if name == "gcc" else None)
    monkeypatch.setenv("CC", "gcc")
    doctor.check_compute(profiles.load(LARGE))
    monkeypatch.setenv("CC", "/old/conda/bin/cc")
    with pytest.raises(FtlibError, match=r"found CC='/old/conda/bin/cc', which is no program.*; unset CC"):
        doctor.check_compute(profiles.load(LARGE))


def test_only_the_pinned_weights_count_as_downloaded(machine: Path) -> None:
    profile = profiles.load(LARGE)
    published = architecture.bytes_on_disk(architecture.shape_of(profile.hub))
    for revision, left in (("b" * 40, published), (profile.hub.model_revision, published - 1234)):
        snapshot = machine / "cache/hub/models--openai--gpt-oss-20b/snapshots" / revision
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(bytes(1234))
        (snapshot / "original").mkdir()
        (snapshot / "original/model.safetensors").write_bytes(bytes(99))
        assert doctor._to_download(profile) == left


@pytest.mark.parametrize(
    ("name", "cache", "rest", "outputs", "error"),
    [
        (LARGE, 14e9, 2e9, "outputs", ""),
        (
            LARGE,
            13e9,
            2e9,
            "outputs",
            "disk for downloads: found 13.0 GB free, expected more; make room for 13.8 GB of",
        ),
        (LARGE, 15e9, 0.9e9, "outputs", "disk for outputs: found 0.9 GB free, expected more; make room for 1.7 GB of"),
        (LARGE, 14e9, 2e9, "cache/outputs", "make room for 15.4 GB of downloads and outputs, or set HF_HUB_CACHE"),
        ("tiny", 0, 1.0e9, "outputs", "of downloads and outputs"),  # a rehearsal's downloads lie among its outputs
        (LARGE, 0, 0, "outputs", ""),  # as a network mount answers that does not know
    ],
)
def test_each_volume_must_hold_the_sum_of_its_uses(
    machine: Path, monkeypatch: pytest.MonkeyPatch, name: str, cache: float, rest: float, outputs: str, error: str
) -> None:
    def free(folder: Path) -> float:
        return cache if folder.is_relative_to(machine / "cache") else rest

    (machine / "cache/hub").mkdir(parents=True)
    monkeypatch.setattr(doctor, "_volume", free)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(bool(free(folder)) * 50e9, 0, free(folder)))
    with pytest.raises(FtlibError, match=error) if error else nullcontext():
        doctor.check_disk(profiles.load(name), machine / outputs)


def test_what_notebook_06_exports_needs_room_too(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(500e9, 0, 100e9))
    doctor.check_disk(profiles.load(LARGE), machine / "outputs")
    with pytest.raises(
        FtlibError, match=r"make room for 162\.6 GB .*, or leave out notebook 6, which writes 147\.2 GB"
    ):
        doctor.check_disk(profiles.load(LARGE), machine / "outputs", exports=True)


def test_packages_that_differ_from_the_lock_are_named(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [
        SimpleNamespace(name=name, version=version) for name, version in {"torch": "2.13.0+cpu", "trl": "0.9"}.items()
    ]
    monkeypatch.setattr(doctor, "distributions", lambda: installed)
    (machine / "notebooks").mkdir()
    (machine / "requirements.lock").write_text(
        "# a comment == of ours\ntorch==2.13.0  # via trl\ntrl==1.16.0\nabsent==1.0\n"
        "other==1.0 ; sys_platform == 'win32'\n"
    )
    row = doctor._packages()
    assert row.found == "2 of 3 differ: trl 0.9, absent missing"
    assert row.verdict == "run `pip install -r requirements.lock`"


def test_hub_that_is_silent_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT_S", 0.2)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        found = rows(LARGE)
    assert found["model"].verdict.startswith("the Hub is out of reach (")
    assert "push target" not in found, "a second question would wait as long again"
    assert TOKEN not in str(found)


def test_what_the_hub_lacks_or_refuses_is_named(rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "that may not write to lab/thing; use a token" in rows(push_target="lab/thing")["push target"].verdict
    for changes in ({"model": "rehearsal/none"}, {"model_revision": "0" * 40}):
        assert rows(**changes)["model"].verdict.startswith("the Hub answers 404 Not Found")
    for changes in ({"dataset": "rehearsal/none"}, {"revision": "0" * 40}):
        assert rows(section="data", **changes)["data set"].verdict.startswith("the Hub answers 404 Not Found")
    assert "data set" not in rows(section="data", dataset="mine.csv", revision=None)
    monkeypatch.delenv("HF_TOKEN")
    assert "run `hf auth login`" in rows()["push target"].verdict


def test_a_model_that_nobody_knows_is_a_row_too(rehearsal: RehearsalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", Mock(side_effect=OSError))
    found = rows(LARGE, model="rehearsal/none")
    assert "rehearsal/none: found its config.json neither in the cache nor" in found["memory and disk"].verdict
    assert found["model"].verdict.startswith("the Hub answers 404 Not Found")
    beyond = rows(section="recipe", expert_layers=(4,))["memory and disk"].verdict
    assert beyond.startswith("recipe.expert_layers names [4], but the model has layers 0 to 3")


def test_arguments_that_the_libraries_refuse_are_a_row(rehearsal: RehearsalHub) -> None:
    row = rows(section="train", dataloader_prefetch_factor=2)["arguments"]
    assert (row.found, row.verdict[:30]) == ("ValueError in [train] or [lora]", "--dataloader_prefetch_factor c")


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, machine: Path) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(
        FtlibError, match=r"found none .* \(Permission denied\), expected more; change its permissions, or set HF_"
    ):
        doctor.check_disk(profiles.load(LARGE), machine / "outputs")


def test_an_instructor_is_told_the_rooms_address_port_and_bundle(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    interfaces = {"lo": [SimpleNamespace(address="127.0.0.1", family=socket.AF_INET)]}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: interfaces)
    verdicts = {what: verdict for what, _, verdict in workshop.rows()}
    assert verdicts == {"room's address": "join the room's network", "bundle": "run `make bundle` on a good network"}

    interfaces["wlan0"] = [SimpleNamespace(address="127.0.0.2", family=socket.AF_INET)]
    monkeypatch.setattr(workshop, "LOCAL", ("127.0.0.1",))
    (project / "outputs/bundle/wheels").mkdir(parents=True)
    (project / "outputs/bundle/wheels/torch-2.13.0-cp311-cp311-win_amd64.whl").touch()
    with socket.create_server(("127.0.0.2", 0)) as taken:
        monkeypatch.setattr(workshop, "PORT", taken.getsockname()[1])
        rows = {what: (found, verdict) for what, found, verdict in workshop.rows()}
    assert rows["room's address"] == ("127.0.0.2", "ok")
    assert rows["room's port"][1] == "end what uses it, or name another with --port"
    assert rows["bundle"] == ("win_amd64", "ok")
