"""Commands that judge one picture: does a text belong to it, which label, what can be said of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mmsearch.cli.printing import Command, index_option, note
from mmsearch.cli.searching import stdin_bytes
from mmsearch.errors import UsageError
from mmsearch.index import Index
from mmsearch.judging import TEMPLATES, described, judge_of
from mmsearch.locations import index_folder
from mmsearch.present import hit_object, printable, table

if TYPE_CHECKING:
    from mmsearch.judging import Judge

    Asks = Index | Judge


def judge_options(command: Command) -> Command:
    """Who is asked, on every command that judges."""
    by_model = click.option("--model", metavar="NAME", help="Ask this model, whether there is an index or not.")
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON; docs/judging.md documents it.")
    return index_option(by_model(as_json(command)))


@click.command(name="match")
@click.argument("image", type=click.Path())
@click.argument("text", nargs=-1, required=True)
@judge_options
def match_command(image: str, text: tuple[str, ...], index_name: str, model: str | None, as_json: bool) -> None:
    """Say how probable it is that a text belongs to a picture; - reads the picture from stdin.

    Of pairs that are said to be 0.8 probable, about four in five belong together, where half of all asked about do.

    \b
    Examples:
      mmsearch match ./dog.jpg a dog in the snow
      mmsearch match ./dog.jpg "a dog in the snow" --model lite --json
    """
    with _asked(index_name, model) as asks:
        found = asks.match(_picture(image), " ".join(text))
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
    else:
        click.echo(f"{found.probability:.3f}  by {found.by} (cosine {found.cosine:.3f})")
    if not found.understood:
        note("The model knows no word of this text, so it cannot say much about it.")


@click.command(name="classify")
@click.argument("image", type=click.Path())
@click.argument("text", nargs=-1)
@click.option("--labels", metavar="A,B,…", help="What to choose from, parted by commas; none asks a trained head.")
@click.option("--template", metavar="TEXT", multiple=True, help='How a label is said: "a map of {}". Repeatable.')
@judge_options
def classify_command(
    image: str,
    text: tuple[str, ...],
    labels: str | None,
    template: tuple[str, ...],
    index_name: str,
    model: str | None,
    as_json: bool,
) -> None:
    """Say which of some labels a picture is, or a picture with the text that goes with it.

    \b
    Examples:
      mmsearch classify ./dog.jpg --labels cat,dog,horse
      mmsearch classify ./post.jpg "what a day" --labels happy,sad
    """
    chosen = [label.strip() for label in (labels or "").split(",")] if labels else []
    with _asked(index_name, model) as asks:
        found = asks.classify(_picture(image), chosen, text=" ".join(text) or None, templates=template or TEMPLATES)
    if as_json:
        click.echo(json.dumps([asdict(label) for label in found], indent=2, ensure_ascii=False))
    else:
        click.echo(table(("share", "label"), [(f"{label.probability:.3f}", label.label) for label in found]))
        note(f"by {found[0].by}")


@click.command(name="describe")
@click.argument("image", type=click.Path())
@judge_options
def describe_command(image: str, index_name: str, model: str | None, as_json: bool) -> None:
    """Say what a picture shows: by the model's decoder, else by the nearest captions of the index, else by tags.

    \b
    Examples:
      mmsearch describe ./dog.jpg
      mmsearch describe ./dog.jpg --json
    """
    with _asked(index_name, model) as asks:
        shown = _picture(image)
        if isinstance(asks, Index):
            found = asks.describe(shown)
        else:
            shown = asks.read(shown)
            found = described((), asks.tags(shown), asks.said(shown))
    if as_json:
        says: dict[str, Any] = {
            "text": found.text,
            "by": found.by,
            "captions": [hit_object(hit) for hit in found.captions],
            "tags": {tag: round(probability, 4) for tag, probability in found.tags.items()},
        }
        click.echo(json.dumps(says, indent=2, ensure_ascii=False))
    elif found.text is None:
        note("Nothing fits: no caption of the index, and no everyday word.")
    else:
        click.echo(printable(found.text))
        note(f"by {found.by}")


@contextmanager
def _asked(index_name: str, model: str | None) -> Iterator["Asks"]:
    """The index; without one, or where a model is named, the model alone."""
    folder = index_folder(index_name)
    if model is None:
        with Index(folder, notify=note) as index:
            if index.exists:
                yield index
                return
    from mmsearch.encoders.catalog import load_encoder

    yield judge_of(load_encoder(model, progress=note))


def _picture(image: str) -> Any:
    if not image:
        raise UsageError("The path of the picture is empty.")
    return stdin_bytes() if image == "-" else image
