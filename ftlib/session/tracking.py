"""The training curves' run in trackio."""

import contextlib
import io

from ftlib.session.session import Session


def start(session: Session) -> str:
    """Open the run that training logs to, on rank 0, and return the run's name.

    Where Trainer opens it, trackio shows a dashboard's link with a write token and names folders of this machine.
    """
    import trackio

    profile = session.profile
    run_name = f"{profile.name}-seed-{profile.train.seed}"
    if session.is_main:
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.init(project=profile.track.project, name=run_name, embed=False, resume="allow")
    return run_name
