"""One run on disk: the only meeting of those who write (train, evaluate, export) and those who read (diagnose, chat, serve)."""

import dataclasses
import datetime
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import RunError
from luthier.records import Judged, Metric, Parity, Sample, Scorecard, Source, StepReport, TokenizedExample

SCHEMA = 1
# A run needs its adapter, its checkpoints and perhaps a merged model; less than this is not worth starting.
LEAST_FREE_BYTES = 50_000_000


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The paths of one run, and reading and writing of its JSON. Nothing here knows what a model is."""

    path: Path

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
    def parity(self) -> Path:
        return self.path / "parity.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def name(self) -> str:
        return self.path.name

    def say(self, line: str) -> None:
        """Append a line to the run's log, with the time in UTC."""
        now = datetime.datetime.now(datetime.UTC)
        files.append_line(self.log, f"{now:%Y-%m-%dT%H:%M:%SZ} {line}")

    def add_step(self, report: StepReport) -> None:
        row = {"kind": "train", **dataclasses.asdict(report)}
        if not report.metrics:
            del row["metrics"]
        files.append_line(self.metrics, json.dumps(row))

    def add_rows(self, step: int, examples: Sequence[TokenizedExample | Judged], losses: Sequence[float]) -> None:
        """A line for each row of an update, with its mean loss over its trained tokens in nats; null where that is not finite."""
        rows = [
            {"source": str(example.source), "loss": loss if math.isfinite(loss) else None, "trained_tokens": example.trained_tokens, "step": step}
            for example, loss in zip(examples, losses, strict=True)
        ]
        files.append_line(self.rows, "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))

    def add_skipped(self, step: int, rows: list[Source]) -> None:
        """An update whose loss or gradient was not finite, with the rows that were in it."""
        files.append_line(self.metrics, json.dumps({"kind": "skipped", "step": step, "rows": [str(row) for row in rows]}))

    def add_evaluation(self, step: int, loss: float, metrics: dict[str, float]) -> None:
        row = {"kind": "eval", "step": step, "loss": loss, "metrics": metrics, "drift": {}}
        files.append_line(self.metrics, json.dumps(row))

    def read_metrics(self, kind: str) -> list[dict[str, Any]]:
        """The rows of `kind` ("train" or "eval") in the order they were written; a cut last line is left out."""
        return [row for row in _whole_rows(self.metrics) if row["kind"] == kind]

    def forget_after(self, step: int) -> None:
        """Drop the metrics and the rows' losses of updates after `step`: a resumed run writes them again."""
        for path in (self.metrics, self.rows):
            if path.exists() or path == self.metrics:
                files.write_lines(path, (row for row in _whole_rows(path) if row["step"] <= step))

    def write_scorecard(self, scorecard: Scorecard) -> None:
        files.write_json(self.scorecard, {"schema": SCHEMA, **dataclasses.asdict(scorecard)})

    def read_scorecard(self) -> Scorecard:
        stored = files.read_json(self.scorecard)
        models = {name: {key: Metric(**value) for key, value in row.items()} for name, row in stored["models"].items()}
        return Scorecard(models, stored["decoding"], stored["data"])

    def write_samples(self, samples: list[Sample]) -> None:
        files.write_lines(self.samples, [dataclasses.asdict(sample) for sample in samples])

    def add_parity(self, parity: Parity) -> None:
        """Keep the certificate of an artifact; a newer one of the same artifact replaces the older."""
        rows = [row for row in self.read_parity() if row["artifact"] != parity.artifact]
        stored = {name: value for name, value in dataclasses.asdict(parity).items() if name != "onto" or value}
        files.write_json(self.parity, [*rows, stored])

    def read_parity(self) -> list[dict[str, Any]]:
        return list(files.read_json(self.parity)) if self.parity.exists() else []


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the last line of a run that was killed while writing
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
                path.mkdir()
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
    for path in (Path(name), output_dir / name):
        if (path / "config.yaml").is_file():
            return RunFolder(path)
    if (Path(name) / "adapter_config.json").is_file():
        inside = is_run(str(Path(name).parent))
        way_out = f"init_from: {name} in a luthier.yaml (method: lora) trains on from it, and that run can be talked to and exported"
        raise RunError(
            "holds an adapter, and is not a run folder (it has no config.yaml)",
            where=name,
            next_step=f"name its run: {Path(name).parent}" if inside else way_out,
        )
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
    return sorted(runs, key=lambda run: (run.config.stat().st_mtime, run.name))


def is_run(name: str) -> bool:
    return os.path.isfile(os.path.join(name, "config.yaml"))
