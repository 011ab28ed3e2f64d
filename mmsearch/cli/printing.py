"""What all commands share: how hits and notes are printed, and the options that say so."""

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmsearch.errors import Error, UsageError
from mmsearch.locations import DEFAULT
from mmsearch.present import hits_json, hits_paths, hits_table, obeys, printable
from mmsearch.search import Hit

if TYPE_CHECKING:
    from mmsearch.sources.tables import BadRow

Command = Callable[..., Any]


def fail(sentence: str, code: int) -> int:
    """Print an error; returns the exit code."""
    click.echo(f"Error: {printable(sentence)}", err=True)
    return code


def note(line: str) -> None:
    """Print what is no result."""
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
            note("Nothing found.")
        if self.html is not None:
            self._write_gallery(hits, title, self.html)
        elif self.as_json:
            click.echo(hits_json(hits))
        elif self.as_paths:
            click.echo(hits_paths(hits, nul=self.nul), nl=False)
        elif self.preview:
            self._show_pictures(hits)
        elif hits:
            terminal = obeys(os.environ, sys.stdout.isatty())
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
        note(f"Wrote {file}")

    def _show_pictures(self, hits: Sequence[Hit]) -> None:
        from mmsearch.preview import cell_pixels, detect, preview

        protocol = detect(os.environ, obeys(os.environ, sys.stdout.isatty()))
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
    return thumbnails_of([hit.path for hit in hits if hit.kind == "image" and hit.path is not None], size_px)


def thumbnails_of(paths: Sequence[str], size_px: int) -> dict[str, bytes]:
    """path -> JPEG, for the pictures that can be read."""
    from mmsearch.decoding import DecodePool, Skip
    from mmsearch.encoders.preprocess import PixelSpec

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


def note_skipped(rows: "Sequence[BadRow]") -> None:
    """Say which pairs could not be used, the first ten with their reasons."""
    for row in rows[:10]:
        note(f"  skipped {row.table}{f', row {row.row}' if row.row else ''}: {row.reason}")
    if len(rows) > 10:
        note(f"  and {len(rows) - 10} more")
