"""What the library promises to an app that embeds it."""

import io
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mmsearch.encoders
from mmsearch import media
from mmsearch.embedding import PLAIN_PIXELS
from mmsearch.encoders.base import FloatArray
from mmsearch.errors import MediaError, ModelError, ModelMismatchError, QueryError, SourceError, UsageError
from mmsearch.index import Index
from mmsearch.query import Query, Term
from mmsearch.search import Filters, Hit
from mmsearch.store import vectors as vectors_module
from mmsearch.store.metadata import Store
from mmsearch.store.reader import ITEM_COLUMNS
from mmsearch.store.vectors import VectorIndex
from tests.colours import COLOURS, ColourEncoder, plain, swatch


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        yield index


@pytest.fixture
def colours(index: Index) -> Index:
    """One picture of each colour, named for it, with a price."""
    index.add_images(
        [plain(colour) for colour in COLOURS],
        ids=list(COLOURS),
        facts=[{"price": place, "name": colour, "new": place % 2 == 0} for place, colour in enumerate(COLOURS)],
    )
    return index


def test_words_find_pictures(colours: Index) -> None:
    hits = colours.search("something red", k=3)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert (hits[0].id, hits[0].kind, hits[0].path) == ("red", "image", None)
    assert hits[0].score > hits[1].score


def test_a_picture_finds_pictures_but_not_itself(colours: Index) -> None:
    buffer = io.BytesIO()
    plain("red").save(buffer, "PNG")
    colours.add_images([buffer.getvalue()], ids=["the same file"])
    assert "the same file" not in [hit.id for hit in colours.search(io.BytesIO(buffer.getvalue()), k=10)]
    assert colours.search(plain("red"), k=1)[0].id in ("red", "the same file")


def test_a_picture_finds_words(index: Index) -> None:
    index.add_texts(["a red apple", "green grass", "the blue sea"], ids=["apple", "grass", "sea"])
    assert index.lookup(plain("green"), k=2)[0].id == "grass"
    assert index.lookup(plain("blue"), k=1)[0].text == "the blue sea"


def test_a_caption_makes_its_picture_findable_and_is_one_hit_with_it(index: Index) -> None:
    index.add_images(
        [plain("red"), plain("green")], ids=["a", "b"], captions=["Fahrrad in Freiburg", "Wiese hinter dem Haus"]
    )
    hits = index.search("Freiburg", k=10)
    assert [hit.id for hit in hits].count("a") == 1
    assert hits[0].id == "a" and "keyword" in hits[0].found_by and hits[0].text == "Fahrrad in Freiburg"
    assert {hit.text for hit in index.lookup(plain("green"), k=5)} == {"Fahrrad in Freiburg", "Wiese hinter dem Haus"}


def test_the_user_s_facts_come_back_and_can_be_filtered_on(colours: Index) -> None:
    assert colours.search("red", k=1)[0].facts == {"price": 0, "name": "red", "new": True}
    assert [hit.id for hit in colours.search("red", where={"price": 3})] == ["yellow"]
    assert {hit.id for hit in colours.search("red", where={"price": {">=": 4}})} == {"white", "black"}
    assert {hit.id for hit in colours.search("red", where={"name": ["green", "blue"], "new": False})} == {"green"}


def test_a_hostile_filter_is_data(colours: Index) -> None:
    assert colours.search("red", where={"name' OR 1=1 --": 'x"'}) == []
    assert colours.search("red", where={"name": "' OR '1'='1"}) == []
    with pytest.raises(UsageError, match="compared with"):
        colours.search("red", where={"price": {"; DROP TABLE items": 1}})


@pytest.mark.parametrize("share", [1, 7, 50])
def test_a_filter_never_costs_hits(index: Index, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "SEGMENT_SIZE", 150)
    rng = np.random.default_rng(0)
    colours = list(COLOURS)
    index.add_images(
        [swatch(colours[seed % 6], seed, (16, 16)) for seed in range(400)],
        facts=[{"group": int(rng.integers(100) < share)} for _ in range(400)],
    )
    _build(index)
    passing = sum(hit.facts["group"] == 1 for hit in index.search("red", k=400))
    assert len(index.search("red", k=passing, where={"group": 1})) == passing
    first = index.search("red", k=3, where={"group": 1})
    assert [hit.id for hit in first] == [hit.id for hit in index.search("red", k=400) if hit.facts["group"] == 1][:3]


