"""Every row that was set aside, and why: counted at once, and given verbatim one after the other without being held in memory."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from luthier.data.ingest import Ingested
from luthier.data.store import AllRows, Places
from luthier.records import Rejected


@dataclass(frozen=True, slots=True)
class SetAside:
    """Rows that were read well and are left out for one reason. `detail(i)` says why of the i-th of them."""

    reason: str
    places: Places  # numbers among all rows
    detail: Callable[[int], str]


class Rejections:
    """What was set aside: by the readers (in the cache), and after them (by number)."""

    def __init__(self, sources: Sequence[Ingested], rows: AllRows, later: Sequence[SetAside] = ()) -> None:
        self._sources, self._rows, self._later = sources, rows, [group for group in later if len(group.places)]
        self.counts: Counter[str] = Counter()  # rows as read, by reason
        self.first: dict[str, Rejected] = {}  # of each reason, without its text
        for source in sources:
            self._count_read(source)
        for group in self._later:
            self.counts[group.reason] += self._size(group)
            self.first.setdefault(group.reason, self._rejected(group, 0, raw=False))

    def __len__(self) -> int:
        return sum(self.counts.values())

    def __iter__(self) -> Iterator[Rejected]:
        for source in self._sources:
            yield from source.rejections()
        for group in self._later:
            for index in range(len(group.places)):
                yield self._rejected(group, index, raw=True)

    def and_also(self, later: Sequence[SetAside]) -> "Rejections":
        """The same with more rows set aside."""
        return Rejections(self._sources, self._rows, [*self._later, *later])

    def of_source(self, number: int) -> Counter[str]:
        """The counts of one source, by its number."""
        counts = Counter(self._sources[number].meta["rejected"])
        start, end = int(self._rows.starts[number]), int(self._rows.starts[number + 1])
        for group in self._later:
            inside = group.places[(start <= group.places) & (group.places < end)]
            if len(inside):
                counts[group.reason] += int(self._rows.sizes[inside].sum())
        return counts

    def _count_read(self, source: Ingested) -> None:
        self.counts.update(source.meta["rejected"])
        for rejected in source.first_rejections():
            self.first.setdefault(rejected.reason, rejected)

    def _size(self, group: SetAside) -> int:
        return int(self._rows.sizes[group.places].sum())

    def _rejected(self, group: SetAside, index: int, *, raw: bool) -> Rejected:
        place = int(group.places[index])
        text = self._rows.raw(place) if raw else ""
        return Rejected(group.reason, group.detail(index), self._rows.source(place), text, int(self._rows.sizes[place]))
