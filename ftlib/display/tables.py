"""Tables of texts, as a notebook shows them."""

import re

import pandas as pd
from IPython.display import HTML

from ftlib.display import shown

_CELL = "text-align:left;vertical-align:top;white-space:pre-wrap;overflow-wrap:break-word"


@shown
def readable(table: pd.DataFrame) -> HTML:
    """Show a table of texts whole, wrapped and aligned left."""
    with pd.option_context("display.max_colwidth", None):
        markup = table.to_html(index=False, border=0)
    # Styles are inline because JupyterLab removes <style> from untrusted notebooks. Tags in a text are escaped.
    return HTML(re.sub("<(t[dh])>", rf'<\1 style="{_CELL}">', markup))  # type: ignore[no-untyped-call]
