"""Going on with a run that was stopped: which one, what may have changed since, and what is said of it."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest_runs import MACHINE, Listener, Write, chat_row, write_rows

from luthier import files, run_folder, run_lock
from luthier.cli.training import with_run_to_resume
from luthier.config.load import Config, load_config, settings_to_yaml
from luthier.config.settings import Settings
from luthier.engine import Engine
from luthier.errors import CallError, NotFiniteError, RunError, RunInUse
from luthier.plan import choose
from luthier.plan.machine import store_machine
from luthier.recipes import training
from luthier.run_folder import RunFolder, list_runs
from luthier.train import differences, loop, resuming, session

ROWS = [chat_row(place) for place in range(8)]
# 4 updates: 2 epochs of 8 rows in batches of 4.
FOUR = ["training.num_train_epochs=2", "training.logging_steps=1", "training.save_steps=1"]


class Table(Listener):
    """Keeps the tables too."""

    def __init__(self, **at: Any) -> None:
        super().__init__(**at)
        self.tables: list[list[list[str]]] = []

    def table(self, columns: list[str], rows: list[list[str]], title: str = "") -> None:
        assert columns == ["what", "then", "now", "harmless?"]
        self.tables.append(rows)

    @property
    def harmless(self) -> dict[str, str]:
        return {row[0]: row[3] for table in self.tables for row in table}


def write_file(config: Config, *overrides: str) -> Config:
    """The settings as a file says them, so that a call says the same."""
    files.write_text(config.file, resolved_text(config, *overrides))
    return load_config(config.file)


def resolved_text(config: Config, *overrides: str) -> str:
    return settings_to_yaml(load_config(config.file, [*(f"{name}={value}" for name, value in _numbers(config)), *overrides]).settings)


def _numbers(config: Config) -> list[tuple[str, str]]:
    places = [place.removeprefix("command line: ") for place in config.given.values() if place.startswith("command line: ")]
    return [(name, value) for name, _, value in (place.partition("=") for place in places)]


@pytest.fixture
def config(write: Write) -> Config:
    return write_file(write(ROWS, *FOUR))


def stop(config: Config, after: int = 2, reporter: Listener | None = None) -> RunFolder:
    """A run of the settings that was stopped after so many updates."""
    listener = reporter or Listener(**{f"step_{after}/4  loss": lambda: os.kill(os.getpid(), signal.SIGINT)})
    with pytest.raises(session.Interrupted) as stopped:
        training.fit(config, listener)
    return RunFolder(Path(stopped.value.where))


@pytest.fixture
def stopped(config: Config) -> RunFolder:
    return stop(config)


def lines_of(run: RunFolder) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in run.metrics.read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "peak_bytes")} for row in rows]


def weights_of(run: RunFolder) -> str:
    return files.sha256(run.adapter / "adapter_model.safetensors")


# Which run


def test_the_newest_stopped_run_of_a_file_goes_on_and_is_the_straight_one(config: Config) -> None:
    straight = training.fit(config)
    older, newer = stop(config), stop(config, after=3)
    assert training.newest_stopped(config).path == newer.path
    resumed = training.fit(config, listener := Table(), resume=training.newest_stopped(config))
    assert resumed.path == newer.path
    assert (lines_of(newer), weights_of(newer)) == (lines_of(straight), weights_of(straight))
    assert f"goes on with {newer.path}" in listener.lines
    assert listener.tables == [], "nothing differs"
    assert training.newest_stopped(config).path == older.path
    with pytest.raises(CallError, match="this run has ended\n  Try: for more epochs or rows"):
        training.fit(config, resume=newer)
    shutil.rmtree(older.path)
    with pytest.raises(CallError, match=f"its newest run has ended: {newer.path}\n  Try: luthier train .* begins a new run"):
        training.newest_stopped(config)


def test_a_run_that_was_killed_before_its_report_gets_it_and_keeps_nothing_half(config: Config) -> None:
    run = training.fit(config)
    trained, report = weights_of(run), run.report.read_text(encoding="utf-8")
    run.report.unlink()
    nobody = subprocess.Popen(["true"])
    nobody.wait()
    half = run.path / f".findings.json.{nobody.pid}@{files._host()}.tmp"
    half.write_text("{", encoding="utf-8")
    reporter = Listener()
    assert training.fit(config, reporter, resume=run) == run
    assert "trained to its end already; its report is written" in reporter.lines[-1]
    assert run.report.read_text(encoding="utf-8")[:200] == report[:200]
    assert weights_of(run) == trained
    assert not half.exists()


def test_a_file_without_a_stopped_run_is_told(config: Config) -> None:
    with pytest.raises(CallError, match=r"luthier\.yaml: no run of it was stopped in .*runs"):
        training.newest_stopped(config)


@pytest.mark.parametrize("lost_at", [2, 4])
def test_a_process_that_lost_its_run_leaves_neither_lines_nor_adapter_nor_report(lost_at: int, write: Write) -> None:
    config = write(ROWS, *FOUR[:2], "training.save_strategy=no")

    def lose() -> None:
        (run,) = list_runs(Path(config.beside(config.settings.output_dir)))
        thief = dataclasses.replace(run_lock._this_process("train"), host="elsewhere", pid=7)
        files.write_json(run.path / run_lock.NAME, dataclasses.asdict(thief))

    with pytest.raises(RunInUse, match="this process no longer has the run, which is held by pid 7 on elsewhere") as lost:
        training.fit(config, Listener(**{f"step_{lost_at}/4  loss": lose}))
    run = RunFolder(Path(lost.value.where))
    assert [row["step"] for row in run.read_metrics("train")][-1] == lost_at
    assert not run.trained.exists()
    assert not run.report.exists()


@pytest.mark.slow
def test_auto_goes_on_with_the_unfinished_run_of_the_same_settings_and_else_begins_anew(config: Config, stopped: RunFolder) -> None:
    never = training.fit(config)
    assert never.path != stopped.path, "the default surprises nobody"
    other = load_config(config.file, ["resume=auto", "training.learning_rate=2e-3"])
    anew = training.fit(other, listener := Listener())
    assert anew.path not in (stopped.path, never.path)
    assert f"resume: auto leaves {stopped.name} as it is: training.learning_rate was 0.01 and is now 0.002" in listener.lines
    auto = load_config(config.file, ["resume=auto", "training.save_steps=2"])
    assert training.fit(auto).path == stopped.path
    assert weights_of(stopped) == weights_of(never)
    assert training.fit(auto).path not in (stopped.path, never.path, anew.path), "none is unfinished now"


def test_a_run_that_is_in_use_is_not_gone_on_with(config: Config, stopped: RunFolder) -> None:
    auto = load_config(config.file, ["resume=auto"])
    with run_lock.held(stopped.path, "train"):
        for attempt in (
            lambda: training.fit(config, resume=stopped),
            lambda: training.fit(auto),
            lambda: training.newest_stopped(config),
        ):
            with pytest.raises(RunInUse, match=f"run in use by pid {os.getpid()}"):
                attempt()
    assert lines_of(stopped)[-1]["step"] == 2


COMPLETED = {
    "train c.yaml --resume": "train c.yaml --resume=",
    "train c.yaml --resume --json": "train c.yaml --resume= --json",
    "train c.yaml --resume training.save_steps=5": "train c.yaml --resume= training.save_steps=5",
    "train c.yaml --resume RUN": "train c.yaml --resume RUN",
    "train --resume RUN a.b=c": "train --resume RUN a.b=c",
    "data make --resume": "data make --resume",
}


@pytest.mark.parametrize("line", COMPLETED)
def test_the_run_may_be_left_out_of_a_call(line: str) -> None:
    assert " ".join(with_run_to_resume(line.split())) == COMPLETED[line]


# What may differ


def test_what_differs_is_shown_and_refused_and_nothing_is_changed(config: Config, stopped: RunFolder) -> None:
    before = {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file() and path != stopped.log}
    changed = load_config(config.file, ["training.learning_rate=0.5", "lora.r=8", "training.logging_steps=7"])
    with pytest.raises(RunError) as refused:
        training.fit(changed, listener := Table(), resume=stopped)
    assert refused.value.problem == "lora.r was 4 and is now 8; training.learning_rate was 0.01 and is now 0.5"
    assert refused.value.next_step.startswith("put back as it was: lora.r, training.learning_rate; or begin a new run")
    assert listener.harmless == {
        "lora.r": "no",
        "training.learning_rate": "no",
        "training.logging_steps": f"yes: {differences.PRINTED}",
    }
    assert {path: path.read_bytes() for path in before} == before


def test_harmless_changes_take_effect_and_the_result_is_the_same(config: Config, stopped: RunFolder) -> None:
    straight = training.fit(config)
    training.fit(load_config(stopped.config, ["training.save_steps=100", "training.rows_file=true"]), listener := Table(), resume=stopped)
    assert set(listener.harmless) == {"training.save_steps", "training.rows_file"}
    assert [path.name for path in sorted(stopped.checkpoints.iterdir())] == ["step-000002", "step-000004"]
    assert [json.loads(line)["step"] for line in stopped.rows.read_text(encoding="utf-8").splitlines()] == [3] * 4 + [4] * 4
    assert weights_of(stopped) == weights_of(straight)
    assert load_config(stopped.config).settings.training.rows_file
    # Next time: the run itself goes on as it was called, and with its file as that says; a call is followed, also back to what the file said.
    for config_now, save_steps in ((stopped.config, 100), (config.file, 1)):
        assert resuming.goes_on(stopped, load_config(config_now), Listener()).settings.training.save_steps == save_steps
    assert resuming.goes_on(stopped, load_config(config.file, ["training.save_steps=1"]), Listener()).settings.training.save_steps == 1


@pytest.mark.slow
def test_the_number_of_threads_is_stored_and_used_again(config: Config) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        straight, stopped = training.fit(config), stop(config)
        torch.set_num_threads(1)
        training.fit(config, listener := Listener(), resume=stopped)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert "threads: 2, as when the run began (this process had 1): its results depend on their number" in listener.lines
    assert weights_of(stopped) == weights_of(straight)


@pytest.mark.slow
def test_what_was_chosen_for_the_first_machine_is_used_again(write: Write, luthier_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine would choose bf16, a smaller cut and another batch; the run goes on with what it began with."""
    auto = ["training.batch_size=auto", "training.precision=auto", "training.micro_batch_tokens=auto", "training.learning_rate=auto"]
    config = write_file(write(ROWS, "training.num_train_epochs=8", "training.logging_steps=1", *auto))
    straight = training.fit(config)
    stopped = stop_at(config, "step 3/")
    monkeypatch.setattr(choose, "MICRO_BATCHES", (256,))
    store_machine(luthier_home, dataclasses.replace(MACHINE, bf16_gflops=1000.0))
    training.fit(config, listener := Table(), resume=stopped)
    assert listener.tables == []
    assert (lines_of(stopped), weights_of(stopped)) == (lines_of(straight), weights_of(straight))


