"""What is done in an Azure ML workspace: things submitted, looked after, fetched, registered and cleaned away."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.azureml import files
from ftlib.errors import FtlibError
from ftlib.profiles import Profile
from ftlib.session.session import project_root

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core.credentials import TokenCredential

# Azure sets these in a job and on a compute instance; elsewhere a person may.
VARIABLES = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")
SECRET = "hf-token"
EXPERIMENT = "ftlib"
OUTPUT = "run"
ENDED = ("Completed", "Failed", "Canceled")


@dataclass(frozen=True)
class Removal:
    """Something that costs, or will: `kind` and `name` for a person to read."""

    kind: str
    name: str


@contextlib.contextmanager
def azure_errors() -> Iterator[None]:
    """Tell in one line what Azure, or its client, did not accept."""
    files.client_library()
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        with files.quiet():
            yield
    except ClientAuthenticationError as error:
        raise FtlibError(f"Azure does not know who you are ({_first_line(error)}); run `az login`") from None
    except (AzureError, MlException) as error:
        raise FtlibError(f"Azure answers: {_first_line(error)}; see ftlib/azureml/README.md") from None


def _first_line(error: Exception) -> str:
    lines = str(getattr(error, "message", None) or error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def connect(credential: "TokenCredential | None" = None) -> "MLClient":
    """A client for the workspace that the environment names, or else `config.json` in the project's folder or above.

    Args:
        credential: who asks; without one, whoever `az login` or the environment knows.

    Raises:
        FtlibError: no workspace is named.
    """
    ml = files.client_library()
    if credential is None:
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
    named = [os.environ.get(variable) for variable in VARIABLES]
    client: MLClient
    if all(named):
        client = ml.MLClient(credential, *named)
        return client
    try:
        client = ml.MLClient.from_config(credential, path=project_root())
    except Exception:  # it says so in many ways
        raise FtlibError(
            f"no Azure ML workspace is named: expected {', '.join(VARIABLES)} in the environment, or a config.json "
            "here; the workspace's page in the studio has one to download"
        ) from None
    return client


def hub_token() -> str:
    """The Hub's token from the Key Vault of the workspace that a job runs in, read as the person who submitted the job.

    Raises:
        FtlibError: the Key Vault has no such secret.
    """
    with azure_errors():
        from azure.ai.ml.identity import AzureMLOnBehalfOfCredential
        from azure.core.exceptions import ResourceNotFoundError
        from azure.keyvault.secrets import SecretClient

        credential: Any = AzureMLOnBehalfOfCredential()
        client = connect(credential)
        vault = str(client.workspaces.get(client.workspace_name).key_vault).rpartition("/")[2]
        try:
            secret: str | None = SecretClient(f"https://{vault}.vault.azure.net", credential).get_secret(SECRET).value
        except ResourceNotFoundError:
            secret = None
        if not secret:
            raise FtlibError(
                f"Key Vault {vault} has no secret {SECRET}; log in with `hf auth login`, then run "
                f"`az keyvault secret set --vault-name {vault} --name {SECRET} --file ~/.cache/huggingface/token`"
            )
        return secret


def submit(client: "MLClient", path: Path, changes: Mapping[str, Any]) -> str:
    """Send what a file describes.

    Returns:
        What became of it, for a person to read.
    """
    entity, kind = files.load(path, changes), files.schema(files.read(path))
    if kind == "commandJob":
        job = client.jobs.create_or_update(entity)
        return f"job {job.name} is {job.status}: {job.studio_url}"
    if kind == "environment":
        environment = client.environments.create_or_update(entity)
        return f"environment {environment.name}, version {environment.version}"
    if kind == "model":
        model = client.models.create_or_update(entity)
        return f"model {model.name}, version {model.version}"
    compute = client.compute.begin_create_or_update(entity).result()
    return f"compute {compute.name}, {compute.size}: {compute.provisioning_state}"


def jobs(client: "MLClient") -> list[Any]:
    """Our jobs, the newest first, as Azure lists them."""
    return [job for job in client.jobs.list() if job.experiment_name == EXPERIMENT]


def computes(client: "MLClient") -> list[Any]:
    """The clusters and instances that our files make, as far as they exist."""
    descriptions = [files.read(path) for path in files.shipped().values()]
    ours = {data["name"] for data in descriptions if files.LOADERS[files.schema(data)] == "load_compute"}
    return [compute for compute in client.compute.list() if compute.name in ours]


def machines(client: "MLClient", compute: Any) -> str:
    """What of a compute is there and paid for."""
    if compute.type == "amlcompute":
        count = len(list(client.compute.list_nodes(compute.name)))
        return f"{count} machine(s)"
    return str(compute.state)


def download(client: "MLClient", job: str, folder: Path) -> Path:
    """Fetch a job's output: notebooks, records, report, adapter and checkpoints.

    Returns:
        The folder that holds them.
    """
    client.jobs.download(job, download_path=folder, output_name=OUTPUT)
    return folder / "named-outputs" / OUTPUT


def model_changes(profile: Profile, job: str) -> dict[str, Any]:
    """How the model file reads for the adapter that a job trained on a profile."""
    lora = {"lora_r": str(profile.lora.r), "lora_alpha": str(profile.lora.lora_alpha)}
    base = {"base_model": profile.hub.model, "base_revision": profile.hub.model_revision}
    data = {"dataset": profile.data.shown, "dataset_revision": profile.data.revision or "local"}
    return {
        "name": profile.hub.push_target.rpartition("/")[2],
        "path": f"azureml://jobs/{job}/outputs/{OUTPUT}/paths/{profile.name}/adapter",
        "properties": base | data | lora | {"job": job},
    }


def removable(client: "MLClient") -> list[Removal]:
    """What of ours costs by the hour, or would: jobs that have not ended, and computes."""
    unfinished = [Removal("job", job.name) for job in jobs(client) if job.status not in ENDED]
    return unfinished + [Removal("compute", compute.name) for compute in computes(client)]


def remove(client: "MLClient", removal: Removal) -> None:
    """Cancel a job, or delete a compute."""
    if removal.kind == "job":
        client.jobs.begin_cancel(removal.name).result()
    else:
        client.compute.begin_delete(removal.name).result()