def test_a_new_item_is_found_at_once_and_a_removed_one_no_more(colours: Index) -> None:
    _build(colours)
    colours.add_images([swatch("yellow", 1)], ids=["new"])
    assert "new" in [hit.id for hit in colours.search("yellow", k=2)]
    colours.remove(ids=["yellow"])
    assert "yellow" not in [hit.id for hit in colours.search("yellow", k=20)]
    assert "new" in [hit.id for hit in colours.search("yellow", k=1)]


def test_answers_do_not_depend_on_when_the_vector_index_was_built(colours: Index) -> None:
    before = colours.search("red and blue", k=6)
    _build(colours)
    assert colours.search("red and blue", k=6) == before


def test_an_id_given_again_replaces_its_item(colours: Index) -> None:
    colours.add_images([plain("black")], ids=["white"])
    assert colours.status().images == len(COLOURS)
    assert colours.search("white", k=6)[-1].id in ("white", "black")


def test_two_of_the_same_id_are_refused(index: Index) -> None:
    with pytest.raises(UsageError, match="same id"):
        index.add_texts(["a", "b"], ids=["x", "x"])
    with pytest.raises(UsageError, match="mm-"):
        index.add_texts(["a"], ids=["mm-1"])


def test_an_item_without_an_id_gets_one_that_removes_it(index: Index) -> None:
    (name,) = index.add_texts(["a red door"])
    assert index.search("red", k=1)[0].id == name
    assert index.remove(ids=[name]) == 1
    assert index.search("red") == []
    with pytest.raises(SourceError, match=name):
        index.remove(ids=[name])


def test_the_same_query_gives_the_same_order(index: Index) -> None:
    index.add_images([plain("red") for _ in range(30)])
    first = [hit.id for hit in index.search("red", k=30)]
    assert first == sorted(first, key=lambda name: int(name[3:]))
    assert [hit.id for hit in index.search("red", k=7)] == first[:7]


def test_a_broken_picture_is_refused_by_name(index: Index, tmp_path: Path) -> None:
    index.add_texts(["a"])
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(MediaError, match=r"broken\.jpg"):
        index.search(tmp_path / "broken.jpg")
    with pytest.raises(MediaError, match="The picture"):
        index.lookup(b"nor this")


def test_an_encoder_of_one_s_own_is_asked_for_again(tmp_path: Path) -> None:
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add_texts(["red"])
    with pytest.raises(ModelMismatchError, match="encoder of your own, 'colours'"):
        Index(tmp_path / "index")

    class Other(ColourEncoder):
        name = "other"

    with pytest.raises(ModelMismatchError, match="'other'"):
        Index(tmp_path / "index", encoder=Other())


def test_searching_what_is_not_there_says_how_to_make_it(tmp_path: Path) -> None:
    index = Index(tmp_path / "nothing", encoder=ColourEncoder())
    with pytest.raises(SourceError, match="no index in"):
        index.search("red")
    assert not (tmp_path / "nothing").exists()


def test_a_hit_has_what_the_store_tells_of_an_item_in_the_same_order() -> None:
    assert Hit._fields == ("rank", "score", *ITEM_COLUMNS, "found_by")


