"""`start(profile)`, the first call of every notebook: which profile, which folders, which Hub, which rank.

It runs before any Hugging Face library is imported, because those read their settings from the environment at import.
"""

import ctypes
import gc
import importlib.util
import logging
import os
import shlex
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.profiles import Profile
from ftlib.session import device, manifest, parameters, records, redaction

OUTPUT_ROOT = "outputs"
CLAIM_TIMEOUT_S = 10.0  # a kernel whose run was killed takes a second or two to notice
# Seconds in which nothing moves, not those of a whole transfer, which may take its time on a slow line. Being connected
# takes well under a second. A commit is answered within several, and the answer is waited for once the system has taken
# over the last byte, which may still have to go out. Downloads of files have a limit of their own, 10 s.
HUB_PATIENCE_S = {"connect": 10.0, "read": 30.0, "write": 30.0, "pool": None}
MLFLOW_PARAMETERS = 200  # as many as Azure takes for one run
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
HUB_VARIABLES = ("HF_", "HUGGING", "_HF_")


@dataclass(frozen=True)
class Session:
    """One notebook's surroundings.

    Attributes:
        profile: the resolved profile.
        profile_argument: the profile as it was asked for, a shipped name or the path of a `.toml` file.
        project_root: the folder that paths are shown relative to.
        output_root: parent of `output_dir`, as it was asked for.
        output_dir: everything that this run writes.
        rank: this process among `world_size`; rank 0 alone records, saves and pushes.
        local_rank: this process among those of its machine, and the index of its GPU.
        hub_url: the Hub that the Hugging Face libraries speak to.
        gpus: how many GPUs there are for the profile; this process uses one of them.
    """

    profile: Profile
    profile_argument: str
    project_root: Path
    output_root: str
    output_dir: Path
    hub_url: str
    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    gpus: int = 0
    _held: list[Any] = field(default_factory=list, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def hub_description(self) -> str:
        """Which Hub the Hugging Face libraries speak to, for a person to read."""
        if self.profile.hub.endpoint == "rehearsal":
            return "the Hub is a rehearsal Hub on this machine (127.0.0.1), not huggingface.co"
        return f"the Hub is {self.hub_url}"

    @property
    def adapter_dir(self) -> Path:
        """Where notebook 04 saves the adapter."""
        return self.output_dir / "adapter"

    @property
    def checkpoints_dir(self) -> Path:
        """Where training leaves what it needs to go on after an interruption."""
        return self.output_dir / "checkpoints"

    def command(self, verb: str) -> str:
        """The command line that does something for this run, to be copied into a terminal in the project's folder."""
        script = Path(sys.executable).with_name("ftlib")
        program = self.relative(script) if script.is_relative_to(self.project_root) else "ftlib"
        output_root = [] if self.output_root == OUTPUT_ROOT else ["--output-root", self.output_root]
        return shlex.join([program, *verb.split(), "--profile", self.profile_argument, *output_root])

    @property
    def device(self) -> str:
        """Where the whole model goes: the CPU, or the one GPU that this process uses.

        Raises:
            FtlibError: the profile computes on a GPU, and torch finds none.
        """
        if self.profile.train.use_cpu:
            return "cpu"
        device.check_gpu()
        return f"cuda:{self.local_rank}"

    @property
    def trackers(self) -> list[str]:
        """What keeps the curves: trackio and, on Azure's compute where its plug-in is installed, MLflow too."""
        on_azure = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("azureml:")
        installed = importlib.util.find_spec("azureml") and importlib.util.find_spec("azureml.mlflow")
        return ["trackio", "mlflow"] if on_azure and installed else ["trackio"]

    def claim_training(self) -> None:
        """Make sure that no other process trains in this run's folder, until this one ends.

        Raises:
            FtlibError: another one does.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.output_dir / "training.lock", is_singleton=True)  # a cell may be run twice
        try:
            lock.acquire(timeout=CLAIM_TIMEOUT_S)
        except Timeout:
            raise FtlibError(
                f"another process is training in {self.relative(self.output_dir)}/, or a notebook that did is still "
                "open; wait for it, shut its kernel down, or name another output_root"
            ) from None
        self._held.append(lock)

    def keep_profile(self) -> None:
        """Write the resolved profile beside the outputs; beside a finished adapter stays the one that it came from."""
        records.write(self.output_dir, "profile", self.profile.model_dump(mode="json"))

    def record(self, notebook: str, **values: Any) -> None:
        """Keep what a notebook measured, on rank 0."""
        if self.is_main:
            records.write(self.output_dir / "records", notebook, values)

    def read_record(self, notebook: str) -> dict[str, Any]:
        """What an earlier notebook of this run measured.

        Raises:
            FtlibError: that notebook has not been run to its end.
        """
        return records.read(self.output_dir / "records", notebook)

    def relative(self, path: Path) -> str:
        """A path as it is shown: from the project's folder, so that nothing of the machine is in an output."""
        return path.relative_to(self.project_root).as_posix() if path.is_relative_to(self.project_root) else path.name


_current: Session | None = None


def start(profile: str | Path | Profile, output_root: str | Path = OUTPUT_ROOT) -> Session:
    """Prepare a notebook's kernel for a profile; calling it again with the same profile changes nothing.

    Args:
        profile: a shipped profile's name, the path of a `.toml` file, or a loaded profile.
        output_root: parent of the run's folder; a relative path is taken from the project's folder.

    Raises:
        FtlibError: the profile is wrong, or this kernel already serves another one.
    """
    global _current
    redaction.guard_kernel()
    parameters.check(_executed_cells())
    wanted = profile if isinstance(profile, Profile) else profiles.load(profile)
    root = project_root()
    output_dir = root / output_root / wanted.name
    if _current is not None:
        if (_current.profile, _current.output_dir) != (wanted, output_dir):
            raise FtlibError(
                f"this kernel already works with profile {_current.profile.name} and writes to "
                f"{_current.relative(_current.output_dir)}; restart it to change either"
            )
        return _current
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FtlibError(
            f"output_root = {str(output_root)!r}: no folder can be made there ({error.strerror}); name another place"
        ) from None
    rank, local_rank, world_size = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )
    # Of several ranks each finds its own by its local rank.
    choose = device.use_one_gpu if world_size == 1 else device.visible_gpus
    gpus = 0 if wanted.train.use_cpu else len(choose())
    hub_url, servers = _connect(wanted, output_dir)
    os.environ["TRACKIO_DIR"] = str(output_dir / "trackio")
    _prepare_libraries(wanted)
    asked_for = wanted.name if isinstance(profile, Profile) else str(profile)
    if asked_for.endswith(".toml"):
        asked_for = os.path.relpath(asked_for, root)
    session = Session(
        wanted, asked_for, root, str(output_root), output_dir, hub_url, rank, local_rank, world_size, gpus, servers
    )
    _limit_waiting()
    if gpus > 1 and world_size == 1 and _executed_cells():
        print(f"using one of {gpus} GPUs; to train on more: {session.command('run')}")
    if session.is_main and not manifest.is_complete(session.adapter_dir):
        session.keep_profile()
    _current = session
    return session


