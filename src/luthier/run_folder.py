"""One run on disk: the only meeting of those who write (train, evaluate, export) and those who read (diagnose, chat, serve)."""

import dataclasses
import datetime
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from luthier import files
from luthier.errors import RunError
from luthier.records import Judged, Metric, Parity, Sample, Scorecard, Source, StepReport, TokenizedExample

SCHEMA = 1
# A run needs its adapter, its checkpoints and perhaps a merged model; less than this is not worth starting.
LEAST_FREE_BYTES = 50_000_000
NO_DRIFT: Mapping[str, float] = MappingProxyType({})


@dataclass(slots=True)
class _Backlog:
    """Lines that could not be written, by their file. With `say` they wait for room and that is said once; without it the error is raised."""

    say: Callable[[str], None] | None = None
    lines: dict[Path, list[str]] = field(default_factory=dict)

    def add(self, path: Path, line: str) -> None:
        if self.say is None:
            files.append_line(path, line)
            return
        waiting = self.lines.setdefault(path, [])
        waiting.append(line)
        try:
            files.append_line(path, "\n".join(waiting))
        except (RunError, OSError) as error:
            if len(waiting) == 1:
                problem = error.problem if isinstance(error, RunError) else str(error)
                self.say(f"{path.name}: {problem}; training goes on, and what belongs there is kept until it can be written")
            return
        if len(waiting) > 1:
            self.say(f"{path.name} can be written again; nothing of it is missing")
        del self.lines[path]

    def end(self, say: Callable[[str], None]) -> None:
        """A last try; what is lost is said."""
        self.say = None
        for path, waiting in self.lines.items():
            try:
                files.append_line(path, "\n".join(waiting))
            except (RunError, OSError):
                rows = sum(line.count("\n") + 1 for line in waiting)
                say(f"{path}: {rows} lines are lost, from {waiting[0][:80]} to {waiting[-1][:80]}")
        self.lines.clear()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run, and reading and writing of its JSON. Nothing here knows what a model is."""

    path: Path
    _backlog: _Backlog = field(default_factory=_Backlog, init=False, repr=False, compare=False)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def ledger(self) -> Path:
        return self.path / "data" / "ledger.json"

    @property
    def rejected(self) -> Path:
        return self.path / "data" / "rejected.jsonl"

    @property
    def held_out(self) -> Path:
        return self.path / "data" / "eval.jsonl"

    @property
    def reference(self) -> Path:
        """What a model made of judged rows before the training (dpo, kto)."""
        return self.path / "reference.safetensors"

    @property
    def general(self) -> Path:
        """What the base made of the general rows before the training, where every weight is trained."""
        return self.path / "general.safetensors"

    @property
    def contract(self) -> Path:
        return self.path / "contract.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def rows(self) -> Path:
        return self.path / "rows.jsonl"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Which checkpoint the run left as its result, where that is not the last (load_best_model_at_end)."""
        return self.path / "best.json"

    @property
    def start(self) -> Path:
        """What the adapter began at, where that is a part of the base's weights (PiSSA and its like)."""
        return self.path / "start"

    @property
    def adapter(self) -> Path:
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """What a run leaves that trained every weight: a whole model, as Transformers reads it."""
        return self.path / "model"

    @property
    def trained(self) -> Path:
        """What the training left, which an ended run has: the model or the adapter."""
        return self.model if self.model.is_dir() else self.adapter

    @property
    def scorecard(self) -> Path:
        return self.path / "scorecard.json"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def evals(self) -> Path:
        """Further evaluations, a folder each: scorecard.json, samples.jsonl, answers.jsonl."""
        return self.path / "evals"

    @property
    def parity(self) -> Path:
        return self.path / "parity.json"

    @property
    def verified(self) -> Path:
        """What luthier verify found on the run's settings."""
        return self.path / "verify.json"

    @property
    def findings(self) -> Path:
        """What luthier diagnose found wrong with the run."""
        return self.path / "findings.json"

    @property
    def suspect_rows(self) -> Path:
        """Training rows to be looked at by a person, each with why."""
        return self.path / "suspect_rows.jsonl"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def name(self) -> str:
        return self.path.name

    @contextmanager
    def patient(self, say: Callable[[str], None]) -> Iterator[None]:
        """While this lasts, a log or a metric that cannot be written ends nothing: it waits for room, and `say` is told what came of it."""
        self._backlog.say = say
        try:
            yield
        finally:
            self._backlog.end(say)

    def say(self, line: str) -> None:
        """Append a line to the run's log, with the time in UTC."""
        now = datetime.datetime.now(datetime.UTC)
        self._backlog.add(self.log, f"{now:%Y-%m-%dT%H:%M:%SZ} {line}")

    def add_step(self, report: StepReport) -> None:
        row = {"kind": "train", **dataclasses.asdict(report), "metrics": _all_finite(report.metrics)}
        if not report.metrics:
            del row["metrics"]
        self._backlog.add(self.metrics, json.dumps(row))

    def named(self, source: Source) -> str:
        """A row's place, with its file as it was called when the run began (a run that goes on, or is looked at, knows it by its whole path)."""
        name = _names_at_the_start(self.ledger).get(source.file, source.file)
        return str(dataclasses.replace(source, file=name))

    def add_rows(self, step: int, examples: Sequence[TokenizedExample | Judged], losses: Sequence[float]) -> None:
        """A line for each row of an update, with its mean loss over its trained tokens in nats; null where that is not finite."""
        rows = [
            {"source": self.named(example.source), "loss": _finite(loss), "trained_tokens": example.trained_tokens, "step": step}
            for example, loss in zip(examples, losses, strict=True)
        ]
        self._backlog.add(self.rows, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))

    def add_skipped(self, step: int, rows: list[Source], *, overflowed: bool = False) -> None:
        """An update whose loss or gradient was not finite, with the rows that were in it; `overflowed`: fp16's loss scale was too high."""
        row = {"kind": "skipped", "step": step, "rows": [self.named(row) for row in rows]}
        self._backlog.add(self.metrics, json.dumps({**row, "overflowed": True} if overflowed else row))

    def skipped_in_a_row(self) -> int:
        """How many updates were skipped since the last one that was not, those that overflowed left out."""
        last = max((row["step"] for row in self.read_metrics("train")), default=0)
        return sum(row["step"] > last and not row.get("overflowed") for row in self.read_metrics("skipped"))

    def add_smaller_cut(self, step: int, before: int, now: int) -> None:
        """An update that did not fit into the memory: the micro-batch tokens before it, and those of it and since."""
        self._backlog.add(self.metrics, json.dumps({"kind": "memory", "step": step, "micro_batch_tokens_before": before, "micro_batch_tokens": now}))

    def add_reading(self, step: int, seconds: float) -> None:
        """How long reading the rows took up to update `step`, since the run began or went on."""
        self._backlog.add(self.metrics, json.dumps({"kind": "data", "step": step, "seconds": round(seconds, 4)}))

    def add_base(self, rows: int, metrics: dict[str, float]) -> None:
        """What the base answered to so many held-out rows, before the first update."""
        self._backlog.add(self.metrics, json.dumps({"kind": "base", "step": 0, "rows": rows, "metrics": _all_finite(metrics)}))

    def add_evaluation(
        self, step: int, loss: float, metrics: dict[str, float], not_finite: Sequence[Source] = (), drift: Mapping[str, float] = NO_DRIFT
    ) -> None:
        """What the held-out rows gave; a number that is not finite is null, and `not_finite` are the rows that made it so. `drift`: of the
        general rows, where forgetting is measured."""
        row = {"kind": "eval", "step": step, "loss": _finite(loss), "metrics": _all_finite(metrics), "drift": _all_finite(dict(drift))}
        if not_finite:
            row["not_finite"] = [str(source) for source in not_finite]
        self._backlog.add(self.metrics, json.dumps(row))

    def read_metrics(self, kind: str) -> list[dict[str, Any]]:
        """The rows of `kind` ("train" or "eval") in the order they were written; a cut last line is left out."""
        return [row for row in _whole_rows(self.metrics) if row.get("kind") == kind]

    def read_row_losses(self) -> Iterator[dict[str, Any]]:
        """The lines of rows.jsonl (training.rows_file): source, loss, trained_tokens and step of a row at an update."""
        return _whole_rows(self.rows)

    def forget_after(self, step: int) -> None:
        """Drop the metrics and the rows' losses of updates after `step`: a resumed run writes them again."""
        for path in (self.metrics, self.rows):
            if path.exists() or path == self.metrics:
                files.write_lines(path, (row for row in _whole_rows(path) if row["step"] <= step))

    def write_scorecard(self, scorecard: Scorecard) -> None:
        write_scorecard(self.scorecard, scorecard)

    def read_scorecard(self) -> Scorecard:
        return read_scorecard(self.scorecard)

    def write_samples(self, samples: list[Sample]) -> None:
        files.write_lines(self.samples, [dataclasses.asdict(sample) for sample in samples])

    def add_parity(self, parity: Parity) -> None:
        """Keep the certificate of an artifact; a newer one of the same artifact replaces the older."""
        rows = [row for row in self.read_parity() if row["artifact"] != parity.artifact]
        files.write_json(self.parity, [*rows, stored_parity(parity)])

    def read_parity(self) -> list[dict[str, Any]]:
        return list(files.read_json(self.parity)) if self.parity.exists() else []


