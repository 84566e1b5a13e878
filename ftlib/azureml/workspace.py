"""What is done in an Azure ML workspace: submit, list, download, register and clean up."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlib.azureml import files
from ftlib.errors import FtlibError
from ftlib.profiles import Profile
from ftlib.session.session import project_root

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core.credentials import TokenCredential

# Azure sets these in a job and on a compute instance; elsewhere you may.
VARIABLES = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")
SECRET = "hf-token"


@contextlib.contextmanager
def azure_errors() -> Iterator[None]:
    """Turn an error of Azure, or of its client, into one line."""
    files.client_library()
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError, ClientAuthenticationError

    try:
        yield
    except (AzureError, MlException) as error:
        lines = (str(getattr(error, "message", None) or error).strip() or type(error).__name__).splitlines()
        if isinstance(error, ClientAuthenticationError):
            raise FtlibError(f"Azure does not know who you are ({lines[0].strip()}); run `az login`") from None
        raise FtlibError(f"Azure answers: {lines[0].strip()}; see docs/azure.md") from None


def connect(credential: "TokenCredential | None" = None) -> "MLClient":
    """A client for the workspace that the environment names, or `config.json` in the project's folder or above."""
    from azure.identity import DefaultAzureCredential

    ml, credential = files.client_library(), credential or DefaultAzureCredential()
    named = [os.environ.get(variable) for variable in VARIABLES]
    client: MLClient
    try:
        client = ml.MLClient(credential, *named) if all(named) else ml.MLClient.from_config(credential, project_root())
    except Exception:  # of several kinds
        raise FtlibError(
            f"no Azure ML workspace is named: expected {', '.join(VARIABLES)} in the environment, or a config.json "
            "here; download one from the workspace's page in the studio"
        ) from None
    return client


def hub_token() -> str:
    """The Hub's token from the Key Vault of a job's workspace, read as the person who submitted the job."""
    with azure_errors():
        from azure.ai.ml.identity import AzureMLOnBehalfOfCredential
        from azure.core.exceptions import ResourceNotFoundError
        from azure.keyvault.secrets import SecretClient

        credential: Any = AzureMLOnBehalfOfCredential()
        client = connect(credential)
        vault = str(client.workspaces.get(client.workspace_name).key_vault).rpartition("/")[2]
        try:
            return str(SecretClient(f"https://{vault}.vault.azure.net", credential).get_secret(SECRET).value)
        except ResourceNotFoundError:
            raise FtlibError(
                f"Key Vault {vault} has no secret {SECRET}; log in with `hf auth login`, then run "
                f"`az keyvault secret set --vault-name {vault} --name {SECRET} --file ~/.cache/huggingface/token`"
            ) from None


def submit(client: "MLClient", path: Path, changes: Mapping[str, Any]) -> str:
    """Send what a file describes; returns what became of it, in words."""
    entity, kind = files.load(path, changes), files.schema(files.read(path))
    if kind == "commandJob":
        job = client.jobs.create_or_update(entity)
        return f"job {job.name} is {job.status}: {job.studio_url}"
    if kind in ("environment", "model"):
        made = getattr(client, f"{kind}s").create_or_update(entity)
        return f"{kind} {made.name}, version {made.version}"
    compute = client.compute.begin_create_or_update(entity).result()
    return f"compute {compute.name}, {compute.size}: {compute.provisioning_state}"


def jobs(client: "MLClient") -> list[Any]:
    """Our jobs, the newest first, as Azure lists them."""
    return [job for job in client.jobs.list() if job.experiment_name == "ftlib"]


def computes(client: "MLClient") -> list[Any]:
    """The existing clusters and instances that have the names in our files."""
    descriptions = [files.read(path) for path in files.shipped().values()]
    ours = {data["name"] for data in descriptions if files.LOADERS[files.schema(data)] == "load_compute"}
    return [compute for compute in client.compute.list() if compute.name in ours]


def model_changes(profile: Profile, job: str) -> dict[str, Any]:
    """What model.yml says for the adapter that a job trained with a profile."""
    lora = {"lora_r": str(profile.lora.r), "lora_alpha": str(profile.lora.lora_alpha)}
    base = {"base_model": profile.hub.model, "base_revision": profile.hub.model_revision}
    data = {"dataset": profile.data.shown, "dataset_revision": profile.data.revision or "local"}
    return {
        "name": profile.hub.push_target.rpartition("/")[2],
        "path": f"azureml://jobs/{job}/outputs/run/paths/{profile.name}/adapter",
        "properties": base | data | lora | {"job": job},
    }


def removable(client: "MLClient") -> list[tuple[str, str]]:
    """Kind and name of what of ours costs by the hour, or will: jobs that have not ended, and computes."""
    unfinished = [("job", job.name) for job in jobs(client) if job.status not in ("Completed", "Failed", "Canceled")]
    return unfinished + [("compute", compute.name) for compute in computes(client)]
