"""The command line: arguments in, one library call, printing out.

Results go to stdout, everything else to stderr. A mistake of the user's is one sentence and exit code 1, wrong usage 2,
Ctrl-C 130. Whatever a command can do, the library can.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from mmsearch import __version__
from mmsearch.errors import Error, UsageError
from mmsearch.index import Index, Status
from mmsearch.ingest import IngestOptions, Report
from mmsearch.locations import DEFAULT, index_folder
from mmsearch.present import hits_json, hits_paths, hits_table, printable, status_object, table
from mmsearch.query import Query
from mmsearch.search import Hit
from mmsearch.store.paths import readable

Command = Callable[..., Any]
SHOWN_SKIPS = 10
MAX_STDIN_BYTES = 250_000_000


def main() -> None:
    """Run the command line and exit."""
    # What is printed was made safe for a terminal; a locale that cannot spell it must not stop a search
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(standalone_mode=False, prog_name="mmsearch")
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except UsageError as error:
        code = _fail(str(error), 2)
    except Error as error:
        code = _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        code = 130
    except BrokenPipeError:  # `mmsearch search … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:  # a full disk behind stdout, say; what goes wrong with an index is an Error
        code = _fail(f"{error.filename or 'The output'}: {error.strerror or error}.", 1)
    sys.exit(code or 0)


def _fail(sentence: str, code: int) -> int:
    click.echo(f"Error: {printable(sentence)}", err=True)
    return code


def _note(line: str) -> None:
    click.echo(printable(line), err=True)


@dataclass(frozen=True)
class Output:
    """How hits are shown."""

    as_json: bool
    as_paths: bool
    nul: bool
    html: str | None
    preview: bool

    def show(self, hits: Sequence[Hit], title: str) -> None:
        """Print hits in the way that was asked for."""
        if not hits:
            _note("Nothing found.")
        if self.html is not None:
            self._write_gallery(hits, title, self.html)
        elif self.as_json:
            click.echo(hits_json(hits))
        elif self.as_paths:
            click.echo(hits_paths(hits, nul=self.nul), nl=False)
        elif self.preview:
            self._show_pictures(hits)
        elif hits:
            terminal = sys.stdout.isatty()
            click.echo(
                hits_table(hits, hyperlinks=terminal, width=shutil.get_terminal_size((100, 24)).columns), color=terminal
            )

    def _write_gallery(self, hits: Sequence[Hit], title: str, file: str) -> None:
        from mmsearch.gallery import gallery_page

        page = gallery_page(hits, title=title, thumbnails=_thumbnails(hits, size_px=480))
        try:
            Path(file).write_text(page, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise Error(f"{file} cannot be written: {error.strerror or error}.") from error
        _note(f"Wrote {file}")

    def _show_pictures(self, hits: Sequence[Hit]) -> None:
        from mmsearch.preview import cell_pixels, detect, preview

        protocol = detect(os.environ, sys.stdout.isatty())
        if protocol is None:
            raise UsageError("--preview needs a terminal that can show colours; use --html FILE instead.")
        columns = min(shutil.get_terminal_size((80, 24)).columns, 60)
        thumbnails = _thumbnails(hits, size_px=640)
        for hit in hits:
            click.echo(hits_table([hit], hyperlinks=True, width=100).split("\n", 1)[1], color=True)
            if hit.path in thumbnails:
                shown = preview(
                    thumbnails[hit.path], protocol, columns=columns, rows=16, cell=cell_pixels(sys.stdout.fileno())
                )
                click.echo(shown, color=True)


def _thumbnails(hits: Sequence[Hit], size_px: int) -> dict[str, bytes]:
    """path -> JPEG, for the pictures that can still be read."""
    from mmsearch.decoding import DecodePool, Skip
    from mmsearch.encoders.preprocess import PixelSpec

    paths = [hit.path for hit in hits if hit.kind == "image" and hit.path is not None]
    with DecodePool(PixelSpec(size_px, size_px, resize="within")) as pool:
        return {path: made for path, made in pool.thumbnails(paths, size_px) if not isinstance(made, Skip)}


def index_option(command: Command) -> Command:
    """--index, on every command that works on one."""
    return click.option(
        "--index",
        "-i",
        "index_name",
        metavar="NAME-OR-FOLDER",
        envvar="MMSEARCH_INDEX",
        default=DEFAULT,
        show_default=True,
        show_envvar=True,
        help="A bare name lives in ./indexes where that folder exists, else in your data folder.",
    )(command)


def output_options(command: Command) -> Command:
    """How hits are shown, on every command that has hits."""

    def bound(as_json: bool, as_paths: bool, nul: bool, html: str | None, preview: bool, **rest: Any) -> None:
        if nul and not as_paths:
            raise click.UsageError("-0 goes with --paths.")
        if sum((as_json, as_paths, html is not None, preview)) > 1:
            raise click.UsageError("Take one of --json, --paths, --html and --preview.")
        command(output=Output(as_json, as_paths, nul, html, preview), **rest)

    bound.__name__, bound.__doc__ = command.__name__, command.__doc__
    bound.__click_params__ = getattr(command, "__click_params__", [])  # type: ignore[attr-defined]  # where click keeps them
    for option in (
        click.option("--preview", is_flag=True, help="Show the pictures in the terminal."),
        click.option(
            "--html", metavar="FILE", type=click.Path(dir_okay=False), help="Write a gallery page that needs no server."
        ),
        click.option("-0", "nul", is_flag=True, help="With --paths: end each with a NUL byte, for xargs -0."),
        click.option("--paths", "as_paths", is_flag=True, help="Print paths alone, one a line."),
        click.option("--json", "as_json", is_flag=True, help="Print a JSON array; the README documents its objects."),
    ):
        option(bound)
    return bound


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mmsearch")
def cli() -> None:
    """Search pictures and texts by meaning, on your own machine.

    \b
    Examples:
      mmsearch index ~/Pictures
      mmsearch search "a red bicycle in the snow"
      mmsearch search ./dog.jpg
      mmsearch lookup ./dog.jpg
    """


@cli.command(name="index")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@index_option
@click.option(
    "--model",
    metavar="NAME",
    help="For a new index: a name from `mmsearch models`, an open_clip name or a bundle's folder. "
    "[default: $MMSEARCH_MODEL, else auto]",
)
@click.option(
    "--captions",
    metavar="FILE",
    multiple=True,
    type=click.Path(),
    help="A table of pictures and texts: csv, tsv, jsonl or parquet. Repeatable.",
)
@click.option("--path-column", metavar="NAME", help="The table's column of paths, where it is not guessed right.")
@click.option("--text-column", metavar="NAME", help="The table's column of texts, where it is not guessed right.")
@click.option(
    "--exclude", metavar="GLOB", multiple=True, help="Leave out what matches, as in a .gitignore. Repeatable."
)
@click.option("--follow-links", is_flag=True, help="Follow symbolic links; loops are safe.")
@click.option("--accept-missing", is_flag=True, help="Believe that a folder is gone or empty, and take its items out.")
@click.option("--dry-run", is_flag=True, help="Say what would happen and change nothing.")
@click.option("--wait", is_flag=True, help="Wait for another process that writes to the index, instead of leaving.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def index_command(
    paths: tuple[str, ...],
    index_name: str,
    model: str | None,
    captions: tuple[str, ...],
    path_column: str | None,
    text_column: str | None,
    exclude: tuple[str, ...],
    follow_links: bool,
    accept_missing: bool,
    dry_run: bool,
    wait: bool,
    quiet: bool,
) -> None:
    """Put folders and files into an index, or bring it up to date.

    Run again, it reads what is new or changed, follows what was moved, and takes out what is gone. Without PATH it does
    so for everything that was ever put in.

    \b
    Examples:
      mmsearch index ~/Pictures
      mmsearch index ~/Pictures --exclude "*.gif" --exclude drafts/
      mmsearch index ./products --captions products.csv -i products
      mmsearch index                    # bring everything up to date
    """
    from mmsearch.progress import reporting

    options = IngestOptions(
        exclude, follow_links, captions, path_column, text_column, accept_missing, dry_run, None if wait else 0.0
    )
    with (
        Index(index_folder(index_name), model=model, notify=(lambda line: None) if quiet else _note) as index,
        reporting(quiet) as progress,
    ):
        report = index.add(*paths, options=options, progress=progress)
        if not quiet:
            click.echo(_report(report, index))
    for sentence in report.missing:
        _fail(sentence, 1)
    for skip in [] if quiet else report.skipped[:SHOWN_SKIPS]:
        _note(f"  skipped {skip.path}: {skip.reason}")
    if not quiet and len(report.skipped) > SHOWN_SKIPS:
        _note(f"  and {len(report.skipped) - SHOWN_SKIPS} more; `mmsearch status` lists the files")
    if report.missing:
        raise SystemExit(1)


def _report(report: Report, index: Index) -> str:
    """What a run did, in one line: only what is not zero."""
    counts = {
        "added": report.added,
        "changed": report.changed,
        "moved": report.moved,
        "removed": report.removed,
        "unchanged": report.unchanged,
        "captions": report.captions,
        "skipped": len(report.skipped),
    }
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do"
    if report.dry_run:
        return f"Would do to {index.folder}: {said}"
    return f"{index.folder}: {said} ({report.seconds:.1f} s)"


class QueryCommand(click.Command):
    """A command whose arguments may begin with a minus that takes a term away: "- people" is no option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put such arguments where click looks for no options."""
        end = args.index("--") if "--" in args else len(args)
        taken = [argument for argument in args[:end] if argument.startswith("- ")]
        if taken:
            args = [argument for argument in args[:end] if argument not in taken] + ["--", *taken, *args[end + 1 :]]
        return super().parse_args(ctx, args)


@cli.command(name="search", cls=QueryCommand)
@click.argument("query", nargs=-1, required=True)
@index_option
@click.option("-k", "k", default=10, show_default=True, type=click.IntRange(1), help="How many hits.")
@click.option("--kind", type=click.Choice(["image", "text"]), help="Only pictures, or only passages.")
@click.option("--under", metavar="FOLDER", multiple=True, type=click.Path(), help="Only what lies below. Repeatable.")
@click.option("--after", metavar="DATE", help="Taken in or after 2023, 2023-07 or 2023-07-14.")
@click.option("--before", metavar="DATE", help="Taken before it begins.")
@click.option("--near", metavar="LAT,LON,KM", help="Taken within so many km of a place, as 48.86,2.35,25.")
@click.option("--min-score", type=click.FloatRange(-1, 1), help="The least cosine between the query and a hit.")
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
    output: Output,
) -> None:
    """Find items by words, by a picture, or by both.

    Terms are added with + and taken away with -, both with blanks around; 0.5*snow gives a term a weight. A term that
    is a picture's path is that picture; "words in double quotes" are words. - alone reads either from stdin.

    \b
    Examples:
      mmsearch search a red bicycle in the snow
      mmsearch search "beach + ./dog.jpg - people"
      mmsearch search sunset --after 2023-07 --near 48.86,2.35,25
      mmsearch search cat --paths -0 | xargs -0 cp -t /tmp/cats
      mmsearch search cat -k 60 --html cats.html
    """
    asked = " ".join(query)
    with Index(index_folder(index_name), notify=_note) as index:
        hits = index.search(
            _from_stdin() if asked == "-" else asked,
            k=k,
            kind=kind,
            under=under,
            after=after,
            before=before,
            near=_near(near),
            min_score=min_score,
        )
    output.show(hits, asked)


@cli.command(name="lookup")
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
    with Index(index_folder(index_name), notify=_note) as index:
        hits = index.lookup(_stdin_bytes() if image == "-" else Path(image), k=k, under=under, min_score=min_score)
    output.show(hits, image)


@cli.command(name="status")
@index_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
def status_command(index_name: str, as_json: bool) -> None:
    """Show what an index holds, its model, its size, and every skipped file with its reason.

    \b
    Examples:
      mmsearch status
      mmsearch status -i products --json
    """
    with Index(index_folder(index_name)) as index:
        status = index.status()
    click.echo(json.dumps(status_object(status), indent=2) if as_json else _status_text(status))


def _status_text(status: Status) -> str:
    facts = [
        ("index", status.folder),
        ("model", f"{status.model} ({status.dim} dimensions)"),
        ("images", f"{status.images:,}"),
        ("passages", f"{status.passages:,}"),
        ("captions", f"{status.captions:,}"),
        ("on disk", f"{status.size_bytes / 1e6:,.1f} MB"),
        ("up to date", status.updated_at or "no run has ended yet"),
        *(("source" if number == 0 else "", root) for number, root in enumerate(status.roots)),
        ("skipped", f"{len(status.skipped):,}"),
    ]
    lines = [f"{name:<11}{printable(readable(value))}" for name, value in facts]
    lines += [f"  {printable(file.path)}: {printable(file.skipped or '')}" for file in status.skipped]
    return "\n".join(lines)


@cli.command(name="remove")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=click.Path())
@index_option
@click.option("--wait", is_flag=True, help="Wait for another process that writes to the index, instead of leaving.")
def remove_command(paths: tuple[str, ...], index_name: str, wait: bool) -> None:
    """Take items out of an index; no file on disk is touched.

    A folder means everything below it. What lies in a folder that is indexed again comes back: use --exclude there.

    \b
    Examples:
      mmsearch remove ~/Pictures/drafts
      mmsearch remove -- -odd-name.jpg
    """
    with Index(index_folder(index_name)) as index:
        gone = index.remove(*paths, wait_s=None if wait else 0.0)
    click.echo(f"{gone:,} removed from {index.folder}; the files are where they were")


@cli.command(name="serve")
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
    with Index(index_folder(index_name), model=model, notify=_note) as index:
        serve(index, settings, opens_browser=opens, say=_note)


@cli.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def models_command(as_json: bool) -> None:
    """List the names that --model takes.

    Besides these, any open_clip model works by its name (ARCH/TAG, hf-hub:…, local-dir:…) and any bundle by its folder.

    \b
    Examples:
      mmsearch models
      mmsearch index ~/Pictures --model balanced
    """
    from mmsearch.encoders.catalog import entries, on_this_machine

    listed = [(entry, on_this_machine(entry)) for entry in entries()]
    if as_json:
        click.echo(json.dumps([asdict(entry) | {"on_this_machine": here} for entry, here in listed], indent=2))
        return
    rows = [
        (
            entry.name,
            "yes" if here else "no",
            f"{entry.size_mb:,} MB",
            entry.licence,
            entry.languages,
            entry.description,
        )
        for entry, here in listed
    ]
    click.echo(table(("name", "here", "size", "licence", "languages", "what it is for"), rows, right=(2,)))


def _near(text: str | None) -> tuple[float, float, float] | None:
    if text is None:
        return None
    try:
        latitude, longitude, distance_km = (float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"--near takes LAT,LON,KM, as 48.86,2.35,25, not '{text}'.") from None
    return latitude, longitude, distance_km


def _stdin_bytes() -> bytes:
    data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
    if len(data) > MAX_STDIN_BYTES:
        raise Error(
            f"What comes on stdin is larger than {MAX_STDIN_BYTES // 10**6} MB. Save it to a file and name that."
        )
    return data


def _from_stdin() -> Query:
    """Words if stdin is text, else a picture."""
    data = _stdin_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Query.of_picture(data)
    return Query.of_picture(data) if "\0" in text else Query.parse(text.strip())
