"""Figures as pictures. The only room that imports matplotlib, and only once something is to be drawn."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmsearch.encoders.openclip import cache_folder
from mmsearch.errors import Error
from mmsearch.measuring import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#1f6f8b", "#c4632a", "#8a8a84"
Draw = Callable[["Axes"], None]


def evaluation_plots(evaluation: Evaluation, folder: str | Path) -> list[Path]:
    """Recall by k, ranks, scores of what matches against what does not, and recall by group where pairs have groups.

    PNG files. Returns their paths.
    """
    ranked = evaluation.ranked
    most = max(evaluation.pictures, evaluation.texts)

    def recall(axes: "Axes") -> None:
        for ranks, colour, name in (
            (ranked.text_to_image, BLUE, "text to image"),
            (ranked.image_to_text, ORANGE, "image to text"),
        ):
            ks = np.unique(np.geomspace(1, most, 80).astype(int))
            axes.plot(ks, [(ranks <= k).mean() for k in ks], color=colour, label=name)
        axes.set(xscale="log", xlabel="k", ylabel="recall@k", ylim=(0, 1.02))
        axes.plot(ks, np.minimum(1, ks / evaluation.pictures), color=GREY, linestyle=":", label="chance")
        axes.legend(frameon=False)

    def ranks(axes: "Axes") -> None:
        edges = np.geomspace(1, most + 1, 25)
        axes.hist([ranked.text_to_image, ranked.image_to_text], bins=list(edges), color=[BLUE, ORANGE])
        axes.set(xscale="log", xlabel="rank of the best right answer", ylabel="queries")
        axes.legend(["text to image", "image to text"], frameon=False)

    def scores(axes: "Axes") -> None:
        both = np.concatenate((ranked.matched, ranked.unmatched))
        edges = list(np.linspace(both.min(), both.max(), 50))
        axes.hist(ranked.unmatched, bins=edges, density=True, color=GREY, alpha=0.7, label="does not belong")
        axes.hist(ranked.matched, bins=edges, density=True, color=BLUE, alpha=0.7, label="belongs together")
        axes.set(xlabel="cosine of picture and text", yticks=[])
        axes.legend(frameon=False)

    def groups(axes: "Axes") -> None:
        told = evaluation.groups
        low, high = ([abs(getattr(each.recall, side) - each.recall.value) for each in told] for side in ("low", "high"))
        values = [each.recall.value for each in told]
        axes.barh(range(len(told)), values, xerr=[low, high], color=BLUE, ecolor=GREY, height=0.7)
        names = [f"{each.name[:28]} ({each.queries:,})" for each in told]
        axes.set_yticks(range(len(told)), names, fontsize=8 if len(told) < 16 else 5, parse_math=False)
        axes.set(xlabel="recall@10 of the texts of a group, 95 %", xlim=(0, 1.02))

    drawn: dict[str, tuple[str, Draw]] = {
        "recall.png": ("Recall", recall),
        "ranks.png": ("Ranks", ranks),
        "scores.png": ("Scores", scores),
    }
    if evaluation.groups:
        drawn["groups.png"] = ("By group", groups)
    return write(folder, {name: png(title, draw) for name, (title, draw) in drawn.items()})


def training_curves(history: Sequence[Mapping[str, float]]) -> bytes:
    """A PNG file of a training: its losses, and the held-out recall where it was measured. history: a record a look."""
    losses = [name for name in history[0] if name not in ("step", "recall@10")]
    shown = [name for name in losses if name != "loss"] if len(losses) > 2 else ["loss"]

    def draw(axes: "Axes") -> None:
        steps = [record["step"] for record in history]
        for name, style in zip(shown, ("-", "--", "-.", ":") * 2, strict=False):
            axes.plot(steps, [record[name] for record in history], style, color=ORANGE, label=name)
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
        if "recall@10" in history[-1]:
            beside = axes.twinx()
            beside.plot(steps, [record.get("recall@10", np.nan) for record in history], color=BLUE, label="recall@10")
            beside.set(ylabel="held-out recall@10", ylim=(0, 1.02))
            beside.yaxis.label.set_color(BLUE)
        axes.yaxis.label.set_color(ORANGE)
        axes.legend(frameon=False, loc="upper right")

    return png("Training", draw)


def write(folder: str | Path, files: Mapping[str, bytes]) -> list[Path]:
    """Put files into a folder, which is made. Raises Error where that cannot be done."""
    paths = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
            paths.append(Path(folder) / name)
    except OSError as error:
        raise Error(f"{folder} cannot be written: {error.strerror or error}.") from error
    return paths


def png(title: str, draw: Draw) -> bytes:
    """One plot as a PNG file, the same for the same figures."""
    import io

    # matplotlib keeps a list of fonts; it belongs into our cache. The user's matplotlibrc then changes no plot either.
    os.environ.setdefault("MPLCONFIGDIR", os.fspath(cache_folder() / "matplotlib"))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    axes: Any = figure.subplots()
    draw(axes)
    axes.set_title(title, loc="left", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})  # type: ignore[no-untyped-call]
    return file.getvalue()
