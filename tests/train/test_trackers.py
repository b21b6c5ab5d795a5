"""A tracker that fails, hangs or is slow costs a run nothing but a line."""

import inspect
import sys
import threading
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from luthier import files
from luthier.config.settings import Settings
from luthier.errors import ConfigError, LuthierError
from luthier.records import StepReport
from luthier.run_folder import RunFolder
from luthier.train import trackers
from luthier.train.trackers import About, Finish, Limits, Log, Trackers

SHORT = Limits(call_s=0.2, end_s=0.5, rows=5)


class Kept:
    """A tracker that remembers."""

    def __init__(self) -> None:
        self.about: list[About] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.summary: dict[str, Any] = {}

    def __call__(self, about: About) -> tuple[Log, Finish]:
        self.about.append(about)
        return lambda step, numbers: self.rows.append((step, numbers)), self.summary.update


class Trackio(types.ModuleType):
    """A stand-in of the library: what it is told, and it prints as the real one does."""

    def __init__(self) -> None:
        super().__init__("trackio")
        self.run, self.utils = types.ModuleType("trackio.run"), types.ModuleType("trackio.utils")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def init(self, project: str, **given: Any) -> Any:
        vars(self).get("print", print)("* trackio project initialized")
        self.calls.append((project, given))
        return types.SimpleNamespace(log=self._log, finish=self._finish)

    def _log(self, metrics: dict[str, Any], step: int) -> None:
        self.rows.append((step, metrics))

    def _finish(self) -> None:
        vars(self.run).get("print", print)("* trackio run finished")
        self.finished = True


def report(step: int, loss: float = 1.5) -> StepReport:
    return StepReport(step, 0.1, loss, 0.5, 1e-3, 100, 90, 40, 0.2, 1_000_000, {"rewards/margins": 0.25})


def settings(*names: str) -> Settings:
    return Settings.model_validate({"model": "m", "data": {"train": "t.jsonl"}, "report_to": list(names)})


def told(
    run: RunFolder, table: Mapping[str, Callable[[About], tuple[Log, Finish]]], reports: int = 6, limits: Limits = SHORT
) -> tuple[list[str], float]:
    """What the user is told of a run with these trackers, and how long it took."""
    lines: list[str] = []
    start = time.monotonic()
    with Trackers(settings(*table), run, 0, lines.append, table=table, limits=limits) as tracked:
        for step in range(1, reports + 1):
            tracked.watch(report(step))
            time.sleep(0.01)
    return lines, time.monotonic() - start


def test_it_is_told_of_the_settings_every_row_and_the_end(run: RunFolder) -> None:
    kept, lines = Kept(), list[str]()
    with Trackers(settings("wandb"), run, 0, lines.append, table={"wandb": kept}) as tracked:
        tracked.watch(report(1))
        tracked.measured(1, 0.75, {"rewards/accuracies": 1.0})
        tracked.watch(report(2, loss=1.25))
    assert lines == []
    (about,) = kept.about
    assert (about.run, about.settings["model"], about.settings["training.save_steps"]) == (run, "m", 100)
    assert [step for step, _ in kept.rows] == [1, 1, 2]
    assert kept.rows[0][1]["train/loss"] == 1.5
    assert kept.rows[0][1]["train/rewards/margins"] == 0.25
    assert kept.rows[1][1] == {"eval/loss": 0.75, "eval/rewards/accuracies": 1.0}
    assert (kept.summary["train/loss"], kept.summary["eval/loss"], kept.summary["outcome"]) == (1.25, 0.75, "finished")


