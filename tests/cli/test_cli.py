"""`luthier ...` as it is typed: what it prints, and with which exit code it ends."""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from luthier import files
from luthier.cli.app import COMMANDS, GROUPS
from luthier.cli.terminal import Terminal
from luthier.config.load import load_config
from luthier.version import VERSION

VERBS = [(name,) for name in COMMANDS] + [(*group.split(), name) for group, (commands, _, _) in GROUPS.items() for name in commands]


# Says at the end whether torch was loaded.
WATCH = "import sys, luthier.cli\ntry: luthier.cli.main()\nfinally: print('torch:', 'torch' in sys.modules, file=sys.stderr)"


def in_a_process(*arguments: object, code: str = "", folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m luthier ...`, or a line of Python in its place."""
    line = [sys.executable, *(["-c", code] if code else ["-m", "luthier"]), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself_with_an_example(call: Any, verb: tuple[str, ...]) -> None:
    outcome = call(*verb, "--help")
    assert outcome.code == 0
    assert f"Example: luthier {' '.join(verb)}" in " ".join(outcome.out.split())


def test_the_overview_names_every_verb(call: Any) -> None:
    outcome = call("--help")
    assert outcome.code == 0
    assert {*COMMANDS, *(group for group in GROUPS if " " not in group)} <= set(outcome.out.split())


def test_the_version(call: Any) -> None:
    outcome = call("--version")
    assert (outcome.code, outcome.out) == (0, f"luthier {VERSION}\n")


WRONG_CALLS = [
    ["trian"],
    ["train"],
    ["train", "a.yaml", "--no-such-option"],
    ["data"],
    ["data", "show", "rows.jsonl", "--row", "0"],
    ["data", "check", "rows.jsonl", "--quick", "--model", "other"],
    ["data", "clean", "rows.jsonl"],
    ["data", "clean", "rows.jsonl", "--to", "out.csv"],
    ["data", "check", "luthier.yaml", "--model", "other"],
    ["chat", "last", "--base", "--compare"],
    ["chat", "last", "--top-p", "0.9"],
    ["chat", "last", "--seed", "3"],
    ["chat", "last", "--temperature", "-1"],
    ["export", "last", "--to", "stone"],
    ["export", "last", "--precision", "int3"],
    ["export", "last", "--to", "adapter", "--precision", "fp16"],
    ["export"],
    ["export", "last", "--to", "merged", "--quantize", "q8_0"],
    ["export", "last", "--to", "gguf", "--precision", "bf16"],
    ["export", "last", "--to", "merged", "--for", "memory"],
    ["export", "last", "--to", "merged", "--lora"],
    ["export", "last", "--to", "merged", "--repo", "me/mine"],
    ["export", "last", "--shard-size", "two"],
    ["export", "last", "--allow-loss", "-1"],
    ["export", "last", "--to", "onnx"],
    ["init", "project", "--format", "poem"],
    ["init", "project", "--format", "chat", "--script", "trainer"],
    ["init"],
    ["init", "--env", "nix"],
    ["init", "--env", "uv", "--format", "chat"],
    ["init", "--env", "uv", "--script", "trainer"],
    ["doctor", "no.yaml", "--network", "--fast"],
    ["cache", "clean"],
    ["cache", "clean", "a-model", "--all"],
    ["runs", "show"],
]


@pytest.mark.parametrize("arguments", WRONG_CALLS, ids=" ".join)
def test_a_wrong_call_ends_with_2_and_changes_nothing(call: Any, tmp_path: Path, arguments: list[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    outcome = call(*arguments)
    assert outcome.code == 2
    assert outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_from_the_first_line_to_its_removal(call: Any, settings_file: Path) -> None:
    outcome = call("train", settings_file)
    assert outcome.code == 0, outcome.err
    assert "step 2/2  loss " in outcome.out
    run = Path(outcome.out.partition("run: ")[2].split("\n")[0])
    assert outcome.out.rstrip().endswith(f"Next: luthier eval {run}   luthier chat {run}   luthier export {run}")

    assert [one["name"] for one in call("runs", "list", "--json").json] == [run.name]
    assert run.name in call("runs", "list").out
    shown = call("runs", "show", "last", "--json").json
    assert (shown["state"], shown["steps"], shown["report"]) == ("finished", 2, f"runs/{run.name}/report.html")
    assert "finished" in call("runs", "show", run.name).out

    ended = call("train", "--resume", run)
    assert (ended.code, "this run has ended" in ended.problem) == (2, True)
    adapter = call("export", run, "--to", "adapter", "--json")
    assert (adapter.code, adapter.json["passed"]) == (0, True)
    asked = ["chat", run, "--prompt", "7 Pierce Rd ->", "--max-new-tokens", "6"]
    said, drawn, other = call(*asked), call(*asked, "--temperature", "5"), call(*asked, "--temperature", "5", "--seed", "1")
    assert (said.code, drawn.code, len({said.out, drawn.out, other.out})) == (0, 0, 3)
    assert call(*asked, "--temperature", "5").out == drawn.out
    assert call(*asked, "--stop", said.out.strip()[-2:]).out.strip() == said.out.strip().partition(said.out.strip()[-2:])[0].strip()
    assert call("eval", run, "--data", "rows.jsonl", "--json").json["models"]["tuned"]["exact_match"]["n"] == 6

    assert call("runs", "rm", "last", "--yes").out == f"deleted runs/{run.name}\n"
    assert call("runs", "list").out == "no runs in runs\n"
    assert not run.exists()


def test_a_run_is_gone_on_with_by_its_name_its_settings_or_its_file_and_with_what_is_given_behind_it(call: Any, settings_file: Path) -> None:
    run = Path(call("train", settings_file, "--json").json["run"])
    for steps, named in enumerate((run, settings_file, run / "config.yaml"), 7):
        shutil.rmtree(run / "adapter")
        went_on = call("train", "--resume", named, f"training.save_steps={steps}")
        assert went_on.code == 0, went_on.err
        assert f"goes on with {run}" in went_on.out
        assert load_config(run / "config.yaml").settings.training.save_steps == steps
    alone = call("train", "training.save_steps=9")
    assert (alone.code, "a settings file is needed" in alone.problem) == (2, True)
    assert [one["name"] for one in call("runs", "list", "--json").json] == [run.name]


def test_merged_adapters_are_the_exact_sum_and_what_comes_next_works(call: Any, settings_file: Path, tmp_path: Path) -> None:
    run = call("train", settings_file, "--json").json["run"]
    merged = call("merge", f"{run}:0.5", f"{run}:0.5", "--to", "both")
    said, following = merged.out.splitlines()
    assert said.endswith("combined by cat")
    assert following.startswith(f"Next: init_from: {tmp_path}/both in a luthier.yaml")
    assert "holds an adapter, and is not a run folder" in call("export", "both").problem
    assert call("chat", "both", "--prompt", "150 Pierce Rd").code == 0
    assert call("train", settings_file, f"init_from={tmp_path}/both").code == 0
    assert "--density is 0" in call("merge", f"{run}:1", f"{run}:1", "--to", "nothing", "--how", "ties", "--density", "0").problem
    assert "an adapter with itself" in " ".join(call("merge", "--help").out.replace("│", " ").split())


def test_the_base_of_a_quantized_run_is_called_what_it_is(call: Any, settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = call("train", settings_file, "method=qlora", "--json").json["run"]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    line = "base: a base in nf4, which the adapter was trained beside"
    assert line in call("chat", run, "--compare").out
    assert line not in call("chat", run).out
    assert line in call("eval", run, "--data", "rows.jsonl").out


def test_a_run_is_not_removed_without_a_yes(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("model: m\n")
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert call("runs", "rm", "one").code == 1
    assert run.is_dir()


def test_json_alone_stands_on_standard_output(call: Any, settings_file: Path) -> None:
    outcome = call("train", settings_file, "--json")
    assert Path(outcome.json["adapter"]).is_dir()
    assert "step 2/2" in outcome.err


BROKEN = {
    # what                          call                                      changed file               where: what is said
    "unknown key": (["plan", "luthier.yaml", "training.learing_rate=1"], "", "training.learing_rate=1: unknown setting 'training.learing_rate'"),
    "no such settings file": (["train", "none.yaml"], "", "none.yaml: no such file"),
    "empty settings file": (["train", "luthier.yaml"], "luthier.yaml", "luthier.yaml: settings are expected"),
    "a folder for the settings": (["train", "."], "", ".: is a folder"),
    "no such rows": (["train", "luthier.yaml", "data.train=nowhere.jsonl"], "", "nowhere.jsonl: there is no such file"),
    "empty rows": (["data", "check", "luthier.yaml"], "rows.jsonl", "rows.jsonl: is empty"),
    "no such run": (["chat", "none"], "", "none: is not a run folder"),
    "no run at all": (["eval", "last"], "", "runs: there is no run here"),
    "no such model": (["plan", "luthier.yaml", "model=smollm"], "", "smollm: is no model of the catalog, no folder and no hub id"),
    "no model to show": (["models", "show", "smollm"], "", "smollm: is no model of the catalog, no folder and no hub id"),
    "nothing cached": (["cache", "clean", "smollm"], "", "smollm: is not in Luthier's cache"),
    "rows of another kind": (["data", "check", "rows.txt"], "rows.txt", "rows.txt: is empty"),
    "init_from no run": (["train", "luthier.yaml", "init_from=none"], "", "init_from: none is not a run"),
}


@pytest.mark.parametrize(("arguments", "emptied", "said"), BROKEN.values(), ids=BROKEN)
def test_a_mistake_is_one_line_and_a_next_step(
    call: Any, settings_file: Path, luthier_home: Path, arguments: list[str], emptied: str, said: str
) -> None:
    if emptied:
        (settings_file.parent / emptied).write_text("")
    outcome = call(*arguments)
    assert outcome.code == 1
    assert said in outcome.problem
    assert not (settings_file.parent / "runs").exists()


def test_the_nearest_setting_is_offered(call: Any, settings_file: Path) -> None:
    settings_file.write_text(settings_file.read_text() + "lora: {rr: 8}\n")
    outcome = call("train", "luthier.yaml")
    assert outcome.err == "luthier: luthier.yaml:5: unknown setting 'lora.rr'\n  Try: did you mean lora.r?\n"


def test_a_row_without_an_answer_is_named_with_its_line(call: Any, settings_file: Path) -> None:
    rows = settings_file.parent / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": ""}\n')
    outcome = call("train", settings_file)
    assert outcome.code == 1
    assert 'rows.jsonl:1: empty_answer: completion: is "", so there is nothing to learn' in outcome.err
    assert "luthier: rows.jsonl:1: of 1 rows none is left to train on" in outcome.problem


@pytest.mark.parametrize(
    ("content", "said"),
    [({}, "config.json"), ({"config.json": "{}"}, "safetensors"), ({"config.json": "{"}, "config.json")],
    ids=["empty", "no weights", "cut config"],
)
def test_a_folder_that_is_no_model_says_what_it_lacks(call: Any, settings_file: Path, content: dict[str, str], said: str) -> None:
    (settings_file.parent / "model").mkdir()
    for name, text in content.items():
        (settings_file.parent / "model" / name).write_text(text)
    outcome = call("train", settings_file, "model=./model")
    assert outcome.code == 1
    assert said in outcome.err
    assert "model" in outcome.problem


@pytest.mark.parametrize("output_dir", ["taken", "taken/below"])
def test_an_output_dir_that_is_a_file_is_told(call: Any, settings_file: Path, output_dir: str) -> None:
    (settings_file.parent / "taken").write_text("mine")
    outcome = call("train", settings_file, f"output_dir={output_dir}")
    assert outcome.code == 1
    assert "a file stands where a folder is needed" in outcome.problem
    assert (settings_file.parent / "taken").read_text() == "mine"


def test_an_output_dir_without_the_right_to_write_is_told(call: Any, settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = files.disk.make_folder

    def forbidden(path: Path) -> None:
        if path.name == "runs":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        real(path)

    monkeypatch.setattr(files.disk, "make_folder", forbidden)
    outcome = call("train", settings_file)
    assert outcome.code == 1
    assert outcome.problem.endswith("runs: not writable")


def test_a_disk_that_is_nearly_full_is_told_before_the_run_begins(call: Any, settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(settings_file.parent)._replace(free=3_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    outcome = call("train", settings_file)
    assert outcome.code == 1
    assert "only 3 MB are free" in outcome.problem
    assert list((settings_file.parent / "runs").iterdir()) == []


@pytest.mark.parametrize("when", ["config.yaml", "report.html"])
def test_a_disk_that_fills_up_on_the_way_is_told(call: Any, settings_file: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    real = files.disk.open_new

    def full(path: Path) -> int:
        if when in path.name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path)

    monkeypatch.setattr(files.disk, "open_new", full)
    outcome = call("train", settings_file)
    assert outcome.code == 1
    assert "the disk is full" in outcome.problem
    assert when in outcome.problem


def test_a_traceback_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    plain = in_a_process("plan", "none.yaml", folder=tmp_path)
    assert (plain.returncode, plain.stdout) == (1, "")
    assert plain.stderr.startswith("luthier: none.yaml: no such file\n  Try: ")
    shown = in_a_process("plan", "none.yaml", "--debug", folder=tmp_path)
    assert shown.returncode == 1
    assert "Traceback (most recent call last)" in shown.stderr
    assert "ConfigError: none.yaml: no such file" in shown.stderr


def test_a_fault_of_ours_is_called_one(call: Any, settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.config.load.load_config", lambda *_: 1 // 0)
    outcome = call("plan", settings_file)
    assert outcome.code == 1
    assert outcome.err.startswith("luthier: a fault of ours: ZeroDivisionError: ")
    assert "  Try: the same command with --debug" in outcome.err


def test_ctrl_c_ends_with_130_and_no_traceback(call: Any, settings_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luthier.config.load.load_config", interrupted)
    outcome = call("plan", settings_file)
    assert (outcome.code, "Traceback" in outcome.err) == (130, False)


@pytest.mark.parametrize("verb", [["train"], ["plan"], ["data", "check"]], ids=" ".join)
def test_broken_data_stops_before_any_model_is_looked_for(call: Any, settings_file: Path, verb: list[str]) -> None:
    (settings_file.parent / "rows.jsonl").write_text("not json\n")
    # The model does not exist either: what is told is the data.
    outcome = call(*verb, settings_file, "model=./missing")
    assert outcome.code == 1
    assert outcome.problem.startswith("luthier: rows.jsonl:1: none of the first 1 rows can be read; the first: ")


def test_broken_data_is_told_without_torch(tmp_path: Path, settings_file: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("not json\n")
    outcome = in_a_process("plan", settings_file, code=WATCH, folder=tmp_path)
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("luthier: rows.jsonl:1: none of the first 1 rows can be read; the first: ")
    assert outcome.stderr.endswith("torch: False\n")


def test_looking_and_planning_need_no_torch(tmp_path: Path, settings_file: Path) -> None:
    outcome = in_a_process("plan", settings_file, "--json", code=WATCH, folder=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stderr.endswith("torch: False\n")
    assert json.loads(outcome.stdout)["settings"]["training"]["batch_size"] == 2


def test_plan_says_what_auto_becomes_and_why(call: Any, settings_file: Path) -> None:
    lines = call("plan", settings_file).out
    assert "training.learning_rate" in lines
    assert "updates: 2 of 2 examples" in lines
    plan = call("plan", settings_file, "--json").json
    assert (plan["schema"], plan["updates"], plan["fits"]) == (1, 2, True)
    assert "training.learning_rate" in {one["name"] for one in plan["resolved"]}
    assert sum(plan["memory_bytes"].values()) > 0


def test_a_pasted_block_is_explained(call: Any, settings_file: Path) -> None:
    settings_file.write_text(settings_file.read_text().replace("batch_size: 2", "per_device_train_batch_size: 1, gradient_accumulation_steps: 3"))
    line = "training.batch_size: 3 examples per update = 1 per device x 3 accumulated x 1 device"
    for verb in (["plan"], ["data", "check"], ["train"]):
        assert line in call(*verb, settings_file).out, verb


def test_data_check_accounts_for_every_row(call: Any, settings_file: Path) -> None:
    rows = settings_file.parent / "rows.jsonl"
    rows.write_text(rows.read_text() + '{"prompt": "a", "completion": ""}\n')
    outcome = call("data", "check", settings_file)
    assert outcome.code == 0
    assert "rows.jsonl:7: empty_answer: " in outcome.out
    assert "rows: 7 read = 6 to train on + 0 held out + 1 set aside" in outcome.out
    ledger = call("data", "check", settings_file, "--json").json["ledger"]
    assert {name: ledger["rows"][name] for name in ("read", "used", "rejected")} == {"read": 7, "used": 6, "rejected": {"empty_answer": 1}}
    assert ledger["tokens"]["read"] == sum(ledger["tokens"][part] for part in ("trained", "masked", "cut"))


def test_data_show_marks_what_is_trained_where_there_is_no_color(call: Any, settings_file: Path, tiny_model: Path) -> None:
    for arguments in ([settings_file], ["rows.jsonl", "--model", tiny_model]):
        outcome = call("data", "show", *arguments, "--row", 2)
        assert outcome.code == 0
        assert "rows.jsonl:2" in outcome.out
        assert "1 Pierce Rd ->[[ Itasca 1<|im_end|>]]" in outcome.out
    (row,) = call("data", "show", settings_file, "--row", 2, "--json").json["rows"]
    assert "".join(piece["text"] for piece in row["pieces"] if piece["trained"]) == " Itasca 1<|im_end|>"
    assert [piece["text"] for piece in row["pieces"] if piece["special"]] == ["<|im_end|>"]


def test_a_row_that_is_not_there_is_told(call: Any, settings_file: Path) -> None:
    outcome = call("data", "show", settings_file, "--row", 99)
    assert (outcome.code, outcome.problem) == (2, "luthier: --row: there is no training example 99")


def test_rows_are_shown_as_they_are(call: Any, settings_file: Path) -> None:
    (settings_file.parent / "rows.jsonl").write_text('{"prompt": "[bold]a :smile:", "completion": "b"}\n')
    assert "[bold]a :smile:[[b" in call("data", "show", settings_file).out


def test_colors_and_frames_are_for_terminals_only(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    rows = [["one-with-a-name-far-wider-than-a-terminal-is" * 3, "[red]1 :smile:"], ["two", "2"]]
    terminal.table(["name", "what"], rows)
    piped = capsys.readouterr().out
    assert [line.split() for line in piped.splitlines()] == [["name", "what"], [rows[0][0], "[red]1", ":smile:"], ["two", "2"]]
    terminal.console = Console(force_terminal=True, width=60, markup=False, emoji=False)
    terminal.table(["name", "what"], rows)
    drawn = capsys.readouterr().out
    assert "┃" in drawn
    assert "[red]1 :smile:" in drawn


def test_models_are_listed_and_shown(call: Any, luthier_home: Path, tiny_model: Path) -> None:
    assert "smollm2-135m-instruct" in [card["name"] for card in call("models", "list", "--json").json]
    assert "smollm2-135m-instruct" in call("models", "list").out
    card = call("models", "show", "smollm2-135m-instruct", "--json").json
    assert (card["path"], card["license"], card["layers"]) == (None, "Apache-2.0", 30)
    folder = call("models", "show", tiny_model, "--json").json
    assert (folder["path"], folder["layers"], folder["vocabulary"]) == (str(tiny_model), 2, 500)
    assert f"path             {tiny_model}" in call("models", "show", tiny_model).out


def test_the_cache_is_listed_and_emptied(call: Any, luthier_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luthier.models.cache._of_hub", list)
    assert call("cache", "ls", "--json").json == []
    model = luthier_home / "models" / "some-model"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"x" * 3_000_000)
    (known,) = call("cache", "ls", "--json").json
    assert known == {"name": "some-model", "path": str(model), "bytes": 3_000_000, "source": "luthier"}
    assert "some-model  3 MB" in call("cache", "ls").out
    assert call("cache", "clean", "some-model").out == "freed 3 MB\n"
    assert not model.exists()
    assert call("cache", "clean", "--all").code == 0


def test_doctor_looks_at_everything_and_ends_with_0_where_nothing_is_broken(call: Any, luthier_home: Path) -> None:
    outcome = call("doctor", "--json")
    assert outcome.code == 0
    assert all(set(one) == {"status", "subject", "seen", "mend", "details"} for one in outcome.json)
    looked_at = {"Python", "torch", "transformers", "memory", "disk", "write access", "flash attention", "device", "number formats"}
    assert looked_at <= {one["subject"] for one in outcome.json}
    assert {one["status"] for one in outcome.json} <= {"ok", "warning"}
    assert (luthier_home / "machine.json").is_file()


def test_doctor_ends_with_1_and_a_mend_where_something_is_broken(call: Any, luthier_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    outcome = call("doctor")
    assert outcome.code == 1
    assert "is not writable\n" in outcome.out
    assert "Try: set LUTHIER_HOME" in outcome.out


def test_doctor_says_all_of_the_machine_where_the_settings_cannot_be_read(call: Any, luthier_home: Path) -> None:
    outcome = call("doctor", "missing.yaml", "--json")
    assert outcome.code == 1
    found = {one["subject"]: one for one in outcome.json}
    assert {"Python", "torch", "memory", "device"} <= found.keys()
    assert (found["settings"]["status"], found["settings"]["seen"]) == ("error", "missing.yaml: no such file")
    assert "luthier init" in found["settings"]["mend"]


@pytest.mark.parametrize("format", ["instruction", "chat", "completion"])
def test_a_new_project_trains_at_once(call: Any, tiny_model: Path, format: str) -> None:
    outcome = call("init", "project", "--format", format)
    assert outcome.code == 0
    assert outcome.out.count("luthier train project/luthier.yaml") == 1
    trained = call("train", "project/luthier.yaml", f"model={tiny_model}", "training.max_steps=2", "device=cpu")
    assert trained.code == 0, trained.err
    assert [path.parent.name for path in Path("project/runs").glob("*/report.html")]


def test_an_environment_is_written_here_or_into_the_folder_that_is_named(call: Any) -> None:
    assert call("init", "--env", "docker").code == 0
    assert Path("Dockerfile").is_file()
    assert call("init", "new-project", "--env", "colab").out.startswith("new-project/new-project.ipynb: Python 3.11")
    again = call("init", "--env", "docker")
    assert (again.code, "Dockerfile: is there already, and nothing is overwritten" in again.problem) == (2, True)


def test_a_folder_that_holds_something_is_not_written_to(call: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    outcome = call("init", "thesis")
    assert outcome.code == 2
    assert "thesis: is not empty: it holds thesis.tex; nothing was written" in outcome.problem


def test_the_run_of_a_project_can_be_written_as_a_plain_script(call: Any, settings_file: Path) -> None:
    outcome = call("init", settings_file.parent, "--script", "trainer")
    assert outcome.code == 0
    script = Path(outcome.out.rstrip().rpartition("Run it: python ")[2])
    assert "BATCH_SIZE = 2" in script.read_text()
    again = call("init", settings_file, "--script", "trainer")
    assert (again.code, "exists already; nothing was written" in again.problem) == (2, True)
