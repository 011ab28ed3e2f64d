"""Commands that teach an index: heads trained on pairs, feedback, and what is in use."""

import json
import os
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mmsearch.cli.printing import index_option, note, note_skipped
from mmsearch.errors import UsageError
from mmsearch.index import Index
from mmsearch.locations import index_folder, option_for
from mmsearch.present import obeys, printable, table

if TYPE_CHECKING:
    from mmsearch.preparing import Prepared
    from mmsearch.train.residual import Epoch
    from mmsearch.training import HeadsReport

Command = Callable[..., Any]


def columns_options(command: Command) -> Command:
    """The columns of a table of pairs, on every command that reads one."""
    for name, what in (
        ("split", "says train, validation or test; nothing is learned from the last two"),
        ("group", "names what must not be both learned from and tested on, such as a product"),
        ("weight", "says how much a pair counts"),
        ("label", "says 0 or 1, whether the pair matches, or names a class"),
        ("text", "holds the texts"),
        ("path", "holds the paths"),
    ):
        option = click.option(f"--{name}-column", metavar="NAME", help=f"The table's column that {what}.")
        command = option(command)
    return command


def columns_of(options: dict[str, Any]) -> Any:
    """Take the columns out of a command's options."""
    from mmsearch.sources.pairs import PairColumns

    names = ("path", "text", "label", "weight", "group", "split")
    return PairColumns(**{name: options.pop(f"{name}_column") for name in names})


@click.group(name="train")
def train_group() -> None:
    """Teach an index from pairs of pictures and texts."""


@train_group.command(name="heads")
@click.argument("pairs", metavar="[PAIRS]...", nargs=-1, type=click.Path())
@index_option
@click.option("--name", default="trained", show_default=True, help="What to call the heads; the same name replaces.")
@click.option("--config", metavar="FILE", type=click.Path(dir_okay=False), help="Settings in TOML, by their names.")
@click.option("--set", "set_", metavar="NAME=VALUE", multiple=True, help="One setting. Repeatable. --list names them.")
@click.option(
    "--use/--no-use", default=None, help="Take them into use in any case, or not. [default: if they are better]"
)
@click.option(
    "--unfreeze", metavar="N", type=int, help="Train the last N blocks of both towers too: a model of its own, in -o."
)
@click.option("-o", "--output", metavar="FOLDER", type=click.Path(), help="Where that model goes.")
@click.option("--list", "lists", is_flag=True, help="Print all settings with their defaults, as TOML.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--wait", is_flag=True, help="Wait for another process that writes to the index, instead of leaving.")
@columns_options
def train_heads_command(
    pairs: tuple[str, ...],
    index_name: str,
    name: str,
    config: str | None,
    set_: tuple[str, ...],
    use: bool | None,
    unfreeze: int | None,
    output: str | None,
    lists: bool,
    as_json: bool,
    wait: bool,
    **options: Any,
) -> None:
    """Train projection heads on pairs, and use them where held-out pairs say that they are better.

    PAIRS are tables (csv, tsv, jsonl, parquet) with a column of paths and one of texts, webdataset tars, or folders of
    pictures with captions beside them. Without any, the captions in the index. Feedback is always learned from too.

    \b
    Examples:
      mmsearch train heads products.csv -i products
      mmsearch train heads pairs.tar --set loss=sigmoid --set epochs=80
      mmsearch train heads                    # from the captions that the index holds
      mmsearch heads off                      # back to the first answers
      mmsearch train heads products.csv -i products --unfreeze 2 -o ./products-model
    """
    from mmsearch.train.residual import HeadSettings

    columns = columns_of(options)
    if (unfreeze is None) != (output is None):
        raise UsageError("--unfreeze and --output belong together: how many blocks learn, and where the model goes.")
    if unfreeze is not None and output is not None:
        _unfreeze(pairs, index_name, unfreeze, output, settings_of(config, set_), columns, lists, as_json)
        return
    if lists:
        _list_settings(HeadSettings())
        return
    settings = HeadSettings.of(settings_of(config, set_))
    with Index(index_folder(index_name), notify=note) as index:
        report = index.train_heads(
            *pairs,
            name=name,
            settings=settings,
            columns=columns,
            use=use,
            wait_s=None if wait else 0.0,
            tell=_told,
        )
    note_skipped(report.skipped)
    click.echo(report.to_json() if as_json else _report(report))


def _list_settings(defaults: object) -> None:
    for key, value in vars(defaults).items():
        click.echo(f"{key} = {json.dumps(value)}")


