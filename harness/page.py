"""The comparison as one self-contained page: table, timelines to one scale, before and after, limits, advice."""

from __future__ import annotations

from html import escape

from common.files import cells, columns
from common.record import Conditions
from common.timeline import TITLES, Timeline
from harness import svg
from harness.advice import advice, remedy
from harness.rows import Row, steps
from harness.tables import ALL, SHORT, below

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #57606a; --page: #ffffff; --panel: #f3f5f8; --line: #d0d7de; --link: #0550ae }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --soft: #9da7b3; --page: #0d1117; --panel: #161b22; --line: #3d444d; --link: #79b8ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page) }
h1 { font-size: 1.5rem; margin: .5rem 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
a { color: var(--link) } :focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
.soft { color: var(--soft) } .advice { border-left: 4px solid var(--link); padding: .5rem 1rem; background: var(--panel) }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; background: var(--panel) }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--panel) }
.all table { font-size: .72rem } .all th, .all td { padding: .3rem .25rem } .all th { white-space: normal }
.bar { display: inline-block; height: .7em; background: #0072B2; vertical-align: baseline; min-width: 2px }
.timeline { display: block; width: 100%; min-width: 900px; height: auto }
.legend span { display: inline-block; margin-right: 1rem; white-space: nowrap } .legend i { display: inline-block; width: .9em; height: .9em; margin-right: .35em }
figure { margin: .5rem 0 } figcaption { color: var(--soft); font-size: .9rem } summary { cursor: pointer; color: var(--link) }
"""
MODELLED = "<p><strong>Times are modelled</strong>: the simulated GPU computes right outputs and models their timing.</p>"


def page(run: Conditions, rows: list[Row], timelines: dict[str, Timeline], parents: dict[str, str]) -> str:
    """The whole page. ``parents`` says which stage each is to be held against."""
    ms_wide = max((one.length_ms for one in timelines.values()), default=1.0) * 1.02
    shown = [name for name in TITLES if name != "decode" or any(name in one.rows for one in timelines.values())]
    legend = "".join(f'<span><i style="background:{svg.COLOURS[name]}"></i>{TITLES[name]}</span>' for name in shown)
    links = " · ".join(f'<a href="#{escape(row.stage)}">{escape(row.stage)}</a>' for row in rows)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>TensorRT ladder: {escape(str(run.device))}</title><style>{STYLE}{svg.STYLE}</style></head><body>
<header><h1>What each step bought</h1><p class="soft">{escape(str(run))}</p>{MODELLED if run.backend == "simulated" else ""}
<p class="advice">{escape(advice(rows))}</p><nav aria-label="Stages">{links}</nav></header>
<main><h2 id="table">The stages</h2>{html_table(steps(rows), SHORT)}
<ul>{"".join(f"<li>{escape(line)}</li>" for line in below(rows)[:-1])}</ul>
<details class="all"><summary>All columns</summary>{html_table(steps(rows), ALL)}</details>
<h2 id="timelines">The timelines, to one scale</h2><p class="soft">The measured window of each stage. A number is a batch's;
batches alternate in shade. <em>Limit</em> is how long the same batches would take if nothing but their longest part counted.</p>
<p class="legend">{legend}</p>
{"".join(section(row, rows, timelines, parents, ms_wide) for row in rows)}</main></body></html>
"""


def html_table(rows: list[Row], order: str) -> str:
    shown, slowest, body = columns(Row, order), max(row.per_batch_ms for row in rows), ""
    heads = "".join(f'<th scope="col">{escape(title)}</th>' for title, *_ in shown)
    for row in rows:
        first, time, *others = map(escape, cells(row.shown, shown))
        width = 8 * row.per_batch_ms / slowest if order == SHORT else 0
        bar = f' <span class="bar" aria-hidden="true" style="width:{width:.2f}em"></span>' if width else ""
        body += f'<tr><td><a href="#{first}">{first}</a></td><td>{time}{bar}</td>'
        body += "".join(f"<td>{cell}</td>" for cell in others) + "</tr>"
    return scrolled("Comparison table", f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>")


def scrolled(label: str, content: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def section(row: Row, rows: list[Row], timelines: dict[str, Timeline], parents: dict[str, str], ms_wide: float) -> str:
    """One stage: its timeline, what limits it and what to try, and its timeline under its parent's."""
    name, parent = row.stage, parents.get(row.stage)
    said = f"<strong>{row.per_batch_ms:.3f} ms a batch</strong>"
    if row.limiter is not None:
        said += f", {row.percent_of_limit:.0f} % of its own limit of {row.limit_ms:.3f} ms, limited by: {escape(row.limiter)}"
    text = f'<section><h2 id="{escape(name)}">{escape(name)}</h2><p>{said}. Next: {escape(remedy(row, rows))}.</p>'
    text += "<ul>" + "".join(f"<li>{escape(note)}</li>" for note in row.notes) + "</ul>" if row.notes else ""
    if name not in timelines:
        return text + '<p class="soft">No timeline.</p></section>'
    own = timelines[name]
    text += picture(own, ms_wide, f"{name}: the last {own.batches} batches of the measured window, {own.length_ms:.3f} ms")
    if parent in timelines:
        closer = max(own.length_ms, timelines[parent].length_ms) * 1.02
        pair = picture(timelines[parent], closer, f"before: {parent}") + picture(own, closer, f"after: {name}")
        text += f"<details><summary>Before and after: {escape(parent)} → {escape(name)}, enlarged</summary>{pair}</details>"
    return text + "</section>"


def picture(drawn: Timeline, ms_wide: float, caption: str) -> str:
    return f"<figure>{scrolled(caption, svg.svg(drawn, ms_wide))}<figcaption>{escape(caption)}</figcaption></figure>"
