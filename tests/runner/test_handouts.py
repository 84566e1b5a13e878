"""Handouts: learners' pages tell no solution and no check, and slides show one picture each."""

import shutil
from pathlib import Path

from helpers import ROOT

from ftlib.runner import handouts


def test_solutions_are_on_pages_of_their_own(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    folder = tmp_path / handouts.write(tmp_path)
    pages = {kind: sorted((folder / kind).glob("*.html")) for kind in ("exercises", "solutions")}
    texts = {kind: "".join(page.read_text(encoding="utf-8") for page in found) for kind, found in pages.items()}
    assert [page.name for page in pages["exercises"]] == [page.name for page in pages["solutions"]]
    assert len(pages["exercises"]) == 5
    assert "BEGIN SOLUTION" in texts["solutions"]
    assert "BEGIN SOLUTION" not in texts["exercises"]
    assert not any("rows of exactly" in text or "about_rows" in text for text in texts.values()), "checks are left out"
    slides = (folder / "slides.html").read_text(encoding="utf-8")
    assert slides.count("<section>") == slides.count("data:image/png;base64,") == 5