def stored_parity(parity: Parity) -> dict[str, Any]:
    """A certificate as parity.json holds it: what is always there, and of the rest what was measured."""
    always = {"artifact", "engine", "max_logit_difference", "mean_kl", "greedy_agreement", "threshold", "passed"}
    return {name: value for name, value in dataclasses.asdict(parity).items() if name in always or value not in (None, "", 0, {})}


def write_scorecard(path: Path, scorecard: Scorecard) -> None:
    """Replace a scorecard.json."""
    files.write_json(path, {"schema": SCHEMA, **dataclasses.asdict(scorecard)})


def read_scorecard(path: Path) -> Scorecard:
    """A scorecard.json, of a run or of an evaluation in its evals/. Older ones have neither differences nor costs."""
    stored = files.read_json(path)
    by_model = (
        {name: {key: Metric(**value) for key, value in row.items()} for name, row in stored.get(part, {}).items()}
        for part in ("models", "differences")
    )
    return Scorecard(next(by_model), stored["decoding"], stored["data"], next(by_model), stored.get("costs", {}))


def _finite(number: float) -> float | None:
    """As JSON can hold it."""
    return number if math.isfinite(number) else None


def _all_finite(numbers: dict[str, float]) -> dict[str, float | None]:
    return {name: _finite(number) for name, number in numbers.items()}


