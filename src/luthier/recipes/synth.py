"""`luthier data synth`: rows made by a model behind an endpoint, from seed rows or from documents. Every answer is paid for once and kept.

The journal beside the output is the truth; the output and the list of set-aside rows are written from it, and mended from it after a kill.
"""

import datetime
import hashlib
import json
import os
import random
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from luthier import files
from luthier.config.checks import CheckSettings
from luthier.data import journal as journals
from luthier.data import making
from luthier.data.conversations import AS_FOUND, conversations, files_of
from luthier.data.endpoint import Callers, Endpoint, Question, Refused, Reply
from luthier.data.making import Asked, Form, Known, Pair, Passage, Seed
from luthier.data.read.fingerprint import fingerprint
from luthier.data.read.rows import rows_of
from luthier.data.read.source import SourceFile
from luthier.errors import CallError, DataError, LuthierError
from luthier.records import Rejected
from luthier.reporting import Bar, Reporter, Silent
from luthier.stopping import Stop, stopping_on_signals

Way = Literal["bootstrap", "evolve"]
# So many requests in a row without a row that can be kept, and nothing is to be expected of more.
FRUITLESS_REQUESTS = 150
REFUSALS_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Call:
    """What is to be made. `source` is a file of seed rows, or a document or a folder of documents (.txt, .md)."""

    endpoint: str
    model: str
    source: str
    rows: int
    to: Path
    way: Way = "bootstrap"
    key_env: str | None = None
    max_tokens: int = 512
    temperature: float | None = None
    requests_per_minute: float | None = None
    concurrency: int = 4
    timeout_s: float = 120.0
    seed: int = 0
    price_per_million_input: float | None = None
    price_per_million_output: float | None = None

    @property
    def journal(self) -> Path:
        return self.to.with_name(f"{self.to.name.removesuffix('.jsonl')}.journal.jsonl")

    @property
    def rejected(self) -> Path:
        return self.to.with_name(f"{self.to.name.removesuffix('.jsonl')}.rejected.jsonl")


@dataclass(slots=True)
class Bill:
    """What the server counted. `unmetered` answers came without counts, `again` is how often a request was tried more than once."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unmetered: int = 0
    again: int = 0

    def add(self, entry: dict[str, Any]) -> None:
        counts = [entry["usage"]["prompt_tokens"], entry["usage"]["completion_tokens"]]
        self.requests += 1
        self.prompt_tokens += counts[0] or 0
        self.completion_tokens += counts[1] or 0
        self.unmetered += None in counts
        self.again += entry["tries"] > 1


@dataclass(frozen=True, slots=True)
class Made:
    """What stands in the files now. `cost` is in the currency of the prices, None without prices."""

    file: str
    rows: int
    rejected_file: str
    rejected: dict[str, int]
    refused_requests: int
    bill: Bill
    cost: float | None


class Interrupted(LuthierError):
    """Ctrl-C or SIGTERM: all that was answered is kept. The exit code is the shell's own for that signal."""

    def __init__(self, made: Made, number: int) -> None:
        problem = f"stopped with {made.rows:,} rows; {made.bill.requests:,} answers are kept"
        super().__init__(problem, where=made.file, next_step="the same command goes on from here")
        self.exit_code = 128 + number


@dataclass(frozen=True, slots=True)
class Material:
    """What rows are made from: seeds or passages, and the hash of what they were read from."""

    seeds: list[Seed]
    passages: list[Passage]
    sha256: str


@dataclass(slots=True)
class Bench:
    """The state of a making, rebuilt from the journal when it goes on."""

    call: Call
    material: Material
    form: Form
    known: Known
    journal: journals.Journal
    host: str
    passages: dict[str, str]
    asked: dict[int, Asked] = field(default_factory=dict)
    waiting: list[int] = field(default_factory=list)  # sent by an earlier process, and never answered
    made: list[Seed] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    bill: Bill = field(default_factory=Bill)
    last_request: int = 0
    refused: int = 0
    fruitless: int = 0


