"""Texts out of files give no orders to what they are written to."""

import csv
import html
import io
import re

import pytest

from slimvit.utils import escaping
from slimvit.utils.escaping import (
    in_code_block,
    in_csv,
    in_html,
    in_latex,
    in_line,
    in_markdown,
    in_picture,
    in_terminal,
)

HOSTILE = [
    "\x1b[31mred\x1b]0;title\a", "a\x9b31m", "\u202egnp.exe", "a\r\nb", "a\u2028b\x85c\x0bd",
    "```\n<script>alert(1)</script>",
    "a|b", "`x`", "[x](javascript:alert(1))", "![x](http://a)", "\\input{/etc/passwd}", "%\n\\x", "_$^~#&{}",
    "[0pt] x", "* x",
    "=HYPERLINK(1)", " +1", "@x", "-x", "\t=1", '"><img src=x onerror=alert(1)>', "'", "\0", "$\\frac{1}{0}$", "",
]  # fmt: skip
ONE_LINE = (in_line, in_markdown, in_latex, in_csv, in_picture)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_control_characters_in_any_format(text):
    for name in (n for n in vars(escaping) if n.startswith("in_")):
        function = getattr(escaping, name)
        written = function(text, "sh") if name == "in_code_block" else function(text)
        assert all(sign.isprintable() or sign in "\n\t" for sign in written), name
        assert "\n" not in written or name in ("in_terminal", "in_html", "in_code_block"), name


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_has_no_sign_left_that_begins_something(text):
    assert not re.search(r"(?<!\\)(\\\\)*[`*\[\]<|]", in_markdown(text))


@pytest.mark.parametrize("text", ["```", "~~~\n````\nx", "a ``````` b", ""])
def test_a_code_block_ends_where_it_should(text):
    lines = in_code_block(text, "sh").splitlines()
    fence = lines[-1]
    assert lines[0] == f"{fence}sh" and set(fence) == {"`"} and not any(line.startswith(fence) for line in lines[1:-1])


@pytest.mark.parametrize("text", HOSTILE)
def test_latex_has_no_command_but_its_own(text):
    own = r"\\text(backslash|asciitilde|asciicircum)\{\}|\\[&%$#_{}]|\$(<|>|\||-|\\pm)\$|^\{[\[*]\}"
    assert not re.search(r"[\\$&%#_^{}~]", re.sub(own, "", in_latex(text)))
    assert not in_latex(text).startswith(("[", "*"))


@pytest.mark.parametrize("text", HOSTILE)
def test_html_shows_the_text_alone(text):
    assert not set("<>\"'") & set(in_html(text)) and html.unescape(in_html(text)) == in_terminal(text)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_spreadsheet_computes_nothing(text):
    file = io.StringIO()
    csv.writer(file).writerow([in_csv(text), "x"])
    cell, _ = next(csv.reader(io.StringIO(file.getvalue())))
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))


def test_usual_names_stay_as_they_are():
    for text in ("vit_digits", "runs/a b/c-1", "DeiT-S, a third fewer", "Ünïcode 模型"):
        assert in_terminal(text) == in_line(text) == in_markdown(text) == in_csv(text) == in_picture(text) == text
        assert in_html(text) == text and in_latex(text).replace("\\_", "_") == text
