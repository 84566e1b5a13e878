"""`start(profile)`, the first call of every notebook: Hugging Face's libraries read what it sets at import."""

import errno
import importlib.util
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ftlib import profiles
from ftlib.errors import FtlibError
from ftlib.profiles import Profile
from ftlib.session import device, kernel, manifest, membership, parameters, records, redaction, storage
from ftlib.session.processes import place

OUTPUT_ROOT = "outputs"
MARKER = Path("notebooks/01_setup.ipynb")  # only this project has it
# What to do about an error of the operating system.
ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room on the disk, or name another output_root"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "change its permissions, or name another output_root"),
    **dict.fromkeys((errno.EEXIST, errno.EISDIR, errno.ENOTDIR), "move what is there out of the way"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "allow more open files, as with `ulimit -n 4096`"),
    **dict.fromkeys((errno.EADDRINUSE, errno.EADDRNOTAVAIL), "free a port on this machine (127.0.0.1)"),
    errno.ENAMETOOLONG: "choose shorter names",
    errno.ENOMEM: "close other programs, or raise the limit on memory",
}
CACHES = {"HF_HUB_CACHE": "hub", "HF_XET_CACHE": "xet", "HF_DATASETS_CACHE": "datasets"}
UNREADABLE = ("ArrowInvalid", "JSONDecodeError", "OSError", "SafetensorError", "UnicodeDecodeError")
RESUMES = "FTLIB_RESUMES"  # the variable that names the ended Azure ML job whose training this one continues
OWNER = "training.owner"  # holds the name of the job or machine that trains on a mounted volume
CLAIM_TIMEOUT_S = 10.0  # a kernel whose run was killed takes a second or two to notice


@dataclass(frozen=True)
class Session:
    """One notebook's surroundings."""

    profile: Profile
    profile_argument: str  # as it was asked for: a shipped name or the path of a .toml file
    project_root: Path  # paths are shown from here
    output_root: str
    output_dir: Path  # this run writes everything here
    hub_url: str
    rank: int = 0  # among world_size; only rank 0 records, saves and pushes
    local_rank: int = 0  # among the processes of this machine, and the index of its GPU
    world_size: int = 1
    gpus: int = 0  # that the profile could use; this process uses one
    _held: list[Any] = field(default_factory=list, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    @property
    def hub_description(self) -> str:
        """Which Hub the Hugging Face libraries talk to, in words."""
        hub = self.profile.hub
        where = f"of the room at {hub.endpoint}" if hub.is_room else "on this machine (127.0.0.1)"
        return f"the Hub is {f'a rehearsal Hub {where}, not huggingface.co' if hub.is_rehearsal else self.hub_url}"

    @property
    def adapter_dir(self) -> Path:
        """Where notebook 04 saves the adapter."""
        return self.output_dir / "adapter"

    @property
    def checkpoints_dir(self) -> Path:
        """Where training keeps what it needs to resume."""
        return self.output_dir / "checkpoints"

    @property
    def device(self) -> str:
        """Where the whole model goes: the CPU or this process's GPU; FtlibError if torch finds none."""
        if self.profile.train.use_cpu:
            return "cpu"
        found, advice = device.driver()
        if advice:
            raise FtlibError(f"found no GPU that torch can use ({found}), expected one; {advice}")
        return f"cuda:{self.local_rank}"

    @property
    def trackers(self) -> list[str]:
        """What keeps the curves: trackio and, on Azure's compute where its plug-in is installed, MLflow too."""
        on_azure = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("azureml:")
        installed = importlib.util.find_spec("azureml") and importlib.util.find_spec("azureml.mlflow")
        return ["trackio", "mlflow"] if on_azure and installed else ["trackio"]

    def command(self, verb: str) -> str:
        """The command line that does something for this run, to be copied into a terminal in the project's folder."""
        script = Path(sys.executable).with_name("ftlib")
        program = str(script.relative_to(self.project_root)) if script.is_relative_to(self.project_root) else "ftlib"
        output_root = [] if self.output_root == OUTPUT_ROOT else ["--output-root", self.output_root]
        words = [program, *verb.split(), "--profile", self.profile_argument, *output_root]
        return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)

    def claim_training(self) -> None:
        """Let no other process train in this run's folder until this one ends; FtlibError if one does already."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.output_dir / "training.lock", is_singleton=True)  # a cell may be run twice
        try:
            lock.acquire(timeout=CLAIM_TIMEOUT_S)
        except Timeout:
            folder = f"{self.relative(self.output_dir)}/, or a notebook that did is still open"
            advice = "wait for it, shut its kernel down, or name another output_root"
            raise FtlibError(f"another process is training in {folder}; {advice}") from None
        self._held.append(lock)
        if storage.is_network(self.output_dir):  # where a lock does not reach other machines
            self._own()

    def _own(self) -> None:
        """Say to other machines which job or machine trains here. A job that Azure starts again keeps its name."""
        name, owner = os.environ.get("AZUREML_RUN_ID") or platform.node(), self.output_dir / OWNER
        try:
            with owner.open("x", encoding="utf-8") as file:
                file.write(name)
        except FileExistsError:
            other = owner.read_text(encoding="utf-8", errors="replace")
            if other == os.environ.get(RESUMES):
                owner.unlink()
                return self._own()
            if other != name:
                found = (
                    f"{other or 'another machine'} trains in {self.relative(self.output_dir)}/, or was stopped there"
                )
                advice = f"name another output_root or, once it has stopped, set {RESUMES}={other}"
                raise FtlibError(f"{found}; {advice}") from None

    def release_training(self) -> None:
        """Let other machines train in this run's folder."""
        (self.output_dir / OWNER).unlink(missing_ok=True)

    def keep_profile(self) -> None:
        """Write the resolved profile beside the outputs."""
        records.write(self.output_dir, "profile", self.profile.model_dump(mode="json"))

    def record(self, notebook: str, **values: Any) -> None:
        """Keep what a notebook measured, on rank 0."""
        if self.is_main:
            records.write(self.output_dir / "records", notebook, values)

    def read_record(self, notebook: str) -> dict[str, Any]:
        """What an earlier notebook of this run measured; FtlibError if it has not run to its end."""
        return records.read(self.output_dir / "records", notebook)

    def relative(self, path: Path) -> str:
        """A path as it is shown: from the project's folder, so that no output holds a path of this machine."""
        return path.relative_to(self.project_root).as_posix() if path.is_relative_to(self.project_root) else path.name


