"""Row files to token files in the cache: every row is tokenized once, on all cores, and found again by its content, the tokenizer and the limits.

Several processes are used from PARALLEL_ROWS rows on. Each is this module, run as a program with a job file: nothing of the caller's is
imported again.
"""

import hashlib
import importlib.metadata
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luthier import files
from luthier.data import store
from luthier.data.ingest import Ingested, code_version, folder, kept, write_meta
from luthier.data.tokenize import How, tokenize
from luthier.errors import LuthierError
from luthier.records import Rejected
from luthier.reporting import Bar, Reporter

# A process that tokenizes needs some seconds to begin: below this one is faster.
PARALLEL_ROWS = 20_000
PART_ROWS = 4_096
ADVANCE_EVERY_ROWS = 256
MODULE = "luthier.data.encode"


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one source: token files in order, and the rows that could not be tokenized, as (number in the source, reason, detail)."""

    parts: list[Path]
    rejected: list[tuple[int, str, str]]
    # Of all rows of the source: the tokens that all examples begin with, and the least number of tokens before the first trained one.
    prefix: list[int]
    seam: int
    sha256: str  # of all token ids and marks, in order


def encode(source: Ingested, tokenizer: Any, how: How, reporter: Reporter, only: Sequence[int] | None = None) -> Encoded:
    """All rows of a source as tokens (or `only` these, by their numbers), from the cache where it has them whole."""
    some = "" if only is None else repr(list(only))
    key = hashlib.sha256("\0".join([source.key, tokenizer_hash(tokenizer), repr(how), code_version(), some]).encode()).hexdigest()
    place = folder() / f"tokens-{key[:32]}"

    def fill(staging: Path) -> None:
        count = len(source.rows) if only is None else len(only)
        with reporter.bar(f"tokenizing {source.rows.name}", max(1, count)) as bar:
            if only is None:
                _write(staging, source.rows, tokenizer, how, bar)
            else:
                write_meta(staging, {"parts": [_write_part(staging, source.rows, tokenizer, how, only, bar.advance)] if only else []})

    meta = kept(place, fill)
    rejected = [tuple(entry) for part in meta["parts"] for entry in part["rejected"]]
    content = hashlib.sha256("".join(part["sha256"] for part in meta["parts"]).encode()).hexdigest()
    return Encoded([place / part["file"] for part in meta["parts"]], rejected, *_common(meta["parts"]), content)


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of all that decides how a tokenizer cuts and writes: its vocabulary, its rules, its control tokens and its chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    parts = [rules, str(tokenizer.chat_template), repr(sorted(tokenizer.special_tokens_map.items(), key=str)), type(tokenizer).__name__]
    libraries = [importlib.metadata.version(name) for name in ("transformers", "tokenizers")]
    return hashlib.sha256("\0".join([*parts, *libraries]).encode()).hexdigest()


def _write(staging: Path, rows: store.RowFile, tokenizer: Any, how: How, bar: Bar) -> None:
    ranges = [range(start, min(start + PART_ROWS, len(rows))) for start in range(0, len(rows), PART_ROWS)]
    workers = min(_cores(), len(ranges)) if len(rows) >= PARALLEL_ROWS else 1
    done = _by_processes(staging, rows, tokenizer, how, ranges, workers, bar) if workers > 1 else None
    if done is None:
        done = [_write_part(staging, rows, tokenizer, how, one, bar.advance) for one in ranges]
    write_meta(staging, {"parts": done})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_part(to: Path, rows: Sequence[Any], tokenizer: Any, how: How, places: Sequence[int], advance: Callable[[int], None]) -> dict[str, Any]:
    """Tokenize the rows with these numbers (ascending) into one token file; gives what meta.json says of it."""
    name = f"part-{places[0]:09d}.arrow"
    writer = store.Writer(to / name, store.TOKEN_SCHEMA, compressed=False)
    rejected: list[tuple[int, str, str]] = []
    prefix: list[int] | None = None
    seam = -1
    digest = hashlib.sha256()
    before = places[0] if isinstance(places, range) else 0
    for count, place in enumerate(places, before):
        if count % ADVANCE_EVERY_ROWS == 0:
            advance(count)
        result = tokenize(rows[place], tokenizer, how)
        if isinstance(result, Rejected):
            rejected.append((place, result.reason, result.detail))
            continue
        counts = (result.read, result.cut, result.repeated)
        for example in result.examples:
            writer.add(place, example.token_ids, example.trained, example.trained_tokens, *counts)
            counts = (0, 0, 0)
            digest.update(np.asarray(example.token_ids, np.int32).tobytes() + np.asarray(example.trained, np.bool_).tobytes())
            prefix = example.token_ids if prefix is None else _shared(prefix, example.token_ids)
            before = example.trained.index(True)
            seam = before if seam < 0 else min(seam, before)
    writer.close()
    return {"file": name, "rejected": rejected, "prefix": prefix or [], "seam": seam, "sha256": digest.hexdigest()}


def _shared(one: list[int], other: list[int]) -> list[int]:
    if other[: len(one)] == one:
        return one
    return one[: next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))]


def _common(parts: list[dict[str, Any]]) -> tuple[list[int], int]:
    """The prefix and the seam of several parts together. A part without examples says nothing."""
    some = [part for part in parts if part["seam"] >= 0]
    if not some:
        return [], 0
    prefix = some[0]["prefix"]
    for part in some[1:]:
        prefix = _shared(prefix, part["prefix"])
    return prefix, min(part["seam"] for part in some)


def _by_processes(
    staging: Path, rows: store.RowFile, tokenizer: Any, how: How, ranges: list[range], workers: int, bar: Bar
) -> list[dict[str, Any]] | None:
    """The same by several processes; None where they cannot be had or would not tokenize alike, and this process must do it."""
    home = staging / "job"
    files.make_folder(home)
    try:
        tokenizer.save_pretrained(home / "tokenizer")
        same, jobs = tokenizer_hash(tokenizer), []
        for worker in range(workers):
            job = home / f"{worker}.json"
            settings = {"how": asdict(how), "rows": str(rows.path), "name": rows.name, "tokenizer": str(home / "tokenizer")}
            own = [(one.start, one.stop) for one in ranges[worker::workers]]
            files.write_json(job, {**settings, "hash": same, "ranges": own, "to": str(staging)})
            jobs.append(job)
        return _run(jobs, bar)
    finally:
        files.remove_folder(home)


def _run(jobs: list[Path], bar: Bar) -> list[dict[str, Any]] | None:
    parts: list[dict[str, Any]] = []
    # The same modules as here, and none that lies in the user's folder. What a process complains of is not shown: this one then does
    # the work by itself, and says what is wrong.
    modules = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": modules, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", MODULE]
    with ExitStack() as stack:
        processes = [
            subprocess.Popen([*command, str(job)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, encoding="utf-8", env=environment)
            for job in jobs
        ]
        for process in processes:
            stack.callback(_end, process)
        rows_done = 0
        for line in _lines(processes):
            part = json.loads(line)
            parts.append(part)
            rows_done += part.pop("rows")
            bar.advance(rows_done)
        if any(process.wait() for process in processes):
            return None
    return sorted(parts, key=lambda part: str(part["file"]))


def _lines(processes: "Sequence[subprocess.Popen[str]]") -> Iterator[str]:
    """What the processes print, a line at a time, as it comes."""
    with selectors.DefaultSelector() as selector:
        for process in processes:
            selector.register(process.stdout, selectors.EVENT_READ)  # type: ignore[arg-type]
        while selector.get_map():
            for ready, _ in selector.select():
                if line := ready.fileobj.readline():  # type: ignore[union-attr]
                    yield line
                else:
                    selector.unregister(ready.fileobj)


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()


def main(job: Path) -> int:
    """One process of `_by_processes`: its ranges of rows, a line of JSON for each that is done. Gives the exit code."""
    from transformers import AutoTokenizer

    settings = files.read_json(job)
    tokenizer = AutoTokenizer.from_pretrained(settings["tokenizer"], local_files_only=True, trust_remote_code=False)
    if tokenizer_hash(tokenizer) != settings["hash"]:
        return 1  # what was saved is not what the other process has: it must tokenize by itself
    rows = store.RowFile(Path(settings["rows"]), settings["name"])
    for start, end in settings["ranges"]:
        part = _write_part(Path(settings["to"]), rows, tokenizer, How(**settings["how"]), range(start, end), lambda _: None)
        print(json.dumps({**part, "rows": end - start}), flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except (LuthierError, OSError) as error:
        sys.exit(f"{MODULE}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
