"""Curves are kept where nobody is shown the way in: trackio's dashboard link carries a write token."""

from pathlib import Path

import pytest
import trackio
from trackio import utils

from ftlib import profiles
from ftlib.session import tracking
from ftlib.session.session import Session


@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_is_opened_on_rank_0_without_a_dashboard_or_a_greeting(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[object] = []
    init = trackio.init
    monkeypatch.setattr(trackio, "init", lambda **settings: opened.append(init(**settings)))
    monkeypatch.setattr(trackio, "show", lambda **settings: opened.append("dashboard"))
    monkeypatch.setattr(utils, "is_in_notebook", lambda: True)
    session = Session(profiles.load("tiny"), "tiny", tmp_path, "outputs", tmp_path, "", rank=rank)
    assert tracking.start(session) == "tiny-seed-0"
    assert [getattr(run, "name", run) for run in opened] == ["tiny-seed-0"][rank:]
    with pytest.raises(RuntimeError, match=r"before trackio\.finish"):  # it is closed, until training goes on with it
        trackio.finish()
    assert capsys.readouterr().out == ""
