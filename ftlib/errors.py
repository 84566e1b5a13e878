"""The one kind of error that a person is meant to read."""


class FtlibError(Exception):
    """A mistake or a missing prerequisite, told in one line: what was found, what was expected, what to do next."""

    def _render_traceback_(self) -> list[str]:
        """Let Jupyter print the line alone: the frames below it would only point into ftlib."""
        return [f"{type(self).__name__}: {self}"]
