"""The one kind of error that people are meant to read."""

import difflib


class FtlibError(Exception):
    """A mistake or a missing prerequisite, in one line: what was found, what was expected, how to fix it."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """Escape what a terminal would act on: a message may quote names and values from anybody's data."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def nearest(name: str, valid: list[str]) -> str:
    """A hint for a name that is not valid: the valid name that looks most like it, or all of them."""
    close = difflib.get_close_matches(name, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid are {valid}"
