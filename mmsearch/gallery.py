"""Hits as one HTML file that stands alone, with thumbnails inside it."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import PurePath

from mmsearch.present import file_url, one_line, printable
from mmsearch.search import Hit
from mmsearch.standalone import picture_source, standalone_page

TEXT_LETTERS_MAX = 600  # of a passage; a card shows fewer, a hover shows these

# Pictures of one row are equally high because each grows in proportion to its shape; what is much wider or taller than
# these is shown whole on a ground of its own.
_RATIO_MIN, _RATIO_MAX = 0.6, 2.6
_CARD_RATIO = 1.25  # of a text

_STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --ink: #1b1b19; --quiet: #6d6c67; --ground: #ececea; --card: #ffffff; --line: #1b1b191c;
  --accent: #a5480f; --height: 210px;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #151514; --ink: #eeedea; --quiet: #9c9a93; --ground: #232321; --card: #1e1e1c; --line: #ffffff1f;
    --accent: #f0a36b;
  }
}
@media (max-width: 640px) { :root { --height: 130px; } }
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1680px; padding: clamp(20px, 4vw, 56px) clamp(14px, 3.5vw, 56px) 64px;
  background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  -webkit-text-size-adjust: 100%;
}
header { margin-bottom: clamp(20px, 3vw, 36px); }
h1 {
  margin: 0; font-size: clamp(24px, 3.2vw, 40px); font-weight: 650; line-height: 1.15; letter-spacing: -.022em;
  overflow-wrap: anywhere; text-wrap: balance;
}
header p { margin: 8px 0 0; color: var(--quiet); font-size: 15px; }
ol { list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 22px 14px; }
ol::after { content: ""; flex: 1000 0 0; }
li {
  --basis: calc(var(--ratio) * var(--height));
  flex: var(--ratio) 1 var(--basis); min-width: 0; max-width: calc(2 * var(--basis));
}
a { display: block; color: inherit; text-decoration: none; }
.frame {
  display: block; position: relative; aspect-ratio: var(--ratio); border-radius: 8px; overflow: hidden;
  background: var(--ground); transition: transform .16s ease, box-shadow .16s ease;
}
.frame::after {
  content: ""; position: absolute; inset: 0; border-radius: 8px; box-shadow: inset 0 0 0 1px var(--line);
}
.frame img { display: block; width: 100%; height: 100%; object-fit: cover; }
.whole img { object-fit: contain; }
a:hover .frame { transform: translateY(-2px); box-shadow: 0 8px 24px #0003; }
a:focus-visible { outline: none; }
a:focus-visible .frame { outline: 3px solid var(--accent); outline-offset: 2px; }
.missing { display: grid; place-items: center; color: var(--quiet); font-size: 13px; letter-spacing: .06em; }
.passage { display: grid; align-items: center; background: var(--card); padding: 16px 20px; }
.passage q {
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 7; overflow: hidden;
  font: 15.5px/1.5 Charter, "Iowan Old Style", Georgia, "Noto Serif", "DejaVu Serif", serif; quotes: none;
  overflow-wrap: anywhere;
}
.about { display: flex; gap: 10px; align-items: baseline; margin-top: 8px; }
.name { flex: 1; min-width: 0; font-weight: 550; }
.score { color: var(--quiet); font-size: 12px; font-variant-numeric: tabular-nums; }
.more { color: var(--quiet); font-size: 12.5px; }
.name, .more { display: block; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.more { min-height: 1.45em; }
@media (max-width: 640px) {
  .passage { padding: 10px 14px; }
  .passage q { font-size: 13.5px; -webkit-line-clamp: 5; }
  .score { display: none; }
}
@media (prefers-reduced-motion: reduce) { .frame { transition: none; } a:hover .frame { transform: none; } }
@media print { body { background: none; } li { break-inside: avoid; } .frame { box-shadow: 0 0 0 1px #ccc; } }
"""


def gallery_page(hits: Sequence[Hit], *, title: str, thumbnails: Mapping[str, bytes]) -> str:
    """A whole HTML page, to be written as UTF-8.

    title: the query. thumbnails: JPEG, PNG or WebP files by the path of the picture; one that is missing is shown as an
    empty frame with the picture's format. Every hit links to its original by a file:// address.
    """
    ratios = [_ratio(hit) for hit in hits]
    style = _STYLE + "".join(f".r{ratio:.0f} {{ --ratio: {ratio / 100:g}; }}\n" for ratio in sorted(set(ratios)))
    items = "\n".join(_item(hit, ratio, thumbnails) for hit, ratio in zip(hits, ratios, strict=True))
    return standalone_page(title, said=_count(hits), body=f"<ol>\n{items}\n</ol>", style=style)


def _count(hits: Sequence[Hit]) -> str:
    pictures = sum(hit.kind == "image" for hit in hits)
    texts = len(hits) - pictures
    counts = [
        f"{number:,} {word}{'s' * (number != 1)}" for number, word in ((pictures, "picture"), (texts, "text")) if number
    ]
    return (" and ".join(counts) + ", best first") if counts else "Nothing found"


def _ratio(hit: Hit) -> int:
    """Width over height in per cent, in steps of 5, as the page shows it."""
    exact = _exact_ratio(hit)
    return 5 * round(20 * min(max(exact, _RATIO_MIN), _RATIO_MAX))


def _exact_ratio(hit: Hit) -> float:
    if hit.kind == "text" or not hit.width or not hit.height:
        return _CARD_RATIO
    return hit.width / hit.height


def _item(hit: Hit, ratio: int, thumbnails: Mapping[str, bytes]) -> str:
    name = PurePath(hit.path).name if hit.path is not None else hit.id
    folder = PurePath(hit.path).parent.name if hit.path is not None else ""
    text = one_line((hit.text or "")[:TEXT_LETTERS_MAX])
    is_captioned = hit.kind == "image" and bool(text)
    label = text if is_captioned else printable(name)
    place = f"line {hit.line}" if hit.line is not None else ""
    more = " · ".join(filter(None, (place, (hit.taken_at or "")[:10], printable(name if is_captioned else folder))))
    frame = _passage(text) if hit.kind == "text" else _picture(hit, label, thumbnails)
    tip = "\n".join(filter(None, (text, printable(hit.path if hit.path is not None else hit.id))))
    inside = f"""{frame}
<span class="about"><bdi class="name">{escape(label)}</bdi><span class="score">{hit.score:.3f}</span></span>
<span class="more">{f"<bdi>{escape(more)}</bdi>" if more else ""}</span>"""
    href = f' href="{escape(file_url(hit.path))}"' if hit.path is not None else ""
    return f'<li class="r{ratio}"><a{href} rel="noreferrer" title="{escape(tip)}">{inside}</a></li>'


def _passage(text: str) -> str:
    return f'<span class="frame passage"><q dir="auto">{escape(text)}</q></span>'


def _picture(hit: Hit, label: str, thumbnails: Mapping[str, bytes]) -> str:
    thumbnail = thumbnails.get(hit.path) if hit.path is not None else None
    if thumbnail is None:
        return f'<span class="frame missing">{escape(printable(hit.format or "no preview"))}</span>'
    whole = "" if _RATIO_MIN <= _exact_ratio(hit) <= _RATIO_MAX else " whole"
    image = f'<img src="{picture_source(thumbnail)}" alt="{escape(label)}" loading="lazy" decoding="async">'
    return f'<span class="frame{whole}">{image}</span>'
