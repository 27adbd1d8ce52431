"""Escaping of texts: one function per output format.

Names, notes and paths may come from files of other people, so they are escaped before a terminal, a log, Markdown,
LaTeX, HTML, CSV or a picture shows them. The libraries that write JSON and YAML escape texts themselves.
"""

from __future__ import annotations

import re
from html import escape

MARKDOWN = {sign: f"\\{sign}" for sign in "\\`*[]<|"}
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"} | {sign: f"${sign}$" for sign in "<>|"}
FORMULA = re.compile(r"[=+\-@]")
"""The first character of a formula in a spreadsheet."""

MESSAGE, WORD = 400, 160
"""Most characters of an error, and of a word in an error that is too long."""


def in_terminal(text: str) -> str:
    """Return the text with question marks for control and direction characters other than line breaks and tabs."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "?" for sign in text)


def in_line(text: str) -> str:
    """Return the text for one line of a terminal, a log or a file, with spaces for line breaks and tabs."""
    return in_terminal(re.sub(r"\s*[\n\r\t\v\f\x1c-\x1e\x85\u2028\u2029]\s*", " ", text))


def in_message(text: str) -> str:
    """Return an error on one line of at most `MESSAGE` characters: long words are shortened first, then the end."""
    line = in_line(text)
    if len(line) > MESSAGE:
        line = re.sub(rf"\S{{{WORD},}}", lambda word: f"{word[0][:40]}...{word[0][-20:]}", line)
    return line if len(line) <= MESSAGE else f"{line[: MESSAGE - 4].rstrip()} ..."


def in_markdown(text: str) -> str:
    """Return the text on one line with Markdown's special characters escaped, but no underscores."""
    return _replaced(text, MARKDOWN)


def in_code_block(text: str, language: str) -> str:
    """Return a fenced block of Markdown, whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{in_terminal(text)}\n{fence}"


def in_latex(text: str) -> str:
    r"""Return the text on one line for a cell of a LaTeX table, with special characters escaped.

    A leading minus is in math mode. A leading `[` or `*` is in braces, since the `\\` before the row
    would read it as its argument.
    """
    return re.sub(r"^([\[*])", r"{\1}", re.sub(r"^-(?=\d)", "$-$", _replaced(text, LATEX)))


def in_html(text: str) -> str:
    """Return the text for an element or a quoted attribute of HTML."""
    return escape(in_terminal(text))


def in_csv(text: str) -> str:
    """Return the text for a cell of a spreadsheet; a formula becomes text."""
    return f"'{in_line(text)}" if FORMULA.match(text.lstrip()) else in_line(text)


def in_picture(text: str) -> str:
    """Return the text for a label of Matplotlib, with dollars escaped."""
    return in_line(text).replace("$", r"\$")


def _replaced(text: str, signs: dict[str, str]) -> str:
    return "".join(signs.get(sign, sign) for sign in in_terminal(" ".join(text.split())))
