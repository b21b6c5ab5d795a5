"""From the settings to rows that can be trained: read, set aside what is unfit, split, tokenize, account.

Two doors: `load_rows` needs no tokenizer, so that broken data stops a run before any model is loaded; `tokenize_rows` does the rest. Neither
holds the rows in memory: they lie in the cache, and what goes from hand to hand are their numbers.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.config.data import DataSettings, SourceSettings
from luthier.data import dedup, general, ingest, ledger
from luthier.data.encode import Encoded, encode
from luthier.data.ingest import Ingested
from luthier.data.read.source import SourceFile, find_sources, same_files
from luthier.data.rejections import Rejections, SetAside
from luthier.data.store import AllRows, Picked, Places, TokenStore
from luthier.data.tokenize import How, knows_system
from luthier.errors import ConfigError, DataError
from luthier.records import Conversation, Rejected, TokenizedExample
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder

# Below this many rows a held-out share would be one or two rows, which measure nothing.
LEAST_ROWS_TO_SPLIT = 41
# A few broken rows are listed and set aside; more than both of these mean that the file itself is wrong.
MOST_MALFORMED_ROWS = 5
MOST_MALFORMED_SHARE = 0.10
MOST_TOO_LONG_SHARE = 0.01
# Set aside although nothing is wrong with the row itself.
HARMLESS = {"duplicate", "also_in_eval", "too_long", "not_drawn"}
OF_THE_TEMPLATE = {"template_drops_text", "template_refused", "template_seam", "no_system_role"}
LISTED = 5
NO_SYSTEM = "this chat template has no system role: system messages are put before the first question"


@dataclass(frozen=True, slots=True)
class Rows:
    """What was read: rows to train on (a row of weight 2 stands there twice), rows held out, rows set aside, and what the user should see."""

    train: Picked[Conversation]
    held_out: Picked[Conversation]
    rejected: Rejections
    read: int
    notes: list[str]
    sources: list[dict[str, Any]]  # a source each: file, rows, bytes, sha256, format, weight
    ingested: list[Ingested]
    every: AllRows
    files: list[SourceFile]  # as they were when they were found


@dataclass(frozen=True, slots=True)
class Prepared:
    """Rows as tokens, the rows they came from (less those that were set aside on the way), and the books."""

    train: Picked[TokenizedExample]
    held_out: Picked[TokenizedExample]
    rows: Rows
    ledger: dict[str, Any]
    lengths: Places  # tokens of each training example
    trained_tokens: Places
    shared_prefix_tokens: int  # what every row begins with, up to the token before the first trained one
    sha256: str  # of what is trained: the tokens, their marks and their order


def load_rows(settings: DataSettings, base: Path, seed: int, reporter: Reporter | None = None) -> Rows:
    """Read and sort all rows. Relative paths start at `base`; the split depends on `seed` and the rows alone.

    Raises DataError where a file cannot be read, more than 10 % of the rows are malformed, or nothing is left to train on.
    """
    reporter = reporter or Silent()
    ingest.sweep()
    spool = ingest.folder() / "spool"
    notes: list[str] = []
    train_files = find_sources(settings.sources, base, spool, notes.append)
    replayed = find_sources(_replayed(settings), base, spool, notes.append)
    eval_files = find_sources([settings.eval_source], base, spool, notes.append) if settings.eval_source else []
    same_files([*train_files, *replayed], eval_files)
    found = [*train_files, *replayed, *eval_files]
    sources = [ingest.ingest(file, settings, reporter) for file in found]
    every = AllRows([source.rows for source in sources])
    notes += [note for source in sources for note in source.meta["notes"]]
    first_replayed, first_held_out = int(every.starts[len(train_files)]), int(every.starts[len(train_files) + len(replayed)])

    places, repeated = _distinct(every, first_held_out)
    if eval_files:
        held_out = np.arange(first_held_out, len(every), dtype=np.int64)
        if not len(held_out):
            raise _unusable(f"of {sources[-1].meta['read']:,} rows none can be used to evaluate", Rejections(sources[len(train_files) :], every))
        places, shared = _without_held_out(every, places, held_out)
    else:
        own = places < first_replayed
        left, held_out, said = _split(every, places[own], settings.eval_share, seed)
        mixed_in, shared = _without_held_out(every, places[~own], held_out) if replayed else (places[~own], [])
        places = np.concatenate([left, mixed_in])
        notes += said
    weights = [file.settings.weight for file in train_files]
    weights += [_replay_weight(every, places, weights, settings.replay_share)] * len(replayed)
    places, not_drawn = _weighted(every, places, weights, seed)
    places, held_out, too_many = _limited(places, held_out, settings.max_rows, seed)

    rows = Rows(
        train=Picked(every, places),
        held_out=Picked(every, held_out),
        rejected=Rejections(sources, every, [*repeated, *shared, *not_drawn, *too_many]),
        read=sum(source.meta["read"] for source in sources),
        notes=notes,
        sources=[_source(file, source, file in replayed) for file, source in zip(found, sources, strict=True)],
        ingested=sources,
        every=every,
        files=found,
    )
    _check_malformed(rows)
    _check_left(rows)
    return replace(rows, notes=rows.notes + _said_of(rows))


def _replayed(settings: DataSettings) -> list[SourceSettings]:
    """Where general rows stand that are mixed in; not one source where none are."""
    return [SourceSettings(path=settings.replay_from or str(general.replayed_rows()))] if settings.replay else []


def _replay_weight(every: AllRows, places: Places, weights: Sequence[float], share: float) -> float:
    """How often each general row is used, so that there are `share` of them for each use of a training row. `weights`: of the training sources."""
    parts = every.part_of(places)
    own = parts < len(weights)
    uses = float(np.asarray(weights)[parts[own]].sum())
    return share * uses / max(1, len(places) - int(own.sum()))


def _source(file: SourceFile, source: Ingested, replayed: bool) -> dict[str, Any]:
    meta = source.meta
    weight: dict[str, Any] = {} if file.settings.weight == 1 else {"weight": file.settings.weight}
    weight |= {"replay": True} if replayed else {}
    known = {"file": file.name, "rows": meta["read"], "bytes": meta["bytes"], "sha256": meta["sha256"], "format": meta["format"]}
    # Wherever one stands: a run's own settings name its files by their whole path.
    return {**known, **weight, "path": str(file.place.resolve())}


def _distinct(every: AllRows, end: int) -> tuple[Places, list[SetAside]]:
    """The first of each row before `end`, and the later ones beside the first that they repeat (same in all that is trained, to the letter)."""
    first = dedup.first_of_each(every.column("exact")[:end])
    again = np.flatnonzero(first != np.arange(end))
    return np.delete(np.arange(end), again), [_twins("duplicate", "is the same row as", again, first[again], every)]


def _without_held_out(every: AllRows, places: Places, held_out: Places) -> tuple[Places, list[SetAside]]:
    """Those of `places` that are not held out too, and the others beside their held-out twins (but for case and white space)."""
    twin = dedup.twins(every.column("alike"), places, held_out)
    shared = twin >= 0
    return places[~shared], [_twins("also_in_eval", "is held out too, at", places[shared], held_out[twin[shared]], every)]


def _twins(reason: str, words: str, places: Places, others: Places, every: AllRows) -> SetAside:
    return SetAside(reason, places, lambda index: f"{words} {every.source(int(others[index]))}")


def _split(every: AllRows, places: Places, share: float, seed: int) -> tuple[Places, Places, list[str]]:
    """Rows to train on, rows held out, and what to say. `share` is 0 to 1; rows that ask the same stay on one side.

    Each group's place in the draw is a hash of the seed and its text, so that added rows do not shuffle the others.
    """
    nothing = np.zeros(0, np.int64)
    if not share or not len(places):
        return places, nothing, []
    if len(places) < LEAST_ROWS_TO_SPLIT:
        said = f"evaluation is off: {len(places)} rows are too few to hold some out (from {LEAST_ROWS_TO_SPLIT} on; or set data.eval to a file)"
        return places, nothing, [said]
    wanted = max(1, round(len(places) * share))
    if wanted >= len(places):
        raise DataError(f"{share:.0%} held out leaves no row to train on", where="data.eval", next_step="hold out less, such as data.eval=5%")
    chosen = _draw(every.column("group")[places], wanted, seed)
    if not chosen.any():
        return places, nothing, [f"evaluation is off: rows that ask the same stay together, and no group of them fits into {wanted} rows"]
    return places[~chosen], places[chosen], []


def _draw(groups: dedup.Digests, wanted: int, seed: int) -> "np.ndarray[Any, np.dtype[np.bool_]]":
    """Whole groups of at most `wanted` rows together, as a mark on each row."""
    group_of, names, draws = _groups(groups, seed)
    del groups  # of millions of rows, what is not needed any more makes room for the sorting
    sizes = np.bincount(group_of).astype(np.int32)
    chosen = np.zeros(len(group_of), dtype=bool)
    room = wanted
    for place in np.argsort(draws, kind="stable"):
        name = names[place]
        if sizes[name] <= room:
            chosen[name] = True
            room -= int(sizes[name])
        if not room:
            break
    marks: np.ndarray[Any, np.dtype[np.bool_]] = chosen[group_of]
    return marks


def _groups(digests: dedup.Digests, seed: int) -> tuple[Places, Places, "np.ndarray[Any, np.dtype[np.uint64]]"]:
    """The group of each row (called by its first row), all groups, and what each has drawn."""
    group_of = dedup.first_of_each(digests)
    names = np.flatnonzero(group_of == np.arange(len(group_of)))
    return group_of, names, _draws((digests[name] for name in names), len(names), seed)


def _draws(digests: Iterable[Any], count: int, seed: int) -> "np.ndarray[Any, np.dtype[np.uint64]]":
    """A number for each digest, drawn by the seed and the digest alone: 0 to 2^56."""
    drawn = (int.from_bytes(hashlib.sha256(b"%d:%s" % (seed, digest.tobytes())).digest()[:7], "big") for digest in digests)
    return np.fromiter(drawn, dtype=np.uint64, count=count)


def _weighted(every: AllRows, places: Places, weights: Sequence[float], seed: int) -> tuple[Places, list[SetAside]]:
    """Each row as often as its source's weight says: the whole part always, the rest for rows drawn by the seed and the row alone."""
    if all(weight == 1 for weight in weights):
        return places, []
    weight = np.asarray(weights)[every.part_of(places)]
    draw = _draws(every.column("exact")[places], len(places), seed) / 2**56
    times = np.floor(weight).astype(np.int64) + (draw < weight % 1)
    missing = places[times == 0]
    said = SetAside("not_drawn", missing, lambda index: f"its source has the weight {weights[int(every.part_of(missing[index : index + 1])[0])]:g}")
    return np.repeat(places, times), [said]


