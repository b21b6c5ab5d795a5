"""Trackers (TensorBoard, Weights & Biases, MLflow, Trackio): told of every row of metrics.jsonl, and never waited for while the training goes on.

Each runs in a thread of its own behind a queue. One that fails, hangs or is slow is told of once, and costs the run neither a step nor a number.
"""

import hashlib
import importlib.util
import logging
import math
import netrc
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any
from urllib.parse import urlparse

from luthier import files
from luthier.config.settings import Settings
from luthier.errors import ConfigError, LuthierError
from luthier.records import StepReport
from luthier.run_folder import NO_DRIFT, RunFolder

# Exit codes above it say which signal ended a run.
BY_SIGNAL = 128
# What MLflow takes: params of one call, and letters of one.
MLFLOW_PARAMS, MLFLOW_LETTERS = 100, 6000

Numbers = dict[str, float]
Log = Callable[[int, Numbers], None]
Finish = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class About:
    """What a tracker knows of a run before its first row: its folder, its settings by their dotted names, the updates that are done already.

    Nothing else is handed on: no environment, no command line.
    """

    run: RunFolder
    settings: dict[str, Any]
    done: int

    @property
    def id(self) -> str:
        """The same for a run that goes on, wherever its folder is by then, and another one for a run of the same name elsewhere."""
        drawn = files.read_json(self.run.environment).get("id") if self.run.environment.is_file() else None
        if drawn:
            return str(drawn)
        # The run began with an older Luthier, which drew none.
        place = f"{platform.node()} {self.run.path.resolve()}"
        return f"{self.run.name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a tracker may take, in seconds: for one call while the run goes on, and for all that is left at its end; rows that may wait."""

    call_s: float = 60.0
    end_s: float = 60.0
    rows: int = 10_000


def _tensorboard(about: About) -> tuple[Log, Finish]:
    """Event files in RUN/tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    writer: Any = SummaryWriter(str(about.run.path / "tensorboard"), purge_step=about.done + 1 if about.done else None)
    writer.add_text("settings", _as_text(about.settings))

    def log(step: int, numbers: Numbers) -> None:
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)

    def finish(summary: dict[str, Any]) -> None:
        writer.add_text("summary", _as_text(summary))
        writer.close()

    return log, finish


def _wandb(about: About) -> tuple[Log, Finish]:
    """A run in RUN/wandb; it is sent where the user is logged in, and else waits there for `wandb sync`."""
    import wandb

    library: Any = wandb
    # What it would gather by itself: command line, program, host, git, packages, and all that is printed.
    gathers_nothing = library.Settings(
        silent=True,
        host="",
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_wandb_key() else "offline")
    run = library.init(
        project=os.environ.get("WANDB_PROJECT", "luthier"),
        name=about.run.name,
        id=about.id,
        resume="allow",
        dir=str(about.run.path),
        config=about.settings,
        mode=mode,
        settings=gathers_nothing,
    )

    def finish(summary: dict[str, Any]) -> None:
        run.summary.update(summary)
        run.finish(exit_code=0 if summary["outcome"] == "finished" else 1)

    return lambda step, numbers: run.log(numbers, step=step), finish


def _has_wandb_key() -> bool:
    """Whether W&B can log in without asking, which would wait for an answer that nobody gives."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _mlflow(about: About) -> tuple[Log, Finish]:
    """A run of the experiment `luthier`, at MLFLOW_TRACKING_URI or in mlflow.db beside the run folders."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    for name in ("alembic", "mlflow"):
        logging.getLogger(name).setLevel(logging.WARNING)
    beside = about.run.path.parent.resolve()
    client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("luthier")
    place = experiment.experiment_id if experiment else client.create_experiment("luthier", artifact_location=str(beside / "mlflow"))
    own = client.search_runs([place], filter_string=f"tags.`luthier.run` = '{about.id}'")
    run_id = (own[0] if own else client.create_run(place, run_name=about.run.name, tags={"luthier.run": about.id})).info.run_id
    if not own:
        params = [Param(name, str(value)[:MLFLOW_LETTERS]) for name, value in about.settings.items()]
        for start in range(0, len(params), MLFLOW_PARAMS):
            client.log_batch(run_id, params=params[start : start + MLFLOW_PARAMS])

    def log(step: int, numbers: Numbers) -> None:
        now_ms = int(time.time() * 1000)
        client.log_batch(run_id, metrics=[Metric(name, value, now_ms, step) for name, value in numbers.items()])

    def finish(summary: dict[str, Any]) -> None:
        for name, value in summary.items():
            client.set_tag(run_id, f"summary/{name}", str(value))
        client.set_terminated(run_id, {"finished": "FINISHED", "stopped": "KILLED"}.get(summary["outcome"], "FAILED"))

    return log, finish


def _trackio(about: About) -> tuple[Log, Finish]:
    """A run of the project `luthier`: in TRACKIO_DIR or trackio's own folder, or where TRACKIO_SERVER_URL or TRACKIO_SPACE_ID says."""
    import trackio

    # What it prints at the beginning and the end would stand among the run's own lines.
    for part in (trackio, trackio.run, trackio.utils):
        part.print = lambda *words: None
    # Its runs go by their names alone.
    name = f"{about.run.name}-{about.id[-8:]}"
    run = trackio.init("luthier", name=name, config=about.settings, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)
    last = about.done

    def log(step: int, numbers: Numbers) -> None:
        nonlocal last
        last = step
        run.log(numbers, step=step)

    def finish(summary: dict[str, Any]) -> None:
        run.log({"outcome": summary["outcome"]}, step=last)
        run.finish()

    return log, finish