def synth(call: Call, reporter: Reporter | None = None) -> Made:
    """Make rows until `call.to` holds `call.rows` of them; goes on where an earlier call like this one stopped.

    Raises CallError where the output exists and was not made by such a call, DataError where the seeds or the answers are of no use, and
    LuthierError for what the endpoint refuses. Whatever was answered is kept in every case.
    """
    reporter = reporter or Silent()
    endpoint = Endpoint(call.endpoint, _key(call.key_env), timeout_s=call.timeout_s, requests_per_minute=call.requests_per_minute)
    if endpoint.shows_key:
        reporter.say(f"{endpoint.host}: the key is sent in clear text (http); https hides it")
    _check_output(call)
    material = _material(call, reporter)
    bench = _bench(call, material, endpoint, reporter)
    callers = Callers(endpoint, call.concurrency)
    with closing(bench.journal), callers, reporter.bar(f"making rows with {call.model}", call.rows) as bar, stopping_on_signals() as stop:
        bar.advance(len(bench.rows))
        _ask(bench, callers, bar, stop, reporter)
    made = _made(bench)
    if stop.signal and made.rows < call.rows:
        raise Interrupted(made, stop.signal)
    return made


def _ask(bench: Bench, callers: Callers, bar: Bar, stop: "Stop", reporter: Reporter) -> None:
    """Keep all callers busy until the rows are there. What is on its way when something ends this is waited for: it is paid already."""
    failure: LuthierError | None = None
    while True:
        ending = bool(stop.signal or failure)
        # One answer gives one row, as a rule: no more are asked for than rows are missing.
        while not ending and callers.in_flight < min(bench.call.concurrency, bench.call.rows - len(bench.rows)):
            callers.send(_next_question(bench))
        if not callers.in_flight:
            break
        if ending and not callers.endpoint.stopped:
            reporter.say(f"waiting for {callers.in_flight} answers that are on their way (Ctrl-C leaves them)")
            callers.endpoint.stop()
        if (arrived := callers.next_reply()) is None:
            continue
        ended = _take(bench, *arrived)
        failure = failure or ended
        bar.advance(len(bench.rows), f"{bench.bill.requests:,} requests, {len(bench.rejected):,} set aside")
    if failure and not stop.signal:
        raise failure


def _next_question(bench: Bench) -> Question:
    """The next request, written to the journal before it is sent. Those that a kill left without an answer come first, under their old id."""
    if bench.waiting:
        return _question(bench, bench.waiting.pop(0))
    number = bench.last_request = bench.last_request + 1
    asked = bench.asked[number] = _asked(bench, number)
    text = json.dumps(asked.messages, ensure_ascii=False)
    entry = {"prompt": making.PROMPTS[asked.kind], "prompt_sha256": hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()}
    told = {"from": asked.made_of, "system": asked.system, "messages": asked.messages, "at": _now()}
    bench.journal.add({"kind": "sent", "request": number, **entry, **told})
    return _question(bench, number)


def _question(bench: Bench, number: int) -> Question:
    settings: dict[str, Any] = {"model": bench.call.model, "max_tokens": bench.call.max_tokens}
    if bench.call.temperature is not None:
        settings["temperature"] = bench.call.temperature
    return Question(f"{bench.journal.call['id']}-{number}", bench.asked[number].messages, settings)


def _asked(bench: Bench, number: int) -> Asked:
    draw = random.Random(f"{bench.call.seed}:{number}")
    if passages := bench.material.passages:
        return making.from_passage(passages[(number - 1) % len(passages)], number > len(passages), draw)
    ask = {"bootstrap": making.bootstrap, "evolve": making.evolve}[bench.call.way]
    return ask(bench.material.seeds, bench.made, draw)


