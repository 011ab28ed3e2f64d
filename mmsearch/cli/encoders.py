"""The command that trains an encoder from the ground up."""

import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from mmsearch.cli.printing import note, note_skipped
from mmsearch.cli.training import columns_of, columns_options, settings_of, train_group
from mmsearch.errors import UsageError
from mmsearch.present import obeys

if TYPE_CHECKING:
    from mmsearch.train.encoder import Moment

FLAGS = ("image_tower", "text_tower", "fusion", "objective", "steps", "batch")


@train_group.command(name="encoder")
@click.argument("pairs", metavar="PAIRS...", nargs=-1, type=click.Path())
@click.option("-o", "--output", metavar="FOLDER", type=click.Path(), help="Where the model goes.")
@click.option("--image-tower", metavar="NAME", help="resnet18, vit_small_patch16_224, …: timm's; open_clip:NAME.")
@click.option("--text-tower", metavar="NAME", help="bilstm, bert, roberta, distilbert, minilm, gpt2, …, a folder.")
@click.option("--fusion", metavar="NAME", help="none, concatenation, bilstm, cross_attention, transformer.")
@click.option("--objective", metavar="A,B=W", help="info_nce, sigmoid, triplet, matched, matching, classification, …")
@click.option("--steps", type=int, help="How many steps to take.")
@click.option("--batch", type=int, help="Pairs in a step.")
@click.option("--config", metavar="FILE", type=click.Path(dir_okay=False), help="Settings in TOML, by their names.")
@click.option("--set", "set_", metavar="NAME=VALUE", multiple=True, help="One setting. Repeatable. --list names them.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint.")
@click.option("--list", "lists", is_flag=True, help="Print all settings with their defaults, as TOML.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@columns_options
def train_encoder_command(
    pairs: tuple[str, ...],
    output: str | None,
    config: str | None,
    set_: tuple[str, ...],
    resume: bool,
    lists: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Train an encoder from the ground up: two towers of your choice, on pairs of pictures and texts.

    PAIRS are tables (csv, tsv, jsonl, parquet), webdataset tars, or folders of pictures with captions beside them. The
    result is a model for `mmsearch index --model FOLDER`. Checkpoints, a log for TensorBoard and the curves are in
    FOLDER.training. With torchrun, several processes share each batch.

    \b
    Examples:
      mmsearch train encoder pairs.csv -o ./mine
      mmsearch train encoder pairs.csv -o ./mine --image-tower vit_small_patch16_224 --text-tower bert
      mmsearch train encoder pairs.csv -o ./mine --fusion cross_attention --objective info_nce,matching
      mmsearch train encoder pairs.csv -o ./mine --resume
    """
    from mmsearch.train.design import EncoderDesign

    columns = columns_of(options)
    if lists:
        for key, value in vars(EncoderDesign()).items():
            said = ", ".join(f"{name} = {weight}" for name, weight in value.items()) if isinstance(value, dict) else ""
            click.echo(f"{key} = " + (f"{{{said}}}" if said else json.dumps(value)))
        return
    if not pairs or output is None:
        raise UsageError("Name the pairs to learn from, and with -o the folder where the model goes.")
    settings = settings_of(config, set_) | {name: options[name] for name in FLAGS if options[name] is not None}
    design = EncoderDesign.of(settings)
    from mmsearch.train.encoder import train_encoder

    report = train_encoder(pairs, output, design, columns=columns, resume=resume, tell=told, say=note)
    if report is None:  # another process tells
        return
    note_skipped(report.skipped)
    if as_json:
        click.echo(json.dumps(report.facts(), indent=2))
        return
    click.echo(f"{report.pairs:,} pairs learned from, {report.steps:,} steps, {report.seconds / 60:.1f} min")
    if report.recall is not None and report.chance is not None:
        click.echo(f"recall@10 of {report.held_out:,} held-out pairs: {report.recall:.3f} (chance {report.chance:.4f})")
    if report.fusion is not None:
        click.echo(f"fusion encoder: {report.fusion.said()}")
    click.echo(f"The model: {report.folder}; curves and checkpoints: {report.training}")


def told(moment: "Moment") -> None:
    """How far a training is, on stderr."""
    recall = "" if moment.recall is None else f"  held-out recall@10 {moment.recall:.3f}"
    line = (
        f"step {moment.step:,}/{moment.steps:,}  loss {moment.loss:.3f}  {moment.pairs_per_second:,.0f} pairs/s  "
        f"{moment.seconds_left / 60:.0f} min left{recall}"
    )
    if obeys(os.environ, sys.stderr.isatty()):
        click.echo(f"\r{line}  ", nl=moment.recall is not None, err=True)
    else:
        note(line)
