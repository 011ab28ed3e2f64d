"""Commands that put things into an index, take them out, and say what is in it."""

import json
from dataclasses import asdict

import click

from mmsearch.cli.printing import fail, index_option, note
from mmsearch.encoders.bundle import Device, Precision
from mmsearch.index import Index, Status
from mmsearch.locations import index_folder, option_for
from mmsearch.planning import IngestOptions, Report
from mmsearch.present import printable, status_object, table
from mmsearch.store.paths import readable

SHOWN_SKIPS = 10


@click.command(name="index")
@click.argument("paths", metavar="[PATH]...", nargs=-1, type=click.Path())
@index_option
@click.option(
    "--model",
    metavar="NAME",
    help="For a new index: a name from `mmsearch models`, an open_clip name or a bundle's folder. "
    "[default: $MMSEARCH_MODEL, else auto]",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "int8"]),
    default="auto",
    show_default=True,
    help="For a new index by an open_clip model: 8 bits are faster; auto takes them where they find the same.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="What encodes pictures; auto takes a CUDA GPU, if there is one, for many pictures.",
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
    "--exclude",
    metavar="GLOB",
    multiple=True,
    help="Leave out what matches, as in a .gitignore; '!@eaDir/' takes in what is left out by itself. Repeatable.",
)
@click.option("--follow-links", is_flag=True, help="Follow symbolic links; loops are safe.")
@click.option("--accept-missing", is_flag=True, help="Believe that a folder is gone or empty, and take its items out.")
@click.option("--retry", is_flag=True, help="Read every file again that was skipped before, whatever the reason.")
@click.option("--dry-run", is_flag=True, help="Say what would happen and change nothing.")
@click.option("--wait", is_flag=True, help="Wait for another process that writes to the index, instead of leaving.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
def index_command(
    paths: tuple[str, ...],
    index_name: str,
    model: str | None,
    precision: Precision,
    device: Device,
    captions: tuple[str, ...],
    path_column: str | None,
    text_column: str | None,
    exclude: tuple[str, ...],
    follow_links: bool,
    accept_missing: bool,
    retry: bool,
    dry_run: bool,
    wait: bool,
    quiet: bool,
) -> None:
    """Put folders and files into an index, or bring it up to date.

    Run again, it reads what is new or changed, follows what was moved, and takes out what is gone. A folder that is
    gone or empty as a whole may be an unplugged drive: what it held is kept, and said. Without PATH it does so for
    everything that was ever put in.

    \b
    Examples:
      mmsearch index ~/Pictures
      mmsearch index ~/Pictures --exclude "*.gif" --exclude drafts/
      mmsearch index ./products --captions products.csv -i products
      mmsearch index                    # bring everything up to date
    """
    from mmsearch.progress import reporting

    options = IngestOptions(
        exclude=exclude,
        follow_links=follow_links,
        captions=captions,
        path_column=path_column,
        text_column=text_column,
        accept_missing=accept_missing,
        dry_run=dry_run,
        wait_s=None if wait else 0.0,
        retry=retry,
    )
    with Index(
        index_folder(index_name),
        model=model,
        precision=precision,
        device=device,
        notify=(lambda line: None) if quiet else note,
    ) as index:
        with reporting(quiet) as progress:
            report = index.add(*paths, options=options, progress=progress)
        if not quiet:  # when the bar is gone
            click.echo(_report(report, index))
    if report.left_out and not quiet:
        note(_left_out(report))
    for sentence in report.missing:
        fail(sentence, 1)
    for skip in [] if quiet else report.skipped[:SHOWN_SKIPS]:
        note(f"  skipped {skip.path}: {skip.reason}")
    if not quiet and len(report.skipped) > SHOWN_SKIPS:
        more = len(report.skipped) - SHOWN_SKIPS
        note(f"  and {more} more; `mmsearch status{option_for(index_folder(index_name))}` lists the files")
    if report.missing:
        raise SystemExit(1)


def _report(report: Report, index: Index) -> str:
    """What a run did, in one line: only what is not zero."""
    counts = report.counts | {"skipped": len(report.skipped)}
    said = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing to do"
    if report.dry_run:
        return f"Would do to {index.folder}: {said}"
    return f"{index.folder}: {said} ({report.seconds:.1f} s)"


def _left_out(report: Report) -> str:
    """Folders of a NAS or a system, how many of each name."""
    names = ", ".join(f"{count:,} {name}" for name, count in report.left_out.items())
    before = f", with {report.left_out_items:,} files that were in the index from them" if report.left_out_items else ""
    name = list(report.left_out)[-1]
    return f"Left out folders of a NAS or a system: {names}{before}. --exclude '!{name}/' takes such folders in."


@click.command(name="status")
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
        *([("heads", status.heads)] if status.heads else []),
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


@click.command(name="remove")
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


@click.command(name="models")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def models_command(as_json: bool) -> None:
    """List the names that --model takes.

    Besides these, any open_clip model works by its name (ARCH/TAG, hf-hub:…, local-dir:…), any bundle by its folder,
    and by its folder a CLIP, SigLIP or AltCLIP that transformers saved.

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
