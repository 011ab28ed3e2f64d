"""What `index` promises about folders that change."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from mmsearch import ingest as ingest_module
from mmsearch.decoding import Skip
from mmsearch.embedding import embed_files
from mmsearch.encoders.base import FloatArray
from mmsearch.encoders.bundle import Bundle
from mmsearch.encoders.catalog import LITE_FOLDER
from mmsearch.errors import MissingRootError, ModelError, SourceError
from mmsearch.index import Index
from mmsearch.ingest import Progress
from mmsearch.planning import IngestOptions
from tests.colours import ColourEncoder, plain, swatch


@pytest.fixture
def encoder() -> ColourEncoder:
    return ColourEncoder()


@pytest.fixture
def index(tmp_path: Path, encoder: ColourEncoder) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=encoder) as index:
        yield index


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """red.png, green.png and trips/blue.png."""
    folder = tmp_path / "photos"
    (folder / "trips").mkdir(parents=True)
    plain("red").save(folder / "red.png")
    plain("green").save(folder / "green.png")
    plain("blue").save(folder / "trips" / "blue.png")
    return folder


def test_a_folder_is_indexed_with_what_lies_below_it(index: Index, photos: Path) -> None:
    report = index.add(photos)
    assert (report.added, report.skipped) == (3, [])
    assert index.search("blue", k=1)[0].path == str(photos / "trips" / "blue.png")


def test_a_second_run_reads_no_unchanged_file(index: Index, photos: Path, encoder: ColourEncoder) -> None:
    index.add(photos)
    for path in photos.rglob("*.png"):
        facts = path.stat()
        path.write_bytes(b"\0" * facts.st_size)  # would be skipped as broken, if it were read
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    report = index.add(photos)
    assert (report.unchanged, report.added, report.changed, report.skipped) == (3, 0, 0, [])
    assert encoder.images_encoded == 3


def test_a_moved_file_keeps_its_vector(index: Index, photos: Path, encoder: ColourEncoder) -> None:
    index.add(photos)
    before = index.search("red", k=1)[0]
    (photos / "red.png").rename(photos / "trips" / "renamed.png")
    report = index.add(photos)
    after = index.search("red", k=1)[0]
    assert (report.moved, report.added, report.removed) == (1, 0, 0)
    assert (after.id, after.path) == (before.id, str(photos / "trips" / "renamed.png"))
    assert encoder.images_encoded == 3
    assert index.search("renamed", k=1)[0].found_by["keyword"] == 1


def test_a_renamed_folder_costs_no_encoding(index: Index, photos: Path, encoder: ColourEncoder) -> None:
    index.add(photos)
    (photos / "trips").rename(photos / "journeys")
    assert index.add(photos).moved == 1
    assert encoder.images_encoded == 3


def test_a_file_that_moved_to_another_root_keeps_its_vector(
    index: Index, photos: Path, encoder: ColourEncoder, tmp_path: Path
) -> None:
    index.add(photos)
    (tmp_path / "other").mkdir()
    (photos / "red.png").rename(tmp_path / "other" / "red.png")
    assert index.add(tmp_path / "other").moved == 1
    assert encoder.images_encoded == 3


def test_a_copy_is_a_second_hit_and_costs_no_encoding(index: Index, photos: Path, encoder: ColourEncoder) -> None:
    index.add(photos)
    shutil.copy(photos / "red.png", photos / "trips" / "copy.png")
    assert index.add(photos).added == 1
    assert encoder.images_encoded == 3
    assert {Path(hit.path or "").name for hit in index.search("red", k=2)} == {"red.png", "copy.png"}


def test_a_changed_file_is_read_again_under_the_same_id(index: Index, photos: Path) -> None:
    index.add(photos)
    before = index.search("red", k=1)[0]
    plain("yellow", (80, 60)).save(photos / "red.png")
    assert index.add(photos).changed == 1
    after = index.search("yellow", k=1)[0]
    assert (after.id, after.width) == (before.id, 80)


def test_a_file_that_is_gone_is_removed(index: Index, photos: Path) -> None:
    index.add(photos)
    (photos / "red.png").unlink()
    assert index.add(photos).removed == 1
    assert index.status().images == 2


def test_a_missing_folder_does_not_empty_the_index(index: Index, photos: Path, tmp_path: Path) -> None:
    index.add(photos)
    photos.rename(tmp_path / "unplugged")
    with pytest.raises(MissingRootError, match="--accept-missing"):
        index.add(photos)
    assert index.status().images == 3
    assert index.add(photos, options=IngestOptions(accept_missing=True)).removed == 3
    assert index.status().images == 0
    assert index.add().missing == []


def test_an_empty_mount_point_does_not_empty_the_index(index: Index, photos: Path) -> None:
    index.add(photos)
    shutil.rmtree(photos)
    photos.mkdir()
    with pytest.raises(MissingRootError, match="is empty"):
        index.add(photos)
    assert index.status().images == 3


def test_a_folder_that_never_was_is_a_mistake(index: Index, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is not there"):
        index.add(tmp_path / "fotos")
    assert not index.exists


def test_a_dry_run_says_what_would_happen_and_changes_nothing(
    index: Index, photos: Path, encoder: ColourEncoder
) -> None:
    dry = IngestOptions(dry_run=True)
    assert index.add(photos, options=dry).added == 3
    assert not index.exists
    plain("white").save(photos / "trips" / "white.png")
    index.add(photos)
    plain("yellow", (80, 60)).save(photos / "red.png")
    (photos / "green.png").rename(photos / "moved.png")
    (photos / "trips" / "blue.png").unlink()
    report = index.add(photos, options=dry)
    assert (report.changed, report.moved, report.removed, report.dry_run) == (1, 1, 1, True)
    assert encoder.images_encoded == 4
    assert index.search("blue", k=1)[0].path == str(photos / "trips" / "blue.png")


def test_a_broken_file_is_skipped_counted_and_listed_until_it_is_mended(index: Index, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    for _ in range(2):
        report = index.add(photos)
        assert [(Path(skip.path).name, bool(skip.reason)) for skip in report.skipped] == [("broken.jpg", True)]
    assert [Path(row.path).name for row in index.status().skipped] == ["broken.jpg"]
    plain("black").save(photos / "broken.jpg")
    assert index.add(photos).changed == 1
    assert index.status().skipped == ()


def test_a_picture_that_breaks_is_no_longer_found(index: Index, photos: Path) -> None:
    index.add(photos)
    (photos / "red.png").write_bytes(b"broken")
    index.add(photos)
    assert index.status().images == 2
    assert len(index.status().skipped) == 1


def test_side_car_captions_belong_to_their_picture(index: Index, photos: Path) -> None:
    (photos / "red.txt").write_text("Grandmother's bicycle\n")
    report = index.add(photos)
    assert (report.added, report.captions) == (3, 1)
    hits = index.search("bicycle", k=10)
    assert Path(hits[0].path or "").name == "red.png" and hits[0].kind == "image"
    assert [hit.path for hit in index.lookup(photos / "red.png", k=5)] == [str(photos / "red.png")]


def test_a_changed_caption_takes_the_place_of_the_old_one(index: Index, photos: Path) -> None:
    (photos / "red.txt").write_text("bicycle")
    index.add(photos)
    (photos / "red.txt").write_text("motorcycle, new")
    index.add(photos)
    assert [hit.text for hit in index.lookup(photos / "red.png")] == ["motorcycle, new"]
    assert not [hit for hit in index.search("bicycle") if "keyword" in hit.found_by]
    (photos / "red.txt").unlink()
    index.add(photos)
    assert index.status().captions == 0


def test_a_caption_survives_its_picture_going_and_coming_back(index: Index, photos: Path, tmp_path: Path) -> None:
    (photos / "red.txt").write_text("bicycle")
    index.add(photos)
    (photos / "red.png").rename(tmp_path / "away.png")
    index.add(photos)
    assert index.status().captions == 0
    (tmp_path / "away.png").rename(photos / "red.png")
    index.add(photos)
    assert [hit.text for hit in index.lookup(photos / "red.png", k=1)] == ["bicycle"]


def test_a_moved_picture_takes_its_caption_along(index: Index, photos: Path) -> None:
    (photos / "red.txt").write_text("bicycle")
    index.add(photos)
    (photos / "red.png").rename(photos / "trips" / "red.png")
    (photos / "red.txt").rename(photos / "trips" / "red.txt")
    index.add(photos)
    assert index.status().captions == 1
    assert index.search("bicycle", k=1)[0].path == str(photos / "trips" / "red.png")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_a_caption_table_gives_its_pictures_captions(index: Index, photos: Path, suffix: str) -> None:
    table = _table(
        photos.parent / f"captions.{suffix}", [("photos/red.png", "a bicycle"), ("photos/green.png", "a meadow")]
    )
    report = index.add(options=IngestOptions(captions=(str(table),)))
    assert (report.added, report.captions) == (2, 2)
    assert Path(index.search("meadow", k=1)[0].path or "").name == "green.png"


def test_a_caption_table_is_brought_up_to_date(index: Index, photos: Path) -> None:
    table = photos.parent / "captions.csv"
    options = IngestOptions(captions=(str(table),))
    _table(table, [("photos/red.png", "a bicycle"), ("photos/green.png", "a meadow")])
    index.add(photos, options=options)
    _table(table, [("photos/red.png", "a bicycle"), ("photos/red.png", "a second one"), ("photos/gone.png", "x")])
    report = index.add(photos, options=options)
    assert (report.captions, index.status().captions) == (1, 2)
    assert [Path(skip.path).name for skip in report.skipped] == ["gone.png"]


def test_text_files_are_cut_into_passages_that_know_their_place(index: Index, tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number}. " + "words and more words " * 12 for number in range(20)]
    paragraphs[13] = "The yellow submarine. " + "sea and more sea " * 12
    (tmp_path / "book.md").write_text("\n\n".join(paragraphs))
    index.add(tmp_path / "book.md")
    hit = index.search("yellow submarine", k=1)[0]
    assert (hit.kind, hit.line, hit.path) == ("text", 27, str(tmp_path / "book.md"))
    assert hit.text is not None and hit.text.startswith("The yellow submarine.")


def test_a_shorter_text_leaves_no_old_passage(index: Index, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join("word " * 50 for _ in range(10)))
    index.add(path)
    assert index.status().passages > 1
    path.write_text("short")
    index.add(path)
    assert index.status().passages == 1


def test_excluded_files_stay_out_and_go_when_excluded_later(index: Index, photos: Path) -> None:
    index.add(photos)
    assert index.add(photos, options=IngestOptions(exclude=("trips/",))).removed == 1
    assert {Path(hit.path or "").name for hit in index.search("red")} == {"red.png", "green.png"}


def test_without_a_path_everything_known_is_brought_up_to_date(index: Index, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    index.add(photos, options=IngestOptions(exclude=("trips/",)))
    swatch("yellow", 1).save(tmp_path / "more" / "yellow.png")
    index.add(tmp_path / "more")
    swatch("black", 1).save(photos / "black.png")
    swatch("white", 1).save(tmp_path / "more" / "white.png")
    report = index.add()
    assert (report.added, report.unchanged) == (2, 3)
    assert index.status().images == 5


def test_removed_items_go_and_files_stay(index: Index, photos: Path) -> None:
    index.add(photos)
    assert index.remove(photos / "trips") == 1
    assert (photos / "trips" / "blue.png").is_file()
    assert index.status().images == 2
    with pytest.raises(SourceError, match="holds nothing from"):
        index.remove(photos / "trips")


def test_progress_ends_with_everything_done(index: Index, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"broken")
    seen: list[Progress] = []
    index.add(photos, progress=seen.append)
    assert seen[0].done == 0
    assert seen[-1] == Progress(4, 4, 1)


def test_a_run_that_is_stopped_keeps_its_batches_and_goes_on_from_there(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "REPORT_EVERY_S", 0.0)
    folder = tmp_path / "many"
    folder.mkdir()
    for seed in range(60):
        swatch("red", seed).save(folder / f"{seed}.png")

    def stop(progress: Progress) -> None:
        if progress.done >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.add(folder, progress=stop)
    kept = index.status().images
    assert 32 <= kept < 60
    assert len(index.search("red", k=100)) == kept
    report = index.add(folder)
    assert (report.unchanged, report.added) == (kept, 60 - kept)
    assert index.status().images == 60


def test_a_file_that_vanishes_after_the_scan_is_skipped_and_read_when_it_is_back(index: Index, photos: Path) -> None:
    def vanish(progress: Progress) -> None:
        if progress.done == 0:
            (photos / "red.png").unlink(missing_ok=True)
            (photos / "notes.txt").unlink(missing_ok=True)

    (photos / "notes.txt").write_text("soon gone")
    report = index.add(photos, progress=vanish)
    assert {Path(skip.path).name for skip in report.skipped} == {"red.png", "notes.txt"}
    assert index.status().images == 2
    plain("red").save(photos / "red.png")
    assert index.add(photos).skipped == []
    assert index.status().images == 3


def test_a_picture_without_a_vector_is_skipped_alone(tmp_path: Path, photos: Path) -> None:
    class Nan(ColourEncoder):
        def encode_images(self, images: object) -> np.ndarray:  # type: ignore[override]
            rows = super().encode_images(images)  # type: ignore[arg-type]
            rows[rows[:, 2] > 0] = np.nan  # the blue one
            return rows

    with Index(tmp_path / "index", encoder=Nan()) as index:
        report = index.add(photos)
        assert [Path(skip.path).name for skip in report.skipped] == ["blue.png"]
        assert index.status().images == 2


def test_an_encoder_that_fails_stops_the_run_with_its_own_error(tmp_path: Path, photos: Path) -> None:
    class Failing(ColourEncoder):
        def encode_images(self, images: object) -> np.ndarray:  # type: ignore[override]
            raise ModelError("out of order")

    with Index(tmp_path / "index", encoder=Failing()) as index, pytest.raises(ModelError, match="out of order"):
        index.add(photos)


def test_a_copy_of_a_file_that_is_excluded_now_is_found(index: Index, photos: Path) -> None:
    index.add(photos)
    shutil.copy(photos / "red.png", photos / "copy.png")
    report = index.add(photos, options=IngestOptions(exclude=("red.png",)))
    assert (report.added, report.removed) == (1, 1)
    assert index.search("red", k=1)[0].path == str(photos / "copy.png")


def test_a_picture_that_a_table_names_stays_though_its_folder_leaves_it_out(index: Index, photos: Path) -> None:
    table = _table(photos.parent / "captions.csv", [("photos/red.png", "a poppy")])
    options = IngestOptions(exclude=("red.png",), captions=(str(table),))
    for _ in range(3):
        index.add(photos, options=options)
        assert index.status().images == 3
    assert index.add().removed == 0
    assert index.search("poppy", k=1)[0].path == str(photos / "red.png")


def test_without_a_path_caption_tables_are_read_again_too(index: Index, photos: Path) -> None:
    table = _table(photos.parent / "captions.csv", [("photos/red.png", "a poppy")])
    index.add(options=IngestOptions(captions=(str(table),)))
    _table(table, [("photos/red.png", "a rose"), ("photos/green.png", "a meadow")])
    assert (report := index.add()).added == 1 and report.captions == 2
    assert {hit.text for hit in index.lookup(plain("red"))} == {"a rose", "a meadow"}
    index.remove(table)
    assert index.status().captions == 0 and index.status().roots == ()


def test_a_text_that_becomes_a_caption_is_no_passage_any_more(index: Index, photos: Path) -> None:
    (photos / "rose.txt").write_text("a rose")
    index.add(photos)
    assert index.status().passages == 1
    plain("red").save(photos / "rose.png")
    index.add(photos)
    assert (index.status().passages, index.status().captions) == (0, 1)
    (photos / "rose.png").unlink()
    index.add(photos)
    assert (index.status().passages, index.status().captions) == (1, 0)


def test_a_root_within_a_root_is_counted_once(index: Index, photos: Path) -> None:
    index.add(photos, photos / "trips")
    plain("white").save(photos / "trips" / "white.png")
    (photos / "trips" / "blue.png").unlink()
    report = index.add()
    assert (report.added, report.removed, report.unchanged) == (1, 1, 2)


def test_a_text_without_a_vector_is_reported_and_costs_nothing_else(tmp_path: Path, photos: Path) -> None:
    class Blank(ColourEncoder):
        def encode_texts(self, texts: Sequence[str]) -> FloatArray:
            return super().encode_texts(texts) * np.array([["void" not in text] for text in texts], np.float32)

    (photos / "a.txt").write_text("the void")
    (photos / "b.txt").write_text("a red door")
    (photos / "red.txt").write_text("void")
    with Index(tmp_path / "blank", encoder=Blank()) as index:
        report = index.add(photos)
        assert sorted((Path(skip.path).name, skip.reason) for skip in report.skipped) == [
            ("a.txt", "the model gives no finite vector for 1 of its 1 passages"),
            ("red.txt", "the model gives no finite vector for 1 of its captions"),
        ]
        assert all(np.isfinite(hit.score) for hit in index.search("red", k=10))
        assert (index.status().passages, index.status().captions) == (1, 0)


def _table(path: Path, rows: list[tuple[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"file_name": name, "caption": text}) + "\n" for name, text in rows))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        columns = {"path": [name for name, _ in rows], "text": [text for _, text in rows]}
        parquet.write_table(pyarrow.table(columns), path)
    else:
        mark = "," if path.suffix == ".csv" else "\t"
        path.write_text("".join(mark.join(row) + "\n" for row in [("image", "title"), *rows]))
    return path


def test_a_missing_root_holds_nothing_else_up_and_can_be_given_up(index: Index, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    swatch("yellow", 1).save(tmp_path / "more" / "yellow.png")
    (tmp_path / "empty").mkdir()
    index.add(photos, tmp_path / "more", tmp_path / "empty")
    photos.rename(tmp_path / "unplugged")
    (tmp_path / "empty").rmdir()
    swatch("white", 1).save(tmp_path / "more" / "white.png")
    report = index.add()
    assert (report.added, report.removed, len(report.missing)) == (1, 0, 2)
    assert all("--accept-missing" in sentence for sentence in report.missing)
    assert index.status().images == 5
    report = index.add(options=IngestOptions(accept_missing=True))
    assert (report.removed, report.missing) == (3, [])
    assert index.add().missing == []
    assert index.status().roots == (str(tmp_path / "more"),)


def test_a_caption_table_that_is_gone_can_be_given_up(index: Index, photos: Path) -> None:
    table = _table(photos.parent / "captions.csv", [("photos/red.png", "a bicycle")])
    index.add(photos, options=IngestOptions(captions=(str(table),)))
    table.unlink()
    assert "captions.csv" in index.add().missing[0]
    assert index.status().captions == 1
    assert index.add(options=IngestOptions(accept_missing=True)).missing == []
    assert (index.status().captions, index.status().images) == (0, 3)


def test_only_files_that_were_read_count_as_added(index: Index, photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"broken")
    report = index.add(photos)
    assert (report.added, len(report.skipped)) == (3, 1)
    (photos / "red.png").write_bytes(b"broken too")
    report = index.add(photos)
    assert (report.changed, report.unchanged, len(report.skipped)) == (0, 2, 2)


def test_status_lists_what_a_table_named_and_what_was_not_there(index: Index, photos: Path) -> None:
    table = _table(photos.parent / "captions.csv", [("photos/red.png", "a bicycle"), ("photos/no.png", "x"), ("", "y")])
    index.add(photos, options=IngestOptions(captions=(str(table),)))
    reasons = {Path(row.path).name: row.skipped or "" for row in index.status().skipped}
    assert "not there" in reasons["no.png"] and "row 4" in reasons["captions.csv"]
    swatch("white", 1).save(photos / "new.png")
    assert sorted(Path(skip.path).name for skip in index.add().skipped) == ["captions.csv", "no.png"]


def test_a_remembered_table_captions_a_picture_that_comes_later(index: Index, photos: Path) -> None:
    (photos / "green.png").rename(photos.parent / "later.png")
    table = _table(photos.parent / "captions.csv", [("photos/red.png", "a bicycle"), ("photos/green.png", "a meadow")])
    index.add(photos, options=IngestOptions(captions=(str(table),)))
    (photos.parent / "later.png").rename(photos / "green.png")
    index.add(photos)
    assert Path(index.search("meadow", k=1)[0].path or "").name == "green.png"


def test_a_mistake_in_the_first_run_leaves_no_index_behind(index: Index, tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"x")
    with pytest.raises(SourceError):
        index.add(tmp_path / "film.mp4")
    assert not index.exists


def test_everything_excluded_is_not_an_unplugged_drive(index: Index, photos: Path) -> None:
    index.add(photos)
    assert index.add(photos, options=IngestOptions(exclude=("*.png",))).removed == 3


@pytest.mark.parametrize("pattern", ["./trips", "{root}/trips", "trips/", "/trips"])
def test_a_pattern_may_be_a_path(index: Index, photos: Path, pattern: str) -> None:
    assert index.add(photos, options=IngestOptions(exclude=(pattern.format(root=photos),))).added == 2


def test_a_folder_put_in_by_itself_stays_whatever_the_one_above_excludes(index: Index, photos: Path) -> None:
    index.add(photos, photos / "trips")
    assert index.add(photos, options=IngestOptions(exclude=("trips/",))).removed == 0
    assert index.add().unchanged == 3


def test_a_model_is_loaded_while_pictures_are_decoded_but_for_none_that_can_be_read(photos: Path) -> None:
    ready, skipped = list[int](), list[Skip]()

    class Noting(Bundle):
        def get_ready(self, count: int) -> None:
            super().get_ready(count)
            ready.append(count)

    encoder = Noting.open(LITE_FOLDER)
    assert list(embed_files(encoder, ["none.png", "neither.png"], skipped.append)) == []
    assert len(skipped) == 2 and ready == []
    found = list(embed_files(encoder, ["none.png", str(photos / "red.png")], skipped.append))
    assert [path for batch, _ in found for path, _ in batch] == [str(photos / "red.png")]
    assert len(skipped) == 3 and ready == [2]
