"""Writing sections with tables and figures as Markdown, LaTeX, PNG, and one self-contained HTML page.

Names are escaped for each format, so that no character in them acts as markup. Each file is written atomically.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from nnunet_dg.extras import require
from nnunet_dg.files import replacing, write_text
from nnunet_dg.names import file_names, printable

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { padding: .2em .8em; text-align: right; }
th { border-bottom: 1px solid #111; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; display: block; margin: 1em 0; } p.note { color: #444; }
</style>
<h1>{{ title }}</h1>
{% for part in parts %}<h2>{{ part.title }}</h2>
<p class="note">{{ part.note }}</p>
{{ part.table | safe }}
{% for name, image in part.images %}<img alt="{{ part.title }}: {{ name }}" src="data:image/png;base64,{{ image }}">
{% endfor %}{% endfor %}</html>
"""
LATEX = str.maketrans({
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "[": "{[}", "]": "{]}", "±": r"$\pm$",
})  # fmt: skip


@dataclass(frozen=True)
class Part:
    """A section: title, note, a table with formatted numbers, and figures by name."""

    title: str
    note: str
    table: pd.DataFrame
    figures: Mapping[str, Figure]


def write(title: str, parts: list[Part], output: Path) -> None:
    """Write ``report.md``, ``report.tex``, ``report.html``, and each figure as PNG, to a folder.

    All text is rendered before the first file is written. File names of figures are made by `file_names`.
    """
    page = _html(title, parts)
    texts = {"report.md": _markdown(title, parts), "report.tex": _latex(parts), "report.html": page}
    figures = {name: figure for part in parts for name, figure in part.figures.items()}
    for name, file in file_names(figures).items():
        with replacing(output / f"{file}.png") as partial:
            partial.write_bytes(_png(figures[name], 150))
    for name, text in texts.items():
        write_text(output / name, text)


def _markdown(title: str, parts: list[Part]) -> str:
    texts = [f"# {_markdown_text(title)}"]
    for part in parts:
        texts.append(f"## {_markdown_text(part.title)}\n\n{_markdown_text(part.note)}")
        if len(part.table):
            texts.append(_table(part.table.rename(columns=_markdown_text).map(_markdown_text), "github"))
    return "\n\n".join(texts) + "\n"


def _markdown_text(value: Any) -> str:
    """Text escaped for CommonMark, where an underscore between letters needs no escaping."""
    escaped = re.sub(r"([\\`*\[\]<>|~$&#])", r"\\\1", printable(str(value)))
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)


def _latex(parts: list[Part]) -> str:
    return "\n\n".join(
        f"% {printable(part.title)}\n{_latex_table(part.table)}" for part in parts if len(part.table)
    ) + "\n"  # fmt: skip


def _latex_table(table: pd.DataFrame) -> str:
    header, *rows = [
        " & ".join(_latex_text(value) for value in row) + r" \\"
        for row in [list(table.columns), *table.itertuples(index=False)]
    ]
    start = rf"\begin{{tabular}}{{{'l' * len(table.columns)}}}"
    return "\n".join([start, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"])


def _latex_text(value: Any) -> str:
    return printable(str(value)).translate(LATEX)


def _html(title: str, parts: list[Part]) -> str:
    sections = [
        {
            "title": printable(part.title),
            "note": printable(part.note),
            "table": "" if part.table.empty else _table(_printable(part.table), "html"),
            "images": [
                (printable(name.replace("_", " ")), base64.b64encode(_png(figure, 110)).decode())
                for name, figure in part.figures.items()
            ],
        }
        for part in parts
    ]
    require("report", "The report")
    import jinja2

    page = jinja2.Environment(autoescape=True).from_string(PAGE)
    return page.render(title=printable(title), parts=sections)


def _printable(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(columns=printable).map(lambda value: printable(str(value)))


def _table(table: pd.DataFrame, form: str) -> str:
    require("report", "The report")
    from tabulate import tabulate

    return tabulate(table.astype(str), headers="keys", tablefmt=form, showindex=False, disable_numparse=True)


def _png(figure: Figure, dpi: int) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name has characters that the font lacks
        figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()
