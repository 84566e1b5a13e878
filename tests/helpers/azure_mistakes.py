"""What people get wrong in an Azure ML file, and the key that each message names: the table of test_azureml."""

from dataclasses import dataclass
from typing import Any

GONE = object()
TOKEN = "hf_neverShownNeverShownNeverShown"


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        file: the shipped file that has it.
        key: where, dotted; also the key that the message names, unless `named` is another.
        value: what stands there instead; GONE for nothing.
        says: part of the message.
        named: the key that the message names.
    """

    file: str
    key: str
    value: Any
    says: str
    named: str = ""


COMMAND = "PYTHONPATH=$PWD python -m ftlib.cli azure job --profile ${{inputs.profile}} "
MISTAKES = [
    # azure-ai-ml finds these, and says so at length; here a line each.
    Mistake("train", "comand", "echo", "Unknown field."),
    Mistake("train", "resources.instance_count", "many", "Not a valid integer."),
    Mistake("train", "limits.timeout", "soon", "Not a valid integer."),
    Mistake("train", "distribution.type", "pytorh", "'pytorh' passed is not in set ['pytorch']"),
    Mistake("train", "environment", GONE, "Missing data for required field."),
    Mistake("train", "command", GONE, "Missing data for required field."),
    Mistake("train", "outputs.run.type", "folder", "'folder' passed is not in set ['uri_file', 'uri_folder'"),
    Mistake("spot", "queue_settings.job_tier", "spott", "'spott' passed is not in set ['spot'"),
    Mistake("cluster", "tier", "low", "'low' passed is not in set ['low_priority', 'dedicated']"),
    Mistake("cluster", "max_instancs", 2, "Unknown field."),
    Mistake("cluster", "size", GONE, "found none; expected a machine of skus.toml"),
    Mistake("environment", "image", GONE, "image"),
    Mistake("model", "type", "custom", "'custom' passed is not in set ['custom_model'"),
    # These it lets pass.
    Mistake("walkthrough", "$schema", GONE, "expected Azure ML's address of one of"),
    Mistake(
        "walkthrough", "command", f"{COMMAND} --output-root ${{{{outputs.rn}}}} --nproc 4", "not declared", "outputs.rn"
    ),
    Mistake("walkthrough", "command", f"{COMMAND} --nproc 4", "declared and not used", "outputs.run"),
    Mistake("walkthrough", "inputs.rows", 3, "declared and not used in command"),
    Mistake("walkthrough", "inputs", {}, "found in command and not declared", "inputs.profile"),
    Mistake("walkthrough", "inputs.profile", "gpt-oss-20", "did you mean 'gpt-oss-20b'?"),
    Mistake(
        "walkthrough",
        "inputs.rows",
        {"type": "uri_folder", "path": "./rows"},
        "nothing at './rows'",
        "inputs.rows.path",
    ),
    Mistake("walkthrough", "compute", GONE, "expected a cluster (azureml:<name>), or resources.instance_type"),
    Mistake("walkthrough", "compute", "azureml:ftlib-a10", "did you mean 'azureml:ftlib-a100'?"),
    Mistake("walkthrough", "resources.instance_type", "Standard_NC96ads_A100_v4", "expected one of the two"),
    Mistake("walkthrough", "queue_settings", {"job_tier": "spot"}, "no effect on a cluster", "queue_settings.job_tier"),
    Mistake("walkthrough", "resources.shm_size", "64q", "expected a number and one of b, k, m, g"),
    Mistake("walkthrough", "resources.shm_size", "900g", "expected less than the 880 GB of Standard_NC96ads_A100_v4"),
    Mistake("walkthrough", "resources.shm_size", GONE, "which makes it 2g"),
    Mistake("walkthrough", "limits", GONE, "a job that hangs is paid for without end", "limits.timeout"),
    Mistake("walkthrough", "limits.timeout", 0, "expected 1 to 604800 seconds"),
    Mistake("walkthrough", "outputs.run.mode", "upload", "expected rw_mount, or checkpoints are lost"),
    Mistake("walkthrough", "code", "./nowhere", "expected the project's folder"),
    Mistake("walkthrough", "code", ".", "found no notebooks/ in '.'"),
    Mistake("walkthrough", "experiment_name", "our fine-tuning", "expected 3 to 36 letters"),
    Mistake("walkthrough", "environment_variables.HF_HOME", "/mnt/cache", "expected a local disk"),
    Mistake("walkthrough", "environment_variables.HF_TOKEN", TOKEN, "found a secret"),
    Mistake("walkthrough", "command", f"HF_TOKEN={TOKEN} {COMMAND}", "found a secret"),
    Mistake("walkthrough", "identity", GONE, "expected user_identity", "identity.type"),
    Mistake("walkthrough", "resources.instance_count", 2, "or all but one would wait", "distribution"),
    Mistake("train", "resources.instance_count", 3, "expected 1 to 2, the cluster's max_instances"),
    Mistake("train", "resources.instance_count", 2, "recipe.effective_batch_size 16 is not a multiple"),
    Mistake(
        "train",
        "distribution.process_count_per_instance",
        2,
        "found 2 processes; expected 4, one for each GPU of Standard_NC96ads_A100_v4",
    ),
    Mistake("train", "command", f"{COMMAND} ${{{{outputs.run}}}} --nproc 4", "found --nproc beside distribution"),
    Mistake("spot", "resources.instance_type", "Standard_NC96ads_A100_v5", "did you mean 'Standard_NC96ads_A100_v4'?"),
    Mistake("cluster", "size", "Standard_NC96ads_A100", "did you mean 'Standard_NC96ads_A100_v4'?"),
    Mistake("cluster", "name", "a-cluster-for-the-fine-tuning", "expected 3 to 24 letters"),
    Mistake("cluster", "min_instances", 1, "paid for while nothing runs"),
    Mistake("cluster", "max_instances", 0, "expected 1 or more"),
    Mistake("cluster", "idle_time_before_scale_down", 86400, "expected 1800 at most"),
    Mistake("instance", "idle_time_before_shutdown_minutes", GONE, "paid for until someone stops it"),
    Mistake("instance", "setup_scripts.creation_script.path", "set-up.sh", "expected a script beside this file"),
    Mistake("instance", "setup_scripts.creation_script.timeout_minutes", GONE, "expected minutes"),
    Mistake("instance", "size", "Standard_NC24ads_A100", "did you mean 'Standard_NC24ads_A100_v4'?"),
    Mistake("environment", "conda_file", "conda.yml", "found nothing at 'conda.yml'"),
    Mistake("environment", "conda_file", "local.yml", "found '-e .' in it; expected pins alone"),
    Mistake(
        "environment", "image", "mcr.microsoft.com/azureml/openmpi5.0-cuda12.6-ubuntu24.04:latest", "a tag that stays"
    ),
    Mistake("environment", "name", "our environment", "expected 1 to 255 letters"),
    Mistake("model", "path", "./adapter", "found nothing at './adapter'"),
    Mistake("model", "path", "azureml://jobs/brave/output/run", "expected azureml://jobs/<job>/outputs/<output>"),
]