def stop_at(config: Config, line: str) -> RunFolder:
    with pytest.raises(session.Interrupted) as stopped:
        training.fit(config, Listener(**{line.replace(" ", "_"): lambda: os.kill(os.getpid(), signal.SIGINT)}))
    return RunFolder(Path(stopped.value.where))


def test_other_rows_are_named_and_refused(config: Config, stopped: RunFolder) -> None:
    write_rows(config.file.parent / "train.jsonl", [*ROWS[:-1], chat_row(99)])
    with pytest.raises(RunError, match=r"the training rows have changed: .*train\.jsonl has changed since this run was trained on it"):
        training.fit(config, listener := Table(), resume=stopped)
    assert listener.harmless == {"data": "no"}


def test_rows_that_moved_are_the_same_rows(config: Config, stopped: RunFolder) -> None:
    straight = training.fit(config)
    moved = config.file.parent / "elsewhere.jsonl"
    (config.file.parent / "train.jsonl").rename(moved)
    with pytest.raises(RunError, match=rf"data\.train is .*train\.jsonl, which is not here .*\n  Try: .*--resume {stopped.path} data\.train=WHERE"):
        training.fit(load_config(stopped.config), resume=stopped)
    training.fit(load_config(stopped.config, [f"data.train={moved}"]), listener := Table(), resume=stopped)
    assert listener.harmless == {"data.train": f"yes: {differences.CONTENT}"}
    assert weights_of(stopped) == weights_of(straight)
    for config_now in (stopped.config, config.file):  # which still names the old place
        assert resuming.goes_on(stopped, load_config(config_now), Listener()).settings.data.train == str(moved)
    assert json.loads(stopped.ledger.read_text(encoding="utf-8"))["sources"][0]["path"] == str(moved)