def _limited(places: Places, held_out: Places, most: int | None, seed: int) -> tuple[Places, Places, list[SetAside]]:
    """At most so many training rows and held-out rows, in their order, which the seed draws; and the others."""
    if most is None:
        return places, held_out, []
    drawn = [_some(some, most, seed) for some in (places, held_out)]
    left_out = np.setdiff1d(np.concatenate([places, held_out]), np.concatenate(drawn))
    return drawn[0], drawn[1], [SetAside("not_drawn", left_out, lambda index: f"data.max_rows is {most}")]


def _some(places: Places, most: int, seed: int) -> Places:
    if len(places) <= most:
        return places
    draw = np.random.Generator(np.random.Philox(key=seed)).permutation(len(places))[:most]
    return places[np.sort(draw)]


def tokenize_rows(rows: Rows, tokenizer: Any, max_length: int, settings: DataSettings, reporter: Reporter | None = None) -> Prepared:
    """All rows as tokens. `max_length` is the longest row in tokens, with the room that `reserve_for_generation` asks for.

    `too_long: error` allows 1 % of the rows to be set aside for their length. Raises DataError above that, where more than 10 % of the rows
    cannot be written with this model's template, or where nothing is left to train on.
    """
    limit = max_length - settings.reserve_for_generation
    if limit < 8:
        raise ConfigError(
            f"data.reserve_for_generation is {settings.reserve_for_generation} and leaves {limit} of {max_length} tokens for a row",
            where="data.reserve_for_generation",
            next_step=f"data.reserve_for_generation: {max_length // 4}",
        )
    how = How(max_length=limit, too_long=settings.too_long, loss_on=settings.loss_on)
    notes = [NO_SYSTEM] if any(row.turns[0].role == "system" for row in rows.train[:LISTED]) and not knows_system(tokenizer) else []
    used = np.unique(np.concatenate([rows.train.places, rows.held_out.places]))
    starts = rows.every.starts.tolist()
    # A draw from many rows: the others need not be tokenized.
    only = [(_of_source(rows.every, used, number) - start).tolist() if settings.max_rows else None for number, start in enumerate(starts[:-1])]
    encoded = [encode(source, tokenizer, how, reporter or Silent(), some) for source, some in zip(rows.ingested, only, strict=True)]
    store = TokenStore([(part, start) for source, start in zip(encoded, starts, strict=False) for part in source.parts], rows.every)
    lost = {start + place: (reason, detail) for source, start in zip(encoded, starts, strict=False) for place, reason, detail in source.rejected}
    gone = _gone(used, lost)
    left = replace(
        rows,
        train=Picked(rows.every, rows.train.places[~np.isin(rows.train.places, list(lost))]),
        held_out=Picked(rows.every, rows.held_out.places[~np.isin(rows.held_out.places, list(lost))]),
        rejected=rows.rejected.and_also(gone),
        notes=rows.notes + notes + _set_aside(Rejections([], rows.every, gone)),
    )
    if settings.too_long == "error":
        # Nobody can mend the rows that come with Luthier: those that are too long are left out, and said, and are no error.
        built_in = [] if settings.replay_from else _replayed_sources(rows)
        _check_too_long(gone, used, limit, rows.every, built_in)
    _check_malformed(left)
    _check_left(left)
    if len(rows.held_out) and not len(left.held_out):
        said = f"none of {len(rows.held_out):,} rows that are held out can be used"
        if settings.eval_source:
            raise _unusable(f"{said} to evaluate", left.rejected)
        left = replace(left, notes=[*left.notes, f"evaluation is off: {said}"])
    train = _examples_of(store, left.train.places)
    held_out = _examples_of(store, left.held_out.places)
    return Prepared(
        train=Picked(store, train),
        held_out=Picked(store, held_out),
        rows=left,
        ledger={**_books(left, store, train, held_out), "max_length": limit, "reserved_for_generation": settings.reserve_for_generation},
        lengths=store.lengths[train],
        trained_tokens=store.trained_tokens[train],
        shared_prefix_tokens=_prefix(encoded),
        sha256=hashlib.sha256("".join(source.sha256 for source in encoded).encode() + train.tobytes()).hexdigest(),
    )


