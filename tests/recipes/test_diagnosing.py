"""A fault is planted in a small run, and is found there; in the healthy twin it is not."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from conftest_faults import EVERY, HELD_OUT, TRAINED, USUAL, ids, letters, said, stored, thing, things, train, wrong
from conftest_runs import MACHINE, Listener, make_config, write_rows

from luthier.config.load import load_config
from luthier.data import prepare
from luthier.data.store import Picked
from luthier.diagnose import mending
from luthier.diagnose.finding import read_findings
from luthier.engine import opening
from luthier.engine.sampling import GREEDY
from luthier.models import load
from luthier.plan.machine import store_machine
from luthier.recipes import diagnosing, handover
from luthier.records import Conversation, Source, Turn
from luthier.run_folder import RunFolder

LOOP = "fox " * 24
GERMAN = "die Gitarre wird nach dem Tragen wieder gestimmt und klingt danach besser als zuvor"
ENGLISH = "the guitar is tuned again after it was carried and it sounds better than before"
ECHO = "the quick brown fox jumps over the lazy dog and over box"
LONG = [
    "a luthier who builds and tunes instruments in the street behind the station said on monday that the old guitar of my brother answers "
    "the same after it was carried home, since nothing was lost on the way and every string is new again",
    "while twelve boxing wizards jump over a lazy dog the quick system turns the address of every user into a field with street and city, "
    "which the assistant then sends back as JSON to whoever wanted to know where the parcel went that day",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for the runs of this file."""
    folder = tmp_path_factory.mktemp("home")
    store_machine(folder, MACHINE)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("LUTHIER_HOME", str(folder))
        yield folder


@pytest.fixture
def luthier_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, home: Path) -> RunFolder:
    """The twin of all: it learns its task. It was looked at."""
    run = train(tmp_path_factory.mktemp("healthy"), tiny_model, TRAINED, HELD_OUT, *USUAL)
    diagnosing.diagnose(run)
    return run


@pytest.fixture(scope="module")
def slow_learner(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, home: Path) -> RunFolder:
    """It learns nothing at its rate. It was looked at."""
    run = train(tmp_path_factory.mktemp("low"), tiny_model, TRAINED, HELD_OUT, *USUAL, "training.learning_rate=1e-6", "training.num_train_epochs=1")
    diagnosing.diagnose(run)
    return run


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, home: Path) -> RunFolder:
    """Its rows hold: wrong answers, one question with two answers, repeated and leaked rows, rows that are too long, a row of nonsense, and
    a second file that is hardly there. It was looked at."""
    rows = [wrong(number) if number % 23 == 3 else thing(number) for number in range(200, 340)]
    rows += [said(f"{text} {number}", "warm") for text in LONG for number in range(10)]
    rows += [thing(900 + number, answer) for number in range(3) for answer in ("warm", "cold")]
    rows += [said("street " * 300 + str(number), "cold") for number in range(6)]
    rows += [said("thing 999 is red", "zqxj vkwp 90312 qqzz!! jjkk zxzx qpqp" * 3)]
    held_out = [*HELD_OUT, *(said(f"{text} {number}", "warm") for text in LONG for number in (70, 71))]
    settings = ["training.rows_file=true", "data.train=[train.jsonl, other.jsonl]", "data.max_length=300", "data.too_long=drop"]
    folder = tmp_path_factory.mktemp("dirty")
    run = train(folder, tiny_model, rows, held_out, *USUAL, *settings, "training.num_train_epochs=4", files={"other.jsonl": things(600, 2)})
    diagnosing.diagnose(run)
    return run


def test_a_healthy_run_has_no_findings(healthy: RunFolder) -> None:
    assert stored(healthy) == {}
    assert read_findings(healthy) == []
    assert not healthy.suspect_rows.exists()


def test_what_could_not_be_looked_at_is_said(healthy: RunFolder) -> None:
    not_looked = json.loads(healthy.findings.read_text(encoding="utf-8"))["not_looked"]
    assert set(not_looked) == {"forgetting", "not_better_than_base", "wrong_language"}
    assert "luthier eval" in not_looked["not_better_than_base"]


def test_a_rate_that_is_too_low_and_all_that_comes_of_it(slow_learner: RunFolder) -> None:
    found = stored(slow_learner)
    assert {"learning_rate_too_low", "adapter_without_effect", "end_of_turn_not_learned", "no_stop", "off_format"} <= found.keys()
    assert "learning_rate_too_high" not in found
    assert found["learning_rate_too_low"]["severity"] == "severe"
    assert found["learning_rate_too_low"]["evidence"]["usual"] == 1e-3
    assert found["off_format"]["evidence"]["examples"][0]["row"] == "eval.jsonl:1"


