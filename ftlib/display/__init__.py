"""What is drawn or coloured for a reader: plots, tables and conversations; nothing is measured here."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from ftlib.errors import FtlibError

P = ParamSpec("P")
R = TypeVar("R")


def explains_arguments(helper: Callable[P, R]) -> Callable[P, R]:
    """Report a wrong argument to a helper that people call in one line, with what the helper takes."""

    @wraps(helper)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return helper(*args, **kwargs)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            takes = f"{helper.__name__}{inspect.signature(helper)}"
            raise FtlibError(f"{helper.__name__} cannot use what it was given ({error}); expected {takes}") from error

    return call