def _books(rows: Rows, store: TokenStore, train: Places, held_out: Places) -> dict[str, Any]:
    """The closed ledger of the rows and their examples."""
    sizes = rows.every.sizes
    row_counts, token_counts = [], []
    for number, source in enumerate(rows.ingested):
        of_train, of_held_out = (_of_source(rows.every, places, number) for places in (rows.train.places, rows.held_out.places))
        used = {"train": int(sizes[np.unique(of_train)].sum()), "eval": int(sizes[of_held_out].sum())}
        row_counts.append({"read": source.meta["read"], **used, "rejected": dict(sorted(rows.rejected.of_source(number).items()))})
        inside = train[np.isin(store.rows[train], of_train)]
        token_counts.append(ledger.count_tokens(store.read, store.cut, store.repeated, store.lengths, store.trained_tokens, inside))
    return ledger.close(rows.sources, row_counts, token_counts, int(store.lengths[held_out].sum()))


def _of_source(every: AllRows, places: Places, number: int) -> Places:
    inside: Places = places[(every.starts[number] <= places) & (places < every.starts[number + 1])]
    return inside


def _gone(used: Places, lost: dict[int, tuple[str, str]]) -> list[SetAside]:
    """Rows in use that could not be tokenized, by reason."""
    by_reason: dict[str, list[int]] = {}
    for place in (place for place in used.tolist() if place in lost):
        by_reason.setdefault(lost[place][0], []).append(place)

    def group(reason: str, places: list[int]) -> SetAside:
        return SetAside(reason, np.asarray(places, np.int64), lambda index: lost[places[index]][1])

    return [group(reason, places) for reason, places in by_reason.items()]


