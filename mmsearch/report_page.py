"""Pages about pairs and answers, each one HTML file that stands alone."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath

from mmsearch.measuring import Evaluation
from mmsearch.present import one_line, printable
from mmsearch.standalone import picture_source, standalone_page

_STYLE = """
:root { color-scheme: light dark; --page: #fbfbfa; --ink: #1b1b19; --quiet: #6d6c67; --ground: #ececea;
  --line: #1b1b191c; --good: #2c7a4b; }
@media (prefers-color-scheme: dark) { :root { --page: #151514; --ink: #eeedea; --quiet: #9c9a93; --ground: #232321;
  --line: #ffffff1f; --good: #6cc48d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: clamp(18px, 4vw, 48px) clamp(14px, 3.5vw, 48px) 64px;
  background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: clamp(24px, 3vw, 36px); line-height: 1.15; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { margin: 0 0 10px; font-size: 17px; font-weight: 600; overflow-wrap: anywhere; }
h2 small { font-weight: 400; color: var(--quiet); font-size: 13px; white-space: nowrap; }
header p { margin: 8px 0 32px; color: var(--quiet); font-size: 15px; }
section { padding: 18px 0; border-top: 1px solid var(--line); }
ul { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 12px; }
li { width: 132px; }
li.gap { width: 1px; margin: 0 6px; background: var(--line); }
.frame { display: grid; place-items: center; width: 132px; height: 132px; border-radius: 8px; overflow: hidden;
  background: var(--ground); color: var(--quiet); font-size: 12px; }
.right .frame { box-shadow: 0 0 0 2px var(--page), 0 0 0 4px var(--good); }
.frame img { width: 100%; height: 100%; object-fit: contain; }
.name { display: block; margin-top: 6px; font-size: 12px; color: var(--quiet); overflow: hidden; white-space: nowrap;
  text-overflow: ellipsis; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 22px 5px 0; border-bottom: 1px solid var(--line); font-weight: 400; }
th { color: var(--quiet); }
@media (max-width: 640px) { li, .frame { width: 96px; } .frame { height: 96px; } }
"""


def worst_page(evaluation: Evaluation, thumbnails: Mapping[str, bytes]) -> str:
    """The texts whose picture came last, with what came first instead; thumbnails: files by the path of the picture."""
    figures = evaluation.figures["text to image"]
    said = (
        f"{len(evaluation.worst)} of {figures.queries:,} texts, among {figures.answers:,} pictures; "
        f"recall@10 {figures.recall[10]}. Framed: what was right. Beside it: what came first."
    )
    sections = [
        f"<section><h2><bdi>{escape(one_line(failure.text))}</bdi> <small>rank {failure.rank:,}</small></h2><ul>"
        + "".join(_shown(path, thumbnails, "right") for path in failure.right)
        + '<li class="gap" aria-hidden="true"></li>'
        + "".join(_shown(path, thumbnails, "instead") for path in failure.instead)
        + "</ul></section>"
        for failure in evaluation.worst
    ]
    return page(f"Worst answers of {evaluation.name}", said, sections or ["<p>Every text found its picture first.</p>"])


def page(title: str, said: str, sections: Sequence[str]) -> str:
    """A whole HTML page, to be written as UTF-8; sections are HTML already."""
    return standalone_page(title, said=said, body="\n".join(sections), style=_STYLE)


def figures_section(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as a section."""
    head = "".join(f"<th>{escape(each)}</th>" for each in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<section><h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table></section>"


def pictures_section(title: str, shown: Sequence[tuple[str, str]], thumbnails: Mapping[str, bytes]) -> str:
    """Pictures with a line below each, as a section."""
    return (
        f"<section><h2>{escape(title)}</h2><ul>"
        + "".join(_shown(path, thumbnails, "", line) for path, line in shown)
        + "</ul></section>"
    )


def plot_section(title: str, png: bytes) -> str:
    """A plot as a section."""
    image = f'<img src="{picture_source(png)}" alt="{escape(title)}" width="640">'
    return f"<section><h2>{escape(title)}</h2>{image}</section>"


def _shown(path: str, thumbnails: Mapping[str, bytes], kind: str, line: str | None = None) -> str:
    name = printable(PurePath(path).name) if line is None else one_line(line)
    thumbnail = thumbnails.get(path)
    inside = "no preview"
    if thumbnail is not None:
        inside = f'<img src="{picture_source(thumbnail)}" alt="{escape(name)}" loading="lazy">'
    return (
        f'<li class="{kind}" title="{escape(name)}"><span class="frame">{inside}</span>'
        f'<bdi class="name">{escape(name)}</bdi></li>'
    )
