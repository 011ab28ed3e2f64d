"""The command that tells which pictures are one."""

import os
import shutil
import sys
from collections.abc import Sequence

import click

from mmsearch.cli.printing import index_option, note
from mmsearch.duplicates import THRESHOLD
from mmsearch.index import Index
from mmsearch.locations import index_folder
from mmsearch.present import groups_json, groups_table, is_safe_in_lines, obeys, path_list, spare_paths


@click.command(name="duplicates")
@index_option
@click.option(
    "--threshold",
    default=THRESHOLD,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="How alike two pictures must be to be one, from 0 to 1; 1 gives copies to the byte alone.",
)
@click.option("--under", metavar="FOLDER", multiple=True, type=click.Path(), help="Only what lies below. Repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of groups.")
@click.option("--paths", "as_paths", is_flag=True, help="Print the spare paths alone: all of a group but its first.")
@click.option("-0", "nul", is_flag=True, help="With --paths: end each with a NUL byte, for xargs -0.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
def duplicates_command(
    index_name: str,
    threshold: float,
    under: tuple[str, ...],
    as_json: bool,
    as_paths: bool,
    nul: bool,
    quiet: bool,
) -> None:
    """Find pictures that are one: copies, and the same resized, recompressed, recoloured or with its edges cut off.

    The first of a group has the most pixels. Likeness is how well the details of two small versions correlate, in the
    part in which they do so least; 0.9 finds nearly all such copies. Look before you delete.

    Links and hard links to one file are that file, not copies of it. The files are read again, and what has changed
    since it was indexed is left out.

    \b
    Examples:
      mmsearch duplicates
      mmsearch duplicates --threshold 0.95 --under ~/Pictures/2023
      mmsearch duplicates --threshold 1 --paths -0 | xargs -0 -r ls -l    # copies to the byte, all but one of each
    """
    from mmsearch.progress import reporting

    if nul and not as_paths:
        raise click.UsageError("-0 goes with --paths.")
    if as_json and as_paths:
        raise click.UsageError("Take one of --json and --paths.")
    with Index(index_folder(index_name), notify=note) as index, reporting(quiet, is_kept=False) as progress:
        groups = index.duplicates(threshold=threshold, under=under, progress=progress)
    if as_json:
        click.echo(groups_json(groups))
    elif as_paths:
        _print_spares(spare_paths(groups), nul=nul)
    elif groups:
        terminal = obeys(os.environ, sys.stdout.isatty())
        width = shutil.get_terminal_size((100, 24)).columns
        click.echo(groups_table(groups, hyperlinks=terminal, width=width), color=terminal)
    spare = sum(len(group.copies) - 1 for group in groups)
    megabytes = sum(group.spare_bytes for group in groups) / 1e6
    found = "1 group" if len(groups) == 1 else f"{len(groups):,} groups"
    spares = "1 spare image takes" if spare == 1 else f"{spare:,} spare images take"
    note(f"{found}; {spares} {megabytes:,.1f} MB" if groups else "Nothing found.")


def _print_spares(paths: Sequence[str], *, nul: bool) -> None:
    """Print what somebody may hand to rm: nothing that would come apart on the way into the names of other files."""
    printed = [path for path in paths if nul or is_safe_in_lines(path)]
    click.echo(path_list(printed, nul=nul), nl=False)
    if len(printed) < len(paths):
        left = len(paths) - len(printed)
        note(
            f"{left:,} {'path' if left == 1 else 'paths'} not printed: with blanks, quotes or newlines in them, xargs "
            "would take them for others. Take --paths -0 and xargs -0."
        )
