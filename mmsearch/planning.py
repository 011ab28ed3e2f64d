"""What a run has to do: the sources beside the store, before anything is written.

Only names, sizes and times are looked at, and the tables of captions; a file is read where its size says that it may be
a known one that was moved or copied.
"""

import contextlib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from mmsearch import arguments, garbage
from mmsearch.decoding import Skip
from mmsearch.errors import MediaError, MissingRootError, SourceError
from mmsearch.media import content_hash
from mmsearch.missing import Away, folders_above, renamed_folders, told_apart
from mmsearch.readers import readers_version
from mmsearch.sources import BadRow, ScanOptions, SourceFile, Unread, read_captions
from mmsearch.sources.folders import Folder, Identities, LeftOut, left_out, lies_beside, survey, time_of_change
from mmsearch.store.reader import Reader
from mmsearch.store.records import FileRow, FolderRow, Root

Captions = dict[str, list[str]]  # picture -> what is said of it


_CHECKS: Mapping[str, arguments.Check] = {
    "exclude": lambda name, value: tuple(arguments.texts(name, value)),
    "follow_links": arguments.truth,
    "captions": lambda name, value: tuple(arguments.paths(name, value)),
    "path_column": arguments.optional(arguments.text),
    "text_column": arguments.optional(arguments.text),
    "accept_missing": arguments.truth,
    "dry_run": arguments.truth,
    "wait_s": arguments.optional(arguments.seconds),
    "decode_timeout_s": arguments.seconds,
}