@pytest.mark.slow
def test_a_project_that_moved_goes_on_where_it_is_now(config: Config, stopped: RunFolder, tmp_path: Path) -> None:
    straight = training.fit(config)
    home = config.file.parent.rename(tmp_path / "moved")
    config = load_config(home / config.file.name, [f"data.train={home / 'train.jsonl'}", f"output_dir={home / 'runs'}"])
    run = training.newest_stopped(config)
    assert run.path == home / "runs" / stopped.name
    training.fit(config, resume=run)
    assert weights_of(run) == weights_of(RunFolder(home / "runs" / straight.name))


def change_environment(run: RunFolder, change: Any) -> None:
    stored = files.read_json(run.environment)
    change(stored)
    files.write_json(run.environment, stored)


def test_versions_and_machines_are_compared_and_only_patches_and_moves_are_harmless(config: Config, stopped: RunFolder) -> None:
    def older(stored: dict[str, Any]) -> None:
        stored["machine"] |= {"torch": "1.13.0", "numpy": re.sub(r"\d+$", "99", stored["machine"]["numpy"]), "host": "ann@far", "tokenizers": "0.1"}

    change_environment(stopped, older)
    with pytest.raises(RunError, match=r"torch was 1\.13\.0 and is now .*\n  Try: put back as it was: torch 1\.13\.0; or") as refused:
        training.fit(config, listener := Table(), resume=stopped)
    assert "numpy" not in str(refused.value)
    assert {name: answer.partition(":")[0] for name, answer in listener.harmless.items()} == {
        "torch": "no",
        "numpy": "yes",
        "tokenizers": "yes",
        "host": "yes",
    }