# By report_to: what opens it. The packages have the same names.
TRACKERS: dict[str, Callable[[About], tuple[Log, Finish]]] = {
    "tensorboard": _tensorboard,
    "wandb":       _wandb,
    "mlflow":      _mlflow,
    "trackio":     _trackio,
}  # fmt: skip


def require(names: Sequence[str]) -> None:
    """Raises ConfigError where the library of a tracker is not installed: before anything is trained."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            extra = "trackio" if name == "trackio" else "track"
            raise ConfigError(f"{name} is not installed", where="report_to", next_step=f'pip install "luthier[{extra}]", or take it out of report_to')


def flat(settings: Settings) -> dict[str, Any]:
    """Settings by their dotted names, those inside a list or two sections deep in one piece."""
    found: dict[str, Any] = {}
    for name, value in settings.model_dump().items():
        found |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _as_text(values: Mapping[str, Any]) -> str:
    return "\n".join(f"    {name}: {value}" for name, value in values.items())


@dataclass(slots=True)
class _Line:
    """One tracker: its thread, what waits for it, and whether it was given up."""

    name: str
    limits: Limits
    tell: Callable[[str], None]
    waiting: "queue.Queue[tuple[int, Numbers] | dict[str, Any]]" = field(init=False)
    thread: threading.Thread = field(init=False)
    error: str = ""
    busy_since: float = math.inf
    given_up: bool = False
    said: bool = False

    def start(self, opens: Callable[[About], tuple[Log, Finish]], about: About) -> None:
        self.waiting = queue.Queue(self.limits.rows)
        # A daemon: whatever it hangs in, the process ends.
        self.thread = threading.Thread(target=self._work, args=(opens, about), name=self.name, daemon=True)
        self.thread.start()

    def _work(self, opens: Callable[[About], tuple[Log, Finish]], about: About) -> None:
        try:
            self.busy_since = time.monotonic()
            log, finish = opens(about)
            while True:
                self.busy_since = math.inf
                row = self.waiting.get()
                self.busy_since = time.monotonic()
                if isinstance(row, dict):
                    finish(row)
                    return
                log(*row)
        except BaseException as error:  # whatever a library raises, SystemExit too
            self.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"

    def put(self, row: tuple[int, Numbers]) -> None:
        """Hand a row on, without waiting."""
        if not self.given_up and self.error:
            self._give_up(self.error)
        if not self.given_up and time.monotonic() - self.busy_since > self.limits.call_s:
            self._give_up(f"has not answered for {self.limits.call_s:g} s")
        if self.given_up:
            return
        try:
            self.waiting.put_nowait(row)
        except queue.Full:
            self._say("is slower than the training: what it cannot take is not sent")

    def _give_up(self, problem: str) -> None:
        self.given_up = True
        self._say(f"{problem}; the training goes on without it")

    def _say(self, problem: str) -> None:
        if not self.said:
            self.tell(f"{self.name}: {problem} (metrics.jsonl has every row)")
        self.said = True

    def end(self, summary: dict[str, Any]) -> None:
        """Hand the last row on; where there is no room for it, in the place of the oldest."""
        if self.waiting.full():
            with suppress(queue.Empty):  # taken in this moment
                self.waiting.get_nowait()
        self.waiting.put_nowait(summary)

    def wait(self, until: float) -> None:
        """Wait for what is left until the clock shows `until`, and no longer."""
        if self.given_up:
            return
        self.thread.join(max(0.0, until - time.monotonic()))
        if self.error:
            self._give_up(self.error)
        elif self.thread.is_alive():
            self._give_up(f"did not end within {self.limits.end_s:g} s, and about {self.waiting.qsize()} rows were not sent")


class Trackers:
    """The trackers of a run, as a context. `watch` and `measured` are told of the training and of the held-out rows."""

    def __init__(
        self,
        settings: Settings,
        run: RunFolder,
        done: int,
        tell: Callable[[str], None],
        *,
        table: Mapping[str, Callable[[About], tuple[Log, Finish]]] = TRACKERS,
        limits: Limits | None = None,
    ) -> None:
        self._limits = limits or Limits()
        self._last: Numbers = {}
        self._lines = [_Line(name, self._limits, tell) for name in settings.report_to]
        for line in self._lines:
            line.start(table[line.name], About(run, flat(settings), done))

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        by_signal = isinstance(error, LuthierError) and error.exit_code > BY_SIGNAL
        outcome = "finished" if error is None else "stopped" if by_signal else "failed"
        until = time.monotonic() + (0.0 if isinstance(error, KeyboardInterrupt) else self._limits.end_s)
        for line in self._lines:
            line.end({**self._last, "outcome": outcome})
        for line in self._lines:
            line.wait(until)

    def watch(self, report: StepReport) -> None:
        """One update, by the names that metrics.jsonl has, after train/."""
        numbers = {name: value for name, value in asdict(report).items() if name not in ("step", "metrics")}
        self._tell(report.step, "train", {**numbers, **report.metrics})

    def measured(self, step: int, loss: float, metrics: Mapping[str, float], drift: Mapping[str, float] = NO_DRIFT) -> None:
        """What the held-out rows gave, after eval/, and the drift from the base, after eval/drift/."""
        self._tell(step, "eval", {"loss": loss, **metrics, **{f"drift/{name}": value for name, value in drift.items()}})

    def _tell(self, step: int, what: str, numbers: Mapping[str, float]) -> None:
        named = {f"{what}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
        self._last |= named
        for line in self._lines:
            line.put((step, named))