_current: Session | None = None


def start(profile: str | Path, output_root: str | Path = OUTPUT_ROOT) -> Session:
    """Prepare a notebook's kernel for a profile, a shipped one or a `.toml` file; a second call changes nothing."""
    global _current
    kernel.handle_errors(explain)
    redaction.known_secrets()  # of which a rehearsal hides those of the person from now on
    parameters.check(kernel.executed_cells())
    wanted, root = profiles.load(profile), project_root()
    output_dir = root / output_root / wanted.name
    if _current is not None:
        if (_current.profile, _current.output_dir) != (wanted, output_dir):
            found = f"profile {_current.profile.name} and writes to {_current.relative(_current.output_dir)}"
            raise FtlibError(f"this kernel already works with {found}; restart it to change either")
        return _current
    asked_for = from_root(profiles.path_of(profile)) if str(profile).endswith(".toml") else str(profile)
    _current = _begin(wanted, asked_for, root, str(output_root), output_dir)
    if _current.gpus > 1 and _current.world_size == 1 and kernel.executed_cells():
        print(f"using one of {_current.gpus} GPUs; to train on more: {_current.command('run')}")
    if _current.is_main and not _current.adapter_dir.exists():  # beside it stays the profile that it came from
        _current.keep_profile()
    return _current


def _begin(profile: Profile, asked_for: str, root: Path, output_root: str, output_dir: Path) -> Session:
    process = place()
    open_output_dir(output_dir, output_root)
    choose = device.use_one_gpu if process.world_size == 1 else device.visible_gpus  # of several ranks each has its own
    gpus = 0 if profile.train.use_cpu else len(choose())
    url, servers = _connect(profile, output_dir)
    _prepare_libraries(profile, output_dir)
    return Session(profile, asked_for, root, output_root, output_dir, url, *process, gpus, servers)


