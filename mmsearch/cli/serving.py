"""The command that opens the page and the API."""

import os

import click

from mmsearch.cli.printing import index_option, note
from mmsearch.index import Index
from mmsearch.locations import index_folder


@click.command(name="serve")
@index_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Another address is reached with a token only.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 takes a free one.")
@click.option(
    "--allow",
    metavar="FOLDER",
    multiple=True,
    type=click.Path(),
    help="A folder that may be indexed from the page. Repeatable.",
)
@click.option("--name", metavar="HOST", multiple=True, help="A host name that it is reached by. Repeatable.")
@click.option("--model", metavar="NAME", help="For a new index, as in `mmsearch index`.")
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
def serve_command(
    index_name: str,
    host: str,
    port: int,
    allow: tuple[str, ...],
    name: tuple[str, ...],
    model: str | None,
    opens: bool,
) -> None:
    """Open a page to search an index, and an HTTP API for apps.

    Only this machine reaches it. With another --host it prints a token that everyone has to give; MMSEARCH_TOKEN sets
    one of your own. It speaks plain HTTP: put a proxy with TLS before it where others share the network.

    \b
    Examples:
      mmsearch serve --open
      mmsearch serve -i products --port 9000
      mmsearch serve --allow ~/Pictures
      mmsearch serve --host 0.0.0.0
    """
    from mmsearch.serve.server import serve, settings_for

    settings = settings_for(host, port, allow, name, token=os.environ.get("MMSEARCH_TOKEN"))
    with Index(index_folder(index_name), model=model, notify=note) as index:
        serve(index, settings, opens_browser=opens, say=note)
