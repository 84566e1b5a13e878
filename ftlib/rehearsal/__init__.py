"""Everything the offline rehearsal needs: a tiny model, a sample data set, held-out questions and a Hub of our own."""

from pathlib import Path

ASSETS = Path(__file__).parent / "assets"
HELD_OUT_FILE = ASSETS / "held_out.jsonl"
