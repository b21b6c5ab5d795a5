"""The checks that compare rows: seconds and memory on many short rows, and recall and precision on the planted sets.

python benchmarks/quality_sets.py [ROWS]
"""

import importlib.util
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from luthier.config.checks import CheckSettings
from luthier.data.quality.check import Given, RowCheck
from luthier.data.quality.check import Noted as NotedRows
from luthier.data.quality.set_table import SET_CHECKS
from luthier.records import Conversation, Source, Turn

ROWS = 100_000
CHARACTERS = 300
NEEDS_VECTORS = ("semantic_duplicates", "off_domain")  # off by default, and minutes on many rows


def many_rows(rows: int) -> list[Conversation]:
    """Rows of about CHARACTERS characters with words as frequent as in a language; one in twenty is a copy, one in twenty nearly one."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("etaoinshrdlucmfw", k=draw.randint(2, 9))) for _ in range(30_000)]
    weights = [1 / rank for rank in range(1, len(vocabulary) + 1)]
    texts: list[tuple[str, str]] = []
    for number in range(rows):
        kind = draw.random()
        if number > 100 and kind < 0.1:
            question, answer = draw.choice(texts)
            if kind < 0.05:
                answer += " " + draw.choice(vocabulary)
        else:
            drawn = draw.choices(vocabulary, weights, k=CHARACTERS // 6)
            question, answer = " ".join(drawn[:20]).capitalize() + "?", " ".join(drawn[20:]).capitalize() + "."
        texts.append((question, answer))
    return [
        Conversation((Turn("user", question), Turn("assistant", answer)), Source("rows.jsonl", number))
        for number, (question, answer) in enumerate(texts, 1)
    ]


def timed(rows: list[Conversation], given: Given) -> None:
    total = 0.0
    print(f"{len(rows):,} rows, one process\n{'check':22}{'seconds':>9}  said")
    for name, check in SET_CHECKS.items():
        if name in NEEDS_VECTORS and len(rows) > 20_000:
            continue
        start = time.perf_counter()
        if isinstance(check, RowCheck):
            look = check.start(given)
            assert not isinstance(look, str), look
            found = check.conclude(NotedRows(name, rows, [(place, note) for place, row in enumerate(rows) if (note := look(row))]), given)
        else:
            found = check.run(rows, given)
        seconds = time.perf_counter() - start
        total += seconds
        print(f"{name:22}{seconds:9.2f}  {found.said}")
    print(f"{'all':22}{total:9.2f}\npeak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB, the rows themselves included")


def planted() -> None:
    """The table of docs/data-quality.md."""
    path = Path(__file__).parent.parent / "tests/data/quality/planted_sets.py"
    spec = importlib.util.spec_from_file_location("planted_sets", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["planted_sets"] = module
    spec.loader.exec_module(module)
    measure: Callable[[str], object] = module.measured
    print(f"\n{'check':22}{'rows':>7}{'planted':>9}{'recall':>8}{'precision':>11}")
    for name in module.PLANTED:
        print(f"{name:22}{measure(name)}")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    set_of_rows = many_rows(count)
    timed(set_of_rows, Given(CheckSettings(), held_out=set_of_rows[: count // 100], losses=[float(number % 7) for number in range(count)]))
    planted()
