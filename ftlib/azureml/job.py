"""Inside a job: the Hub's token, and what an earlier job has left."""

import shutil
import time
from pathlib import Path
from typing import Any

from ftlib.azureml import workspace
from ftlib.errors import FtlibError
from ftlib.session.processes import place
from ftlib.session.session import OWNER


def hub_token() -> str:
    """The Hub's token from the Key Vault of a job's workspace, read as the person who submitted the job."""
    with workspace.azure_errors():
        from azure.ai.ml.identity import AzureMLOnBehalfOfCredential

        credential: Any = AzureMLOnBehalfOfCredential()
        return workspace.read_secret(workspace.connect(credential))


def take_over(earlier: Path, output_dir: Path) -> None:
    """Begin a run's folder with a copy of what an earlier job has left; what is there already stays.

    Azure runs the command once in each process: the first one copies, and the others wait for it.
    """
    if not earlier.is_dir():
        found = sorted(path.name for path in earlier.parent.iterdir()) if earlier.parent.is_dir() else []
        expected = f"expected {earlier.name}/, the folder of its profile"
        raise FtlibError(
            f"found {', '.join(found) or 'nothing'} in the earlier job's output, {expected}; name another job"
        )
    if place().rank == 0 and not output_dir.exists():
        unfinished = output_dir.with_name(f"{output_dir.name}.part")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a machine that was taken away
        shutil.copytree(earlier, unfinished, ignore=shutil.ignore_patterns(OWNER))
        unfinished.rename(output_dir)
    while not output_dir.exists():
        time.sleep(1)