def open_output_dir(output_dir: Path, output_root: str) -> None:
    """Make a run's folder, and make sure that files can be written there; an FtlibError if not."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output_dir).close()
    except OSError as error:
        found = f"output_root = {output_root!r}: nothing can be written there ({error.strerror})"
        raise FtlibError(f"{found}; name another place, or change its permissions") from None
    if not (output_dir / "profile.json").exists():  # a new run is its owner's, until they open it to others
        with suppress(OSError):  # a mounted volume may know no permissions
            output_dir.chmod(0o700)


def explain(error: BaseException) -> str:
    """Explain an error of the Hub or of the machine in one line, with what to do; "" for other errors."""
    from ftlib.session import hub_client

    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number in ADVICE:
        named = getattr(error, "filename", None)
        where = f" ({_from_here(named)})" if isinstance(named, str) else ""
        return f"{os.strerror(number)}{where}; {ADVICE[number]}"
    saved = _current is not None and manifest.is_complete(_current.adapter_dir)
    of_the_hub = hub_client.explain(error, _current.command("push") if _current and saved else "")
    return of_the_hub or _damaged_cache(error)


def _from_here(path: str) -> str:
    below = from_root(path)
    return path if below.startswith("..") else below


def _damaged_cache(error: BaseException) -> str:
    """Where an error that a library meets in a file of its cache comes from, and what to do; "" for any other error."""
    kind = type(error).__name__
    modules = {str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)}
    of_rows = any(name.startswith("datasets.") for name in modules)
    of_model = any(name.startswith(("transformers.", "huggingface_hub.", "peft.")) for name in modules)
    of_model &= kind != "OSError"  # it has many meanings
    if kind not in UNREADABLE or not (of_rows or of_model):
        return ""
    library, name = (
        ("datasets.config", "HF_DATASETS_CACHE") if of_rows else ("huggingface_hub.constants", "HF_HUB_CACHE")
    )
    cache = getattr(sys.modules[library], name)
    return f"a file below {_from_here(str(cache))} is damaged ({kind}); delete that folder, and it is downloaded again"


def project_root() -> Path:
    """The folder that holds `notebooks/`: the working folder, its parent if Jupyter runs in `notebooks/`, or one above.

    One above must hold this project's notebooks, and they must be the person's own or root's: they will be executed.
    Without one, it is the working folder.
    """
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise FtlibError("the working folder no longer exists; change to the project's folder") from None
    if (here / "notebooks").is_dir():
        return here
    if here.name == "notebooks":
        return here.parent
    root = next((folder for folder in here.parents if (folder / MARKER).is_file()), here)
    mine = {0, getattr(os, "geteuid", int)()}  # Windows has no such numbers, and says 0
    owners = {path.lstat().st_uid for path in (root, (root / MARKER).parent, root / MARKER)} if root != here else set()
    if not owners <= mine:
        found = f"found notebooks of another user in {os.path.relpath(root)}, expected your own"
        raise FtlibError(f"{found}; change to that folder first if you want to run them")
    return root


def from_root(path: str | Path) -> str:
    """The way to a path from the project's folder; the whole path where that is another drive of Windows."""
    try:
        return os.path.relpath(path, project_root())
    except ValueError:
        return str(path)


def _connect(profile: Profile, output_dir: Path) -> tuple[str, list[Any]]:
    """Point Hugging Face's libraries at the profile's Hub; returns its address and what must be kept alive."""
    endpoint, token, servers = profile.hub.endpoint, "", []
    constants = sys.modules.get("huggingface_hub.constants")  # which reads the environment
    if constants and endpoint != constants.ENDPOINT:
        raise FtlibError("huggingface_hub was imported before start(...), which chooses the Hub; restart the kernel")
    if profile.hub.is_room:
        token = membership.token(project_root() / OUTPUT_ROOT, endpoint)
    elif profile.hub.is_rehearsal:
        from ftlib.rehearsal.hub import RehearsalHub

        hub = RehearsalHub(output_dir / "hub")
        hub.start()
        endpoint, token, servers = hub.endpoint, hub.token, [hub]
    if profile.hub.is_rehearsal:
        _isolate(token, storage.rehearsal_cache(output_dir), str(urlsplit(endpoint).hostname))
    elif storage.has_scratch():  # HF_HOME would move the log-in as well
        for name, folder in CACHES.items():
            os.environ.setdefault(name, str(storage.SCRATCH / "huggingface" / folder))
    os.environ |= {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    from huggingface_hub import set_client_factory

    from ftlib.session.hub_client import PatientClient

    set_client_factory(partial(PatientClient, token))
    return endpoint, servers


def _isolate(token: str, cache: Path, host: str) -> None:
    """Leave the person's own token, cache, proxies and Hub settings untouched and unseen in a rehearsal."""
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING", "_HF_", "TRANSFORMERS_")) or name.lower().endswith("_proxy"):
            del os.environ[name]
    os.environ |= {
        "HF_TOKEN": token,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",  # Windows has them for developers alone
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # or load_dataset would report the download to a server
        **dict.fromkeys(("NO_PROXY", "no_proxy"), ",".join(dict.fromkeys(("127.0.0.1", host)))),
        # Everything is small and near: there is nothing to wait for.
        **dict.fromkeys(("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1"),
    }


def _prepare_libraries(profile: Profile, output_dir: Path) -> None:
    """Set what the libraries read from their surroundings when they are imported."""
    os.environ["TRACKIO_DIR"] = str(output_dir / "trackio")
    if storage.is_network(output_dir):  # SQLite's default needs shared memory, which a mounted volume lacks
        os.environ.setdefault("TRACKIO_SQLITE_JOURNAL_MODE", "delete")
    os.environ["MLFLOW_MAX_LOG_PARAMS"] = "200"  # as many as Azure accepts for one run
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # idle threads soon sleep, and leave the cores to others
    if profile.model.attn_implementation == "flex_attention":
        device.compile_for_many_shapes()
    # peft 0.21 still asks transformers 5.23 by the old name; and widgets do not survive in a saved notebook.
    for message in ("`is_gradient_checkpointing` is deprecated", "IProgress not found"):
        warnings.filterwarnings("ignore", message=message)
    # On a CPU it warns that it will dequantise, which `Mxfp4Config(dequantize=True)` asks for.
    logging.getLogger("transformers.quantizers.quantizer_mxfp4").setLevel(logging.ERROR)
    # The first time on a machine, it announces in red that it looks for fonts.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
