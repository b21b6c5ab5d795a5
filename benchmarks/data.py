"""How fast rows are read, tokenized and checked, and in how much memory.

    python benchmarks/data.py read --megabytes 2000      a JSONL file of that size into the cache: seconds and resident memory
    python benchmarks/data.py tokens --rows 1000000      rows to tokens with the default model's tokenizer, and a second time
    python benchmarks/data.py check --rows 100000        every check but the semantic one

Each measurement runs in a process of its own, with an empty cache, so that its peak is its own.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from luthier import files

WORDS = [
    *("order", "invoice", "parcel", "password", "refund", "delivery", "account", "street", "city", "weather", "guitar", "bridge", "string"),
    *("letter", "number", "table", "answer", "question", "market", "river", "window", "garden", "music", "teacher", "doctor", "engine"),
    *("train", "station", "ticket", "price", "camera", "battery", "screen", "cable", "paper", "copper", "silver", "cotton", "summer"),
]


def write_rows(path: Path, *, rows: int | None = None, megabytes: float | None = None, characters: int = 300) -> int:
    """Chats of one question and one answer, `characters` long together; gives the number of rows."""
    chance = random.Random(0)
    written = size = 0
    with open(path, "w", encoding="utf-8") as file:
        while written < (rows or 10**12) and size < (megabytes or 10**9) * 1e6:
            words = chance.choices(WORDS, k=characters // 7)
            middle = len(words) // 2
            question, answer = f"{' '.join(words[:middle])} {written}?", f"{' '.join(words[middle:]).capitalize()}."
            line = json.dumps({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}) + "\n"
            file.write(line)
            written += 1
            size += len(line)
    return written


def measure(what: str, path: Path) -> None:
    """In a process of its own: do it, and print what it took."""
    from luthier.config.load import config_of_rows
    from luthier.data import prepare

    config = config_of_rows(path, "smollm2-135m-instruct", ["data.eval=5%"])
    start = time.perf_counter()
    if what == "check":
        from luthier.recipes import data_check

        data_check.check(config, str(path))
    else:
        rows = prepare.load_rows(config.settings.data, path.parent, 0)
        if what == "tokens":
            from luthier.models import find, load
            from luthier.reporting import Silent

            tokenizer = load.load_tokenizer(find.find(config.settings.model, Silent(), path.parent))
            prepare.tokenize_rows(rows, tokenizer, 2048, config.settings.data)
    seconds = time.perf_counter() - start
    own, children = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"seconds": seconds, "peak_bytes": own, "peak_bytes_of_a_child": children}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["read", "tokens", "check"])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--megabytes", type=float)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.file:
        measure(asked.what, asked.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        rows = write_rows(path, rows=asked.rows or (None if asked.megabytes else 100_000), megabytes=asked.megabytes)
        print(f"{asked.what}: {rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB of JSONL, {os.cpu_count()} cores")
        # The models are the user's own; rows and tokens begin with an empty cache.
        home = Path(folder) / "home"
        home.mkdir()
        (home / "models").symlink_to(files.home() / "models")
        for turn in ("first time", "second time"):
            environment = {**os.environ, "LUTHIER_HOME": str(home)}
            command = [sys.executable, __file__, asked.what, "--file", str(path)]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            took = json.loads(done.stdout.splitlines()[-1])
            per_second = rows / took["seconds"]
            peaks = f"{took['peak_bytes'] / 1e6:,.0f} MB resident (its largest child {took['peak_bytes_of_a_child'] / 1e6:,.0f} MB)"
            print(f"  {turn}: {took['seconds']:.1f} s, {per_second:,.0f} rows/s, {peaks}", flush=True)


if __name__ == "__main__":
    main()
