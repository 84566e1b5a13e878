"""A stand-in for a workspace: azure-ai-ml's own client and entities, with operations that keep what they are given."""

import base64
import copy
import json
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from azure.ai.ml import operations
from azure.ai.ml.entities import (
    AmlCompute,
    AmlComputeNodeInfo,
    CommandJob,
    ComputeInstance,
    OnlineEndpoint,
    PipelineJob,
    Usage,
    VmSize,
    Workspace,
)
from azure.ai.ml.entities._job.service_instance import ServiceInstance
from azure.core.credentials import AccessToken
from azure.identity import DefaultAzureCredential

from ftlib import cli

ME = "11111111-2222-3333-4444-555555555555"
GROUP = "/subscriptions/s/resourceGroups/g/providers"
VAULT, STORAGE = f"{GROUP}/Microsoft.KeyVault/vaults/vault1", f"{GROUP}/Microsoft.Storage/storageAccounts/store1"
BLOBS = "Microsoft.Storage/storageAccounts/blobServices/containers"
WRITER = {"dataActions": [f"{BLOBS}/*"], "notDataActions": []}
READER = {"dataActions": [f"{BLOBS}/blobs/read"], "notDataActions": []}
FAMILY = "standardNCADSA100v4Family"


def run(*arguments: str) -> int:
    """What `ftlib …` exits with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ftlib", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)


def credential(**claims: str) -> Any:
    """A credential whose token says who it belongs to, as Azure's do."""
    payload = base64.urlsafe_b64encode(json.dumps({"oid": ME, "upn": "ada@example.com"} | claims).encode()).rstrip(b"=")
    stand_in = create_autospec(DefaultAzureCredential, instance=True)
    stand_in.get_token.return_value = AccessToken(f"head.{payload.decode()}.signature", 2**33)
    return stand_in


class StandIn:
    """The operations of azure-ai-ml's client, with their real signatures."""

    workspace_name = "w"

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}
        self.asked: list[str] = []
        self.free_cores = 96
        kinds = ("Job", "Compute", "Environment", "Model", "Workspace", "OnlineEndpoint", "OnlineDeployment")
        made = [create_autospec(getattr(operations, f"{kind}Operations"), instance=True) for kind in kinds]
        self.jobs, self.compute, self.environments, self.models, self.workspaces, *online = made
        self.online_endpoints, self.online_deployments = online
        self.jobs.create_or_update.side_effect = self._start
        self.jobs.list.side_effect = lambda: self._all(CommandJob, PipelineJob)
        self.jobs.get.side_effect = self.made.__getitem__
        self.jobs.stream.side_effect = lambda name: print(f"log of {name}")
        self.jobs.begin_cancel.side_effect = self._remove
        self.compute.begin_create_or_update.side_effect = lambda entity: done(self.keep(entity))
        self.compute.list.side_effect = lambda: self._all(AmlCompute, ComputeInstance)
        self.compute.list_nodes.side_effect = lambda name: [AmlComputeNodeInfo()] * 2
        self.compute.begin_delete.side_effect = self._remove
        self.compute.list_sizes.side_effect = self._sizes
        self.compute.list_usage.side_effect = self._usage
        self.online_endpoints.begin_create_or_update.side_effect = lambda entity: done(self.keep(entity))
        self.online_endpoints.list.side_effect = lambda: self._all(OnlineEndpoint)
        self.online_endpoints.get.side_effect = self.made.__getitem__
        self.online_endpoints.begin_delete.side_effect = self._remove
        self.online_deployments.begin_create_or_update.side_effect = lambda entity: done(self.keep(entity))
        self.environments.create_or_update.side_effect = self.keep
        self.models.create_or_update.side_effect = self.keep
        self.workspaces.get.side_effect = lambda name: Workspace(
            name=name, location="westeurope", key_vault=VAULT, storage_account=STORAGE
        )

    def _all(self, *kinds: type) -> list[Any]:
        return [one for one in self.made.values() if isinstance(one, kinds)]

    def _start(self, entity: Any) -> Any:
        job = copy.copy(entity._to_job() if hasattr(entity, "_to_job") else entity)
        job.name, job._status = f"brave_sky_{len(self._all(CommandJob, PipelineJob)) + 1}", "Starting"
        job.services = {"Studio": ServiceInstance(endpoint=f"https://ml.azure.com/runs/{job.name}")}
        self.made[job.name] = job
        return job

    def end(self, name: str, status: str = "Completed") -> None:
        """A job ends."""
        self.made[name]._status = status

    def keep(self, entity: Any) -> Any:
        setattr(entity, *(("version", "1") if hasattr(entity, "version") else ("_provisioning_state", "Succeeded")))
        if isinstance(entity, OnlineEndpoint):
            entity._scoring_uri = f"https://{entity.name}.westeurope.inference.ml.azure.com/"
        self.made[entity.name] = entity
        return entity

    def _remove(self, name: str) -> Any:
        self.asked.append(name)
        return done(self.made.pop(name))

    def _sizes(self) -> list[VmSize]:
        cores = {"Standard_NC24ads_A100_v4": 24, "Standard_NC96ads_A100_v4": 96}
        return [VmSize(name=name, family=FAMILY, v_cp_us=number) for name, number in cores.items()]

    def _usage(self) -> list[Usage]:
        """As the REST object is turned into one: its name is a dictionary."""
        usage = Usage(current_value=0, limit=self.free_cores)
        usage.name = {"value": FAMILY, "localized_value": "Standard NCADSA100v4 Family Cluster Dedicated vCPUs"}  # type: ignore[assignment]
        return [usage]


def done(entity: Any) -> Any:
    return SimpleNamespace(result=lambda: entity)


def permissions(monkeypatch: pytest.MonkeyPatch, *found: dict[str, Any]) -> list[str]:
    """What Azure answers to the question what somebody may do; returns the addresses that are asked."""
    asked: list[str] = []

    def answer(client: Any, request: Any) -> Any:
        asked.append(request.url)
        return SimpleNamespace(raise_for_status=lambda: None, json=lambda: {"value": list(found)})

    monkeypatch.setattr("azure.core.PipelineClient.send_request", answer)
    return asked
