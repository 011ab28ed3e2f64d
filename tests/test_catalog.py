"""The catalog: names that users type, what they stand for, and what `auto` decides where there is no network."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from mmsearch.encoders import catalog
from mmsearch.encoders.base import FeatureEncoder
from mmsearch.encoders.openclip import bundle_folder, parse_name
from mmsearch.errors import ModelError

BALANCED = "ViT-B-32-256/datacomp_s34b_b86k"


@pytest.fixture(autouse=True)
def an_empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bundles, no choice made beforehand, no way out to the network."""
    monkeypatch.setenv("MMSEARCH_CACHE", os.fspath(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", os.fspath(tmp_path / "hub"))
    for name in ("MMSEARCH_MODEL", "HF_ENDPOINT", "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    kept.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in kept:
            connection.close()


@pytest.fixture
def hub() -> Iterator[str]:
    """A server that answers, as the Hugging Face hub does."""

    class Answer(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def put_bundle_of_balanced() -> None:
    """The built-in bundle, where that of `balanced` would be."""
    folder = bundle_folder(parse_name(BALANCED))
    folder.mkdir(parents=True)
    for path in catalog.LITE_FOLDER.iterdir():
        (folder / path.name).symlink_to(path)


def chosen() -> tuple[str, list[str]]:
    lines: list[str] = []
    return catalog.choose_auto(lines.append), lines


def test_every_figure_has_a_source_and_every_model_a_licence_for_common_use() -> None:
    for entry in catalog.entries():
        assert entry.licence in {"MIT", "Apache-2.0"}
        assert (entry.imagenet_top1 is None and entry.coco_recall_at_1 is None) or entry.source, entry.name


def test_open_clip_knows_every_model_of_the_catalog() -> None:
    pretrained = pytest.importorskip("open_clip.pretrained")
    for entry in catalog.entries():
        if entry.name != "lite":
            configuration = pretrained.get_pretrained_cfg(*entry.model.split("/"))
            assert configuration["hf_hub"].strip("/") == entry.hub
            assert pretrained.is_pretrained_cfg(*entry.model.split("/"))


def test_a_name_stands_for_its_model() -> None:
    assert catalog.resolve("balanced") == BALANCED
    assert catalog.resolve("lite") == "lite"
    assert catalog.resolve("auto") == "auto"
    assert catalog.resolve(os.fspath(catalog.LITE_FOLDER)) == "lite"
    assert catalog.resolve("hf-hub:timm/ViT-B-16-SigLIP") == "hf-hub:timm/ViT-B-16-SigLIP"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("balnced", "balanced"), ("Lite", "lite"), ("multi-lingual", "multilingual"), ("ViT-B-32-256", BALANCED)],
)
def test_a_mistyped_name_is_answered_with_the_nearest_one(typed: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f"{meant}.*mmsearch models"):
        catalog.load_encoder(typed)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "", "/", "local-dir:/no/such/folder", "x@/no.pt"])
def test_a_folder_that_is_not_there_is_an_error_not_a_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not name:
        monkeypatch.setenv("MMSEARCH_MODEL", "/")
    with pytest.raises(ModelError):
        catalog.load_encoder(name)


def test_a_folder_of_something_else_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="local-dir:"):
        catalog.load_encoder(os.fspath(tmp_path))


def test_a_bundle_is_loaded_by_its_folder() -> None:
    encoder = catalog.load_encoder(os.fspath(catalog.LITE_FOLDER))
    assert isinstance(encoder, FeatureEncoder)
    assert encoder.name == "lite"


def test_the_environment_chooses_where_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setenv("MMSEARCH_MODEL", "lite")
    assert catalog.load_encoder(progress=lines.append).name == "lite"
    assert lines == []


def test_a_catalog_name_loads_the_bundle_in_the_cache() -> None:
    put_bundle_of_balanced()
    encoder = catalog.load_encoder("balanced", precision="fp32")
    assert np.allclose(np.linalg.norm(encoder.encode_texts(["a dog"]), axis=1), 1)


def test_auto_takes_the_recommended_model_where_its_bundle_is() -> None:
    put_bundle_of_balanced()
    assert chosen() == ("balanced", [])


def test_auto_takes_lite_offline_and_says_so_in_one_line() -> None:
    name, lines = chosen()
    assert name == "lite"
    assert len(lines) == 1
    assert "lite" in lines[0]
    assert "--model balanced" in lines[0]


def test_auto_does_not_wait_for_a_server_that_never_answers(
    silent_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", silent_server)
    began = time.monotonic()
    name, lines = chosen()
    assert time.monotonic() - began < 5
    assert (name, len(lines)) == ("lite", 1)


def test_auto_does_not_wait_for_a_port_where_nothing_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    assert chosen()[0] == "lite"


def test_auto_says_the_size_before_anything_is_fetched(hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", hub)
    name, lines = chosen()
    assert name == "balanced"
    assert len(lines) == 1
    assert "605 MB" in lines[0]


def run_alone(code: str, **environment: str) -> str:
    """What a new process prints; the hub's library reads its settings once, when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, check=True, capture_output=True, text=True
    ).stdout


def test_lite_imports_nothing_heavy() -> None:
    code = """
import json, sys
from mmsearch.encoders.catalog import load_encoder
load_encoder("lite").encode_texts(["a dog"])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    assert not {"torch", "open_clip", "timm", "transformers", "huggingface_hub"} & set(json.loads(run_alone(code)))


def test_weights_in_the_hub_s_cache_are_on_this_machine(tmp_path: Path) -> None:
    code = "from mmsearch.encoders import catalog as c; print([e.name for e in c.entries() if c.on_this_machine(e)])"
    assert run_alone(code, HF_HOME=os.fspath(tmp_path)).strip() == "['lite']"
    repository = tmp_path / "hub" / "models--laion--CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    (repository / "snapshots" / "0123abc").mkdir(parents=True)
    (repository / "snapshots" / "0123abc" / "open_clip_model.safetensors").write_bytes(b"weights")
    assert run_alone(code, HF_HOME=os.fspath(tmp_path)).strip() == "['lite', 'balanced']"