@lru_cache(maxsize=8)
def _names_at_the_start(ledger: Path) -> dict[str, str]:
    """What the run's files were called when it began, by their whole paths, which a run that goes on knows them by."""
    try:
        sources = files.read_json(ledger)["sources"]
        return {str(source["path"]): str(source["file"]) for source in sources}
    except (RunError, KeyError, TypeError):
        return {}


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    # A line that was cut while it was written may end within a letter, and what is left of it may be JSON of another kind.
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            yield row


def create(output_dir: Path, title: str) -> RunFolder:
    """A new folder `title-date-time` in `output_dir`. Never an existing one: a second run in a minute gets a number."""
    files.make_folder(output_dir)
    free = shutil.disk_usage(output_dir).free
    if free < LEAST_FREE_BYTES:
        raise RunError(
            f"only {free / 1e6:.0f} MB are free and a run needs at least {LEAST_FREE_BYTES / 1e6:.0f} MB",
            where=str(output_dir),
            next_step="free some space, or set output_dir to another disk",
        )
    stamp = f"{datetime.datetime.now():%Y-%m-%d-%H%M}"
    for number in range(1, 1000):
        path = output_dir / (f"{title}-{stamp}" + (f"-{number}" if number > 1 else ""))
        try:
            with files.readable_errors(output_dir):
                files.disk.make_folder(path)
                files.sync(output_dir)
        except RunError:
            if path.exists():
                continue
            raise
        for part in ("data", "checkpoints"):
            files.make_folder(path / part)
        return RunFolder(path)
    raise RunError("a thousand runs began in this minute", where=str(output_dir), next_step="wait a minute")


def open_run(name: str, output_dir: Path = Path("runs")) -> RunFolder:
    """The run called `name`: a path, a name inside `output_dir`, or "last" for the newest there."""
    if name == "last":
        known = list_runs(output_dir)
        if not known:
            raise RunError("there is no run here", where=str(output_dir), next_step="luthier train CONFIG, or luthier demo")
        return known[-1]
    name = os.path.expanduser(name)
    for path in (Path(name), output_dir / name):
        if (path / "config.yaml").is_file():
            return RunFolder(path)
    if (Path(name) / "adapter_config.json").is_file():
        inside = is_run(str(Path(name).parent))
        way_out = (
            f"luthier chat {name} talks to it; init_from: {name} in a luthier.yaml (method: lora) trains on from it, and that run can be exported"
        )
        raise RunError(
            "holds an adapter, and is not a run folder (it has no config.yaml)",
            where=name,
            next_step=f"name its run: {Path(name).parent}" if inside else way_out,
        )
    if Path(name).parent.name == "checkpoints" and is_run(str(Path(name).parents[1])):
        next_step = f"name its run: {Path(name).parents[1]} (its newest whole checkpoint is used)"
        raise RunError("is a checkpoint and not a run folder", where=name, next_step=next_step)
    raise RunError(
        "is not a run folder (it has no config.yaml)",
        where=name,
        next_step="luthier runs list shows the runs; a run is named by its folder",
    )


def list_runs(output_dir: Path) -> list[RunFolder]:
    """All runs in a folder, oldest first."""
    if not output_dir.is_dir():
        return []
    runs = [RunFolder(path) for path in output_dir.iterdir() if (path / "config.yaml").is_file() and not path.name.startswith(".")]
    return sorted(runs, key=lambda run: (_number(run), run.config.stat().st_mtime, run.name))


def next_number(output_dir: Path) -> int:
    """The number of a run that begins in a folder: above that of all others, so that a clock that was put back changes no order."""
    return 1 + max(map(_number, list_runs(output_dir)), default=0)


def _number(run: RunFolder) -> int:
    try:
        return int(files.read_json(run.environment).get("number", 0))
    except (RunError, AttributeError, ValueError, TypeError):
        return 0


def is_run(name: str) -> bool:
    return os.path.isfile(os.path.join(os.path.expanduser(name), "config.yaml"))
