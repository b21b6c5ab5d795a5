"""A search: its trials are ordinary runs, it goes on where it was killed, and it ends at least as good as the settings file."""

import functools
import json
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from conftest_runs import MACHINE, Listener, Write, chat_row, make_config
from warm import Call, Warm

from luthier import files
from luthier.config.load import load_config
from luthier.config.search import Range, Search
from luthier.errors import CallError, ConfigError, DataError, NotFiniteError, OutOfMemory, RunInUse
from luthier.plan.machine import store_machine
from luthier.recipes import sweep, training
from luthier.recipes.sweep import Sweep
from luthier.reporting import Bar
from luthier.run_folder import RunFolder, list_runs

ROWS = [chat_row(place) for place in range(60)]
OVERRIDES = [
    *("training.precision=fp32", "training.batch_size=4", "training.max_steps=8", "training.save_steps=1", "training.warmup_ratio=0"),
    *("training.learning_rate=3e-3", "data.eval=10%", "evaluation.max_new_tokens=4", "lora.lora_dropout=0"),
]
SEARCH = Search(trials=4, seed=21, settings={"training.learning_rate": Range(low=1e-4, high=1e-1, log=True), "lora.r": [2, 4, 8]})


class Killed(BaseException):
    """Nothing in the program catches it, as nothing catches kill -9."""


class Killer(Listener):
    """Ends all when a bar of a trial says that so many parts of it are over."""

    def __init__(self, trial: int, part: int) -> None:
        super().__init__()
        self._trial, self._part = f"trial {trial} of", part

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Bar]:
        part, deadly = self._part, title.startswith(self._trial)

        class Deadly:
            def advance(self, done: int, text: str = "") -> None:
                if deadly and done >= part:
                    raise Killed

        yield Deadly()


def begun(folder: Path, model: Path, search: Search | None = SEARCH, **changes: Any) -> Sweep:
    make_config(folder, model, ROWS)
    return sweep.begin(load_config(folder / "luthier.yaml", OVERRIDES), OVERRIDES, search=search, **changes)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    store_machine(folder, MACHINE)
    return folder


@pytest.fixture(scope="module")
def heard() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, home: Path, heard: Listener) -> Sweep:
    """A search that nothing disturbed. Tests read it only, or copy it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(home))
        return sweep.run(begun(tmp_path_factory.mktemp("straight"), tiny_model), heard)


def outcome(ended: Sweep) -> list[Any]:
    """All that does not come from a clock or a folder's name."""
    return [(trial.number, trial.values, trial.state, trial.value, trial.curve, trial.updates) for trial in ended.trials]


def test_the_counts_add_up_and_the_best_is_no_worse_than_the_settings_file(straight: Sweep) -> None:
    stored = json.loads((straight.path / "sweep.json").read_text(encoding="utf-8"))
    assert sum(stored["counts"].values()) == len(straight.trials) == 4
    assert stored["counts"]["running"] == 0
    assert stored["counts"]["pruned"] == sum(trial.state == "pruned" for trial in straight.trials) >= 1
    first, best = straight.trials[0], straight.best
    assert first.values == {"training.learning_rate": 3e-3, "lora.r": 4}
    assert best is not None
    assert first.value is not None
    assert best.value is not None
    assert best.value < first.value  # its range holds better ones
    assert stored["best"] == best.number
    assert all(trial.value is not None and trial.value >= best.value for trial in straight.trials if trial.state == "done")


def test_each_trial_is_an_ordinary_run_with_its_own_values(straight: Sweep) -> None:
    runs = list_runs(straight.path / "trials")
    assert [run.name[:3] for run in runs] == [f"{number:02d}-" for number in range(1, 5)]
    for trial, run in zip(straight.trials, runs, strict=True):
        settings = load_config(run.config).settings
        assert run.path == straight.path / trial.run
        assert (settings.training.learning_rate, settings.lora.r) == (trial.values["training.learning_rate"], trial.values["lora.r"])
        assert run.report.is_file()
        assert run.trained.is_dir() == (trial.state == "done")
        assert trial.curve == {row["step"]: row["loss"] for row in run.read_metrics("eval")}  # 8 updates: each is an eighth


def test_a_trial_that_is_given_up_says_so_and_costs_less(straight: Sweep) -> None:
    given_up = next(trial for trial in straight.trials if trial.state == "pruned")
    assert 2 <= given_up.updates < 8
    assert f"after {given_up.updates}/8 of the run" in given_up.why
    assert "given up: behind the median" in RunFolder(straight.path / given_up.run).log.read_text(encoding="utf-8")


