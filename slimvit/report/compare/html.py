"""tradeoff.html: one self-contained file that needs no network; all text is escaped."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from slimvit.report.compare.cells import Cells, cells_of, legend
from slimvit.report.compare.comparison import Comparison
from slimvit.report.compare.pick import Pick
from slimvit.report.compare.published import CLAIM_HEADER, claim_cells
from slimvit.utils.escaping import in_html, in_line
from slimvit.utils.reading import MOST, open_regular

TEMPLATE = Path(__file__).parent / "page.html"
MIME = {".svg": "image/svg+xml", ".png": "image/png"}
SHOWN = 12
"""Rows up to which the page shows the pictures of single runs."""


def page(comparison: Comparison, pictures: Mapping[str, Path]) -> str:
    """Return the page.

    Args:
        comparison: The runs.
        pictures: .svg or .png file by caption, to embed in the page.
    """
    cells = cells_of(comparison)
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=in_html(f"Trade-off: {', '.join(comparison.models)}"),
        about=in_html("; ".join(dict.fromkeys(row.data for row in comparison.rows))),
        notes=_lines('<p class="note"><b>Note:</b> {}</p>', comparison.notes),
        picks="\n".join(map(_picked, comparison.picks)),
        table=_table(comparison, cells),
        legend=_lines("<li>{}</li>", legend(cells, comparison)),
        claims=_claims(comparison),
        pictures="\n".join(f"<figure>{_image(title, path)}</figure>" for title, path in pictures.items()),
        runs=_runs(comparison),
        repeat=in_html(comparison.path_note),
        commands=in_html("\n".join(map(in_line, comparison.commands))),
    )


def _lines(form: str, texts: Sequence[str]) -> str:
    return "\n".join(form.format(in_html(text)) for text in texts)


def _picked(pick: Pick) -> str:
    rule, command = pick.rule, in_html(pick.row.command or "")
    text = f"<code>{in_html(rule.text)}</code> ({in_html(rule.goal)}): <b>{in_html(pick.row.name)}</b>"
    return f'<div class="pick">Picked by {text}<br><code>{command}</code></div>'


def _table(comparison: Comparison, cells: Cells) -> str:
    """The table; its cells hold the exact figures as sort keys, and missing figures sort last."""
    head = "".join(_head(name, i < len(cells.texts)) for i, name in enumerate(cells.header))
    lines = []
    for row, texts in zip(comparison.rows, cells.rows, strict=True):
        exact = [None] * len(cells.texts) + [row.value(c.key) for c in cells.figures]
        line = "".join(_cell(text, i, cells, exact[i] if i < len(exact) else None) for i, text in enumerate(texts))
        lines.append(f'<tr class="{row.kind}{" front" if row in comparison.front else ""}">{line}</tr>')
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table>"


def _head(name: str, is_text: bool) -> str:
    return f'<th scope="col"{_left(is_text)}><button type="button">{in_html(name)}</button></th>'


def _cell(text: str, column: int, cells: Cells, exact: float | None) -> str:
    if column < len(cells.texts):
        return f'<td class="text">{in_html(text)}</td>'
    is_figure = column < len(cells.texts) + len(cells.figures)
    value = f' data-value="{"" if exact is None else repr(exact)}"' if is_figure else ""
    return f"<td{value}>{in_html(text)}</td>"


def _left(is_text: bool) -> str:
    return ' class="text"' if is_text else ""


def _claims(comparison: Comparison) -> str:
    if not comparison.claims:
        return ""
    head = "".join(f'<th scope="col"{_left(n not in ("claimed", "measured"))}>{n}</th>' for n in CLAIM_HEADER)
    rows = [
        "".join(f"<td{_left(i in (0, 1, 4))}>{in_html(cell)}</td>" for i, cell in enumerate(cells))
        for cells in claim_cells(comparison.claims)
    ]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    table = f'<table class="plain"><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>'
    return f'<h2>Claimed beside measured</h2>\n<div class="wide">{table}</div>'


def _image(title: str, path: Path) -> str:
    with open_regular(path, MOST) as file:
        data = b64encode(file.read()).decode()
    return f'<img src="data:{MIME[path.suffix]};base64,{data}" alt="{in_html(title)}">'


def _captioned(title: str, path: Path) -> str:
    return f"<figure>{_image(title, path)}<figcaption>{in_html(title)}</figcaption></figure>"


def _runs(comparison: Comparison) -> str:
    """The pictures of the first run of every row, collapsed."""
    rows = [row for row in comparison.rows if row.runs and row.runs[0].pictures]
    if not rows or len(rows) > SHOWN:
        return ""
    parts = ["<h2>Heads and mixes</h2>"]
    for row in rows:
        figures = "".join(_captioned(title, path) for title, path in row.runs[0].pictures.items())
        parts.append(f"<details><summary>{in_html(row.name)}</summary>{figures}</details>")
    return "\n".join(parts)
