"""What licenses allow and ask for: licenses.toml as records. No torch here; a new license is a diff without Python."""

import functools
import tomllib
from dataclasses import dataclass
from importlib.resources import files as package_files
from typing import Any, Literal, get_args

from luthier.errors import CallError

Use = Literal["research", "internal", "commercial", "saas"]
USES: tuple[Use, ...] = get_args(Use)
Verdict = Literal["allowed", "allowed with obligations", "not for this use", "unknown"]


@dataclass(frozen=True, slots=True)
class License:
    """One license: the uses that it allows, what it asks for in each, and the text to include. A summary, no legal advice.

    `phrase` (lower case) is found in its text; `unverified`: the text itself was not read. `name_begins`: how the name of a tuned model has to
    begin where it is made available ("": as one likes).
    """

    id: str
    title: str
    url: str
    phrase: str
    allows: tuple[Use, ...]
    trains_others: str
    obligations: dict[Use, tuple[str, ...]]
    include: dict[Use, tuple[str, ...]]
    read: str
    checked: str  # ISO date
    unverified: bool
    name_begins: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Whether a model may be used for this, on what conditions, and which text goes with it."""

    model: str
    use: Use
    verdict: Verdict
    license: str  # title and id, or what was found instead
    url: str
    obligations: tuple[str, ...]
    include: tuple[str, ...]
    trains_others: str
    notes: tuple[str, ...]


@functools.cache
def _table() -> dict[str, License]:
    text = (package_files("luthier.models") / "licenses.toml").read_text(encoding="utf-8")
    return {row["id"].lower(): _license(row) for row in tomllib.loads(text).values()}


def _license(row: dict[str, Any]) -> License:
    return License(
        id=row["id"],
        title=row["title"],
        url=row["url"],
        phrase=row["phrase"],
        allows=tuple(row["allows"]),
        trains_others=row["trains_others"],
        obligations=_by_use(row["obligations"]),
        include=_by_use(row["include"]),
        read=row["read"],
        checked=row["checked"].isoformat(),
        unverified=row.get("unverified", False),
        name_begins=row.get("name_begins", ""),
    )


def _by_use(rows: list[dict[str, Any]]) -> dict[Use, tuple[str, ...]]:
    return {use: tuple(row["text"] for row in rows if use in row["on"]) for use in USES}


def licenses() -> list[License]:
    """Every license of the table, by id."""
    return sorted(_table().values(), key=lambda known: known.id.lower())


def license_of(name: str) -> License | None:
    """The license of this id, in any case of letters, or None where the table has none."""
    return _table().get(name.lower())


def known_id(name: str) -> str:
    """The id of a license as the table spells it; a name that the table does not have as it is."""
    known = license_of(name)
    return known.id if known else name


def of_text(text: str) -> License | None:
    """The license whose text this is, by its phrase; the longest phrase wins, since one license may name another."""
    words = " ".join(text.lower().split())
    found = [known for known in _table().values() if known.phrase in words[: max(4000, len(known.phrase))]]
    return max(found, key=lambda known: len(known.phrase), default=None)


def check_use(use: str) -> Use:
    """`use` as one of USES. Raises CallError for another."""
    for known in USES:
        if use == known:
            return known
    raise CallError(f"{use!r} is no use", where="--use", next_step=" | ".join(USES))


def audit(model: str, license_name: str, use: Use, notes: tuple[str, ...] = ()) -> Audit:
    """The verdict on a model under this license for this use; unknown where the table does not have the license."""
    known = license_of(license_name)
    if known is None:
        found = f"{license_name}: not in Luthier's table" if license_name else "no license was found"
        more = ("read the license yourself; without one, nothing is allowed beyond what the law allows",)
        return Audit(model, use, "unknown", found, "", (), (), "unknown", (*notes, *more))
    asked, allowed = known.obligations[use], use in known.allows
    verdict: Verdict = "not for this use" if not allowed else "allowed with obligations" if asked else "allowed"
    if known.unverified:
        notes = (*notes, f"unverified: {known.read}")
    label = f"{known.title} ({known.id})"
    return Audit(model, use, verdict, label, known.url, asked if allowed else (), known.include[use] if allowed else (), known.trains_others, notes)
