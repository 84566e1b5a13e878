"""The workspace that the tests in this folder work in; nothing listens anywhere."""

from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
from azure.keyvault.secrets import SecretClient
from helpers import ROOT
from helpers.azure_mistakes import TOKEN
from helpers.azure_workspace import WRITER, StandIn, credential, permissions

from ftlib.azureml import workspace


@pytest.fixture
def azure(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A stand-in for the workspace that the environment names."""
    monkeypatch.chdir(ROOT)
    for variable in workspace.VARIABLES:
        monkeypatch.setenv(variable, "w")
    client = StandIn()
    monkeypatch.setattr("azure.ai.ml.MLClient", lambda *arguments: client)
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", credential)
    return client


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The workspace's Key Vault, with the Hub's token in it."""
    vault = create_autospec(SecretClient, instance=True)
    vault.get_secret.return_value = SimpleNamespace(value=TOKEN)
    monkeypatch.setattr("azure.keyvault.secrets.SecretClient", lambda *arguments: vault)
    return vault


@pytest.fixture
def writer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is signed in may write to the workspace's storage."""
    permissions(monkeypatch, WRITER)
