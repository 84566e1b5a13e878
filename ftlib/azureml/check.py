"""What `ftlib azure check` asks a workspace before anything is paid for; it only reads."""

import fnmatch
from collections.abc import Callable
from typing import Any

from ftlib.azureml import files
from ftlib.azureml.workspace import GRANT, SCOPE, SECRET, Workspace, explain, read_secret
from ftlib.errors import FtlibError
from ftlib.machine import OK, Check

WRITE_BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers/blobs/write"
AZURE = "https://management.azure.com"


def rows(workspace: Workspace) -> list[Check]:
    """Check, found and verdict, which is "ok" or what to do; without an answer from the first, no other is asked."""
    checks: dict[str, Callable[[Workspace], tuple[str, str]]] = {
        "signed in": _signed_in,
        "workspace": _workspace,
        **{f"machine {size}": lambda asked, size=size: _machine(asked, size) for size in _sizes()},  # type: ignore[misc]
        "token in the Key Vault": _token,
        "role on the storage": _storage,
    }
    found: list[Check] = []
    for name, check in checks.items():
        found.append(Check(name, *_answer(check, workspace)))
        if found[-1].verdict != OK and name in ("signed in", "workspace"):
            break
    return found


def _answer(check: Callable[[Workspace], tuple[str, str]], workspace: Workspace) -> tuple[str, str]:
    from azure.core.exceptions import AzureError

    try:
        return check(workspace)
    except FtlibError as error:
        return "", str(error)
    except AzureError as error:
        return "", explain(error)


def _sizes() -> list[str]:
    """The machines of the clusters that the files describe."""
    described = [files.read(path) for path in files.shipped().values()]
    return sorted({data["size"] for data in described if files.schema(data) == "amlCompute"})


def _signed_in(workspace: Workspace) -> tuple[str, str]:
    claims = workspace.claims
    return str(claims.get("upn") or claims.get("name") or claims["oid"]), OK


def _workspace(workspace: Workspace) -> tuple[str, str]:
    return f"{workspace.about.name} in {workspace.about.location}", OK


def _machine(workspace: Workspace, size: str) -> tuple[str, str]:
    """Whether the region offers a machine, and whether the quota of its family is enough for one."""
    offered = {str(one.name).lower(): one for one in workspace.client.compute.list_sizes()}
    machine = offered.get(size.lower())
    if machine is None:
        return "not offered in this region", "name another size in the clusters' files, or use another region"
    usages = {str(_name(usage)).lower(): usage for usage in workspace.client.compute.list_usage()}
    usage = usages.get(str(machine.family).lower())
    if usage is None:
        return "offered; its quota is not known", "look in the studio under Quota"
    free, needed = int(usage.limit or 0) - int(usage.current_value or 0), int(machine.v_cp_us or 0)
    verdict = f"ask in the studio under Quota for {needed} cores of {machine.family} or more"
    return f"{free} cores free of {usage.limit}, {needed} a machine", OK if free >= needed else verdict


def _name(usage: Any) -> Any:
    return usage.name["value"] if isinstance(usage.name, dict) else getattr(usage.name, "value", usage.name)


def _token(workspace: Workspace) -> tuple[str, str]:
    read_secret(workspace)
    return f"{SECRET}, and you may read it", OK


def _storage(workspace: Workspace) -> tuple[str, str]:
    """Jobs read and write as their owner, so the owner's role counts, as Azure itself sums all assignments up."""
    scope = str(workspace.about.storage_account)
    account = scope.rpartition("/")[2]
    if _may(workspace, scope, WRITE_BLOBS):
        return f"you may write to {account}", OK
    grant = GRANT.format(me=workspace.me, role="Storage Blob Data Contributor", to=scope)
    return f"none that may write to {account}", f"run `{grant}`"


def _may(workspace: Workspace, scope: str, action: str) -> bool:
    """Whether somebody may do something to data; see learn.microsoft.com/rest/api/authorization/permissions."""
    from azure.core import PipelineClient
    from azure.core.pipeline.policies import BearerTokenCredentialPolicy
    from azure.core.rest import HttpRequest

    client: Any = PipelineClient(AZURE, policies=[BearerTokenCredentialPolicy(workspace.credential, SCOPE)])
    address = f"{AZURE}{scope}/providers/Microsoft.Authorization/permissions?api-version=2022-04-01"
    answer = client.send_request(HttpRequest("GET", address))
    answer.raise_for_status()

    def covers(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatch(action.lower(), pattern.lower()) for pattern in patterns)

    return any(covers(one["dataActions"]) and not covers(one["notDataActions"]) for one in answer.json()["value"])
