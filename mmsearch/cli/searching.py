"""Commands that ask an index."""

import sys
from pathlib import Path
from typing import Any

import click

from mmsearch.cli.printing import Output, index_option, note, output_options
from mmsearch.embedding import encodable
from mmsearch.errors import Error
from mmsearch.index import Index
from mmsearch.locations import index_folder
from mmsearch.query import MAX_LENGTH, Query

MAX_STDIN_BYTES = 250_000_000


class QueryCommand(click.Command):
    """A command whose arguments may begin with a minus that takes a term away: "- people" is no option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put such arguments where click looks for no options."""
        end = args.index("--") if "--" in args else len(args)
        taken = [argument for argument in args[:end] if argument.startswith("- ")]
        if taken:
            args = [argument for argument in args[:end] if argument not in taken] + ["--", *taken, *args[end + 1 :]]
        return super().parse_args(ctx, args)


@click.command(name="search", cls=QueryCommand)
@click.argument("query", nargs=-1, required=True)
@index_option
@click.option("-k", "k", default=10, show_default=True, type=click.IntRange(1), help="How many hits.")
@click.option("--kind", type=click.Choice(["image", "text"]), help="Only pictures, or only passages.")
@click.option("--under", metavar="FOLDER", multiple=True, type=click.Path(), help="Only what lies below. Repeatable.")
@click.option("--after", metavar="DATE", help="Taken in or after 2023, 2023-07 or 2023-07-14.")
@click.option("--before", metavar="DATE", help="Taken before it begins.")
@click.option("--near", metavar="LAT,LON,KM", help="Taken within so many km of a place, as 48.86,2.35,25.")
@click.option("--min-score", type=click.FloatRange(-1, 1), help="The least cosine between the query and a hit.")
@click.option(
    "--like", metavar="ID", multiple=True, help="Draw the query towards an item (--json has ids). Repeatable."
)
@click.option("--unlike", metavar="ID", multiple=True, help="Draw the query away from an item. Repeatable.")
@click.option("--rerank", is_flag=True, help="Let the model's fusion encoder order the first 50 pictures.")
@output_options
def search_command(
    query: tuple[str, ...],
    index_name: str,
    k: int,
    kind: Any,
    under: tuple[str, ...],
    after: str | None,
    before: str | None,
    near: str | None,
    min_score: float | None,
    rerank: bool,
    like: tuple[str, ...],
    unlike: tuple[str, ...],
    output: Output,
) -> None:
    """Find items by words, by a picture, or by both.

    Terms are added with + and taken away with -, both with blanks around; 0.5*snow gives a term a weight. A term that
    is a picture's path is that picture, the longest there is: "cat - Copy.jpg" is that file, "./cat.jpg - ./dog.jpg"
    two. "Words in double quotes" are words. A name that begins with a minus is written ./-name.jpg. - alone reads
    words, a path or a picture from stdin.

    \b
    Examples:
      mmsearch search a red bicycle in the snow
      mmsearch search "beach + ./dog.jpg - people"
      mmsearch search sunset --after 2023-07 --near 48.86,2.35,25
      mmsearch search cat --paths -0 | xargs -0 cp -t /tmp/cats
      mmsearch search cat -k 60 --html cats.html
      mmsearch search boots --like mm-12 --unlike mm-40    # refines this one query; `feedback add` keeps what you say
    """
    asked = " ".join(query)
    with Index(index_folder(index_name), notify=note) as index:
        hits = index.search(
            (_from_stdin() if asked == "-" else Query.parse(asked)).refined(like=like, unlike=unlike),
            k=k,
            kind=kind,
            under=under,
            after=after,
            before=before,
            near=_near(near),
            min_score=min_score,
            rerank=rerank,
        )
    output.show(hits, asked)


@click.command(name="lookup")
@click.argument("image", type=click.Path())
@index_option
@click.option("-k", "k", default=10, show_default=True, type=click.IntRange(1), help="How many hits.")
@click.option("--under", metavar="FOLDER", multiple=True, type=click.Path(), help="Only what lies below. Repeatable.")
@click.option("--min-score", type=click.FloatRange(-1, 1), help="The least cosine between the picture and a text.")
@output_options
def lookup_command(
    image: str, index_name: str, k: int, under: tuple[str, ...], min_score: float | None, output: Output
) -> None:
    """Find the captions and passages that fit a picture best; - reads the picture from stdin.

    \b
    Examples:
      mmsearch lookup ./dog.jpg
      mmsearch lookup - < dog.jpg
    """
    with Index(index_folder(index_name), notify=note) as index:
        hits = index.lookup(stdin_bytes() if image == "-" else Path(image), k=k, under=under, min_score=min_score)
    output.show(hits, image)


def _near(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        latitude, longitude, distance_km = (float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--near takes LAT,LON,KM, as 48.86,2.35,25, not '{text}'.") from None
    return latitude, longitude, distance_km


def stdin_bytes() -> bytes:
    """What comes on stdin. Raises Error where that has no end in sight."""
    try:
        data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    except OSError as error:
        raise Error(f"stdin cannot be read: {error.strerror or error}.") from error
    if len(data) > MAX_STDIN_BYTES:
        raise Error(
            f"What comes on stdin is larger than {MAX_STDIN_BYTES // 10**6} MB. Save it to a file and name that."
        )
    return data


def _from_stdin() -> Query:
    """A picture, or what is written: words, and paths in the very bytes of their names."""
    data = stdin_bytes()
    text = data.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape")
    if "\0" in text:
        return Query.of_picture(data)
    if text == encodable(text):
        return Query.parse(text)
    query = Query.parse(text) if len(text) <= MAX_LENGTH else None
    return query if query is not None and query.pictures else Query.of_picture(data)
