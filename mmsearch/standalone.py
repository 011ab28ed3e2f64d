"""HTML files that stand alone: no server, no network, no script; pictures and style are inside.

Each page's content security policy allows nothing but its own style sheet, named by hash, and data: images, so that a
hostile caption could not do harm even if the escaping of whoever writes the page had a hole.
"""

from base64 import b64encode
from hashlib import sha256
from html import escape

from mmsearch.present import one_line


def standalone_page(title: str, *, said: str, body: str, style: str) -> str:
    """A whole HTML page, to be written as UTF-8.

    title: the heading. said: the line below it. body: HTML already, of the part below both. style: CSS.
    """
    digest = b64encode(sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    heading = escape(one_line(title)) or "mmsearch"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{heading} · mmsearch</title>
<style>{style}</style>
</head>
<body>
<header>
<h1 dir="auto">{heading}</h1>
<p>{escape(said)}</p>
</header>
<main>
{body}
</main>
</body>
</html>
"""


def picture_source(file: bytes) -> str:
    """The data: address of a JPEG, PNG or WebP file."""
    return f"data:{_media_type(file)};base64,{b64encode(file).decode('ascii')}"


def _media_type(file: bytes) -> str:
    if file.startswith(b"\x89PNG"):
        return "image/png"
    return "image/webp" if file[8:12] == b"WEBP" else "image/jpeg"
