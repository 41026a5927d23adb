"""A page with everything in it: a table, notes and pictures; no script, nothing from elsewhere."""

import html
from collections.abc import Sequence
from dataclasses import dataclass

from rt3_tvm import __version__

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; padding: 0.5rem; max-width: 1500px; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; border: 1px solid #ddd; border-radius: 6px; padding: 0.5rem; }
figure svg { width: 100%; height: auto; }
figcaption, small { color: #444; font-size: 0.85rem; }
h1 { font-size: 1.3rem; } h2 { font-size: 1rem; margin: 0 0 0.3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
td, th { border-bottom: 1px solid #ddd; padding: 0.2rem 0.6rem; text-align: right; white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
@media (prefers-color-scheme: dark) { figure { background: #fff; } }
"""


@dataclass(frozen=True)
class Picture:
    """A picture as SVG, empty where there is none, with what it shows."""

    title: str
    caption: str
    svg: str


def document(
    title: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: dict[str, str],
    pictures: Sequence[Picture],
    foot: str,
) -> str:
    """Return the page; every text is escaped here, but for the pictures' SVG."""
    escape = html.escape
    body = "\n".join(
        f"<figure><h2>{escape(p.title)}</h2>{p.svg}<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in pictures
    )
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    table = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    listed = "\n".join(f"<li><b>{escape(k)}</b>: {escape(v)}</li>" for k, v in notes.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{escape(title)}</title><style>{STYLE}</style></head><body>
<h1>{escape(title)}</h1>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{table}</tbody></table></div>
<ul>{listed}</ul>
<main>
{body}
</main>
<small>rt3-tvm {escape(__version__)}{escape(foot)}</small>
</body></html>
"""