def test_one_index_serves_many_threads(colours: Index) -> None:
    answers: list[str] = []
    failures: list[BaseException] = []

    def ask(colour: str) -> None:
        try:
            answers.extend(colours.search(colour, k=1)[0].id for _ in range(20))
        except BaseException as error:
            failures.append(error)

    def write() -> None:
        try:
            for number in range(10):
                colours.add_texts([f"text {number}"])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(colour,)) for colour in ("red", "green", "blue")]
    threads.append(threading.Thread(target=write))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(answers) == 60 and set(answers) == {"red", "green", "blue"}
    assert colours.status().passages == 10


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_forked_worker_of_a_web_server_searches(index: Index) -> None:
    index.add_images([plain(colour) for colour in COLOURS], ids=list(COLOURS))
    index.add_images([swatch("black", seed, (8, 8)) for seed in range(2_000)])
    _build(index)  # FAISS has threads, which a fork leaves behind
    colours = index
    colours.search("red")
    child = os.fork()
    if child == 0:
        found = colours.search("green", k=1)[0].id
        os._exit(0 if found == "green" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert colours.search("blue", k=1)[0].id == "blue"


def test_filters_by_date_place_and_kind(index: Index, tmp_path: Path) -> None:
    from tests import pictures

    paris, rome = (48.8566, 2.3522), (41.9028, 12.4964)
    folder = tmp_path / "photos"
    (folder / "france").mkdir(parents=True)
    pictures.photo(
        folder / "france" / "a.jpg",
        seed=1,
        exif=pictures.exif(taken_at="2023:07:14 20:00:00", latitude_deg=paris[0], longitude_deg=paris[1]),
    )
    pictures.photo(
        folder / "b.jpg",
        seed=2,
        exif=pictures.exif(taken_at="2023:08:01 00:00:00", latitude_deg=rome[0], longitude_deg=rome[1]),
    )
    pictures.photo(folder / "c.jpg", seed=3)
    (folder / "notes.txt").write_text("All about red.")
    index.add(folder)

    def names(**filters: object) -> set[str]:
        return {Path(hit.path or "").name for hit in index.search("red", k=10, **filters)}  # type: ignore[arg-type]

    assert names() == {"a.jpg", "b.jpg", "c.jpg", "notes.txt"}
    assert names(kind="text") == {"notes.txt"}
    assert names(after="2023-07", before="2023-08") == {"a.jpg"}
    assert names(after="2023-08-01") == {"b.jpg"}
    assert names(after="2023") == {"a.jpg", "b.jpg"}
    assert names(near=(*paris, 25)) == {"a.jpg"}
    assert names(near=(45.0, 7.0, 1000)) == {"a.jpg", "b.jpg"}
    assert names(under=folder / "france") == {"a.jpg"}
    assert names(min_score=0.9999) == {"notes.txt"}
    with pytest.raises(UsageError, match="after takes a date"):
        names(after="last year")
    with pytest.raises(UsageError, match="latitude"):
        names(near=(95.0, 0.0, 1.0))


def test_an_encoder_that_gives_the_wrong_shape_is_named(tmp_path: Path) -> None:
    class Wrong(ColourEncoder):
        name = "wrong"

        def encode_texts(self, texts: object) -> np.ndarray:  # type: ignore[override]
            return np.zeros((1, 3), np.float32)

    with pytest.raises(ModelError, match=r"'wrong' gave an array of shape \(1, 3\)"):
        Index(tmp_path / "index", encoder=Wrong()).add_texts(["a", "b"])


def test_a_query_object_for_words_of_strangers_opens_no_file(colours: Index, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert colours.search(Query.words(f"{tmp_path}/a.png"), k=1)


def test_an_index_without_items_has_no_hits(colours: Index) -> None:
    colours.remove(ids=list(COLOURS))
    assert colours.search("red") == [] and colours.search(plain("red")) == [] and colours.lookup(plain("red")) == []


def test_more_hits_than_items_are_all_items(colours: Index) -> None:
    assert {hit.id for hit in colours.search("red", k=1000)} == set(COLOURS)
    assert colours.lookup(plain("red"), k=1000) == []


def test_the_same_words_are_one_hit_and_take_no_other_s_place(index: Index) -> None:
    index.add_images([plain("red")] * 50, captions=["a red wall"] * 50)
    index.add_texts(["green grass", "the blue sea"])
    assert index.lookup(plain("red"), k=2)[0].text == "a red wall"
    assert {hit.text for hit in index.lookup(plain("red"), k=3)} == {"a red wall", "green grass", "the blue sea"}


def test_the_same_words_stand_where_the_best_of_them_does(index: Index) -> None:
    class Uneven(ColourEncoder):  # an int8 tower is, a little: its rows depend on what else is in the batch
        def encode_texts(self, texts: Sequence[str]) -> FloatArray:
            rows = super().encode_texts(texts)
            rows[2:] *= -1
            return rows

    with Index(index.folder.with_name("uneven"), encoder=Uneven()) as uneven:
        uneven.add_texts(["red", "yellow", "red", "red"])
        hits = uneven.lookup(plain("red"), k=10)
    assert [hit.text for hit in hits] == ["red", "yellow"]
    assert hits[0].score >= hits[1].score


def test_captions_of_others_do_not_hide_a_passage_that_scores_enough(index: Index) -> None:
    index.add_images([swatch("green", seed, (16, 16)) for seed in range(150)], captions=["red"] * 150)
    index.add_texts(["red and blue"], ids=["passage"])
    score = next(hit.score for hit in index.search(Query.words("red"), k=200) if hit.id == "passage")
    assert [hit.id for hit in index.search("red", k=1, min_score=score - 0.01)] == ["passage"]


@pytest.mark.parametrize(
    "date", ["2023-02-30", "2023-13", "0000", "23-01-01", "2023-1", "2023-01-01T00:00", "２０２３"]
)
def test_a_date_that_is_none_is_refused(date: str) -> None:
    with pytest.raises(UsageError, match="takes a date"):
        Filters(before=date)


def test_near_does_not_end_at_the_180th_meridian_nor_at_a_pole(index: Index, tmp_path: Path) -> None:
    from tests import pictures

    folder = tmp_path / "photos"
    folder.mkdir()
    places = {"fiji": (-17.0, 179.95), "samoa side": (-17.0, -179.95), "pole": (89.9, 10.0), "over it": (89.9, -170.0)}
    for seed, (name, (latitude, longitude)) in enumerate(places.items()):
        exif = pictures.exif(latitude_deg=latitude, longitude_deg=longitude)
        pictures.photo(folder / f"{name}.jpg", seed=seed, exif=exif)
    index.add(folder)

    def names(*near: float) -> set[str]:
        return {Path(hit.path or "").stem for hit in index.search("red", near=(near[0], near[1], near[2]))}

    assert names(-17.0, 180.0, 10) == names(-17.0, -180.0, 10) == {"fiji", "samoa side"}
    assert names(89.9, 10.0, 25) == names(90.0, 0.0, 12) == {"pole", "over it"}
    assert names(0.0, 0.0, 30_000) == set(places)


def test_a_number_beyond_every_item_is_no_item(colours: Index) -> None:
    with pytest.raises(SourceError, match="no item"):
        colours.remove(ids=["mm-99999999999999999999"])
    with pytest.raises(UsageError, match="64 bits"):
        colours.search("red", where={"price": 2**64})
    assert colours.search("red", where={"name": "\udcff", "\udcff": 1}) == []


def test_an_id_named_twice_is_removed_and_counted_once(colours: Index) -> None:
    assert colours.remove(ids=["red", "red"]) == 1


def test_what_has_no_vector_is_refused_and_nothing_is_written(colours: Index) -> None:
    class Blank(ColourEncoder):
        def encode_texts(self, texts: Sequence[str]) -> FloatArray:
            return super().encode_texts(texts) * np.array([[bool(text)] for text in texts], np.float32)

    with Index(colours.folder, encoder=Blank()) as index:
        with pytest.raises(ModelError, match="text 2"):
            index.add_texts(["red", ""])
        assert index.status().passages == 0


def test_pictures_from_memory_are_encoded_in_small_batches(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    encode = ColourEncoder.encode_images

    def count(self: ColourEncoder, images: Sequence[Image.Image]) -> FloatArray:
        batches.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(ColourEncoder, "encode_images", count)
    index.add_images(swatch("red", seed, (8, 8)) for seed in range(40))
    assert batches == [16, 16, 8]


def test_an_app_that_adds_much_gets_a_vector_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors_module, "PENDING_MIN", 10)
    for number in range(4):
        index.add_texts([f"red {number} {place}" for place in range(8)])
    assert list((index.folder / "vectors").glob("text-*.faiss"))
    assert len(index.search("red", k=100)) == 32


def test_an_index_of_another_model_is_refused_however_often_it_is_asked(tmp_path: Path) -> None:
    class Other(ColourEncoder):
        name = "other"

    late = Index(tmp_path / "index", encoder=Other())  # there is no index yet
    with Index(tmp_path / "index", encoder=ColourEncoder()) as index:
        index.add_texts(["red"])
    assert late.exists
    for _ in range(2):
        with pytest.raises(ModelMismatchError, match="'other'"):
            late.search("red")


def _build(index: Index) -> None:
    store = Store(index.folder)
    with store.write() as writer:
        VectorIndex(store).build(writer, "image")
        VectorIndex(store).build(writer, "text")
    store.close()


def test_a_lone_note_or_caption_does_not_push_itself_forward(index: Index) -> None:
    index.add_images([swatch("red", seed) for seed in range(40)])
    index.add_images([plain("blue")], ids=["captioned"], captions=["a photograph"])
    index.add_texts(["nothing to do with it"], ids=["note"])
    found = [hit.id for hit in index.search("red", k=15)]
    assert "captioned" not in found and "note" not in found
    assert index.search("nothing", k=1)[0].id == "note"


def test_a_model_in_a_folder_is_found_again_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(Path(mmsearch.encoders.__file__).parent / "lite", tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    with Index("index", model="mine") as index:
        index.add_texts(["a cat"])
    monkeypatch.chdir("/")
    with Index(tmp_path / "index") as index:
        assert index.search("cat", k=1)[0].text == "a cat"


def test_facts_that_cannot_be_kept_are_refused_before_anything_is_written(index: Index) -> None:
    for value in (float("nan"), object(), {1, 2}):
        with pytest.raises(UsageError, match="cannot be kept as JSON"):
            index.add_texts(["a"], facts=[{"value": value}])
    assert not index.exists or index.status().passages == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"k": 2.5},
        {"k": 0},
        {"after": 2023},
        {"near": (1.0, 2.0)},
        {"near": "1,2,3"},
        {"kind": "video"},
    ],
)
def test_an_option_that_makes_no_sense_is_an_error_of_ours(colours: Index, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        colours.search("red", **wrong)


def test_what_is_no_list_of_strings_is_refused(colours: Index) -> None:
    for wrong in ("abc", [3]):
        with pytest.raises(UsageError, match="list of strings"):
            colours.add_texts(wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="string"):
        colours.add_texts(["a"], ids=[3])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="list of strings"):
        colours.remove(ids="red")