def test_a_run_of_a_newer_schema_is_refused_in_words(config: Config, stopped: RunFolder) -> None:
    change_environment(stopped, lambda stored: stored.update(schema=resuming.SCHEMA + 1))
    with pytest.raises(RunError, match=r"was written by a newer Luthier .*\n  Try: pip install --upgrade luthier"):
        training.fit(load_config(stopped.config), resume=stopped)


def test_a_run_that_does_not_know_how_it_began_is_not_gone_on_with(config: Config, stopped: RunFolder) -> None:
    whole = stopped.environment.read_text(encoding="utf-8")
    partial = json.dumps({"schema": 1, "asked": {}, "settings": {}, "machine": {}})
    for text, said in ((None, "is missing"), (whole[:-9], "is not whole JSON"), ("[]", "is not as it was"), (partial, "does not hold contents")):
        stopped.environment.unlink() if text is None else stopped.environment.write_text(text, encoding="utf-8")
        with pytest.raises(RunError, match=rf"{said}.*: what the run began with cannot be compared\n  Try: put this file back as it was"):
            training.fit(load_config(stopped.config, ["training.learning_rate=0.5"]), resume=stopped)
    assert lines_of(stopped)[-1]["step"] == 2


def test_a_run_goes_on_with_what_its_file_says_now_also_where_that_is_what_it_said_first(config: Config, stopped: RunFolder) -> None:
    before = stopped.environment.read_bytes()
    with pytest.raises(RunError):
        training.fit(load_config(config.file, ["lora.r=8"]), resume=stopped)
    assert stopped.environment.read_bytes() == before, "what was refused is not kept"
    training.fit(load_config(config.file, ["training.save_steps=100"]), resume=stopped)
    assert load_config(stopped.config).settings.training.save_steps == 100
    assert resuming.goes_on(stopped, config, Listener()).settings.training.save_steps == 1