def _unfreeze(
    pairs: tuple[str, ...],
    index_name: str,
    blocks: int,
    output: str,
    given: dict[str, Any],
    columns: Any,
    lists: bool,
    as_json: bool,
) -> None:
    from mmsearch.cli.encoders import told
    from mmsearch.train.unfreeze import UnfreezeSettings

    if lists:
        _list_settings(UnfreezeSettings())
        return
    if not pairs:
        raise UsageError("Name the pairs to learn from: --unfreeze reads their pictures again.")
    with Index(index_folder(index_name), notify=note) as index:
        settings = UnfreezeSettings.of(given)
        report = index.unfreeze(*pairs, into=output, blocks=blocks, settings=settings, columns=columns, tell=told)
    note_skipped(report.skipped)
    if as_json:
        click.echo(json.dumps(report.facts(), indent=2))
        return
    click.echo(
        f"{report.pairs:,} pairs learned from, {report.learned / 1e6:.1f} million numbers in {report.steps:,} steps, "
        f"{report.seconds / 60:.1f} min"
    )
    click.echo(f"recall@10 of held-out pairs: {report.before:.3f} before, {report.after:.3f} after")
    if report.folder is None:
        click.echo("Nothing of what was learned helped the held-out pairs; no model is written.")
        return
    click.echo(f"Mixed in: {report.share:.0%} of what was learned.")
    model = shlex.quote(str(report.folder))
    click.echo(f"The model: {report.folder}; make an index with it: mmsearch index FOLDER -i NEW-NAME --model {model}")