def test_more_hits_than_any_number_holds_are_all_there_are(colours: Index) -> None:
    assert len(colours.search("red", k=10**20)) == len(COLOURS)


def test_words_that_are_not_utf8_are_words(colours: Index) -> None:
    assert colours.search("red \udce9")[0].id == "red"
    assert colours.add_texts(["red \udc80"])
    assert colours.add_images([plain("red")], captions=["red \udc80"])
    with pytest.raises(UsageError, match="UTF-8"):
        colours.add_texts(["a"], ids=["\udc80"])
    with pytest.raises(SourceError, match="no item"):
        colours.remove(ids=["\udc80"])


def test_an_empty_path_is_not_the_current_folder(colours: Index) -> None:
    for call in (colours.add, colours.remove):
        with pytest.raises(UsageError, match="empty"):
            call("")


def test_threads_that_write_wait_for_each_other(index: Index) -> None:
    index.add_texts(["made"])
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            index.add_texts([f"text {number}"], wait_s=0.0)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == [] and index.status().passages == 7


def test_a_picture_asks_for_pictures_first(index: Index) -> None:
    index.add_images([swatch("green", seed) for seed in range(3)])
    index.add_texts(["red", "red again"])
    assert [hit.kind for hit in index.search(plain("red"))] == ["image"] * 3 + ["text"] * 2


