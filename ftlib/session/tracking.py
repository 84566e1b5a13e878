"""The training curves' run in trackio."""

import contextlib
import io

from ftlib.session.session import Session


def start(session: Session) -> str:
    """Open the run that training logs to, on rank 0, and return the run's name.

    Trainer would open it too. But in a notebook trackio by default shows a dashboard, whose link carries a write token,
    and its greeting names folders of this machine: both would be saved with the notebook.
    """
    import trackio

    profile = session.profile
    run_name = f"{profile.name}-seed-{profile.train.seed}"
    if session.is_main:
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.init(project=profile.track.project, name=run_name, embed=False, resume="allow")
    return run_name