def settings_of(config: str | None, given: tuple[str, ...]) -> dict[str, Any]:
    """Settings of a TOML file, and over them those given one by one. Raises UsageError."""
    settings: dict[str, Any] = {}
    if config is not None:
        try:
            settings = tomllib.loads(Path(config).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{config} cannot be read: {error.strerror or error}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{config} is not TOML: {error}.") from error
    for one in given:
        key, equals, value = one.partition("=")
        if not equals:
            raise UsageError(f"--set takes NAME=VALUE, not '{one}'.")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value  # a word needs no quotes here
    return settings


def _told(epoch: "Epoch") -> None:
    line = f"epoch {epoch.number}/{epoch.epochs}  loss {epoch.loss:.3f}  held-out recall@10 {epoch.recall:.3f}"
    if obeys(os.environ, sys.stderr.isatty()):
        click.echo(f"\r{line}  ", nl=epoch.number == epoch.epochs, err=True)
    elif epoch.number % 10 == 0 or epoch.number == 1:
        note(line)


def _report(report: "HeadsReport") -> str:
    lines = [f"{report.pairs:,} pairs of {report.pictures:,} pictures ({report.encoded:,} new), {report.seconds:.1f} s"]
    if report.before is not None and report.after is not None and report.gain is not None:
        rows = [
            (f"recall@{k}", str(report.before.recall[k]), str(report.after.recall[k])) for k in report.before.recall
        ]
        rows.append(("mean 1/rank", str(report.before.reciprocal_rank), str(report.after.reciprocal_rank)))
        if report.general is not None:
            rows.append(("everyday queries", "1.000", f"{report.general:.3f}"))
        lines.append(table((f"{report.before.queries:,} held-out texts", "old heads", f"'{report.name}'"), rows))
        lines.append(f"Mixed in: {report.share:.0%} of what was learned, in {report.epochs} epochs.")
        if report.general is not None:
            lines.append("Everyday queries: how many find their old first picture among ten, where no pair was.")
    lines.append(report.decision[0].upper() + report.decision[1:] + ".")
    lines.append(f"In use: {report.name}" if report.used else "In use: as before")
    return "\n".join(lines)


@click.group(name="heads")
def heads_group() -> None:
    """See and choose the heads that were trained for an index."""


@heads_group.command(name="list")
@index_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array.")
def heads_list_command(index_name: str, as_json: bool) -> None:
    """List the heads of an index, with what was measured when they were trained."""
    with Index(index_folder(index_name)) as index:
        rows = index.heads()
    if as_json:
        listed = [
            {"name": row.name, "in_use": row.in_use, "made_at": row.made_at} | json.loads(row.report) for row in rows
        ]
        click.echo(json.dumps(listed, indent=2))
        return
    shown = []
    for row in rows:
        report = json.loads(row.report)
        before, after = ((report.get(side) or {}).get("recall", {}).get("10") for side in ("before", "after"))
        recall = f"{before['value']:.3f} → {after['value']:.3f}" if before and after else ""
        shown.append((printable(row.name), "yes" if row.in_use else "", recall, row.made_at))
    shown.append(("(the model's own)", "" if any(row.in_use for row in rows) else "yes", "", ""))
    click.echo(table(("name", "in use", "recall@10", "trained"), shown, right=()))


@heads_group.command(name="use")
@click.argument("name")
@index_option
@click.option("--wait", is_flag=True, help="Wait for another process that writes to the index, instead of leaving.")
def heads_use_command(name: str, index_name: str, wait: bool) -> None:
    """Move an index to other heads; no picture is read."""
    with Index(index_folder(index_name)) as index:
        index.use_heads(name, wait_s=None if wait else 0.0)
    click.echo(f"In use: {printable(name)}")


@heads_group.command(name="off")
@index_option
@click.option("--wait", is_flag=True, help="Wait for another process that writes to the index, instead of leaving.")
def heads_off_command(index_name: str, wait: bool) -> None:
    """Back to the model's own heads, and to the first answers."""
    with Index(index_folder(index_name)) as index:
        index.use_heads(None, wait_s=None if wait else 0.0)
    click.echo("In use: the model's own heads")


@heads_group.command(name="remove")
@click.argument("name")
@index_option
def heads_remove_command(name: str, index_name: str) -> None:
    """Forget trained heads that are not in use."""
    with Index(index_folder(index_name)) as index:
        index.remove_heads(name)
    click.echo(f"Removed: {printable(name)}")


@click.group(name="feedback")
def feedback_group() -> None:
    """Keep judgements of answers, for the next `train heads`."""


@feedback_group.command(name="add")
@click.argument("query", nargs=-1, required=True)
@index_option
@click.option("--like", metavar="ID", multiple=True, help="An item that answers the words. Repeatable.")
@click.option("--unlike", metavar="ID", multiple=True, help="An item that does not. Repeatable.")
def feedback_add_command(
    query: tuple[str, ...], index_name: str, like: tuple[str, ...], unlike: tuple[str, ...]
) -> None:
    """Keep which items answer some words, and which do not. Ids are those that `search --json` prints.

    \b
    Example:
      mmsearch feedback add red boots --like mm-12 --unlike mm-40
    """
    if not like and not unlike:
        raise UsageError("Name an item with --like or --unlike.")
    with Index(index_folder(index_name)) as index:
        count = index.add_feedback(" ".join(query), like=like, unlike=unlike)
    click.echo(f"{count} kept; `mmsearch train heads{option_for(index_folder(index_name))}` learns from them")


@feedback_group.command(name="list")
@index_option
def feedback_list_command(index_name: str) -> None:
    """List what was kept."""
    with Index(index_folder(index_name)) as index:
        rows = [
            (printable(words), "yes" if match else "no", printable(item)) for words, item, match in index.feedback()
        ]
    click.echo(table(("query", "match", "item"), rows, right=()))


@click.group(name="pairs")
def pairs_group() -> None:
    """Check pairs, and make them fit to learn from."""


def _prepare_options(command: Command) -> Command:
    """What both commands on pairs take."""
    for option in (
        click.option("--seed", default=0, show_default=True, help="Another split."),
        click.option("--strip-accents", is_flag=True, help="Take accents off the captions."),
        click.option("--lower", is_flag=True, help="Captions in lower case."),
        click.option("--held-out", default=0.1, show_default=True, help="The share of groups that is for testing."),
        index_option,
        click.argument("pairs", metavar="PAIRS...", nargs=-1, required=True, type=click.Path()),
        columns_options,
    ):
        command = option(command)
    return command


def _prepared(pairs: tuple[str, ...], index_name: str, options: dict[str, Any], into: str | None = None) -> "Prepared":
    from mmsearch.preparing import PrepareOptions

    columns = columns_of(options)
    with Index(index_folder(index_name), notify=note) as index:
        return index.prepare_pairs(*pairs, columns=columns, options=PrepareOptions(**options), into=into)


def _print_prepared(prepared: "Prepared") -> None:
    click.echo(table(("", ""), [(name, f"{count:,}") for name, count in prepared.counts.items()], right=(1,)))
    if prepared.reasons:
        rows = [(f"{count:,}", reason) for reason, count in prepared.reasons.items()]
        click.echo(table(("left out", "why"), rows[:20], right=(0,)))
    if prepared.alike:
        note(f"{len(prepared.alike):,} pictures are nearly the same as another; they stay on one side of the split")
    if prepared.cut:
        note(f"{prepared.cut:,} captions are longer than the model reads; the rest of them is not learned from")
    for text, count in prepared.often[:3]:
        note(f"{count:,} pairs have the caption '{text}', which tells few pictures apart")


@pairs_group.command(name="check")
@_prepare_options
def pairs_check_command(pairs: tuple[str, ...], index_name: str, **options: Any) -> None:
    """Say what is wrong with pairs, and write nothing.

    \b
    Example:
      mmsearch pairs check products.csv -i products
    """
    _print_prepared(_prepared(pairs, index_name, options))


@pairs_group.command(name="prepare")
@_prepare_options
@click.option(
    "--into", metavar="FOLDER", required=True, type=click.Path(file_okay=False), help="A folder for the files."
)
def pairs_prepare_command(pairs: tuple[str, ...], index_name: str, into: str, **options: Any) -> None:
    """Write cleaned pairs with a split, a manifest and a report page; the same input gives the same files.

    Left out are broken pictures, empty, over-long and boilerplate captions, repetitions, and what leaks from a test
    into the training. Pictures of one group, and nearly the same ones, stay on one side. Pictures that lie in a tar or
    a parquet are put into FOLDER/pictures, named by their content. No file of yours is changed.

    \b
    Example:
      mmsearch pairs prepare products.csv -i products --into prepared
      mmsearch train heads prepared/pairs.csv -i products
    """
    from mmsearch.cli.printing import thumbnails_of
    from mmsearch.preparing import write

    prepared = _prepared(pairs, index_name, options, into)
    for path in write(prepared, into, lambda paths: thumbnails_of(paths, 264)):
        note(f"Wrote {path}")
    _print_prepared(prepared)
