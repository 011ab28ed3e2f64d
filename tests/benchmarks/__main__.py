"""`python -m tests.benchmarks`: measure what the README says, and print it as a table."""

import functools
import json
import tempfile
from pathlib import Path

import click

from mmsearch.present import table
from tests.benchmarks import (
    beside_clip_retrieval,
    beside_rclip,
    bundle_memory,
    crossover,
    decoding,
    duplicates,
    extraction,
    gpu,
    growth,
    heads,
    indexing,
    page,
    precision,
    queries,
    rerun,
    serving,
    vector_search,
)
from tests.benchmarks.measure import machine

ALL = {
    "indexing": indexing.rows,
    "decoding": decoding.rows,
    "queries": queries.rows,
    "rerun": rerun.rows,
    "rclip": beside_rclip.rows,
    "serving": serving.rows,
    "page": page.rows,
    "clip-retrieval": beside_clip_retrieval.rows,
    "bundle": bundle_memory.rows,
    "precision": precision.rows,
    "vectors": vector_search.rows,
    "crossover": crossover.rows,
    "growth": growth.rows,
    "heads": heads.rows,
    "extraction": extraction.rows,
    "gpu": gpu.rows,
    "gpu-files": gpu.rows_from_files,
    "duplicates": duplicates.rows,
}


@click.command()
@click.option("--only", type=click.Choice(list(ALL)), multiple=True, help="Measure this alone. Repeatable.")
@click.option("--quick", is_flag=True, help="Fewer files; minutes instead of an hour.")
@click.option(
    "--peer",
    type=click.Choice([*vector_search.PEERS, "none"]),
    multiple=True,
    help="The vector index beside this alone. Repeatable.",
)
@click.option("--json", "json_file", type=click.Path(), help="Also write the figures to a file.")
def main(only: tuple[str, ...], quick: bool, peer: tuple[str, ...], json_file: str | None) -> None:
    """Measure what the README says, and print it as a table."""
    click.echo(machine())
    measured = []
    if peer:
        ALL["vectors"] = functools.partial(vector_search.rows, peers=[name for name in peer if name != "none"])
    for name in only or ALL:
        with tempfile.TemporaryDirectory() as folder:
            for row in ALL[name](Path(folder), quick):
                click.echo(f"{row.what}: {row.figure}", err=True)
                measured.append(row)
    click.echo(table(("what", "measured"), [(row.what, row.figure) for row in measured]))
    if json_file is not None:
        figures = [{"what": row.what, **row.values} for row in measured]
        Path(json_file).write_text(json.dumps({"machine": machine(), "figures": figures}, indent=2))


main()
