"""What is done in an Azure ML workspace: submit, list, register and clean up, and only what is yours."""

import base64
import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ftlib.azureml import files
from ftlib.errors import FtlibError
from ftlib.session.session import project_root

if TYPE_CHECKING:
    from azure.ai.ml import MLClient
    from azure.core.credentials import TokenCredential

# Azure sets these in a job and on a compute instance; elsewhere you may.
VARIABLES = ("AZUREML_ARM_SUBSCRIPTION", "AZUREML_ARM_RESOURCEGROUP", "AZUREML_ARM_WORKSPACE_NAME")
SECRET = "hf-token"
ENDED = ("Completed", "Failed", "Canceled")
JOB_NAME = "${{name}}"  # which Azure fills in in the path of an output
SCOPE = "https://management.azure.com/.default"
# How to let oneself do something: `--scope` is the id of what it is done with.
GRANT = (
    "az role assignment create --assignee-object-id {me} --assignee-principal-type User --role '{role}' --scope {to}"
)


@contextlib.contextmanager
def azure_errors() -> Iterator[None]:
    """Turn an error of Azure, or of its client, into one line."""
    files.client_library()
    from azure.ai.ml.exceptions import MlException
    from azure.core.exceptions import AzureError

    try:
        yield
    except (AzureError, MlException) as error:
        raise FtlibError(explain(error)) from None


def explain(error: Exception) -> str:
    """An error of Azure, or of its client, in one line with what to do."""
    from azure.core.exceptions import ClientAuthenticationError

    line = (str(getattr(error, "message", None) or error).strip() or type(error).__name__).splitlines()[0].strip()
    if isinstance(error, ClientAuthenticationError):
        return f"Azure does not know who you are ({line}); run `az login`"
    return f"Azure answers: {line}; see docs/azure.md"


class Sent(NamedTuple):
    """What became of a file that was sent, in words; and the name of the job, if it is one."""

    text: str
    job: str = ""


@dataclass(frozen=True)
class Workspace:
    """A workspace as one person uses it: theirs are the jobs and computes that carry their id as a tag."""

    client: "MLClient"
    credential: "TokenCredential"

    @cached_property
    def claims(self) -> Mapping[str, Any]:
        """Whoever is signed in, as their token for Azure says."""
        payload = self.credential.get_token(SCOPE).token.split(".")[1]
        return dict(json.loads(base64.urlsafe_b64decode(payload + "==")))

    @cached_property
    def about(self) -> Any:
        """The workspace itself: its region, and the ids of its Key Vault and its storage."""
        return self.client.workspaces.get(self.client.workspace_name)

    @property
    def me(self) -> str:
        """The object id of whoever is signed in."""
        return str(self.claims["oid"])

    def is_mine(self, entity: Any) -> bool:
        """Whether a job, compute or endpoint was sent by `submit`, and by the person who is signed in."""
        return {"project": "ftlib", "owner": self.me}.items() <= (entity.tags or {}).items()

    def submit(self, path: Path, changes: Mapping[str, Any]) -> Sent:
        """Send what a file describes, with its owner's tag."""
        data = files.read(path, changes)
        kind = files.LOADERS[files.schema(data)]
        if kind in ("load_environment", "load_model"):
            entity = files.load(path, changes)
            made = getattr(self.client, f"{kind.removeprefix('load_')}s").create_or_update(entity)
            return Sent(f"{kind.removeprefix('load_')} {made.name}, version {made.version}")
        tags = {f"tags.{key}": value for key, value in {"owner": self.me, **trained(path, data)}.items()}
        entity = files.load(path, {**changes, **tags})
        if kind == "load_job":
            job = self.client.jobs.create_or_update(entity)
            return Sent(f"job {job.name} is {job.status}: {job.studio_url}", job.name)
        if kind == "load_compute":
            self._check_free(entity.name)
            compute = self.client.compute.begin_create_or_update(entity).result()
            return Sent(f"compute {compute.name}, {compute.size}: {compute.provisioning_state}")
        if kind == "load_online_deployment":
            deployment = self.client.online_deployments.begin_create_or_update(entity).result()
            entity = self.client.online_endpoints.get(deployment.endpoint_name)
            entity.traffic = {deployment.name: 100}
        endpoint = self.client.online_endpoints.begin_create_or_update(entity).result()
        return Sent(f"endpoint {endpoint.name}: {endpoint.scoring_uri}")

    def _check_free(self, name: str) -> None:
        """Azure would overwrite a compute of the same name, whoever's it is."""
        others = [
            compute for compute in self.client.compute.list() if compute.name == name and not self.is_mine(compute)
        ]
        if others:
            advice = f"use it with --set compute=azureml:{name}, or make another with --set name=…"
            raise FtlibError(
                f"compute {name} exists already, and is not one that you made with `ftlib azure`; {advice}"
            )

    def follow(self, name: str) -> None:
        """Show a job's log until it ends; an FtlibError if it does not end well."""
        from azure.ai.ml.exceptions import JobException

        try:
            self.client.jobs.stream(name)
        except JobException as error:
            if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
                print(f"\njob {name} goes on: `ftlib azure status {name} --follow` shows it again")
                return
            job = self.client.jobs.get(name)
            raise FtlibError(f"job {name} is {job.status}; its page has the whole log: {job.studio_url}") from None

    def jobs(self) -> list[Any]:
        """Your own jobs, the newest first, as Azure lists them."""
        return [job for job in self.client.jobs.list() if self.is_mine(job)]

    def computes(self) -> list[Any]:
        """Your own clusters and instances."""
        return [compute for compute in self.client.compute.list() if self.is_mine(compute)]

    def endpoints(self) -> list[Any]:
        """Your own online endpoints."""
        return [endpoint for endpoint in self.client.online_endpoints.list() if self.is_mine(endpoint)]

    def ended(self, name: str, *states: str) -> Any:
        """Your own job, if it has ended in one of these states, by default in any; an FtlibError if not."""
        job = self.client.jobs.get(name)
        if not self.is_mine(job):
            raise FtlibError(f"job {name} is not one that you submitted with `ftlib azure submit`; name one that is")
        if job.status not in (expected := states or ENDED):
            found = f"job {name} is {job.status}, expected {' or '.join(expected)}"
            raise FtlibError(f"{found}; `ftlib azure status {name} --follow` shows what it does")
        return job

    def adapter_of(self, name: str) -> dict[str, Any]:
        """What model.yml says for the adapter of your own finished job; an FtlibError if there is none."""
        tags = dict(self.ended(name, "Completed").tags)
        if "adapter" not in tags:
            raise FtlibError(f"job {name} trained no adapter; name a job that did, such as one of walkthrough.yml")
        path = f"azureml://jobs/{name}/outputs/run/paths/{tags['profile']}/adapter"
        properties = {
            key: value for key, value in tags.items() if key not in ("project", "owner", "profile", "adapter")
        }
        return {"name": tags["adapter"], "path": path, "properties": properties | {"job": name}}

    def removable(self) -> list[tuple[str, str]]:
        """Kind and name of what is yours and costs by the hour, or will: endpoints, unfinished jobs, computes."""
        endpoints = [("endpoint", endpoint.name) for endpoint in self.endpoints()]
        unfinished = [("job", job.name) for job in self.jobs() if job.status not in ENDED]
        return endpoints + unfinished + [("compute", compute.name) for compute in self.computes()]

    def remove(self, kind: str, name: str) -> None:
        """Delete an endpoint, cancel a job or delete a compute, and wait until that is done."""
        remove = {
            "endpoint": self.client.online_endpoints.begin_delete,
            "job": self.client.jobs.begin_cancel,
            "compute": self.client.compute.begin_delete,
        }[kind]
        remove(name).result()


