"""HTML: one page that needs no script and nothing from elsewhere. All text is escaped here, and only here."""

import html
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class Html(str):
    """Markup. Any other string is text, and is escaped."""

    __slots__ = ()


@dataclass(frozen=True)
class Section:
    """A part of the page: its name in links, its heading, and what it holds."""

    name: str
    heading: str
    blocks: Sequence[Html]


def text(value: str) -> Html:
    """Escapes what is not markup."""
    return value if isinstance(value, Html) else Html(html.escape(value))


def join(parts: Iterable[str], between: str = "") -> Html:
    """Parts one after the other."""
    return Html(text(between).join(text(part) for part in parts))


def element(tag: str, *parts: str, **attributes: str) -> Html:
    """An element; `class_` is written as class."""
    named = "".join(f' {name.rstrip("_")}="{html.escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{named}>{join(parts)}</{tag}>")


def paragraph(*parts: str) -> Html:
    """Running text."""
    return element("p", *parts)


def note(*parts: str) -> Html:
    """What is missing, and why."""
    return element("p", *parts, class_="note")


def heading(what: str) -> Html:
    """Within a section."""
    return element("h3", what)


_MOST_COLUMNS = 9  # besides the first: more are not to be had on a page without a part of them cut off


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", *, prose: bool = False, together: int = 1
) -> Html:
    """A table that scrolls inside its own box; the first column names the rows, the others hold numbers or `prose`.

    One of more columns than a page is wide becomes several, one below the other.

    Args:
      header: Of the columns.
      rows: Cells.
      caption: Above it.
      prose: Whether cells hold sentences.
      together: So many columns belong to each other, and stay side by side.
    """
    rows, most = list(rows), _MOST_COLUMNS // together * together
    if len(header) - 1 > most and not prose:
        starts = range(1, len(header), most)
        cut = [[[row[0], *row[at : at + most]] for row in (header, *rows)] for at in starts]
        return join(table(part[0], part[1:], caption if n == 0 else "") for n, part in enumerate(cut))
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = [
        element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
    ]
    said = [element("caption", caption)] if caption else []
    inner = element("table", *said, element("thead", head), element("tbody", *body))
    kind = "scroll prose" if prose else "scroll"
    return element("div", inner, class_=kind, tabindex="0", role="region", **{"aria-label": caption or header[0]})


def figure(svg: str, title: str, caption: str = "") -> Html:
    """A figure: its SVG, which is taken for markup, between a title and an explanation."""
    below = [element("figcaption", caption)] if caption else []
    drawing = element("div", Html(svg), role="img", **{"aria-label": title})
    return element("figure", element("h4", title), drawing, *below)


def figures(*several: Html) -> Html:
    """Figures side by side, as many as there is room for."""
    return element("div", *several, class_="figures")


def side_by_side(*tables: Html) -> Html:
    """Tables, beside each other where there is room."""
    return element("div", *tables, class_="beside") if tables else Html()


def tiles(facts: Iterable[tuple[str, str, str]]) -> Html:
    """Few numbers that say the most: what, how much, and of what."""
    return element(
        "div",
        *(
            element(
                "div",
                element("span", what, class_="what"),
                element("strong", value),
                element("span", of, class_="of"),
                class_="tile",
            )
            for what, value, of in facts
        ),
        class_="tiles",
    )


def details(summary: str, *blocks: Html) -> Html:
    """What is folded up at first."""
    return element("details", element("summary", summary), *blocks)


def page(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The whole document."""
    links = join((element("a", part.heading, href=f"#{part.name}") for part in sections), Html("\n"))
    body = [element("section", element("h2", part.heading), *part.blocks, id=part.name) for part in sections]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            element("title", title),
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            element("header", element("h1", "alt-jax report"), element("p", subtitle), element("nav", links)),
            _distinct(element("main", *body)),
            element("footer", footer),
            "</body>",
            "</html>",
            "",
        ]
    )


def _distinct(markup: str) -> Html:
    """Prefixes the names inside every SVG with its number: a page is one document, in which a name may occur once."""
    numbers = itertools.count()

    def named(svg: re.Match[str]) -> str:
        prefix = f"f{next(numbers)}-"
        return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}", svg[0])

    return Html(re.sub("<svg.*?</svg>", named, markup, flags=re.S))


_STYLE = """
:root { --back: #f6f7f9; --card: #fff; --ink: #1a1f27; --soft: #5b6573; --line: #dfe3e9; --link: #0067a3;
  --warn: #8a4b00; --warn-back: #fff4e2; --bad: #b3001b; }
@media (prefers-color-scheme: dark) {
  :root { --back: #0f1216; --card: #181c22; --ink: #e6e9ee; --soft: #9aa5b3; --line: #2b323c; --link: #6cb8ee;
    --warn: #ffc983; --warn-back: #2c2214; --bad: #ff8a94; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--ink); overflow-wrap: anywhere;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
header, main, footer { max-width: 1180px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 28px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -0.01em; }
header p { color: var(--soft); margin: 0 0 14px; }
nav { display: flex; flex-wrap: wrap; gap: 6px; margin-bottom: 18px; }
nav a { padding: 3px 11px; border: 1px solid var(--line); border-radius: 99px; background: var(--card);
  color: var(--link); text-decoration: none; font-size: 0.875rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 18px 20px 20px;
  margin-bottom: 18px; }
h2 { font-size: 1.25rem; margin: 0 0 10px; }
h3 { font-size: 1.02rem; margin: 22px 0 8px; }
h4 { font-size: 0.92rem; margin: 0 0 6px; }
p { margin: 8px 0; max-width: 82ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 140px), 1fr)); gap: 10px;
  margin-bottom: 14px; }
.tile { border: 1px solid var(--line); border-radius: 8px; padding: 10px 13px; }
.tile span { display: block; color: var(--soft); font-size: 0.82rem; line-height: 1.35; }
.tile strong { font-size: 1.5rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 18px 22px;
  align-items: start; }
figure { margin: 8px 0 0; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; max-width: 500px; }
figure svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial,
  sans-serif !important; }
figcaption { color: var(--soft); font-size: 0.85rem; margin-top: 4px; max-width: 62ch; }
.scroll { overflow-x: auto; margin: 12px 0 8px; max-width: 100%; }
.beside { display: flex; flex-wrap: wrap; gap: 0 40px; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { caption-side: top; text-align: left; color: var(--soft); font-size: 0.85rem; padding-bottom: 4px; }
th, td { padding: 5px 14px 5px 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top;
  overflow-wrap: normal; }
th { font-weight: 600; white-space: nowrap; }
td { white-space: nowrap; }
th:first-child { text-align: left; }
thead th { color: var(--soft); font-weight: 500; white-space: normal; min-width: 5em; overflow-wrap: anywhere;
  vertical-align: bottom; }
.prose td, .prose th { text-align: left; white-space: normal; }
.prose tbody th { min-width: 9em; max-width: 36em; }
.prose td:last-child { min-width: 9em; }
.note { border-left: 3px solid var(--warn); background: var(--warn-back); color: var(--warn); padding: 7px 12px;
  border-radius: 0 6px 6px 0; }
.suspected { color: var(--warn); font-weight: 600; }
.bad { color: var(--bad); font-weight: 600; }
details { margin-top: 10px; }
summary { cursor: pointer; color: var(--link); }
footer { color: var(--soft); font-size: 0.85rem; padding-bottom: 30px; }
@media (max-width: 520px) {
  header, main, footer { padding-left: 8px; padding-right: 8px; }
  section { padding: 14px 12px 16px; border-radius: 8px; }
}
@media print { nav { display: none; } section { break-inside: avoid; } }
"""
