"""An index above the plain store's size: how long it takes, how much memory, how long a question, and how much LanceDB's clusters miss.

python benchmarks/rag_large.py STORE [PASSAGES]                 # plain or lancedb; default 120,000

Passages are made up: 60 words each, of one of 5,000 subjects of 40 words, with a fifth of them drawn from anywhere. The words are those of this
project's documents. Questions are 8 words of a subject.
"""

import json
import random
import re
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from luthier.rag.embedding import embedder_of
from luthier.rag.finding import BOTH, open_finder
from luthier.rag.index import open_index
from luthier.rag.indexing import build
from luthier.rag.splitting import Split
from luthier.rag.vectors import Plain

AT, ASKED = 10, 300


def main() -> None:
    store, passages = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 120_000
    draw = random.Random(0)
    texts = " ".join(path.read_text(encoding="utf-8") for path in sorted((Path(__file__).parents[1] / "docs").glob("*.md")))
    words = sorted(set(re.findall(r"[a-z]{3,}", texts.lower())))
    subjects = [draw.sample(words, 40) for _ in range(5_000)]
    with tempfile.TemporaryDirectory() as temporary:
        rows, to = Path(temporary) / "rows.jsonl", Path(temporary) / "index"
        with rows.open("w", encoding="utf-8") as file:
            for _ in range(passages):
                file.write(json.dumps({"text": " ".join(draw.choices(draw.choice(subjects), k=48) + draw.choices(words, k=12))}) + "\n")
        embedder = embedder_of("wordllama")
        began = time.perf_counter()
        done = build([("rows.jsonl", rows)], to, embedder, Split(), store)
        seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{store}: indexed {done.passages:,} passages in {seconds:.0f} s, at most {peak:.0f} MiB", flush=True)
        finder = open_finder(open_index(to))
        questions = [" ".join(draw.sample(draw.choice(subjects), 8)) for _ in range(ASKED)]
        finder.find(questions[0], AT)  # opens what is read first
        for name, ways in (("meaning", ("meaning",)), ("hybrid", BOTH)):
            times = []
            for question in questions:
                start = time.perf_counter()
                finder.find(question, AT, ways=ways)
                times.append(1000 * (time.perf_counter() - start))
            print(f"{name}: a question takes {np.median(times):.1f} ms, 99 % less than {np.quantile(times, 0.99):.1f} ms", flush=True)
        exact = Plain(finder.index.vectors.rows(0, done.passages))
        hits = 0
        for vector in embedder.questions(questions):
            near, true = (set(one.nearest(vector, AT)[0].tolist()) for one in (finder.index.vectors, exact))
            hits += len(near & true)
        print(f"of the {AT} nearest it finds {hits / AT / ASKED:.1%}")


if __name__ == "__main__":
    main()