def test_an_item_is_known_with_its_captions_and_its_file(index: Index, tmp_path: Path) -> None:
    plain("red").save(tmp_path / "a.png")
    index.add(tmp_path / "a.png")
    (hit,) = index.search("red")
    item = index.item(hit.id)
    assert (item.path, item.width, item.size_bytes) == (hit.path, 64, (tmp_path / "a.png").stat().st_size)
    index.add_images([plain("red")], ids=["a"], captions=["a red wall"])
    assert index.item("a").captions == ("a red wall",) and index.item("a").path is None
    with pytest.raises(SourceError, match="no item with the id 'b'"):
        index.item("b")


def test_a_query_is_drawn_towards_items_and_away_from_others(colours: Index) -> None:
    query = Query.words("red").refined(like=["blue"], unlike=["yellow"])
    hits = colours.search(query, k=10)
    assert not {hit.id for hit in hits} & {"blue", "yellow"}  # what is named is known already
    ranks = [{hit.id: hit.rank for hit in colours.search(asked, k=10)} for asked in (Query.words("red"), query)]
    assert ranks[1]["black"] < ranks[1]["white"]  # white is next to yellow
    with pytest.raises(SourceError, match="'mauve'"):
        colours.search(Query.words("red").refined(like=["mauve"]))


def test_a_vector_is_a_query(colours: Index) -> None:
    vector = colours.encode(Query.words("green"))
    assert vector.shape == (13,) and abs(float(np.linalg.norm(vector)) - 1) < 1e-5
    assert colours.search(Query((Term(1.0, vector=3 * vector),)), k=1)[0].id == "green"
    for wrong in (vector[:5], np.zeros(13, np.float32), np.full(13, np.nan, np.float32)):
        with pytest.raises(QueryError):
            colours.search(Query((Term(1.0, vector=wrong),)))


def test_a_picture_decoded_elsewhere_is_the_picture(colours: Index) -> None:
    decoded = media.read(swatch("blue", 0), PLAIN_PIXELS)
    assert colours.search(Query.of_picture(decoded), k=1)[0].id == "blue"


def test_what_a_stranger_typed_opens_no_file(tmp_path: Path) -> None:
    plain("red").save(tmp_path / "a.png")
    text = f"{tmp_path}/a.png + ./not-there.png"
    assert [term.picture for term in Query.parse(text, opens_files=False).terms] == [None, None]