def test_the_best_settings_are_a_file_that_trains_the_same(straight: Sweep, tmp_path: Path) -> None:
    best = straight.best
    assert best is not None
    config = load_config(straight.path / "best.yaml", [f"output_dir={tmp_path}"])
    assert config.settings.lora.r == best.values["lora.r"]
    assert config.settings.evaluation == load_config(straight.file, OVERRIDES).settings.evaluation
    assert load_config(straight.path / "best.yaml").settings.output_dir == str(straight.path.parent)
    again = training.fit(config)
    assert again.read_metrics("eval")[-1]["loss"] == best.value


def test_the_page_and_the_plots_show_every_trial(straight: Sweep, heard: Listener) -> None:
    page = (straight.path / "sweep.html").read_text(encoding="utf-8")
    for trial in straight.trials:
        assert f">{trial.number}</th><td>{trial.values['training.learning_rate']}</td><td>{trial.values['lora.r']}</td>" in page
    assert "given up" in page or "pruned: behind the median" in page
    assert (straight.path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (straight.path / "sweep.svg").read_bytes()
    assert any(line.startswith("trial 1 of 4: as the settings stand (learning_rate 0.003, r 4): loss") for line in heard.lines)
    assert any(line.startswith("best: trial ") and "the settings as they stood: " in line for line in heard.lines)


def test_a_search_that_was_killed_goes_on_as_if_it_had_not_been(
    straight: Sweep, tmp_path: Path, tiny_model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(home))
    search = begun(tmp_path / "p", tiny_model, trials=3)
    with pytest.raises(Killed):
        sweep.run(search, Killer(3, 4))
    left = sweep.reopen(search.path, trials=4)  # and with one trial more
    assert [one.state for one in left.trials] == ["done", "done", "running"]
    ended = sweep.run(left)
    assert outcome(ended) == outcome(straight)
    assert len(list_runs(search.path / "trials")) == 4  # it went on in its folder
    log = RunFolder(search.path / ended.trials[2].run).log.read_text(encoding="utf-8")
    assert log.count("the first update began") == 2
    assert "no checkpoint was written" not in log  # its first updates were not run again


def test_other_settings_or_rows_are_not_compared(
    straight: Sweep, tmp_path: Path, tiny_model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(home))
    search = begun(tmp_path / "p", tiny_model)
    shutil.rmtree(search.path)
    shutil.copytree(straight.path, search.path)
    stored = files.read_json(search.path / "sweep.json")
    files.write_json(search.path / "sweep.json", {**stored, "config": str(tmp_path / "p" / "luthier.yaml")})
    (tmp_path / "p" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:-1]), encoding="utf-8")
    with pytest.raises(DataError, match="other rows"):
        sweep.run(sweep.reopen(search.path, trials=6))
    assert len(list_runs(search.path / "trials")) == 4
    (tmp_path / "p" / "luthier.yaml").write_text("model: another\n", encoding="utf-8")
    with pytest.raises(CallError, match="not as it was"):
        sweep.reopen(search.path)


def test_one_process_at_a_time(straight: Sweep, tmp_path: Path) -> None:
    from luthier import run_lock

    shutil.copytree(straight.path, tmp_path / "copied")
    with run_lock.held(tmp_path / "copied", "sweep"), pytest.raises(RunInUse):
        sweep.run(sweep.reopen(tmp_path / "copied"))


