"""The training curves' run in trackio."""

import contextlib
import io

from ftlib.session.session import Session


def start(session: Session) -> str:
    """Open the run that training logs to, without a dashboard, whose link has a write token; returns its name."""
    import trackio

    run_name = f"{session.profile.name}-seed-{session.profile.train.seed}"
    if session.is_main:
        with contextlib.redirect_stdout(io.StringIO()):
            trackio.init(project=session.profile.track.project, name=run_name, embed=False, resume="allow")
            trackio.finish()  # type: ignore[no-untyped-call]  # or it would say so when training begins
    return run_name
