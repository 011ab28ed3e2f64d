"""How a run is shown while it goes on: a bar on a terminal, a plain line now and then elsewhere, all on stderr."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from mmsearch.ingest import Progress
from mmsearch.present import obeys

LINE_EVERY_S = 10.0  # in a log a line a second would be too many, a line a minute looks like a hang


@contextlib.contextmanager
def reporting(quiet: bool, *, is_kept: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Give the function that takes each Progress; on Ctrl-C, say what is kept, if anything is."""
    last = Progress(0, 0, 0)
    shown = contextlib.ExitStack()
    show: Callable[[Progress], None] = (lambda progress: None) if quiet else _plain()
    if not quiet and obeys(os.environ, sys.stderr.isatty()):
        show = shown.enter_context(_bar())

    def take(progress: Progress) -> None:
        nonlocal last
        last = progress
        if progress.total:
            show(progress)

    try:
        with shown:
            yield take
    except KeyboardInterrupt:
        if not is_kept:
            sys.stderr.write("\nStopped.\n")
        elif last.total:
            sys.stderr.write(
                f"\nStopped. {last.done:,} of {last.total:,} files are done and kept; run it again to go on.\n"
            )
        else:
            sys.stderr.write("\nStopped before anything was read; run it again to go on.\n")
        raise


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[rate]}"),
        rich.TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        rich.TextColumn("{task.fields[skipped]}"),
    )
    with rich.Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task("", total=None, rate="", skipped="")
        started = time.monotonic()

        def show(progress: Progress) -> None:
            bar.update(
                task,
                total=progress.total,
                completed=progress.done,
                rate=_rate(progress, time.monotonic() - started),
                skipped=f"{progress.skipped:,} skipped" if progress.skipped else "",
            )

        yield show


def _plain() -> Callable[[Progress], None]:
    started = shown = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal shown
        moment = time.monotonic()
        if moment - shown < LINE_EVERY_S:
            return
        shown = moment
        elapsed = moment - started
        left = elapsed / progress.done * (progress.total - progress.done) if progress.done else None
        sys.stderr.write(
            f"{progress.done:,} of {progress.total:,} files, {_rate(progress, elapsed)}"
            f"{'' if left is None else f', {left / 60:.0f} min left'}, {progress.skipped:,} skipped\n"
        )
        sys.stderr.flush()

    return show


def _rate(progress: Progress, elapsed_s: float) -> str:
    return f"{progress.done / elapsed_s:,.1f}/s" if elapsed_s > 0 and progress.done else ""
