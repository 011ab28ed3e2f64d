"""The command that says how good answers are."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmsearch.cli.printing import index_option, note, note_skipped, thumbnails_of
from mmsearch.cli.training import columns_of, columns_options
from mmsearch.errors import Error, UsageError
from mmsearch.index import Index
from mmsearch.locations import index_folder
from mmsearch.present import printable, table

if TYPE_CHECKING:
    from mmsearch.measuring import Accuracy, Evaluation


@click.command(name="evaluate")
@click.argument("pairs", metavar="[PAIRS]...", nargs=-1, type=click.Path())
@index_option
@click.option("--model", metavar="NAME", help="A model by itself, instead of an index.")
@click.option("--heads", metavar="NAME", help="Other heads of the index than those in use; 'off' for the model's own.")
@click.option("--against", metavar="OTHER", help="Heads of the index ('off': the model's own) or a model, to compare.")
@click.option(
    "--classes", metavar="FOLDER", type=click.Path(), help="Zero-shot accuracy on folders of classes instead."
)
@click.option("--worst", metavar="FILE", type=click.Path(dir_okay=False), help="Write a page of the worst failures.")
@click.option("--plots", metavar="FOLDER", type=click.Path(file_okay=False), help="Write plots as PNG files.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@columns_options
def evaluate_command(
    pairs: tuple[str, ...],
    index_name: str,
    model: str | None,
    heads: str | None,
    against: str | None,
    classes: str | None,
    worst: str | None,
    plots: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure how well texts find their pictures, and pictures their texts.

    PAIRS are as for `train heads`; without any, the captions in the index. Where they say what is for testing (a column
    split), that alone is measured. Intervals hold 95 % of resamples.

    \b
    Examples:
      mmsearch evaluate test.csv -i products --against off
      mmsearch evaluate test.csv --model lite --json
      mmsearch evaluate test.csv -i products --worst worst.html --plots plots
      mmsearch evaluate --classes ./flowers --model lite
    """
    from mmsearch import measuring

    columns = columns_of(options)
    if model is not None and heads is not None:
        raise UsageError("--heads are those of an index; leave out --model.")
    if classes is not None and (pairs or against or worst or plots):
        raise UsageError("--classes goes alone, with --model, --heads and --json.")
    if model is not None:
        from mmsearch.encoders.catalog import load_encoder

        encoder = load_encoder(model, progress=note)
        if classes is not None:
            return _print_accuracy(measuring.classify_folder(encoder, classes), as_json)
        found = measuring.evaluate_model(encoder, pairs, columns=columns, against=against, notify=note)
    else:
        with Index(index_folder(index_name), notify=note) as index:
            if classes is not None:
                return _print_accuracy(index.evaluate_classes(classes, heads=heads), as_json)
            found = index.evaluate(*pairs, columns=columns, heads=heads, against=against)
    if worst is not None:
        _write_worst(found, worst)
    if plots is not None:
        from mmsearch.plots import evaluation_plots

        for path in evaluation_plots(found, plots):
            note(f"Wrote {path}")
    note_skipped(found.skipped)
    click.echo(found.to_json() if as_json else _text(found))
    return None


def _write_worst(found: "Evaluation", file: str) -> None:
    from mmsearch.report_page import worst_page

    paths = [path for failure in found.worst for path in (*failure.right, *failure.instead)]
    page = worst_page(found, thumbnails_of(list(dict.fromkeys(paths)), size_px=264))
    try:
        Path(file).write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise Error(f"{file} cannot be written: {error.strerror or error}.") from error
    note(f"Wrote {file}")


def _text(found: "Evaluation") -> str:
    from mmsearch.measuring import DIRECTIONS

    lines = [f"{printable(found.name)}: {found.pairs:,} pairs of {found.pictures:,} pictures and {found.texts:,} texts"]
    columns = [found.figures] if found.against is None else [found.against.figures, found.figures]
    names = [""] if found.against is None else [f", {found.against.name}", f", {found.name}"]
    headers = ["", *(f"{way}{name}" for way in DIRECTIONS for name in names)]
    rows = [
        [f"recall@{k}", *(str(figures[way].recall[k]) for way in DIRECTIONS for figures in columns)] for k in (1, 5, 10)
    ]
    rows.append(["mean 1/rank", *(str(figures[way].reciprocal_rank) for way in DIRECTIONS for figures in columns)])
    rows.append(["median rank", *(f"{figures[way].median_rank.value:g}" for way in DIRECTIONS for figures in columns)])
    lines.append(table(headers, rows))
    if found.groups:
        shown = [(printable(group.name), f"{group.queries:,}", str(group.recall)) for group in found.groups[:10]]
        lines.append(table(("least found groups", "texts", "recall@10"), shown, right=(1,)))
    if found.against is not None:
        for way in DIRECTIONS:
            gain = found.against.gain[way]
            by = f"{gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
            lines.append(f"{way}: recall@10 {by}, p = {found.against.p[way]:.4f}")
    return "\n".join(lines)


def _print_accuracy(found: "Accuracy", as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    click.echo(f"{printable(found.name)}: {found.pictures:,} pictures of {found.classes:,} classes, zero-shot")
    click.echo(table(("", "accuracy"), [("first", found.top1), ("among five", found.top5)]))
    worst = sorted(found.by_class.items(), key=lambda each: each[1])[:10]
    click.echo(table(("least known", "first"), [(name, f"{share:.3f}") for name, share in worst]))
