"""The workspace that the tests in this folder work in; nothing listens anywhere."""

import pytest
from helpers import ROOT
from helpers.azure_workspace import StandIn, credential

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