def test_updates_that_were_skipped_before_the_stop_count_among_the_three(config: Config, stopped: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_lines(stopped.metrics, ({"kind": "skipped", "step": step, "rows": []} for step in (1, 2)))
    honest = Engine.forward_backward

    def bad(*given: Any, **named: Any) -> Any:
        return dataclasses.replace(honest(*given, **named), loss=float("nan"))

    monkeypatch.setattr(loop, "_run", lambda engine, rows, rate, forward_backward, row_losses: lambda: (bad(engine, rows), 0.0))
    with pytest.raises(NotFiniteError, match="step 3 "):
        training.fit(config, resume=stopped)


def test_without_a_whole_checkpoint_of_its_own_a_run_begins_again_and_deletes_nothing(config: Config, stopped: RunFolder) -> None:
    """One checkpoint is damaged, another one is that of another run of the same settings and rows."""
    straight = training.fit(config)
    (stopped.checkpoints / "step-000002" / "manifest.json").unlink()
    for path in stopped.checkpoints.glob("step-000001"):
        shutil.rmtree(path)
    shutil.copytree(straight.checkpoints / "step-000004", stopped.checkpoints / "step-000004")
    training.fit(config, listener := Listener(), resume=stopped)
    assert "not used: step-000004: manifest.json is that of another run (another id)" in listener.lines
    assert "not used: step-000002: manifest.json is missing" in listener.lines
    assert "no checkpoint is whole: it begins at its first update again" in listener.lines
    assert "not used: step-000002: manifest.json is missing" in stopped.log.read_text(encoding="utf-8")
    assert {"step-000002.aside-1", "step-000004.aside-1"} <= {path.name for path in stopped.checkpoints.iterdir()}
    assert (lines_of(stopped), weights_of(stopped)) == (lines_of(straight), weights_of(straight))


def test_a_checkpoint_is_not_named_as_a_run(stopped: RunFolder) -> None:
    with pytest.raises(RunError, match=f"is a checkpoint and not a run folder\n  Try: name its run: {stopped.path}"):
        run_folder.open_run(str(stopped.checkpoints / "step-000002"))


def test_every_setting_is_known_to_be_harmless_or_not() -> None:
    known = set(resuming.leaves(load_settings().model_dump(mode="json")))
    settings = {name for name in differences.HARMLESS if "." in name}
    assert settings <= known, "the list names settings that are not there"
    dangerous = {"seed", "training.learning_rate", "training.batch_size", "training.precision", "lora.r", "data.max_length", "method", "objective"}
    assert dangerous <= known - set(differences.HARMLESS)


def load_settings() -> Any:
    return Settings.model_validate({"model": "m", "data": {"train": "rows.jsonl"}})


# Many processes, and clocks


def test_processes_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path: Path) -> None:
    call = f"from pathlib import Path\nfrom luthier import run_folder\nprint(run_folder.create(Path({str(tmp_path)!r}), 'run').path)"
    many = [subprocess.Popen([sys.executable, "-c", call], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = {process.communicate(timeout=60)[0].strip() for process in many}
    assert [process.returncode for process in many] == [0] * 4
    assert len(paths) == 4
    assert {path.name for path in tmp_path.iterdir()} == {Path(path).name for path in paths}


def test_a_clock_that_was_put_back_changes_neither_the_order_of_runs_nor_what_last_means(config: Config) -> None:
    first = training.fit(config)
    second = training.fit(config)
    for path, time in ((first.config, 2_000_000_000), (second.config, 1_000_000_000)):
        os.utime(path, (time, time))
    assert [run.path for run in list_runs(first.path.parent)] == [first.path, second.path]
    assert run_folder.open_run("last", first.path.parent).path == second.path
    assert all(row["seconds"] >= 0 for row in second.read_metrics("train"))


def luthier(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "luthier", *arguments], capture_output=True, text=True, timeout=300)


def test_a_run_in_use_is_listed_as_running_and_not_deleted(learned: RunFolder) -> None:
    parent = str(learned.path.parent)
    with run_lock.held(learned.path, "train"):
        listed = luthier("runs", "list", "--output-dir", parent, "--json")
        removed = luthier("runs", "rm", learned.name, "--output-dir", parent, "--yes")
    assert json.loads(listed.stdout)[0]["state"] == "running (train)"
    assert removed.returncode == 75
    assert "run in use by pid" in removed.stderr
    assert learned.config.is_file()


@pytest.mark.slow
def test_two_whole_trainings_that_begin_together_get_two_folders_and_one_run_is_resumed_by_one(config: Config) -> None:
    command = [sys.executable, "-m", "luthier", "train"]
    both = [subprocess.Popen([*command, str(config.file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=300)[1] for process in both] == ["", ""]
    runs = list_runs(config.file.parent / "runs")
    assert len(runs) == 2
    assert lines_of(runs[0]) == lines_of(runs[1])
    shutil.rmtree(runs[1].adapter)
    with run_lock.held(runs[1].path, "train"):
        second = luthier("train", str(config.file), "--resume")
    assert second.returncode == 75
    assert "run in use by pid" in second.stderr
    alone = luthier("train", "--resume", str(config.file))
    assert alone.returncode == 0, alone.stderr
    assert weights_of(runs[1]) == weights_of(runs[0])
