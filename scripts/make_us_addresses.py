"""Build the demo's rows from the source distribution of usaddress 0.5.16 (MIT): hand-labeled US addresses as chat rows.

    python scripts/make_us_addresses.py usaddress-0.5.16.tar.gz      (or the folder it unpacks to)

Writes train.jsonl, test.jsonl and LICENSE to src/luthier/data/us_addresses, the same bytes every time.
"""

import argparse
import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from luthier import files

RELEASE = "usaddress-0.5.16"
LABELED = ("labeled.xml", "us50_train_tagged.xml", "us50_messiest_manual_label.xml", "multi_word_state_addresses.xml")
TARGET = Path(__file__).resolve().parent.parent / "src/luthier/data/us_addresses"
FIELDS = ("name", "street", "unit", "city", "state", "zip")
TEST_ROWS = 320

SYSTEM = (
    "Turn the US address into one JSON object. Use only these fields, in this order, and leave out what is missing: "
    "name (person or company), street (number and street, or box), unit (suite, floor, apartment), city, state, zip. "
    "Copy the text as it is written, without the commas between fields. Answer with the JSON only."
)

# A period may belong to a street ("W. Main St.") or a state ("N.Y."), never to a city's or a zip's end.
EDGES = {"city": " ,;:-.", "zip": ' ,;:-."'}

FIELD_OF_TAG = {
    # usaddress's tag  our field
    "PlaceName": "city",
    "StateName": "state",
    "ZipCode": "zip",
    "ZipPlus4": "zip",
    "Recipient": "name",
    "OccupancyType": "unit",
    "OccupancyIdentifier": "unit",
    "SubaddressType": "unit",
    "SubaddressIdentifier": "unit",
    "CountryName": "",
    "NotAddress": "",
}


@dataclass(frozen=True, slots=True)
class Address:
    """A labeled address: its text, and the fields in the order of FIELDS."""

    text: str
    fields: dict[str, str]

    @property
    def key(self) -> str:
        """Two texts that differ only in case, spaces and punctuation are one address."""
        return bare(self.text)

    @property
    def place(self) -> str:
        """Rows of one place stay on one side of the split, however the rest is written."""
        return bare(self.fields.get("street", self.text))

    @property
    def row(self) -> dict[str, object]:
        answer = json.dumps(self.fields, ensure_ascii=False)
        turns = {"system": SYSTEM, "user": self.text, "assistant": answer}
        return {"messages": [{"role": role, "content": content} for role, content in turns.items()]}


def bare(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def read_source(source: Path, name: str) -> bytes:
    """One file of the source distribution, from its folder or its archive."""
    if source.is_dir():
        return (source / name).read_bytes()
    with tarfile.open(source) as archive:
        member = archive.extractfile(f"{RELEASE}/{name}")
        assert member is not None, f"{source} has no {name}"
        return member.read()


def read_address(element: ElementTree.Element) -> Address | None:
    """The address of one <AddressString>, or None where a field is in two pieces and so is no part of the text."""
    text, spans, owners = "", dict[str, tuple[int, int]](), list[tuple[int, str]]()
    for tag in element:
        field = FIELD_OF_TAG.get(tag.tag, "street")
        start, text = len(text), text + (tag.text or "").strip()
        spans[field] = (spans.get(field, (start, 0))[0], len(text))
        owners.append((start, field))
        text += re.sub(r"\s+", " ", tag.tail or "")
    for field, (start, end) in spans.items():
        if field and any(start <= at < end and owner != field for at, owner in owners):
            return None
    fields = {name: text[slice(*spans[name])].strip(EDGES.get(name, " ,;:-")) for name in FIELDS if name in spans}
    return Address(text.strip(), {name: value for name, value in fields.items() if value})


def is_whole(address: Address) -> bool:
    return "city" in address.fields and len(address.fields) >= 3


def teaches(address: Address) -> bool:
    """Parts of addresses (a street and a floor) are not asked in the test, but teach where one field ends and the next begins."""
    return len(address.fields) >= 2


def split(addresses: list[Address]) -> tuple[list[Address], list[Address]]:
    """Train and test: places in the order of their hash, test first until it is full. Only whole addresses are asked."""

    def order(address: Address) -> tuple[str, str]:
        return hashlib.sha256(address.place.encode()).hexdigest(), hashlib.sha256(address.key.encode()).hexdigest()

    addresses = sorted(addresses, key=order)
    whole = [address for address in addresses if is_whole(address)]
    places = {address.place for address in whole[:TEST_ROWS]}
    test = [address for address in whole if address.place in places]
    return [address for address in addresses if address.place not in places], test


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("source", type=Path, help=f"{RELEASE}.tar.gz, or the folder it unpacks to")
    source: Path = parser.parse_args().source
    elements = [element for name in LABELED for element in ElementTree.fromstring(read_source(source, f"training/{name}"))]
    read = [address for element in elements if (address := read_address(element)) is not None]
    taught = [address for address in read if teaches(address)]
    distinct = list({address.key: address for address in reversed(taught)}.values())
    train, test = split(distinct)
    for name, rows in (("train", train), ("test", test)):
        files.write_lines(TARGET / f"{name}.jsonl", [address.row for address in rows])
    files.write_bytes(TARGET / "LICENSE", read_source(source, "LICENSE"))
    print(f"{len(elements)} labeled, {len(elements) - len(read)} with a field in two pieces, {len(read) - len(taught)} of one field,")
    print(f"{len(taught) - len(distinct)} repeated: {len(train)} rows to train on, {len(test)} to test on")


if __name__ == "__main__":
    main()
