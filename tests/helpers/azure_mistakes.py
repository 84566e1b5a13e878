"""What people get wrong in an Azure ML file, and what `ftlib azure validate` says: the table of test_azureml."""

from typing import Any

GONE = "(removed)"
TOKEN = "hf_neverShownNeverShownNeverShown"
COMMAND = "PYTHONPATH=$PWD python -m ftlib.cli azure job --profile ${{inputs.profile}}"

# The shipped file, the dotted key with the mistake, its value (GONE: removed), and the line that is printed, in part.
MISTAKES: list[tuple[str, str, Any, str]] = [
    # One of each kind that azure-ai-ml finds.
    ("train", "comand", "echo", "comand: Unknown field."),
    ("train", "resources.instance_count", "many", "resources.instance_count: Not a valid integer."),
    ("train", "environment", GONE, "environment: Missing data for required field."),
    ("walkthrough", "inputs", {}, "azure-ai-ml: Inputs to job does not contain 'profile' referenced in command"),
    # These it accepts.
    ("walkthrough", "$schema", GONE, "$schema: expected Azure ML's address of one of"),
    ("walkthrough", "command", f"{COMMAND} --nproc 4", "expected ${{outputs.run}} as --output-root"),
    ("walkthrough", "inputs.profile", "gpt-oss-20", "did you mean 'gpt-oss-20b'?"),
    ("walkthrough", "compute", GONE, "resources.instance_type: found 'none'; expected a machine of skus.toml"),
    ("walkthrough", "compute", "azureml:ftlib-a10", "did you mean 'azureml:ftlib-a100'?"),
    ("walkthrough", "resources.shm_size", "64q", "expected a number and one of b, k, m, g"),
    ("walkthrough", "limits", GONE, "limits.timeout: found 'none'; expected seconds, or a job that hangs"),
    ("walkthrough", "outputs.run.mode", "upload", "expected rw_mount, or checkpoints are lost"),
    ("walkthrough", "code", ".", "code: found '.'; expected the project's folder"),
    ("walkthrough", "environment_variables.HF_HOME", "/mnt/cache", "expected a local disk"),
    ("walkthrough", "command", f"HF_TOKEN={TOKEN} {COMMAND}", "command: found a secret"),
    ("walkthrough", "identity", GONE, "identity.type: found 'none'; expected user_identity"),
    ("walkthrough", "resources.instance_count", 2, "distribution: found 'none'; expected type pytorch"),
    ("train", "resources.instance_count", 2, "recipe.effective_batch_size 16 is not a multiple"),
    ("train", "distribution.process_count_per_instance", 2, "4 processes, one for each GPU of Standard_NC96ads"),
    ("spot", "command", f"{COMMAND} --output-root ${{{{outputs.run}}}}", "4 processes, one for each GPU"),
    ("cluster", "size", "Standard_NC96ads_A100", "did you mean 'Standard_NC96ads_A100_v4'?"),
    ("cluster", "min_instances", 1, "paid for while nothing runs"),
    ("cluster", "idle_time_before_scale_down", 86400, "expected 1800 seconds at most"),
    ("cluster", "idle_time_before_scale_down", GONE, "expected 1800 seconds at most"),
    ("instance", "idle_time_before_shutdown_minutes", GONE, "paid for until someone stops it"),
]
