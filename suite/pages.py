"""The report of a directory as a page: in HTML, which needs no other file, and in Markdown, its pictures beside it."""

import base64
import html
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from suite.comparison import asked_alike
from suite.samples import fenced, inline, verdict
from suite.tables import APART, NOTE, markdown_table, purposes, table_rows


def in_html(title: str, results: list[dict], pictures: dict[str, list[Path]], samples, about: dict[str, str]) -> str:
    """One HTML page that needs no other file: table, pictures, completions."""
    esc = html.escape
    parts = [f"<h1>{esc(title)}</h1>"]
    if results:
        parts.append(f"<h2>Before and after</h2>{_html_tables(purposes, results)}")
        parts.append(f"<h2>All that was measured</h2>{_html_tables(table_rows, results)}<p class=note>{esc(NOTE)}</p>")
    for heading, paths in pictures.items():
        note = f"<p class=note>{esc(about[heading])}</p>" if heading in about else ""
        images = "".join(
            f'<img alt="{esc(p.stem)}" src="data:image/png;base64,{base64.b64encode(p.read_bytes()).decode()}">'
            for p in paths
        )
        parts.append(f"<h2>{esc(heading)}</h2>{note}<div class=grid>{images}</div>")
    for prompt, solution, group in samples:
        cells = "".join(
            f"<div class='said {verdict(row)}'><b>{esc(row['stage'])}</b>, {verdict(row)}"
            f"<pre>{esc(row['completion'])}</pre></div>"
            for row in group
        )
        parts.append(f"<h2 class=asked>{esc(prompt)} <span>(gold: {esc(str(solution))})</span></h2>"
                     f"<div class=grid>{cells}</div>")  # fmt: skip
    return f"<!doctype html><html lang=en><meta charset=utf-8><title>{esc(title)}</title>{_STYLE}<body>{''.join(parts)}"


def _html_tables(table: Callable, results: list[dict]) -> str:
    """A table for each way in which they were asked, under a heading that says how."""
    ways = asked_alike(results)
    told = [f"<h3>{html.escape(how)}</h3>{_html_table(*table(alike))}" for how, alike in ways]
    return f"<p>{APART}</p>{''.join(told)}" if len(ways) > 1 else _html_table(*table(results))


def _html_table(headings: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def in_markdown(title: str, results: list[dict], pictures: dict[str, list[Path]], samples, about: dict) -> str:
    """The same in Markdown, its pictures beside it; short, with the first picture of each heading."""
    parts = [f"# {title}"]
    if results:
        parts.append(_markdown_tables(purposes, results))
        parts.append(f"All that was measured:\n\n{_markdown_tables(table_rows, results)}\n\n{NOTE}")
    for heading, paths in pictures.items():
        first = paths[0]
        place = quote(f"{first.parent.name}/{first.name}")  # a run may be called by more than a word
        parts += [f"## {inline(heading)}", *([about[heading]] if heading in about else []), f"![{first.stem}]({place})"]
    for prompt, solution, group in samples:
        parts.append(f"## {inline(prompt)} (gold: {inline(str(solution))})")
        for row in group:
            parts.append(f"{row['stage']}, {verdict(row)}:\n\n{fenced(row['completion'])}")
    return "\n\n".join(parts) + "\n"


def _markdown_tables(table: Callable, results: list[dict]) -> str:
    ways = asked_alike(results)
    told = [f"**{inline(how)}**\n\n{markdown_table(*table(alike))}" for how, alike in ways]
    return "\n\n".join([APART, *told]) if len(ways) > 1 else markdown_table(*table(results))


_STYLE = """<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}h3{font-size:.95rem}h2 span{color:#777;font-weight:400}
table{border-collapse:collapse;display:block;overflow-x:auto}
th,td{white-space:nowrap;padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child{text-align:left}.note{color:#666;font-size:.85rem}
.grid{display:flex;flex-wrap:wrap;gap:1rem}.grid img{max-width:100%;width:520px;height:auto}
.said{flex:1 1 200px;border-left:3px solid #c4622d;padding-left:.7rem}.said.right{border-color:#4f8a4b}
.said.not{border-color:#999}
pre{white-space:pre-wrap;font-size:.8rem;margin:.3rem 0}
</style>"""