def _executed_cells() -> list[str]:
    """What ran in this kernel so far; nothing outside a notebook."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return list(shell.user_ns["In"]) if shell else []


def project_root() -> Path:
    """The nearest folder upwards that holds `notebooks/`, or the working folder where there is none.

    papermill runs a notebook in the caller's folder and Jupyter in the notebook's own; both find the same outputs so.
    """
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if (folder / "notebooks").is_dir()), here)


def _connect(profile: Profile, output_dir: Path) -> tuple[str, list[Any]]:
    """Point the Hugging Face libraries at the profile's Hub; returns its address and whatever must be kept alive."""
    rehearsing = profile.hub.endpoint == "rehearsal"
    if "huggingface_hub" in sys.modules and profile.hub.endpoint != _endpoint_in_use():
        raise FtlibError(
            "huggingface_hub was imported before start(...), which chooses the Hub; restart the kernel and start first"
        )
    if not rehearsing:
        os.environ["HF_ENDPOINT"] = profile.hub.endpoint
        return profile.hub.endpoint, []
    from ftlib.rehearsal.hub import RehearsalHub

    hub = RehearsalHub(output_dir / "hub")
    hub.start()
    _rehearse_in_isolation(hub.endpoint, hub.token, output_dir / "huggingface")
    return hub.endpoint, [hub]


def _prepare_libraries(profile: Profile) -> None:
    """Set what the libraries read from their surroundings when they are imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["MLFLOW_MAX_LOG_PARAMS"] = str(MLFLOW_PARAMETERS)
    # Idle threads wait a moment and then sleep. Waiting for long, as by default, starves whoever else computes here;
    # sleeping at once wakes them for every small operation: on two cores, generating took twice as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Python looks for garbage every 700 new objects. Imports make a million that stay, and took a fifth longer for it.
    gc.set_threshold(50_000)
    if profile.train.use_cpu:
        _keep_freed_memory()
    if profile.model.attn_implementation == "flex_attention":
        device.compile_for_many_shapes()
    _silence_what_misleads()


def _keep_freed_memory() -> None:
    """Have glibc keep large blocks that are freed; by itself it gives them back, and has them zeroed at the next use.

    A step on a CPU allocates hundreds of them: on two cores it is a tenth faster so.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def _limit_waiting() -> None:
    """Have huggingface_hub give up on a connection that has stalled; by itself it waits for an answer forever."""
    import httpx2
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def limited_client() -> httpx2.Client:
        client = default_client_factory()
        client.timeout = httpx2.Timeout(**HUB_PATIENCE_S)
        return client

    set_client_factory(limited_client)


def _silence_what_misleads() -> None:
    """Keep warnings off the page that are about what we choose on purpose, or that only PEFT can mend."""
    # peft 0.21 still asks transformers 5.23 by the old name.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    # Progress bars in plain text are wanted: widgets do not survive in a saved notebook.
    warnings.filterwarnings("ignore", message="IProgress not found")
    # On a CPU it warns that it will dequantise, which `Mxfp4Config(dequantize=True)` asks for.
    logging.getLogger("transformers.quantizers.quantizer_mxfp4").setLevel(logging.ERROR)


def _endpoint_in_use() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _rehearse_in_isolation(endpoint: str, token: str, cache: Path) -> None:
    """Leave the person's own token, cache and Hub settings untouched and unseen."""
    for name in [name for name in os.environ if name.startswith(HUB_VARIABLES)]:
        del os.environ[name]
    os.environ |= {
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # or load_dataset would report the download to a server of datasets'
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        # Everything is on this machine: there is nothing to wait for, so nothing to show progress of.
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
