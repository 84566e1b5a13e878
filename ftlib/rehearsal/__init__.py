"""Everything the offline rehearsal needs: a tiny model, a sample data set, questions to measure with, and a Hub on this machine."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
HELD_OUT_FILE = ASSETS / "held_out.jsonl"
