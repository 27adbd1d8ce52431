"""Names in a list, text that means nothing to Markdown and LaTeX, and tables in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

MARKDOWN = {sign: f"\\{sign}" for sign in "\\`*[]<|"}
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {sign: f"${sign}$" for sign in "<>|"}


NAMED = 3
"""Of a longer list, this many are named."""


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def in_markdown(text: str) -> str:
    """On one line; an underscore inside a word means nothing there and stays as it is."""
    return _replaced(text, MARKDOWN)


def in_latex(text: str) -> str:
    """Text, or a figure, whose minus becomes one."""
    return re.sub(r"^-(?=\d)", "$-$", _replaced(text, LATEX))


def _replaced(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in " ".join(text.split()))


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """A table whose columns also line up as plain text; all but the first ``texts`` columns are aligned right."""
    lines = [list(header), *([in_markdown(cell) for cell in row] for row in rows)]
    widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * w if i < texts else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    aligned = [
        [cell.ljust(w) if i < texts else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in [aligned[0], rule, *aligned[1:]])