def _examples_of(store: TokenStore, places: Places) -> Places:
    """The numbers of the examples that were made of the rows `places`, in their order, as often as a row stands there."""
    begins = np.searchsorted(store.rows, places, side="left")
    ends = np.searchsorted(store.rows, places, side="right")
    sizes = ends - begins
    offsets = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    examples: Places = (np.repeat(begins, sizes) + offsets).astype(np.int64)
    return examples


def _prefix(encoded: Sequence[Encoded]) -> int:
    """How many tokens all rows begin with, at most up to the token before the first trained one."""
    some = [source for source in encoded if source.parts and source.prefix]
    if len(some) < len([source for source in encoded if source.parts]):
        return 0
    first, last = min(source.prefix for source in some), max(source.prefix for source in some)
    common = next((place for place, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), min(len(first), len(last)))
    return max(0, min(common, min(source.seam for source in some) - 1))


def write_ledger(run: RunFolder, prepared: Prepared) -> None:
    """The books of a run, its rejected rows and its held-out rows, in its data folder."""
    ledger.write(run, prepared.ledger, prepared.rows.rejected, prepared.rows.held_out)


def trained_rows(run: RunFolder, settings: DataSettings, base: Path, seed: int, tokenizer: Any) -> Sequence[Conversation]:
    """The rows of its own that a run was trained on (none that was replayed), read again: by its own settings, with its own tokenizer, and
    from files that are still the same.

    Raises DataError where a file has changed since.
    """
    rows = load_rows(settings, base, seed)
    ledger.check_same_sources(run, rows.sources)
    return own_rows(tokenize_rows(rows, tokenizer, int(settings.max_length), settings).rows)


