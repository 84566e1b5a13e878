"""The one kind of error that people are meant to read."""

import difflib

LONGEST = 600  # characters of a line that people read


class FtlibError(Exception):
    """A mistake or a missing prerequisite, in one line: what was found, what was expected, how to fix it."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """A text as one line that cannot steer a terminal: what is no visible character is written as Python escapes it."""
    line = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"


def nearest(name: str, valid: list[str]) -> str:
    """A hint for a name that is not valid: the valid name that looks most like it, those that contain it, or all."""
    close = difflib.get_close_matches(name, valid, n=1) or [longer for longer in valid if name and name in longer]
    if len(close) == 1:
        return f"did you mean {close[0]!r}?"
    return f"did you mean one of {close}?" if close else f"valid are {valid}"
