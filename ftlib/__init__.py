"""What the five notebooks call: it measures, checks, parses, draws, stores and launches, and imports torch only when asked to."""

from ftlib.session import Session, start

__all__ = ["Session", "start"]