def connect(credential: "TokenCredential | None" = None) -> Workspace:
    """The workspace that the environment names, or `config.json` in the project's folder or above."""
    from azure.identity import DefaultAzureCredential

    ml, credential = files.client_library(), credential or DefaultAzureCredential()
    named = [os.environ.get(variable) for variable in VARIABLES]
    try:
        client = ml.MLClient(credential, *named) if all(named) else ml.MLClient.from_config(credential, project_root())
    except Exception:  # of several kinds
        raise FtlibError(
            f"no Azure ML workspace is named: expected {', '.join(VARIABLES)} in the environment, or a config.json "
            "here; download one from the workspace's page in the studio"
        ) from None
    return Workspace(client, credential)


def read_secret(workspace: Workspace) -> str:
    """The Hub's token from the workspace's Key Vault; an FtlibError says how to store it or to let oneself read it."""
    from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
    from azure.keyvault.secrets import SecretClient

    scope = str(workspace.about.key_vault)
    vault = scope.rpartition("/")[2]
    try:
        return str(SecretClient(f"https://{vault}.vault.azure.net", workspace.credential).get_secret(SECRET).value)
    except ResourceNotFoundError:
        raise FtlibError(
            f"Key Vault {vault} has no secret {SECRET}; log in with `hf auth login`, then run "
            f"`az keyvault secret set --vault-name {vault} --name {SECRET} --file ~/.cache/huggingface/token`"
        ) from None
    except HttpResponseError as error:
        if error.status_code != 403:
            raise
        grant = GRANT.format(me=workspace.me, role="Key Vault Secrets User", to=scope)
        raise FtlibError(f"Key Vault {vault} does not let you read {SECRET}; run `{grant}`") from None


def going_on_from(job: str, path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a job begin with a copy of what an earlier one has left."""
    file = files.read(path, changes)
    command = str(file.get("command", "")).strip()
    output = str(((file.get("outputs") or {}).get("run") or {}).get("path"))
    if "azure job run" not in command or JOB_NAME not in output:
        expected = f"a job whose command is `ftlib azure job run …` and whose outputs.run.path has {JOB_NAME}"
        raise FtlibError(f"{path.name}: --resume is for {expected}, such as walkthrough")
    earlier = {"type": "uri_folder", "mode": "ro_mount", "path": output.replace(JOB_NAME, job)}
    return {"inputs.earlier": earlier, "command": f"{command} --from ${{{{inputs.earlier}}}}"}


def check_same_profile(earlier: Any, path: Path, changes: Mapping[str, Any]) -> None:
    """Raise an FtlibError if an earlier job did not run the profile of the one that is to go on from it."""
    found, wanted = earlier.tags.get("profile"), trained(path, files.read(path, changes))["profile"]
    if found != wanted:
        advice = f"repeat its settings, such as --set inputs.profile={found}, or name another job"
        raise FtlibError(
            f"job {earlier.name} ran profile {found or 'of no name'}, and this one would run {wanted}; {advice}"
        )


def trained(path: Path, data: Mapping[str, Any]) -> dict[str, str]:
    """Tags of a job that trains: its profile, what its adapter is called, and what that is trained from."""
    if "azure job run" not in str(data):
        return {}
    profile = files.profile(path, data)
    lora = {"lora_r": str(profile.lora.r), "lora_alpha": str(profile.lora.lora_alpha)}
    base = {"base_model": profile.hub.model, "base_revision": profile.hub.model_revision}
    rows = {"dataset": profile.data.shown, "dataset_revision": profile.data.revision or "local"}
    return {"profile": profile.name, "adapter": profile.hub.push_target.rpartition("/")[2], **base, **rows, **lora}
