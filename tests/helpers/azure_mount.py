"""Serves a folder through Microsoft's own mount runtime, as a job's `rw_mount` output is served, until stdin closes."""

import sys

from azureml.dataprep import rslex

folder, mounted, logs = sys.argv[1:]
rslex.init_environment(logs, None, "INFO", False, None, None, None, None, None, None)  # False: no telemetry
options = rslex.PyMountOptions(None, None, None, False, False, 0o777, False)
mount = rslex.RslexURIMountContext(mounted, f"file://{folder}", options, True)
mount.start(False)
print("mounted", flush=True)
sys.stdin.read()
mount.stop()
