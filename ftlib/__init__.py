"""What the six notebooks call: it measures, checks, parses, draws, stores, exports and launches.

Importing it is quick: torch and the libraries around it come in only where a function needs them.
"""

from ftlib.session.session import Session, start

__all__ = ["Session", "start"]
