"""What travels as JSON: requests, checked here, and answers, with the names that `--json` has."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from mmsearch.duplicates import THRESHOLD

MOST_HITS = 500  # in one page
MOST_DEEP = 20_000  # hits that can be paged to; whoever reads on beyond is a program, and asks narrower
MOST_LETTERS = 2_000
MOST_TERMS = 32
DATE = r"^[0-9]{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?)?$"
CURSOR = r"^[A-Za-z0-9_-]{12}\.[0-9]{1,6}$"
NUMBER = r"[+-]?[0-9]{1,9}(\.[0-9]{1,9})?"

Kind = Literal["image", "text"]
Id = Annotated[str, Field(min_length=1, max_length=500, examples=["mm-15"])]
Words = Annotated[str, Field(max_length=MOST_LETTERS, examples=["beach + sunset - people"])]
Path = Annotated[str, Field(min_length=1, max_length=4_096, examples=["/home/ann/Pictures/2023"])]
Date = Annotated[str, Field(pattern=DATE, examples=["2023-07"])]


class Strict(BaseModel):
    """A request: what is not known is refused, so that a mistyped name is not silently ignored."""

    model_config = ConfigDict(extra="forbid")


class SearchParams(Strict):
    """A search in an address."""

    q: Words = Field("", description="Words; terms are added with ' + ', taken away with ' - ', weighted with '0.5*'.")
    like: list[Id] = Field([], max_length=MOST_TERMS, description="Items that the hits should be like, by id.")
    unlike: list[Id] = Field([], max_length=MOST_TERMS, description="Items that they should not be like.")
    k: int = Field(30, ge=1, le=MOST_HITS, description="How many hits on a page.")
    cursor: str | None = Field(
        None, pattern=CURSOR, description="From the page before: go on there. The rest is not needed then."
    )
    kind: Kind | None = None
    under: list[Path] = Field([], max_length=MOST_TERMS, description="Only what lies below these folders.")
    after: Date | None = Field(None, description="Taken in or after 2023, 2023-07 or 2023-07-14.")
    before: Date | None = Field(None, description="Taken before it begins.")
    near: str | None = Field(
        None,
        pattern=f"^{NUMBER},{NUMBER},{NUMBER}$",
        examples=["48.86,2.35,25"],
        description="Latitude, longitude and a distance in km.",
    )
    min_score: FiniteFloat | None = Field(None, ge=-1, le=1, description="The least cosine.")
    where: str | None = Field(
        None, max_length=MOST_LETTERS, examples=['{"price": {"<": 50}}'], description="Your own facts, as JSON."
    )


class PictureParams(SearchParams):
    """A search for a picture that is the body of the request."""

    weight: FiniteFloat = Field(1.0, ge=-100, le=100, description="How much the picture counts beside the words.")


class TermIn(Strict):
    """One part of a query: exactly one of words, item, vector and picture."""

    weight: FiniteFloat = Field(1.0, ge=-100, le=100)
    words: Annotated[str, Field(min_length=1, max_length=MOST_LETTERS)] | None = None
    item: Id | None = None
    vector: Annotated[list[FiniteFloat], Field(min_length=1, max_length=8_192)] | None = None
    picture: str | None = Field(None, description="A picture file, in base64.")


class SearchIn(Strict):
    """A search with a vector, or with weighted terms of several kinds."""

    q: Words = ""
    terms: list[TermIn] = Field([], max_length=MOST_TERMS)
    like: list[Id] = Field([], max_length=MOST_TERMS)
    unlike: list[Id] = Field([], max_length=MOST_TERMS)
    k: int = Field(30, ge=1, le=MOST_HITS)
    cursor: str | None = Field(None, pattern=CURSOR)
    kind: Kind | None = None
    under: list[Path] = Field([], max_length=MOST_TERMS)
    after: Date | None = None
    before: Date | None = None
    near: tuple[FiniteFloat, FiniteFloat, FiniteFloat] | None = None
    min_score: FiniteFloat | None = Field(None, ge=-1, le=1)
    where: dict[str, Any] = {}

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"terms": [{"words": "beach"}, {"item": "mm-15", "weight": -0.5}], "k": 5}]},
    )


class LookupParams(Strict):
    """Which texts fit the picture that is the body of the request."""

    k: int = Field(10, ge=1, le=MOST_HITS)
    under: list[Path] = Field([], max_length=MOST_TERMS)
    min_score: FiniteFloat | None = Field(None, ge=-1, le=1)
    where: str | None = Field(None, max_length=MOST_LETTERS)


class ItemLookupParams(LookupParams):
    """Which texts fit an item."""

    like: Id = Field(description="The item.")


class HitOut(BaseModel):
    """An item with its score and rank; what `mmsearch search --json` prints."""

    rank: int = Field(examples=[1])
    score: float | None = Field(examples=[0.807], description="Cosine; compare it within one query only.")
    kind: Kind
    id: str = Field(examples=["mm-15"])
    path: str | None = Field(examples=["/home/ann/Pictures/chelsea.jpg"])
    text: str | None = Field(examples=["Chelsea the cat"])
    line: int | None = None
    width: int | None = Field(examples=[451])
    height: int | None = Field(examples=[300])
    format: str | None = Field(examples=["JPEG"])
    taken_at: str | None = Field(examples=["2023-07-14T18:03:11+02:00"])
    camera: str | None = None
    latitude_deg: float | None = None
    longitude_deg: float | None = None
    facts: dict[str, Any]
    found_by: dict[str, int] = Field(
        examples=[{"image": 1, "keyword": 3}], description="The rankings that found it, and its rank there."
    )


class PageOut(BaseModel):
    """A page of hits."""

    hits: list[HitOut]
    cursor: str | None = Field(description="For the next page; null on the last.", examples=["kX3vQm2ZsT_a.30"])
    took_ms: float = Field(examples=[21.4])


class HitsOut(BaseModel):
    """Hits."""

    hits: list[HitOut]
    took_ms: float = Field(examples=[21.4])


class ItemOut(BaseModel):
    """All that is known about an item."""

    kind: Kind
    id: str = Field(examples=["mm-15"])
    path: str | None
    text: str | None
    line: int | None
    width: int | None
    height: int | None
    format: str | None
    taken_at: str | None
    camera: str | None
    latitude_deg: float | None
    longitude_deg: float | None
    facts: dict[str, Any]
    captions: list[str]
    size_bytes: int | None
    modified_at: str | None = Field(description="UTC; the file's, when it was read.")
    file_is_there: bool | None = Field(description="Whether the file can be read now; null where there is none.")


class ItemsOut(BaseModel):
    """Items, one for each id."""

    items: list[ItemOut]


class EncodeIn(Strict):
    """Texts to be encoded."""

    texts: list[Annotated[str, Field(max_length=MOST_LETTERS)]] = Field(
        min_length=1, max_length=64, examples=[["a red bicycle", "snow"]]
    )


class VectorsOut(BaseModel):
    """A vector of length 1 for each."""

    model: str = Field(examples=["lite"])
    dim: int = Field(examples=[384])
    vectors: list[list[float]]


class SkipOut(BaseModel):
    """A file of which nothing could be read."""

    path: str
    reason: str | None


class StatusOut(BaseModel):
    """What the index holds; what `mmsearch status --json` prints, and how the server is."""

    folder: str
    exists: bool
    model: str | None
    dim: int | None
    heads: str | None = Field(description="The trained heads that are in use.")
    images: int
    passages: int
    captions: int
    size_bytes: int
    updated_at: str | None
    roots: list[str]
    skipped: list[SkipOut] = Field(description="The first thousand.")
    skipped_total: int
    model_state: Literal["none", "loading", "ready", "failed"]
    model_error: str | None
    version: str = Field(description="Of mmsearch.")


class IndexIn(Strict):
    """Folders to be indexed."""

    folders: list[Path] = Field(min_length=1, max_length=20)


class ReportOut(BaseModel):
    """What a run did, in files; captions in captions."""

    added: int
    changed: int
    moved: int
    removed: int
    unchanged: int
    captions: int
    skipped: list[SkipOut] = Field(description="The first thousand.")
    skipped_total: int
    missing: list[str]
    seconds: float


class RunOut(BaseModel):
    """A run that indexes."""

    number: int
    state: Literal["running", "done", "cancelled", "failed"]
    folders: list[str]
    done: int = Field(description="Files read so far.")
    total: int = Field(description="Files to read.")
    skipped: int
    seconds: float
    error: str | None
    report: ReportOut | None


class IndexOut(BaseModel):
    """Which folders may be indexed, and the run that goes on or was last."""

    allowed: list[str]
    run: RunOut | None


class MapOut(BaseModel):
    """The map of the collection."""

    state: Literal["idle", "running", "failed"]
    progress: float = Field(description="The share that is done, 0 to 1, while it is being made.", examples=[0.4])
    error: str | None = Field(description="Why it could not be made.")
    points: int | None = Field(description="Items on the map; null where none was made yet.", examples=[2368])
    is_current: bool = Field(description="Whether it holds all that the index holds now.")


class IdsIn(Strict):
    """A selection."""

    ids: list[Id] = Field(min_length=1, max_length=1_000)


class ZipIn(Strict):
    """A selection to be downloaded, of any number."""

    ids: list[Id] = Field(min_length=1)


class FeedbackIn(Strict):
    """What somebody says of answers to some words, to be learned from."""

    query: str = Field(min_length=1, max_length=MOST_LETTERS, examples=["red boots"])
    like: list[Id] = Field([], max_length=1_000, description="Items that answer the words.")
    unlike: list[Id] = Field([], max_length=1_000, description="Items that do not.")


class JudgementOut(BaseModel):
    """Whether an item answers some words."""

    query: str = Field(examples=["red boots"])
    id: str = Field(examples=["mm-15"])
    match: bool


class FeedbackOut(BaseModel):
    """What was kept; heads that are trained on this index learn from it."""

    kept: int = Field(examples=[2], description="How many there are; more than are listed, where they are many.")
    judgements: list[JudgementOut] = Field(description="The first thousand.")


class KeptOut(BaseModel):
    """How many judgements were kept."""

    kept: int = Field(examples=[2])


class DuplicatesIn(Strict):
    """Which pictures are one."""

    threshold: FiniteFloat = Field(
        THRESHOLD, gt=0, le=1, description="How alike their details must be; 1 for copies to the byte alone."
    )
    under: list[Path] = Field([], max_length=MOST_TERMS, description="Only what lies below these folders.")


class DuplicatesParams(Strict):
    """A page of groups."""

    k: int = Field(50, ge=1, le=MOST_HITS, description="How many groups on a page.")
    cursor: str | None = Field(None, pattern=r"^[0-9]{1,9}\.[0-9]{1,9}$", description="From the page before.")


class CopyOut(BaseModel):
    """A picture of a group."""

    id: str = Field(examples=["mm-15"])
    path: str | None
    width: int | None
    height: int | None
    size_bytes: int | None
    likeness: float = Field(description="To the first of the group; 1 where the bytes are the same.")
    is_exact: bool = Field(description="Whether it has the very bytes of the first.")
    frees_bytes: int = Field(description="What the disk gains with it when all but the first are removed.")


class GroupOut(BaseModel):
    """Copies and versions of one picture; what `mmsearch duplicates --json` prints."""

    spare_bytes: int = Field(description="What the disk gains when all but the first are removed.")
    copies: list[CopyOut] = Field(description="The one with the most pixels first.")


class DuplicatesOut(BaseModel):
    """A search for duplicates, and a page of its groups once it is done."""

    number: int
    state: Literal["idle", "running", "done", "failed"] = Field(description="idle: none was asked for yet.")
    threshold: float | None
    done: int = Field(description="Files read so far, of those that may have a version.")
    total: int
    skipped: int = Field(description="Images left out: gone, not readable, or changed since they were indexed.")
    error: str | None
    groups_total: int = Field(description="When they were found; those that have changed since are in no page.")
    spare_total: int
    spare_bytes: int
    groups: list[GroupOut]
    cursor: str | None = Field(description="For the next page; null on the last.")


class TokenIn(Strict):
    """The token that the server printed when it started."""

    token: str = Field(max_length=500)


class HealthOut(BaseModel):
    """The server answers."""

    status: Literal["ok"]
