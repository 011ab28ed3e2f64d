"""What to say of an option that there is not."""

import os
from collections.abc import Sequence
from difflib import get_close_matches

import click

# What other programs call an option of ours
KNOWN_AS = {
    "-k": ("--limit", "--count", "--top", "--top-k", "--topk", "--max", "--num", "--number", "--results", "-n"),
    "--json": ("--format", "--output-format"),
    "--paths": ("--files", "--files-only", "--paths-only", "--filenames", "-l"),
    "--index": ("--db", "--database", "--dir", "--folder"),
    "--under": ("--in", "--path", "--within"),
    "--after": ("--since", "--from"),
    "--before": ("--until", "--to"),
    "--min-score": ("--score", "--cutoff"),
    "--exclude": ("--ignore",),
    "--follow-links": ("--follow", "--follow-symlinks", "-L"),
    "--help": ("--usage",),
}
ALIKE = 0.75  # by difflib; "--limit" is like "--like" with 0.62


def advised(error: click.NoSuchOption, arguments: Sequence[str]) -> str:
    """A sentence or two: what is not there, and what was perhaps meant."""
    name = error.option_name
    options = [
        each
        for parameter in (error.ctx.command.params if error.ctx else [])
        for each in parameter.opts
        if each[0] == "-"
    ]
    meant = [ours for ours, theirs in KNOWN_AS.items() if name in theirs and ours in options]
    meant = meant or get_close_matches(name, options, n=3, cutoff=ALIKE)
    sentence = f"There is no option {name}."
    if meant:
        sentence += f" Did you mean {' or '.join(meant)}?"
    if file := next((each for each in arguments if each.startswith(name) and os.path.lexists(each)), None):
        sentence += f" The file of that name is written ./{file}"
    return sentence