def test_a_run_is_the_same_after_its_folder_was_moved(run: RunFolder, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = About(run, {}, 0).id  # of a Luthier that drew none
    run.environment.write_text('{"id": "0123456789abcdef"}', encoding="utf-8")
    before = About(run, {}, 0).id
    run.path.rename(tmp_path / "elsewhere")
    monkeypatch.setattr(trackers.platform, "node", lambda: "another-host")
    assert before == About(RunFolder(tmp_path / "elsewhere"), {}, 3).id == "0123456789abcdef"
    assert begun.startswith(f"{run.name}-")


def test_what_is_not_finite_is_left_out(run: RunFolder) -> None:
    kept = Kept()
    with Trackers(settings("wandb"), run, 0, print, table={"wandb": kept}) as tracked:
        tracked.measured(1, float("nan"), {"rewards/margins": 2.0})
    assert kept.rows == [(1, {"eval/rewards/margins": 2.0})]


class Stopped(LuthierError):
    exit_code = 130


@pytest.mark.parametrize(("error", "outcome"), [(Stopped("stop", where="w", next_step="n"), "stopped"), (ValueError(), "failed")])
def test_how_a_run_ended_is_told(run: RunFolder, error: Exception, outcome: str) -> None:
    kept = Kept()
    with pytest.raises(type(error)), Trackers(settings("mlflow"), run, 0, print, table={"mlflow": kept}):
        raise error
    assert kept.summary["outcome"] == outcome


def fails_at_once(about: About) -> tuple[Log, Finish]:
    raise OSError("no route to host")


def leaves_the_process(about: About) -> tuple[Log, Finish]:
    raise SystemExit(1)


def fails_at_the_third_row(about: About) -> tuple[Log, Finish]:
    rows: list[int] = []

    def log(step: int, numbers: dict[str, float]) -> None:
        rows.append(step)
        if len(rows) == 3:
            raise ValueError("429 too many\nrequests")

    return log, lambda summary: None


def fails_at_the_end(about: About) -> tuple[Log, Finish]:
    def finish(summary: dict[str, Any]) -> None:
        raise ConnectionError("closed")

    return lambda step, numbers: None, finish


def forever(*given: object) -> Any:
    threading.Event().wait()


def hangs_in_a_row(about: About) -> tuple[Log, Finish]:
    return forever, forever


def hangs_at_the_end(about: About) -> tuple[Log, Finish]:
    return lambda step, numbers: None, forever


def takes_five_seconds(about: About) -> tuple[Log, Finish]:
    return lambda step, numbers: time.sleep(5), lambda summary: None


FAULTS: dict[str, tuple[Callable[[About], tuple[Log, Finish]], str]] = {
    "fails at once": (fails_at_once, "wandb: OSError: no route to host; the training goes on without it (metrics.jsonl has every row)"),
    "leaves": (leaves_the_process, "wandb: SystemExit: 1; the training goes on without it"),
    "fails at the third row": (fails_at_the_third_row, "wandb: ValueError: 429 too many requests; the training goes on without it"),
    "fails at the end": (fails_at_the_end, "wandb: ConnectionError: closed; the training goes on without it"),
    "hangs while it opens": (forever, "wandb: has not answered for 0.2 s; the training goes on without it"),
    "hangs in a row": (hangs_in_a_row, "wandb: has not answered for 0.2 s; the training goes on without it"),
    "hangs at the end": (hangs_at_the_end, "wandb: did not end within 0.5 s, and about 0 rows were not sent; the training goes on without it"),
    "is slow": (takes_five_seconds, "wandb: has not answered for 0.2 s; the training goes on without it"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_user_is_told_once_and_the_run_ends_in_time(fault: str, run: RunFolder) -> None:
    opens, said = FAULTS[fault]
    kept = Kept()
    lines, seconds = told(run, {"wandb": opens, "mlflow": kept}, reports=40, limits=Limits(call_s=0.2, end_s=0.5, rows=1000))
    (line,) = lines
    assert line.startswith(said)
    assert seconds < 3.0
    assert [step for step, _ in kept.rows] == list(range(1, 41)), "the other tracker has every row"


def test_one_that_is_a_little_too_slow_is_told_once_and_misses_rows(run: RunFolder) -> None:
    rows: list[int] = []

    def slow(about: About) -> tuple[Log, Finish]:
        def log(step: int, numbers: dict[str, float]) -> None:
            time.sleep(0.1)
            rows.append(step)

        return log, lambda summary: None

    lines, seconds = told(run, {"wandb": slow}, reports=40, limits=Limits(call_s=5, end_s=3, rows=5))
    assert lines == ["wandb: is slower than the training: what it cannot take is not sent (metrics.jsonl has every row)"]
    assert 5 < len(rows) < 40
    assert seconds < 4


def test_a_second_ctrl_c_waits_for_nothing(run: RunFolder) -> None:
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Trackers(settings("wandb"), run, 0, print, table={"wandb": hangs_at_the_end}):
        raise KeyboardInterrupt
    assert time.monotonic() - start < 5


def test_a_library_that_is_missing_is_named_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        trackers.require(["wandb"])
    assert (caught.value.where, caught.value.problem) == ("report_to", "wandb is not installed")
    assert 'pip install "luthier[track]"' in caught.value.next_step
    with pytest.raises(ConfigError, match=r'pip install "luthier\[trackio\]"'):
        trackers.require(["trackio"])
    trackers.require([])


def test_wandb_never_asks_for_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not trackers._has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    (tmp_path / "netrc").chmod(0o600)
    assert trackers._has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not trackers._has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert trackers._has_wandb_key()


def test_trackio_is_told_of_a_run_by_its_name_and_id(run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in = Trackio()
    monkeypatch.setitem(sys.modules, "trackio", stand_in)  # of the same surface: see the next test
    files.write_json(run.environment, {"id": "0123456789abcdef"})
    asked = settings("trackio")
    with Trackers(asked, run, 3, print, table={"trackio": trackers.TRACKERS["trackio"]}) as tracked:
        tracked.watch(report(4))
    ((project, given),) = stand_in.calls
    assert (project, given["name"], given["resume"]) == ("luthier", f"{run.name}-89abcdef", "allow")
    assert given["config"] == trackers.flat(asked)
    assert stand_in.rows == [(4, stand_in.rows[0][1]), (4, {"outcome": "finished"})]
    assert stand_in.rows[0][1]["train/loss"] == 1.5
    assert stand_in.finished
    assert "trackio" not in capsys.readouterr().out


def test_the_real_trackio_has_what_the_stand_in_has() -> None:
    trackio = pytest.importorskip("trackio")
    assert {"project", "name", "config", "resume", "embed", "auto_log_gpu", "auto_log_cpu"} <= set(inspect.signature(trackio.init).parameters)
    assert list(inspect.signature(trackio.Run.log).parameters) == ["self", "metrics", "step"]
    assert list(inspect.signature(trackio.Run.finish).parameters) == ["self"]
    assert all(inspect.ismodule(part) for part in (trackio.run, trackio.utils))