def test_a_trial_that_diverges_or_does_not_fit_is_a_row_and_not_the_end(straight: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = [
        NotFiniteError("the loss is nan", where="step 3", next_step="a lower rate"),
        OutOfMemory("the memory is not enough", where="this machine", next_step="a lower rank"),
    ]

    def fail(*given: Any, **named: Any) -> RunFolder:
        raise reasons.pop(0)

    monkeypatch.setattr(training, "fit", fail)
    shutil.copytree(straight.path, tmp_path / "copied")
    ended = sweep.run(sweep.reopen(tmp_path / "copied", trials=6))
    assert [(trial.state, trial.why) for trial in ended.trials[4:]] == [
        ("diverged", "the loss is nan"),
        ("failed", "this machine: the memory is not enough"),
    ]
    assert ended.best == straight.best


def test_what_cannot_be_searched_is_refused_before_a_folder_is_made(tmp_path: Path, write: Write) -> None:
    config = write(ROWS)  # data.eval: null
    with pytest.raises(ConfigError, match="no rows are held out"):
        sweep.begin(config, [])
    config = write(ROWS, name="other")
    eval_too = [*OVERRIDES, "data.eval=10%"]
    bad = Search(settings={"training.batch_size": [4, 0]})
    with pytest.raises(ConfigError, match=r"training\.batch_size is 0"):
        sweep.begin(load_config(config.file, eval_too), eval_too, search=bad)
    assert not (tmp_path / "other" / "runs").exists()
    with pytest.raises(CallError, match="not the folder of a search"):
        sweep.reopen(tmp_path)


@pytest.mark.slow
def test_a_metric_that_is_not_measured_is_named(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="rewards/margins is not measured") as raised:
        sweep.run(begun(tmp_path / "p", tiny_model, metric="rewards/margins"))
    assert "loss" in raised.value.next_step


# --- real kill -9 of real processes ---


def _while(call: Call, seen: Any, seconds: float) -> None:
    began = time.monotonic()
    while not seen() and call.lives() and time.monotonic() - began < seconds:
        time.sleep(0.005)


@pytest.mark.slow
def test_twelve_trials_killed_and_stopped_count_up_to_what_twelve_straight_ones_give(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, warm: Warm
) -> None:
    """kill -9 within the fourth trial and Ctrl-C within the eighth; the same number of done and pruned trials, the same losses."""
    folders = [tmp_path_factory.mktemp("sweep") for _ in range(2)]
    for folder in folders:
        store_machine(folder / "home", MACHINE)
        make_config(folder / "p", tiny_model, ROWS)
    arguments = ["luthier.yaml", *OVERRIDES, "--trials", "12"]
    undisturbed, killed = (
        _searched(folder / "p", folder / "home", warm, arguments, ends)
        for folder, ends in zip(folders, ([], [(4, signal.SIGKILL), (8, signal.SIGINT)]), strict=True)
    )
    assert outcome(killed) == outcome(undisturbed)
    assert Counter(trial.state for trial in killed.trials) == Counter(trial.state for trial in undisturbed.trials)
    _check_all_of_it(killed)


@pytest.mark.nightly
@pytest.mark.real_model
def test_the_demos_rows_twelve_trials_killed_and_resumed(tmp_path: Path, default_model: Path, warm: Warm) -> None:
    rows = resources.files("luthier.data.us_addresses")
    for name, count in (("train", 240), ("test", 24)):
        lines = rows.joinpath(f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    text = "model: smollm2-135m-instruct\ndata: {train: train.jsonl, eval: test.jsonl}\ntraining: {num_train_epochs: 1, save_steps: 1}\n"
    (tmp_path / "luthier.yaml").write_text(text, encoding="utf-8")
    arguments = ["luthier.yaml", "--trials", "12"]
    _check_all_of_it(_searched(tmp_path, default_model.parents[1], warm, arguments, [(5, signal.SIGKILL)], seconds=7200))


def _check_all_of_it(ended: Sweep) -> None:
    """Twelve trials, of which some were given up, and a best one that is no worse than the settings as they stood."""
    states = Counter(trial.state for trial in ended.trials)
    assert sum(states.values()) == len(ended.ended) == 12
    assert states["pruned"] >= 1
    first, best = ended.trials[0].value, ended.best
    assert best is not None
    assert best.value is not None
    assert first is not None
    assert best.value <= first


def _searched(project: Path, home: Path, warm: Warm, arguments: list[str], ends: list[tuple[int, signal.Signals]], seconds: float = 240) -> Sweep:
    """A search by the command line, ended by a signal within some of its trials and begun again."""
    for trial, number in ends:
        call = warm.begin(project, home, "sweep", *arguments)
        _while(call, functools.partial(_has_begun, project, trial), seconds)
        call.kill(number)
        left = call.wait()
        assert left.code == (-9 if number == signal.SIGKILL else 128 + number), left.said
        assert ("goes on with it" in left.said) == (number == signal.SIGINT)
        arguments = [str(path) for path in (project / "runs").glob("sweep-*")]
    done = warm.begin(project, home, "sweep", *arguments).wait(seconds)
    assert done.code == 0, done.said
    (path,) = (project / "runs").glob("sweep-*")
    return sweep.reopen(path)


def _has_begun(project: Path, trial: int) -> bool:
    return any(project.glob(f"runs/sweep-*/trials/{trial:02d}-*/checkpoints/step-000001"))
