"""Values as a notebook shows them: a title over a table, with everything in it escaped."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LONGEST = 500
"""Characters of a cell that are shown."""


def table(title: str, rows: Iterable[Sequence[object]], *, head: Sequence[str] = ()) -> str:
    """A titled HTML table; whatever is in it is text, and never markup.

    Args:
        title: Stands above it in bold; nothing stands there if it is empty.
        rows: Cells of each row: whole numbers get thousands separators, other ones four digits.
        head: Names of the columns; without them the first cell of each row names the row.

    >>> table("Two <runs>", [("a & b", 1234), ("c", None)])
    '<b>Two &lt;runs&gt;</b><table><tr><th ...>a &amp; b</th><td ...>1,234</td></tr>...<td ...>none</td></tr></table>'
    """
    lines = [_row(head, len(head))] if head else []
    lines += [_row(cells, 0 if head else 1) for cells in rows]
    above = f"<b>{html.escape(title)}</b>" if title else ""
    return f"{above}<table>{''.join(lines)}</table>"


def _row(cells: Sequence[object], heads: int) -> str:
    return f"<tr>{''.join(_cell(cell, 'th' if number < heads else 'td') for number, cell in enumerate(cells))}</tr>"


def _cell(value: object, tag: str) -> str:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # A notebook's own style would have all of it on the right, and lines of text run together.
    style = f"text-align:{'right' if number else 'left'};white-space:pre-wrap"
    return f'<{tag} style="{style}">{html.escape(_text(value))}</{tag}>'


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