def _take(bench: Bench, question: Question, reply: Reply | LuthierError) -> LuthierError | None:
    """Judge one answer and keep it: in the journal first, then in the files. Gives what must end the making, if anything."""
    number = int(question.id.rpartition("-")[2])
    if isinstance(reply, Refused):
        bench.refused += 1
        bench.fruitless += 1
        bench.journal.add({"kind": "refused", "request": number, "problem": reply.problem})
        return reply if bench.fruitless >= REFUSALS_IN_A_ROW and bench.refused >= bench.fruitless else None
    if isinstance(reply, LuthierError):
        return reply
    rows, rejected = _judged(bench, number, reply)
    usage = {"prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    entry = {"kind": "answered", "request": number, "usage": usage, "tries": reply.tries, "rows": rows, "rejected": rejected, "at": _now()}
    bench.journal.add(entry)
    _count(bench, entry)
    for path, lines in ((bench.call.to, rows), (bench.call.rejected, rejected)):
        for line in lines:
            files.append_line(path, _line(line))
    if bench.fruitless < FRUITLESS_REQUESTS:
        return None
    reasons = ", ".join(
        f"{count} {reason}" for reason, count in Counter(row["reason"] for row in bench.rejected[-FRUITLESS_REQUESTS:]).most_common(4)
    )
    return DataError(
        f"{FRUITLESS_REQUESTS} requests in a row gave no row that can be kept ({reasons})",
        where=str(bench.call.rejected),
        next_step="read what the model wrote there; more or other seeds, a larger model or --temperature help, and so does a smaller -n",
    )


def _judged(bench: Bench, number: int, reply: Reply) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of one answer that are kept, and those that are not, each with its reason."""
    asked = bench.asked[number]
    pairs = making.pairs_in(reply.text)
    if not pairs:
        return [], [{"reason": "no_pair", "detail": "no question with an answer can be found in it", "request": number, "text": reply.text}]
    rows: list[dict[str, Any]] = []
    rejected = []
    passage = bench.passages.get(asked.made_of[0], "")
    for place, pair in enumerate(pairs, start=1):
        found = making.flaw(pair, bench.form, passage, reply.cut and place == len(pairs)) or bench.known.twin(pair.question)
        if not found and len(bench.rows) + len(rows) >= bench.call.rows:
            found = "more_than_asked", f"{bench.call.rows:,} rows are there"
        if found:
            told = {"reason": found[0], "detail": found[1], "request": number}
            rejected.append({**told, "question": pair.question, "answer": pair.answer})
        else:
            bench.known.add(pair.question, f"request {number}")
            rows.append(_row(bench, asked, number, pair))
    return rows, rejected


def _row(bench: Bench, asked: Asked, number: int, pair: Pair) -> dict[str, Any]:
    system = [{"role": "system", "content": asked.system}] if asked.system else []
    turns = [{"role": "user", "content": pair.question}, {"role": "assistant", "content": pair.answer}]
    origin = {"from": asked.made_of, "model": bench.call.model, "endpoint": bench.host, "prompt": making.PROMPTS[asked.kind]}
    return {"messages": [*system, *turns], "provenance": {**origin, "request": number, "created": _now()}}


def _count(bench: Bench, entry: dict[str, Any]) -> None:
    bench.bill.add(entry)
    bench.rows += entry["rows"]
    bench.rejected += entry["rejected"]
    bench.fruitless = 0 if entry["rows"] else bench.fruitless + 1
    for row in entry["rows"]:
        *system, user, assistant = (message["content"] for message in row["messages"])
        bench.made.append(Seed(user, assistant, system[0] if system else "", f"request {entry['request']}"))


# --- before the first request ----------------------------------------------------------------------------------------------------------


def _bench(call: Call, material: Material, endpoint: Endpoint, reporter: Reporter) -> Bench:
    """A new bench with a new journal, or the bench that an earlier call left."""
    begin: dict[str, Any] = {
        "endpoint": endpoint.url,
        "model": call.model,
        "from": call.source,
        "from_sha256": material.sha256,
        "prompt": making.PROMPTS["passage" if material.passages else call.way],
        "max_tokens": call.max_tokens,
        "temperature": call.temperature,
        "seed": call.seed,
        "id": uuid.uuid4().hex,
    }
    resumed = call.journal.exists()
    journal = journals.resume(call.journal, begin, _now()) if resumed else journals.begin(call.journal, begin)
    known = Known(CheckSettings().near_duplicate_threshold)
    for seed in material.seeds:
        known.add(seed.question, seed.place)
    texts = {passage.place: passage.text for passage in material.passages}
    bench = Bench(call, material, making.form_of(material.seeds), known, journal, endpoint.host, texts)
    if resumed:
        try:
            _replay(bench)
            _mend(call.to, bench.rows)
            _mend(call.rejected, bench.rejected)
        except BaseException:
            journal.close()
            raise
        waiting = f"; {len(bench.waiting)} requests had no answer yet and are sent again under their old ids" if bench.waiting else ""
        reporter.say(f"{call.to}: going on with {len(bench.rows):,} rows and {bench.bill.requests:,} answers{waiting}")
    return bench


def _replay(bench: Bench) -> None:
    kinds = {value: kind for kind, value in making.PROMPTS.items()}
    for entry in bench.journal.entries:
        number = int(entry.get("request", 0))
        if entry["kind"] == "sent":
            bench.asked[number] = Asked(kinds[entry["prompt"]], entry["messages"], entry["from"], entry["system"])
            bench.waiting.append(number)
            bench.last_request = number
        elif entry["kind"] == "answered":
            bench.waiting.remove(number)
            _count(bench, entry)
            for row in entry["rows"]:
                bench.known.add(row["messages"][-2]["content"], f"request {number}")
        elif entry["kind"] == "refused":
            bench.waiting.remove(number)
            bench.refused += 1
    bench.fruitless = 0  # whoever calls again wants it tried again


def _mend(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write what a kill kept from the file. Raises CallError where the file holds anything else than the journal says."""
    wanted = "".join(_line(row) + "\n" for row in rows).encode()
    there = path.read_bytes() if path.exists() else b""
    if not wanted.startswith(there):
        raise CallError("was changed since it was made, and would be overwritten", where=str(path), next_step="keep it, and choose another --to")
    if len(there) < len(wanted):
        files.write_bytes(path, wanted)


def _check_output(call: Call) -> None:
    for path in (call.to, call.rejected):
        if os.path.lexists(path) and not call.journal.exists():
            raise CallError(
                "exists already, and nothing is overwritten", where=str(path), next_step="choose another --to (a making that began goes on by itself)"
            )


def _key(name: str | None) -> str:
    if name is None:
        return ""
    if not (key := os.environ.get(name, "").strip()):
        raise CallError("this environment variable is not set, or empty", where=f"--key-env {name}", next_step=f"export {name}=... before the call")
    return key


def _material(call: Call, reporter: Reporter) -> Material:
    with tempfile.TemporaryDirectory() as spool:
        found = files_of([call.source], Path(spool), reporter.say)
        sha256 = hashlib.sha256("\0".join(fingerprint(file) for file in found).encode()).hexdigest()
        if all(file.kind == "text" for file in found):
            if call.way != "bootstrap":
                raise CallError(f"--how {call.way} is for seed rows", where=call.source, next_step="leave --how out: documents are asked about")
            return Material([], _passages(found, reporter.say), sha256)
        return Material(_seeds(found, reporter.say), [], sha256)


def _passages(found: Sequence[SourceFile], said: Callable[[str], None]) -> list[Passage]:
    passages: list[Passage] = []
    for file in found:
        for row in rows_of(file, "utf-8", said):
            if isinstance(row, Rejected):
                said(f"{row.source}: not used: {row.detail}")
            else:
                passages += making.passages_of(row.value["text"], file.name, row.source.line)
    if not passages:
        raise DataError("there is no passage that says enough to ask about", where=found[0].name, next_step="name documents with whole paragraphs")
    said(f"{len(passages):,} passages of {len(found):,} documents")
    return passages


def _seeds(found: Sequence[SourceFile], said: Callable[[str], None]) -> list[Seed]:
    seeds: list[Seed] = []
    for file in found:
        formatted = conversations(file, AS_FOUND, said)
        left_out: Counter[str] = Counter()
        for built in formatted.built:
            if isinstance(built, Rejected):
                left_out[built.reason] += built.rows
            elif (seed := making.seed_of(built.conversation)) is None:
                left_out["not one question with one answer"] += built.rows
            else:
                seeds.append(seed)
        aside = "".join(f"; {count:,} not used: {reason}" for reason, count in left_out.items())
        said(f"{file.name}: {formatted.evidence}{aside}")
    if not seeds:
        raise DataError("no row can be a seed: one question with one answer", where=found[0].name, next_step="name a file of such rows, 8 or more")
    return seeds


# --- words and signals -----------------------------------------------------------------------------------------------------------------


def _made(bench: Bench) -> Made:
    prices = (bench.call.price_per_million_input, bench.call.price_per_million_output)
    tokens = (bench.bill.prompt_tokens, bench.bill.completion_tokens)
    cost = None if prices == (None, None) else sum((price or 0) * count for price, count in zip(prices, tokens, strict=True)) / 1e6
    reasons = dict(Counter(row["reason"] for row in bench.rejected).most_common())
    return Made(str(bench.call.to), len(bench.rows), str(bench.call.rejected), reasons, bench.refused, bench.bill, cost)


def _line(row: dict[str, Any]) -> str:
    # A lone surrogate, which a model's JSON can spell and UTF-8 cannot, becomes its JSON escape.
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}"