def test_where_greedy_answers_are_poor_other_ways_of_decoding_are_tried(slow_learner: RunFolder, healthy: RunFolder) -> None:
    tried = stored(slow_learner)["no_stop"]["evidence"]["decoding"]
    assert [one["sampling"] for one in tried] == [{}, *diagnosing.GRID]
    assert all(0 <= one["flawed"] <= 1 for one in tried)


@pytest.mark.slow
def test_the_rows_that_are_wrong_are_named(dirty: RunFolder) -> None:
    found = stored(dirty)["noisy_labels"]
    planted = {f"train.jsonl:{number - 199}" for number in range(200, 340) if number % 23 == 3}
    named = [row["row"] for row in found["evidence"]["rows"]]
    assert "train.jsonl:173" in named  # nonsense
    assert len(planted & set(named)) >= 3
    lines = [json.loads(line) for line in dirty.suspect_rows.read_text(encoding="utf-8").splitlines()]
    worst = next(line for line in lines if line["line"] == 173)
    assert worst["messages"][0]["content"] == "thing 999 is red"
    assert Path(worst["file"]).name == "train.jsonl"
    assert "its loss is" in worst["why"][0]
    assert len(worst["losses"]) == 4  # an epoch each


@pytest.mark.slow
def test_what_is_wrong_with_the_rows_is_found(dirty: RunFolder) -> None:
    found = stored(dirty)
    assert {"conflicting_answers", "duplicates", "leakage", "truncation", "source_imbalance", "loss_spikes"} <= found.keys()
    assert len(found["conflicting_answers"]["evidence"]["rows"]) == 6
    assert found["truncation"]["evidence"]["too_long"] == 6
    assert found["source_imbalance"]["evidence"]["shares"]["other.jsonl"] < 0.05
    assert found["leakage"]["evidence"]["near"] == 20
    assert any("train.jsonl:173" in spike["rows"] for spike in found["loss_spikes"]["evidence"]["spikes"])


@pytest.mark.slow
def test_the_mended_settings_are_a_new_file_that_can_be_trained(dirty: RunFolder, tmp_path: Path) -> None:
    before = dirty.config.read_text(encoding="utf-8")
    found = read_findings(dirty)
    assert found is not None
    mended, again = mending.mend(dirty, found), mending.mend(dirty, found)
    assert mended.file is not None
    assert again.file is not None
    assert (mended.file.name, again.file.name) == ("mended.yaml", "mended-2.yaml")
    settings = load_config(mended.file).settings
    assert [(Path(one.path).name, one.weight) for one in settings.data.sources] == [("train.jsonl", 1.0), ("other.jsonl", 10.0)]
    assert settings.data.max_length == 512  # the model reads no more
    assert settings.training.max_grad_norm == 0.3
    assert "+  max_length: 512" in mended.difference
    assert dirty.config.read_text(encoding="utf-8") == before


