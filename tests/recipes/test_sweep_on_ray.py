"""Trials on Ray: refused without its authentication, the same book as a search on one machine, and (nightly) a real one."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luthier.config.load import load_config
from luthier.config.search import Search
from luthier.errors import CallError, ConfigError, LuthierError
from luthier.recipes import sweep, sweep_on_ray
from luthier.records import Trial
from luthier.reporting import Silent

TEXT = """model: {model}
device: cpu
data: {{train: rows.jsonl, eval: 10%}}
lora: {{r: 4}}
training: {{batch_size: 4, max_steps: 16, precision: fp32, learning_rate: 1e-3, compile: 'off', save_strategy: 'no'}}
evaluation: {{sample_answers: 0, every_steps: 2, general: null}}
"""


@pytest.fixture
def begun(tmp_path: Path, tiny_model: Path) -> sweep.Sweep:
    rows = [{"instruction": f"Say {number}", "output": f"it is {number}"} for number in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "luthier.yaml").write_text(TEXT.format(model=tiny_model))
    search = Search(trials=4, settings={"training.learning_rate": [1e-2, 1e-3, 1e-4, 1e-5, 1e-6]})
    return sweep.begin(load_config(tmp_path / "luthier.yaml"), [], search=search)


def installed(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    """As if Ray of this release were installed."""
    for name, module in {"ray": SimpleNamespace(__version__=release, tune=SimpleNamespace()), "ray.tune": SimpleNamespace()}.items():
        monkeypatch.setitem(__import__("sys").modules, name, module)


def test_a_ray_that_asks_for_no_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "2.60.0")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    sweep_on_ray.require_ray()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(CallError, match="lets anybody who reaches its ports run code here\n  Try: unset RAY_AUTH_MODE"):
        sweep_on_ray.require_ray()
    monkeypatch.delenv("RAY_AUTH_MODE")
    installed(monkeypatch, "2.51.1")
    with pytest.raises(LuthierError, match=r"Ray 2\.51\.1 lets anybody run code"):
        sweep_on_ray.require_ray()


def test_the_book_goes_on_with_what_was_stopped_and_then_draws(begun: sweep.Sweep) -> None:
    done = Trial(1, {"training.learning_rate": 1e-3}, state="done", value=1.0)
    stopped = Trial(2, {"training.learning_rate": 1e-5})
    for trial in (done, stopped):
        begun = sweep.tell(begun, trial)
    book = sweep_on_ray._Book(begun, Silent())
    first = book.start("x")
    assert first is not None
    assert (first["number"], first["values"]) == (2, stopped.values)
    drawn = [book.start(name) for name in "yz"]
    assert [one["number"] for one in drawn if one] == [3, 4]
    assert len({one["values"]["training.learning_rate"] for one in drawn if one} - {1e-3, 1e-5}) == 2, "no value twice"
    assert book.start("w") is None, "as many as the search asks for"
    book.end("y", failed=True)
    kept = sweep.reopen(begun.path)
    assert [trial.state for trial in kept.trials] == ["done", "running", "failed", "running"], "what came of it is kept at once"
    assert kept.trials[2].why


def test_a_trial_tells_each_part_of_its_run(begun: sweep.Sweep) -> None:
    told: list[tuple[int, float]] = []
    trial = sweep.ask(begun)
    assert trial is not None
    ended = sweep.run_trial(sweep.tell(begun, trial), trial, Silent(), lambda part, value: told.append((part, value)))
    assert ended.state == "done"
    assert dict(told) == ended.curve


def test_a_search_of_many_devices_a_trial_is_refused(begun: sweep.Sweep) -> None:
    with pytest.raises(ConfigError, match="each trial is one process"):
        sweep.begin(load_config(begun.file, ["devices=2"]), ["devices=2"])


@pytest.mark.nightly
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (the extra `ray`)")
def test_trials_run_at_once_and_a_search_that_was_stopped_goes_on(begun: sweep.Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", "local")
    said: list[str] = []
    reporter: Any = type("Lines", (Silent,), {"say": lambda self, line: said.append(line)})()
    try:
        ended = sweep_on_ray.run(begun, reporter)
        assert [trial.number for trial in ended.trials] == [1, 2, 3, 4]
        assert {trial.state for trial in ended.trials} <= {"done", "pruned"}, said
        assert ended.best is not None
        assert (begun.path / sweep.BEST).is_file()
        more = sweep_on_ray.run(sweep.reopen(begun.path, trials=5), reporter)
        assert [trial.number for trial in more.trials] == [1, 2, 3, 4, 5]
        assert more.trials[:4] == ended.trials, "what has ended is not run again"
    finally:
        ray.shutdown()
