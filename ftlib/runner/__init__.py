"""Runs the notebooks: headlessly, on several GPUs or cell by cell; reports on a run, and compares recipes."""
