"""The models that have a name of their own, and the way from any name that a user types to an encoder.

A model is a row of `ENTRIES`. Only weights that anyone may use for anything have one: MobileCLIP and DFN (Apple's
research licence) and MetaCLIP (CC-BY-NC) do not, good as they are. Every figure is its source's; where none was
found there is none. Nothing heavy is imported here: every search comes through here, and one by `lite` needs neither
torch nor open_clip nor the Hugging Face hub.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from mmsearch.arguments import checked, function, name_or_path, one_of, optional
from mmsearch.encoders.base import FeatureEncoder
from mmsearch.encoders.bundle import INT8, Bundle, Device, Precision, has_cuda
from mmsearch.encoders.manifest import MANIFEST
from mmsearch.errors import ModelError

Notify: TypeAlias = Callable[[str], None]

AUTO = "auto"
LITE = "lite"
RECOMMENDED = "balanced"
LITE_FOLDER = Path(__file__).with_name("lite")


@dataclass(frozen=True)
class CatalogEntry:
    """A model that has a name of its own.

    model: what `load_encoder` makes of the name; open_clip's ARCHITECTURE/TAG, or the built-in `lite`.
    hub: the repository on the Hugging Face hub that its weights are in.
    size_mb: what is fetched, once; for `lite` what is in the package.
    licence: SPDX name. languages: in words.
    imagenet_top1: zero-shot accuracy on ImageNet-1k. coco_recall_at_1: text -> image, MS COCO, 5,000 pictures.
    source: where both figures are published.
    """

    name: str
    model: str
    description: str
    size_mb: int
    licence: str
    languages: str
    dim: int
    hub: str | None = None
    imagenet_top1: float | None = None
    coco_recall_at_1: float | None = None
    source: str | None = None


_OPEN_CLIP_RESULTS = (
    "https://github.com/mlfoundations/open_clip/blob/main/docs/openclip_results.csv and openclip_retrieval_results.csv"
)
_SIGLIP2_RESULTS = (
    "https://github.com/google-research/big_vision/blob/main/big_vision/configs/proj/image_text/README_siglip2.md"
)

ENTRIES = (
    CatalogEntry(
        name=LITE,
        model=LITE,
        description="built in, offline, at once: a first look at everyday things in photographs and drawings",
        size_mb=54,
        licence="Apache-2.0",
        languages="English",
        dim=384,
    ),
    CatalogEntry(
        name="fast",
        model="ViT-B-32/datacomp_xl_s13b_b90k",
        description="like balanced, with a quarter less work for each picture",
        size_mb=605,
        licence="MIT",
        languages="English",
        dim=512,
        hub="laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        imagenet_top1=0.692,
        coco_recall_at_1=0.371,
        source=_OPEN_CLIP_RESULTS,
    ),
    CatalogEntry(
        name=RECOMMENDED,
        model="ViT-B-32-256/datacomp_s34b_b86k",
        description="the one to take on a laptop",
        size_mb=605,
        licence="MIT",
        languages="English",
        dim=512,
        hub="laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
        imagenet_top1=0.728,
        coco_recall_at_1=0.399,
        source=_OPEN_CLIP_RESULTS,
    ),
    CatalogEntry(
        name="multilingual",
        model="ViT-B-32-SigLIP2-256/webli",
        description="SigLIP 2; finds better than balanced, as fast on pictures, more to fetch and to keep in memory",
        size_mb=1541,
        licence="Apache-2.0",
        languages="over a hundred",
        dim=768,
        hub="timm/ViT-B-32-SigLIP2-256",
        imagenet_top1=0.740,
        coco_recall_at_1=0.472,
        source=_SIGLIP2_RESULTS,
    ),
    CatalogEntry(
        name="best",
        model="ViT-SO400M-16-SigLIP2-384/webli",
        description="SigLIP 2 at its largest that 16 GB of memory hold; for a GPU, or for much patience",
        size_mb=4575,
        licence="Apache-2.0",
        languages="over a hundred",
        dim=1152,
        hub="timm/ViT-SO400M-16-SigLIP2-384",
        imagenet_top1=0.841,
        coco_recall_at_1=0.560,
        source=_SIGLIP2_RESULTS,
    ),
)

_BY_NAME = {entry.name: entry for entry in ENTRIES}


def entries() -> tuple[CatalogEntry, ...]:
    """Every model that has a name of its own, smallest first."""
    return ENTRIES


def resolve(name: str) -> str:
    """The name that an encoder of this name bears, and that an index remembers.

    "balanced" -> "ViT-B-32-256/datacomp_s34b_b86k". "auto" is a question, not a model, and stays as it is. Of a
    bundle's folder, the name that is written in it. Raises ModelError for what cannot be a model.
    """
    if name == AUTO:
        return AUTO
    if name.endswith(INT8):
        return resolve(name.removesuffix(INT8)) + INT8
    if name in _BY_NAME:
        return _BY_NAME[name].model
    folder = Path(os.path.expanduser(name))
    if (folder / MANIFEST).is_file():
        return Bundle.open(folder).name
    _check_form(name, folder)
    from mmsearch.encoders.openclip import parse_name

    return parse_name(name).name


@checked(
    name=optional(name_or_path),
    progress=function,
    precision=one_of("auto", "fp32", "int8"),
    device=one_of("auto", "cpu", "cuda"),
)
def load_encoder(
    name: str | None = None,
    progress: Notify = lambda line: None,
    *,
    precision: Precision = "auto",
    device: Device = "auto",
) -> FeatureEncoder:
    """The encoder of a name; of $MMSEARCH_MODEL, else of "auto", where none is given.

    name: one of the catalog's, "auto", the folder of a bundle, or an open_clip model as `encoders.openclip` reads it.
        An open_clip model is fetched and converted when it is first used; "#int8" behind its name asks for 8 bits.
    progress: called with a line for a person, now and then.
    precision: of an open_clip model. "auto" is int8 where that answers as fp32 does, by a built-in sample, and no GPU
        encodes; see `encoders.quantise`.
    device: where pictures are encoded. "auto" is a CUDA GPU where torch has one and the pictures are many, else the
        processor.

    Raises ModelError.
    """
    name = name or os.environ.get("MMSEARCH_MODEL") or AUTO
    if name.endswith(INT8):
        if precision == "fp32":
            raise ModelError(f"'{name}' is in 8 bits; you asked for fp32. Leave out one of the two.")
        name, precision = name.removesuffix(INT8), "int8"
    if precision == "auto" and device != "cpu" and has_cuda():
        precision = "fp32"  # 8 bits are for processors
    return _bundle(choose_auto(progress) if name == AUTO else name, precision, progress).on(device)


def _bundle(name: str, precision: Precision, progress: Notify) -> Bundle:
    if name == LITE:
        return _as_it_is(name, LITE_FOLDER, precision)
    folder = Path(os.path.expanduser(name))
    if name not in _BY_NAME:
        if (folder / MANIFEST).is_file():
            return _as_it_is(name, folder, precision)
        _check_form(name, folder)
    from mmsearch.encoders.openclip import bundle_for

    entry = _BY_NAME.get(name) or next((entry for entry in ENTRIES if entry.model == name), None)
    if entry is None:
        return bundle_for(name, precision=precision, progress=progress)
    return bundle_for(entry.model, precision=precision, licence=entry.licence, progress=progress)


def _as_it_is(name: str, folder: Path, precision: Precision) -> Bundle:
    """A bundle that nothing else is made of."""
    bundle = Bundle.open(folder)
    if precision not in ("auto", bundle.precision):
        raise ModelError(
            f"'{name}' is a bundle in {bundle.precision}, and stays so: --precision is for open_clip models. "
            "Leave it out."
        )
    return bundle


def choose_auto(notify: Notify) -> str:
    """The catalog name that "auto" stands for on this machine, now: "balanced" or "lite".

    notify: called with one line where something is to be fetched, with its size, and where it is `lite`. Takes a few
    seconds at most, whatever the network does. For a new index only: an index that is there has its model.
    """
    entry = _BY_NAME[RECOMMENDED]
    if _has_bundle(entry):
        return entry.name
    missing = [module for module in ("torch", "open_clip") if find_spec(module) is None]
    if missing:
        notify(_fallback(f"{entry.name} needs {' and '.join(missing)}, which is not installed"))
        return LITE
    if _has_weights(entry):
        return entry.name
    from mmsearch.encoders.openclip import hub_answers

    if hub_answers():
        notify(
            f"using {entry.name} ({entry.model}): {entry.size_mb} MB are fetched from the Hugging Face hub, once; "
            f"`--model {LITE}` needs nothing"
        )
        return entry.name
    notify(_fallback(f"{entry.name} is not on this machine and the Hugging Face hub is out of reach"))
    return LITE


def on_this_machine(entry: CatalogEntry) -> bool:
    """Whether the model can be used without fetching anything."""
    return entry.name == LITE or _has_bundle(entry) or _has_weights(entry)


def _fallback(reason: str) -> str:
    return f"using the small built-in model, {LITE}: {reason}; choose with `--model {RECOMMENDED}`"


def _has_bundle(entry: CatalogEntry) -> bool:
    from mmsearch.encoders.openclip import bundle_folder, parse_name

    source = parse_name(entry.model)
    return any((bundle_folder(source, int8) / MANIFEST).is_file() for int8 in (False, True))


_WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in the order that open_clip looks


def _has_weights(entry: CatalogEntry) -> bool:
    if entry.hub is None:
        return False
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(entry.hub, name), str) for name in _WEIGHT_FILES)


def _check_form(name: str, folder: Path) -> None:
    """Raises ModelError for a name that is neither a bundle nor in one of open_clip's forms."""
    if folder.is_dir():
        raise ModelError(
            f"{name} is a folder, but not an mmsearch model: it has no {MANIFEST}. "
            f"An open_clip model in a folder is `local-dir:{name}`."
        )
    if name.startswith(("local-dir:", "hf-hub:")) or "@" in name:
        return
    if not name.strip("/") or name.startswith((".", "/", "~")) or name.endswith("/"):
        raise ModelError(f"There is no model in {name!r}: no such folder.")
    if "/" in name:
        return  # ARCHITECTURE/TAG
    raise ModelError(f"There is no model called {name!r}.{_near(name)} `mmsearch models` lists the names.")


def _near(name: str) -> str:
    """ " Did you mean …?", or nothing."""
    known = {entry.name: entry.name for entry in ENTRIES} | {AUTO: AUTO}
    known |= {entry.model.partition("/")[0].lower(): entry.model for entry in ENTRIES if "/" in entry.model}
    near = get_close_matches(name.lower(), known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(repr(known[match]) for match in near)}?" if near else ""