@dataclass(frozen=True)
class IngestOptions:
    """How sources are read.

    exclude: patterns as in a .gitignore. captions: tables of pictures and texts, with the columns' names where they
    are not guessed right. accept_missing: believe that a folder is gone and take its items out. wait_s: how long to
    wait for another writer, None for ever. decode_timeout_s: the longest that one picture may take. retry: read again
    what was left out before, whatever the reason.
    """

    exclude: tuple[str, ...] = ()
    follow_links: bool = False
    captions: tuple[str, ...] = ()
    path_column: str | None = None
    text_column: str | None = None
    accept_missing: bool = False
    dry_run: bool = False
    wait_s: float | None = 0.0
    decode_timeout_s: float = 60.0
    retry: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for what is of the wrong type."""
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))


@dataclass
class Report:
    """What a run did, or with `dry_run` would do, in files; captions in captions."""

    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    unchanged: int = 0
    captions: int = 0
    skipped: list[Skip] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # of what was once put in and is not there now, a sentence each
    left_out: dict[str, int] = field(default_factory=dict)  # folders of the system's own, by their names
    left_out_items: int = 0  # that were read from such folders before, and are among those removed
    dry_run: bool = False
    seconds: float = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """What was done, by name; without what was skipped, which has reasons."""
        names = ("added", "changed", "moved", "removed", "unchanged", "captions")
        return {name: getattr(self, name) for name in names}


@dataclass
class Plan:
    """What the sources hold, compared with the store."""

    there: list[Root] = field(default_factory=list)  # sources that were read
    fresh: list[SourceFile] = field(default_factory=list)
    captions: list[SourceFile] = field(default_factory=list)  # side-cars
    tables: dict[str, Captions] = field(default_factory=dict)  # by path
    gone: dict[int, FileRow] = field(default_factory=dict)  # by id
    moves: list[tuple[FileRow, SourceFile]] = field(default_factory=list)
    copies: list[tuple[FileRow, SourceFile]] = field(default_factory=list)
    known: dict[str, FileRow] = field(default_factory=dict)
    stale: set[str] = field(default_factory=set)  # side-cars whose captions are not those of the pictures beside them
    folders: dict[str, str] = field(default_factory=dict)  # that were listed, with their identities
    holding: set[str] = field(default_factory=set)  # folders in which files were found, at any depth
    recorded: dict[str, FolderRow] = field(default_factory=dict)  # what was known of folders
    away: list[Away] = field(default_factory=list)
    found_again: list[int] = field(default_factory=list)  # files, by id, that were kept while they were not found
    left_out: dict[str, str] = field(default_factory=dict)  # path -> reason, of what did not become a file to read


def asked_sources(roots: Sequence[str], options: IngestOptions) -> list[Root]:
    """The folders, files and tables that a run was asked for; none where it is about all that was ever put in."""
    folders = {"exclude": options.exclude, "follow_links": options.follow_links}
    columns = {"captions": True, "path_column": options.path_column, "text_column": options.text_column}
    tables = [Root(table, columns, None) for table in options.captions]
    return [*(Root(root, folders, None) for root in roots), *tables]


def make_plan(reader: Reader, sources: Sequence[Root], options: IngestOptions, report: Report, *, asked: bool) -> Plan:
    """Compare sources with the store, and count into the report.

    asked: the sources were named, and one that cannot be read is an error; else it is reported as missing. Raises
    SourceError, MissingRootError.
    """
    with garbage.put_off():  # of a hundred thousand files nothing is garbage yet
        return _Planner(reader, options, report).plan(sources, asked)


class _Planner:
    """One plan in the making."""

    def __init__(self, reader: Reader, options: IngestOptions, report: Report) -> None:
        self._reader = reader
        self._options = options
        self._report = report
        self._plan = Plan()
        self._lost: dict[int, FileRow] = {}  # known, not found, and left out by no rule; by id
        self._unchanged: list[FileRow] = []
        self._moved: set[int] = set()
        self._in_system_folders: set[int] = set()

    def plan(self, sources: Sequence[Root], asked: bool) -> Plan:
        plan = self._plan
        found: dict[str, SourceFile] = {}
        for source in sorted(sources, key=is_table):  # folders first: they know more of a picture than that it is named
            try:
                if is_table(source):
                    plan.tables[source.path] = self._read_table(source)
                    self._look_up(source.path, plan.tables[source.path], plan, found)
                else:
                    self._scan(source, plan, found)
                plan.there.append(source)
            except SourceError as error:
                if asked:
                    raise
                advice = "" if isinstance(error, MissingRootError) else " If it is gone for good, use --accept-missing."
                self._report.missing.append(f"{error}{advice}")
        self._compare(plan, found)
        plan.holding = folders_above(found)
        self._tell_missing([source.path for source in sources if not is_table(source)], asked)
        report = self._report
        report.removed += sum(_counts(row) for row in plan.gone.values())
        report.left_out_items = sum(_counts(row) and row.id in self._in_system_folders for row in plan.gone.values())
        if not self._options.dry_run:
            plan.tables |= self._remembered_captions(plan, known=sources)
        return plan

    def _tell_missing(self, tops: Sequence[str], asked: bool) -> None:
        """Of what was not found, put into the plan what was deleted; what is only away is kept, and said."""
        plan = self._plan
        lost = [row for row in self._lost.values() if row.id not in self._moved]
        if self._options.accept_missing:
            plan.gone |= {row.id: row for row in lost}
            return
        moves = [(row.path, file.path) for row, file in plan.moves]
        renamed = renamed_folders(moves, plan.recorded, plan.folders)
        touched = [
            row
            for file in plan.fresh
            if (row := plan.known.get(file.path)) is not None and row.content_hash and row.size_bytes == file.size_bytes
        ]
        deleted, plan.away = told_apart(lost, tops, self._unchanged, touched, plan.recorded, renamed)
        plan.gone |= {row.id: row for row in deleted}
        for away in plan.away:
            if asked and away.folder in tops:
                raise MissingRootError(away.sentence(self._reader.folder))
            self._report.missing.append(away.sentence(self._reader.folder))
            plan.there = [source for source in plan.there if source.path != away.folder]

    def _remembered_captions(self, plan: Plan, known: Sequence[Root]) -> dict[str, Captions]:
        """Tables that were once put in, where a picture is new: they may have captions for it. Known ones are read.

        So are those at which a run was cut off.
        """
        tables: dict[str, Captions] = {}
        is_new = any(file.kind == "image" for file in (*plan.fresh, *(file for _, file in plan.copies)))
        paths = {source.path for source in known}
        for source in self._reader.roots():
            if is_table(source) and source.path not in paths:
                row = self._reader.file(source.path)
                if is_new or row is None or row.modified_ns is None:  # the last: its captions were not all written
                    with contextlib.suppress(SourceError):  # gone since; its captions stay as they are
                        tables[source.path] = self._read_table(source)
        return tables

    def _compare(self, plan: Plan, found: Mapping[str, SourceFile]) -> None:
        """Put into the plan what was found and is new or changed, and count."""
        report = self._report
        plan.gone = {number: row for number, row in plan.gone.items() if row.path not in found}
        self._lost = {number: row for number, row in self._lost.items() if row.path not in found}
        fresh = []
        for file in found.values():
            row = plan.known.get(file.path)
            if row is not None and row.away:
                plan.found_again.append(row.id)
            if row is None or (row.size_bytes, row.modified_ns, row.kind) != (
                file.size_bytes,
                file.modified_ns,
                file.kind,
            ):
                fresh.append(file)
                continue
            self._unchanged.append(row)
            if row.skipped is None:
                report.unchanged += file.kind != "caption"
            elif self._options.retry or row.reader != readers_version():
                fresh.append(file)
            else:
                report.skipped.append(Skip(row.path, row.skipped))
        self._recognise(fresh, plan)
        self._find_stale_captions(plan)
        to_read = [file for file in plan.fresh if file.kind != "caption"]  # captions are counted as they are written
        report.changed = sum(file.path in plan.known for file in to_read)
        report.added = len(plan.copies) + len(to_read) - report.changed
        report.moved = sum(file.kind != "caption" for _, file in plan.moves)

    def _find_stale_captions(self, plan: Plan) -> None:
        """Side-cars that a run which was cut off, or a move, has left with the captions of other pictures."""
        cars = {row.id: row for row in plan.known.values() if row.kind == "caption" and row.skipped is None}
        if not cars:
            return
        beside: dict[int, set[int]] = {number: set() for number, row in cars.items() if row.size_bytes}
        for caption in plan.captions:
            row, picture = plan.known.get(caption.path), plan.known.get(caption.caption_of or "")
            if row is not None and row.id in beside and picture is not None and picture.skipped is None:
                beside[row.id].add(picture.id)
        owners = self._reader.caption_owners()
        for number, pictures in beside.items():
            has = owners.get(number, set())
            if has != pictures and has != pictures | still_beside(self._reader, cars[number]).keys():
                plan.stale.add(cars[number].path)

    def _scan(self, source: Root, plan: Plan, found: dict[str, SourceFile]) -> None:
        """Add to the plan what lies at a root; what the store knows there and is not found, is to be judged later."""
        root, options = source.path, ScanOptions(tuple(source.options["exclude"]), source.options["follow_links"])
        known = {row.path: row for row in self._reader.files_below(root)}
        here: dict[str, SourceFile] = {}
        unread: list[Unread] = []
        try:
            for entry in survey(root, options):
                if isinstance(entry, Folder):
                    plan.folders[entry.path] = entry.identity
                elif isinstance(entry, LeftOut):
                    name = os.path.basename(entry.path)
                    self._report.left_out[name] = self._report.left_out.get(name, 0) + 1
                elif isinstance(entry, Unread):
                    if entry.path == root:
                        raise SourceError(f"{root} cannot be read: {entry.reason}.")
                    unread.append(entry)
                    self._leave_out(Skip(entry.path, entry.reason))
                else:
                    here[entry.path] = entry
                    if entry.kind == "caption":
                        plan.captions.append(entry)
        except MissingRootError as error:
            if not known:
                raise SourceError(f"{root} is not there. Check the path.") from error
        plan.recorded |= self._reader.folders_below(root)
        blind = tuple(entry.path.rstrip(os.sep) + os.sep if entry.is_folder else entry.path for entry in unread)
        nested = tuple(  # put in by themselves, they are not under this one's rules
            other.path + os.sep for other in self._reader.roots() if other.path.startswith(root.rstrip(os.sep) + os.sep)
        )
        by_rule, without_rule = left_out(root, options), left_out(root, ScanOptions((), options.follow_links))
        for row in known.values():
            if row.path in here or row.kind == "captions" or row.path.startswith(blind):
                continue
            is_there, is_nested = os.path.lexists(row.path), row.path.startswith(nested)
            if is_there and is_nested:
                continue
            if is_there or (by_rule(row.path) and not is_nested):
                plan.gone[row.id] = row
                if without_rule(row.path):
                    self._in_system_folders.add(row.id)
            else:
                self._lost[row.id] = row
        plan.known.update(known)
        found.update(here)

    def _read_table(self, source: Root) -> Captions:
        """A caption table; bad rows are reported."""
        pictures: Captions = {}
        columns = {name: source.options[name] for name in ("path_column", "text_column")}
        for row in read_captions(source.path, **columns):
            if isinstance(row, BadRow):
                self._leave_out(Skip(source.path, f"row {row.row}: {row.reason}"))
            else:
                pictures.setdefault(row.path, []).append(row.text)
        return pictures

    def _look_up(self, table: str, pictures: Collection[str], plan: Plan, found: dict[str, SourceFile]) -> None:
        """Add the pictures that a table names to the plan."""
        missing = []
        identities = Identities()
        for path in pictures:
            if path in found:
                continue
            row = self._reader.file(path)
            if row is not None:
                plan.known[path] = row
            try:
                identity = identities.of(os.path.dirname(path))
                facts = os.stat(path)
                found[path] = SourceFile(path, "image", facts.st_size, time_of_change(facts))
                plan.folders.setdefault(os.path.dirname(path), identity)
            except OSError:
                missing.append((path, row))
        if missing and len(missing) == len(pictures) and not self._options.accept_missing:
            raise MissingRootError(
                f"None of the {len(pictures)} pictures that {table} names is there. Plug the drive in, correct the "
                "paths, or use --accept-missing to go on without them."
            )
        for path, row in missing:
            self._leave_out(Skip(path, f"is named in {os.path.basename(table)}, but not there"))
            if row is not None:
                self._lost[row.id] = row
                folder = os.path.dirname(path)
                plan.recorded |= {} if folder in plan.recorded else self._reader.folders_below(folder)

    def _recognise(self, fresh: list[SourceFile], plan: Plan) -> None:
        """Among new files, find those whose content the store knows: moved where the old path is gone, else copied."""
        taken: set[int] = set()
        for file in fresh:
            twin = self._twin(file, taken) if file.path not in plan.known and file.kind != "caption" else None
            if twin is None:
                plan.fresh.append(file)
            elif os.path.lexists(twin.path):
                plan.copies.append((twin, file))
            else:
                plan.moves.append((twin, file))
                taken.add(twin.id)
                plan.gone.pop(twin.id, None)
        self._moved = taken

    def _twin(self, file: SourceFile, taken: set[int]) -> FileRow | None:
        rows = [row for row in self._reader.files_of_size(file.size_bytes, file.kind) if row.id not in taken]
        if not rows:
            return None
        try:
            content = content_hash(file.path)
        except (OSError, MediaError):
            return None  # reading it will say why
        same = [row for row in rows if row.content_hash == content]
        left = [row for row in same if not os.path.lexists(row.path)]
        return next(iter(left or (same if file.kind == "image" else [])), None)

    def _leave_out(self, skip: Skip) -> None:
        """Report what was skipped before it became a file to read; of a table, status shows the first row."""
        self._report.skipped.append(skip)
        self._plan.left_out.setdefault(skip.path, skip.reason)


def is_table(source: Root) -> bool:
    """Whether a source is a table of captions."""
    return "captions" in source.options


def still_beside(reader: Reader, side_car: FileRow) -> dict[int, str]:
    """Files of pictures that have a side-car's captions and lie beside it still, also those that no run looks at."""
    pictures = reader.captioned_by(side_car.id).items()
    return {number: path for number, path in pictures if lies_beside(side_car.path, path) and os.path.lexists(path)}


def _counts(row: FileRow) -> bool:
    """Whether a file is one of which something is in the index."""
    return row.kind in ("image", "text") and row.skipped is None
