"""Sections with tables and pictures as files: Markdown, LaTeX, PNG, and one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

PAGE = jinja2.Environment(autoescape=True).from_string("""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #111; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .2em .8em; text-align: right; }
th { border-bottom: 1px solid #111; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; display: block; margin: 1em 0; } p.note { color: #444; }
</style>
<h1>{{ title }}</h1>
{% for part in parts %}<h2>{{ part.title }}</h2>
<p class="note">{{ part.note }}</p>
{{ part.table | safe }}
{% for image in part.images %}<img alt="{{ part.title }}" src="data:image/png;base64,{{ image }}">
{% endfor %}{% endfor %}</html>
""")


@dataclass(frozen=True)
class Part:
    """A section: a table as people read it, and pictures by file name."""

    title: str
    note: str
    table: pd.DataFrame
    figures: Mapping[str, Figure]


def write(title: str, parts: list[Part], output: Path) -> None:
    """Write ``report.md``, ``report.tex``, ``report.html``, and each picture as PNG, into a folder."""
    (output / "report.md").write_text(_text(title, parts, "github"))
    (output / "report.tex").write_text(_latex(parts))
    (output / "report.html").write_text(_html(title, parts))
    for part in parts:
        for name, figure in part.figures.items():
            figure.savefig(output / f"{re.sub('[^A-Za-z0-9.-]+', '_', name).strip('_')}.png", dpi=150)


def _text(title: str, parts: list[Part], form: str) -> str:
    texts = [f"# {title}"]
    for part in parts:
        texts.append(f"## {part.title}\n\n{part.note}")
        if len(part.table):
            texts.append(_table(part.table, form))
    return "\n\n".join(texts) + "\n"


def _latex(parts: list[Part]) -> str:
    return "\n\n".join(
        f"% {part.title}\n" + _table(part.table, "latex_booktabs").replace("±", r"$\pm$")
        for part in parts
        if len(part.table)
    ) + "\n"  # fmt: skip


def _html(title: str, parts: list[Part]) -> str:
    sections = [
        {
            "title": part.title,
            "note": part.note,
            "table": "" if part.table.empty else _table(part.table, "html"),
            "images": [_embedded(figure) for figure in part.figures.values()],
        }
        for part in parts
    ]
    return PAGE.render(title=title, parts=sections)


def _table(table: pd.DataFrame, form: str) -> str:
    return tabulate(table.astype(str), headers="keys", tablefmt=form, showindex=False, disable_numparse=True)


def _embedded(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