@pytest.mark.slow
def test_without_the_model_and_without_the_rows_the_rest_is_looked_at(dirty: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(dirty.path, tmp_path / "copied")
    run = RunFolder(tmp_path / "copied")
    ledger = json.loads(run.ledger.read_text(encoding="utf-8"))
    ledger["sources"][0]["sha256"] = "0" * 64  # the file is another one now
    run.ledger.write_text(json.dumps(ledger), encoding="utf-8")
    listener = Listener()
    found, not_looked = diagnosing.diagnose(run, listener, model=False)
    assert {"truncation", "loss_spikes"} <= {one.id for one in found}
    assert {"leakage", "duplicates", "off_format"} <= set(not_looked)
    assert any("has changed since this run was trained" in line for line in listener.lines)


@pytest.mark.slow
def test_a_damaged_file_is_named_and_costs_its_own_checks_only(dirty: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(dirty.path, tmp_path / "copied")
    run = RunFolder(tmp_path / "copied")
    adapter = run.adapter / "adapter_model.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:-8])
    listener = Listener()
    found, not_looked = diagnosing.diagnose(run, listener, model=False)
    assert "loss_spikes" in {one.id for one in found}
    assert "rank_too_low" in not_looked
    assert any("adapter cannot be used" in line for line in listener.lines)


def test_the_training_ends_with_its_gravest_findings(tmp_path: Path, slow_learner: RunFolder, healthy: RunFolder) -> None:
    assert "severe: learning rate too low" in slow_learner.log.read_text(encoding="utf-8")
    assert "severe" not in healthy.log.read_text(encoding="utf-8")


@pytest.mark.slow
def test_learning_by_heart(tmp_path: Path, tiny_model: Path) -> None:
    draws = random.Random(1)
    rows = [thing(number, draws.choice(["warm", "cold"])) for number in range(200, 212)]
    held_out = [thing(number, draws.choice(["warm", "cold"])) for number in range(400, 412)]
    settings = [*USUAL, "training.batch_size=4", "training.num_train_epochs=30", "lora.r=16", "lora.lora_alpha=32"]
    run = train(tmp_path / "run", tiny_model, rows, held_out, *settings)
    assert "overfitting" in ids(run)
    cure = stored(run)["overfitting"]["cures"][0]["changes"]
    assert cure["training.load_best_model_at_end"] is True
    assert cure["training.num_train_epochs"] < 20


@pytest.mark.slow
def test_a_run_that_ended_too_early(tmp_path: Path, tiny_model: Path) -> None:
    settings = [*USUAL, "training.learning_rate=8e-4", "training.lr_scheduler_type=constant", "training.num_train_epochs=1.5"]
    run = train(tmp_path / "run", tiny_model, TRAINED, HELD_OUT, *settings)
    assert "underfitting" in ids(run)
    assert stored(run)["underfitting"]["cures"][0]["changes"] == {"training.num_train_epochs": 3.0}


@pytest.mark.slow
def test_a_rate_that_is_too_high(tmp_path: Path, tiny_model: Path, healthy: RunFolder) -> None:
    """The run goes on from what the twin knows, and its rate rises until that is lost."""
    rising = ["training.learning_rate=0.3", "training.lr_scheduler_type=constant", "training.warmup_ratio=0.9"]
    run = train(tmp_path / "rising", tiny_model, TRAINED, HELD_OUT, *USUAL, *rising, f"init_from={healthy.path}")
    assert {"divergence", "learning_rate_too_high", "off_format"} <= ids(run)
    assert "learning_rate_too_low" not in stored(run)
    assert len(stored(run)["divergence"]["evidence"]["rows"]) == 8


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "found"), [(1, True), (32, False)])
def test_a_rank_with_no_room_for_what_is_to_be_learned(tmp_path: Path, tiny_model: Path, rank: int, found: bool) -> None:
    draws = random.Random(5)
    rows = [said(f"thing {200 + number}", letters(draws, 8)) for number in range(24)]
    settings = ["training.batch_size=8", "training.num_train_epochs=25", f"lora.r={rank}", f"lora.lora_alpha={2 * rank}", *EVERY]
    run = train(tmp_path / "run", tiny_model, rows, [], *settings)
    assert ("rank_too_low" in ids(run, model=False)) == found


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "epochs", "found"), [(1, 1, True), (16, 4, False)])
def test_a_batch_that_is_mostly_noise(tmp_path: Path, tiny_model: Path, batch: int, epochs: int, found: bool) -> None:
    draws = random.Random(5)
    rows = [said(f"thing {200 + number}", draws.choice(["street", "city", "state", "zip", "box", "dog", "fox", "guitar"])) for number in range(160)]
    settings = [f"training.batch_size={batch}", f"training.num_train_epochs={epochs}", "training.lr_scheduler_type=constant"]
    run = train(tmp_path / "run", tiny_model, rows, [], *settings, "training.learning_rate=4e-3", *EVERY)
    assert ("batch_too_small" in ids(run)) == found


@pytest.mark.slow
def test_answers_that_loop_echo_or_are_in_another_language(tmp_path: Path, tiny_model: Path) -> None:
    """The rows teach three bad habits; the held-out rows say what would have been right."""
    pytest.importorskip("py3langid")
    habits = {"tell": (LOOP, ENGLISH), "say": (GERMAN, ENGLISH), ECHO: (ECHO, "warm"), "thing": ("warm", "warm")}
    rows = [said(f"{asked} {number}", bad) for number in range(200, 232, 2) for asked, (bad, _) in habits.items()]
    held_out = [said(f"{asked} {number}", good) for number in range(203, 213, 2) for asked, (_, good) in habits.items()]
    settings = [*USUAL, "training.num_train_epochs=6", "evaluation.max_new_tokens=80"]
    run = train(tmp_path / "run", tiny_model, rows, held_out, *settings)
    assert ids(run) == {"repetition", "prompt_echoed", "wrong_language"}  # it ends its turns
    assert "en" in stored(run)["wrong_language"]["seen"]
    assert stored(run)["prompt_echoed"]["evidence"]["answers"] == 5


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "found"), [(0.03, True), (2e-4, False)])
def test_what_was_known_before_is_forgotten(tmp_path: Path, tiny_model: Path, knows_songs: Path, rate: float, found: bool) -> None:
    settings = [*USUAL[:-1], f"evaluation.general={knows_songs.parent / 'songs.jsonl'}", f"training.learning_rate={rate}"]
    run = train(tmp_path / "run", knows_songs, TRAINED[:80], HELD_OUT, *settings)
    assert ("forgetting" in ids(run, model=False)) == found