def own_rows(rows: Rows) -> Picked[Conversation]:
    """The rows to train on but for those that are replayed."""
    return Picked(rows.every, rows.train.places[~np.isin(rows.every.part_of(rows.train.places), _replayed_sources(rows))])


def _replayed_sources(rows: Rows) -> list[int]:
    return [number for number, source in enumerate(rows.sources) if source.get("replay")]


def _check_too_long(gone: Sequence[SetAside], used: Places, max_length: int, every: AllRows, but: Sequence[int]) -> None:
    """`but`: numbers of the sources that may have too long rows."""
    long = next((group for group in gone if group.reason == "too_long"), None)
    if long is None:
        return
    counted = np.flatnonzero(~np.isin(every.part_of(long.places), but)).tolist()
    rows = int((~np.isin(every.part_of(used), but)).sum())
    if len(counted) <= math.floor(rows * MOST_TOO_LONG_SHARE):
        return
    lengths = {index: int(long.detail(index).split()[0].replace(",", "")) for index in counted}
    longest = max(lengths, key=lengths.__getitem__)
    raise DataError(
        f"{len(lengths):,} of {rows:,} rows are longer than max_length ({max_length:,} tokens); this is the longest, with {lengths[longest]:,}",
        where=str(every.source(int(long.places[longest]))),
        next_step=f"data.max_length={lengths[longest]} keeps every row (if the model can hold it); "
        "data.too_long=split cuts texts and chats into parts, drop sets the rows aside",
    )


def _check_malformed(rows: Rows) -> None:
    malformed = sum(count for reason, count in rows.rejected.counts.items() if reason not in HARMLESS)
    if malformed > MOST_MALFORMED_ROWS and malformed > rows.read * MOST_MALFORMED_SHARE:
        raise _unusable(f"{malformed:,} of {rows.read:,} rows cannot be used", rows.rejected, but=HARMLESS)


def _check_left(rows: Rows) -> None:
    if not len(rows.train):
        raise _unusable(f"of {rows.read:,} rows none is left to train on", rows.rejected)


def _unusable(problem: str, rejected: Rejections, but: "set[str] | frozenset[str]" = frozenset()) -> DataError:
    some: list[Rejected] = []
    total = 0
    for row in rejected:
        if row.reason in but:
            continue
        total += 1
        if len(some) < LISTED:
            some.append(row)
    first = "".join(f"\n  {row.source}: {row.reason}: {row.detail}" for row in some)
    more = f"\n  and {total - LISTED:,} more" if total > LISTED else ""
    where = str(some[0].source) if some else "data.eval"
    return DataError(problem + first + more, where=where, next_step=_cure(rejected, but, some[0].source.file if some else "FILE"))


def _cure(rejected: Rejections, but: "set[str] | frozenset[str]", file: str) -> str:
    counted = [(count, reason) for reason, count in rejected.counts.items() if reason not in but]
    if counted and max(counted)[1] in OF_THE_TEMPLATE:
        return "choose a model whose chat template writes such rows, or give one (template: FILE.jinja)"
    return f"mend these rows (luthier data clean {file} --to clean.jsonl takes out and lists those that cannot be read)"


def _said_of(rows: Rows) -> list[str]:
    few = [f"{len(rows.train)} rows to train on: expect the model to learn them by heart"] if len(rows.train) < 3 and rows.train[0].templated else []
    return few + _set_aside(rows.rejected)


def _set_aside(rejected: Rejections) -> list[str]:
    """Which rows are left out, and why; the first of each reason with its place."""
    first, counted = rejected.first, sorted(rejected.counts.items())
    return [f"set aside: {count:,} {reason} (first: {first[reason].source}: {first[reason].detail})" for reason, count in counted]