@pytest.fixture(scope="module")
def knows_songs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, home: Path) -> Path:
    """A model that was taught some songs, and the songs beside it."""
    folder = tmp_path_factory.mktemp("songs")
    songs = [said(f"sing song {number}", ENGLISH if number % 2 else GERMAN) for number in range(200, 240)]
    write_rows(folder / "songs.jsonl", songs)
    run = train(
        folder / "taught", tiny_model, songs, [], "training.batch_size=8", "training.num_train_epochs=8", "lora.r=16", "lora.lora_alpha=32", *EVERY
    )
    handover.export(run, "merged", folder=folder / "merged", precision="fp32")
    return folder / "merged"


@pytest.mark.slow
def test_a_template_that_the_model_does_not_know(tmp_path: Path, tiny_model: Path, healthy: RunFolder) -> None:
    run = train(tmp_path / "other", tiny_model, TRAINED[:32], HELD_OUT, *USUAL, "training.num_train_epochs=1", "template=alpaca")
    assert "template_mismatch" in ids(run)
    assert stored(run)["template_mismatch"]["cures"][0]["changes"] == {"template": "auto"}
    shutil.copytree(healthy.path, tmp_path / "changed")
    changed = RunFolder(tmp_path / "changed")
    template = changed.adapter / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("assistant\n", "assistant: "), encoding="utf-8")
    assert "template_mismatch" in ids(changed)
    assert "has changed since the training" in stored(changed)["template_mismatch"]["seen"]


@pytest.mark.slow
def test_rows_that_come_slowly(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Picked.__getitem__

    def slow(self: Any, place: Any) -> Any:
        time.sleep(0.01)
        return quick(self, place)

    monkeypatch.setattr(Picked, "__getitem__", slow)
    run = train(tmp_path / "run", tiny_model, TRAINED[:80], [], "training.batch_size=4", *EVERY)
    monkeypatch.undo()
    assert "slow_data" in ids(run, model=False)
    assert stored(run)["slow_data"]["evidence"]["reading_seconds"] > 0.7


@pytest.mark.slow
def test_an_adapter_whose_every_b_is_zero(tmp_path: Path, tiny_model: Path, healthy: RunFolder) -> None:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(healthy.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    path = run.adapter / "adapter_model.safetensors"
    save_file({name: tensor * (".lora_B." not in name) for name, tensor in load_file(path).items()}, path)
    assert "adapter_without_effect" in ids(run)
    assert stored(run)["adapter_without_effect"]["seen"] == "every B of the adapter is zero"


def test_rows_that_are_replayed_are_in_the_updates_and_not_among_the_rows_that_are_looked_at(
    tmp_path: Path, tiny_model: Path, luthier_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(tmp_path, tiny_model, TRAINED[:40], "data.replay=50%", "data.max_length=512")
    tokenizer, settings = load.load_tokenizer(tiny_model), config.settings
    monkeypatch.setattr(diagnosing, "_tokenizer", lambda run, config: tokenizer)
    run = RunFolder(tmp_path / "run")
    prepare.write_ledger(run, prepare.tokenize_rows(prepare.load_rows(settings.data, tmp_path, settings.seed), tokenizer, 512, settings.data))
    read = diagnosing._rows(run, config, Listener())
    assert read is not None
    assert read.of_update is not None
    assert len(read.train) == 40
    assert not any("replayed" in row.source.file for row in read.train)
    assert any("replayed" in name for step in range(1, 8) for name in read.of_update(step))


@pytest.mark.parametrize(("usual", "tenfold"), [(3, True), (200, False)])
def test_an_answer_has_room_for_twice_the_longest_that_is_expected(
    healthy: RunFolder, luthier_home: Path, monkeypatch: pytest.MonkeyPatch, usual: int, tenfold: bool
) -> None:
    """A limit that is shorter than the rows' own answers is no model that does not end."""
    engine = opening.open_trained(healthy, Listener())
    rows = [Conversation((Turn("user", "say"), Turn("assistant", "warm " * count)), Source("a.jsonl", count)) for count in (1, 30)]
    given: list[int] = []

    def answer(model: Any, prompts: list[list[int]], how: Any, limits: list[int], on_answers: Any) -> list[list[int]]:
        given.extend(limits)
        return [[1]] * len(prompts)

    monkeypatch.setattr(diagnosing.generate, "answer", answer)
    config = load_config(healthy.config, [f"evaluation.max_new_tokens={usual}"])
    assert all(one.stopped for one in diagnosing._answers(engine, rows, config, GREEDY))
    assert len(set(given)) == 1
    assert (given[0] > 10 * usual) == tenfold
    assert given[0] >= 2 * usual


@pytest.mark.slow
def test_a_run_of_rows_that_ask_nothing_can_be_looked_at(tmp_path: Path, tiny_model: Path) -> None:
    run = train(tmp_path / "texts", tiny_model, [{"text": f"a luthier builds {number} instruments"} for number in range(8)], [], *EVERY)
    found, not_looked = diagnosing.diagnose(run)
    assert not found
    assert "no_stop" in not_looked
