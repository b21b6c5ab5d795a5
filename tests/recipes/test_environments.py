"""What `luthier init --env` writes: read by the formats' own parsers, and the notebook run from top to bottom."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest_runs import Listener
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from luthier.errors import CallError
from luthier.plan import tested
from luthier.recipes.environments import ENVIRONMENTS, Environment, write_environment
from luthier.recipes.new_project import write_project
from luthier.reporting import Silent
from luthier.version import VERSION

TESTED = {one.name: one.tested for one in tested.libraries() if one.required}


def written(folder: Path, kind: Environment) -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in write_environment(folder, kind, Silent())}


def pinned(requirements: list[str]) -> dict[str, str]:
    """Name -> version; each requirement has to name exactly one."""
    parsed = [Requirement(text) for text in requirements]
    assert all([one.operator for one in requirement.specifier] == ["=="] for requirement in parsed)
    return {one.name: str(one.specifier).removeprefix("==") for one in parsed}


@pytest.mark.parametrize("file", ["environment.yml", "environment-cpu.yml"])
def test_a_conda_environment_pins_the_tested_versions(file: str, tmp_path: Path) -> None:
    environment = YAML(typ="safe").load(written(tmp_path / "My Support", "conda")[file])
    assert environment["name"] == "my-support"
    assert environment["dependencies"][:2] == [f"python={tested.python_versions()[2]}", "pip"]
    lines = environment["dependencies"][2]["pip"]
    told = [line for line in lines if line.startswith("-")]
    assert told == ([] if file == "environment.yml" else ["--extra-index-url https://download.pytorch.org/whl/cpu"])
    assert pinned([line for line in lines if line not in told]) == {"luthier": VERSION, **TESTED}


def test_a_dockerfile_pins_the_tested_versions_and_takes_another_torch_as_an_argument(tmp_path: Path) -> None:
    from dockerfile_parse import DockerfileParser

    files = written(tmp_path, "docker")
    parser = DockerfileParser(path=str(tmp_path), cache_content=False)
    steps = [(step["instruction"], step["value"]) for step in parser.structure if step["instruction"] != "COMMENT"]
    assert steps[0] == ("FROM", f"python:{tested.python_versions()[2]}-slim")
    assert ("ARG", "TORCH_INDEX=https://pypi.org/simple") in steps
    installs = [value.split() for instruction, value in steps if instruction == "RUN" and value.startswith("pip install")]
    assert installs[0][3:5] == ["--index-url", '"$TORCH_INDEX"']
    assert pinned([word.strip('"') for words in installs for word in words if "==" in word]) == {"luthier": VERSION, **TESTED}
    assert files[".dockerignore"].splitlines()[-1] == "*"


def test_uv_finds_torch_for_a_cpu_or_for_cuda(tmp_path: Path) -> None:
    files = written(tmp_path, "uv")
    project = tomllib.loads(files["pyproject.toml"])
    assert pinned(project["project"]["dependencies"]) == {"luthier": VERSION, **{name: TESTED[name] for name in TESTED if name != "torch"}}
    extras = project["project"]["optional-dependencies"]
    assert extras == {"cpu": [f"torch=={TESTED['torch']}"], "cuda": [f"torch=={TESTED['torch']}"]}
    (source,) = project["tool"]["uv"]["sources"]["torch"]
    (index,) = project["tool"]["uv"]["index"]
    assert (source["extra"], source["index"], index["explicit"]) == ("cpu", index["name"], True)
    assert {one["extra"] for one in project["tool"]["uv"]["conflicts"][0]} == set(extras)
    assert files[".python-version"].strip() == tested.python_versions()[2]


def notebook(folder: Path) -> Any:
    import nbformat

    (file,) = write_environment(folder, "colab", Silent())
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    return book


def test_the_notebook_is_one_and_installs_trains_evaluates_and_exports_in_this_order(tmp_path: Path) -> None:
    book = notebook(tmp_path / "support")
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    (install,) = [cell.source for cell in book.cells if "install" in cell.metadata.get("tags", [])]
    assert install == code[0]
    left = {"torch", "numpy"}  # Colab's own
    words = [word.strip('"') for word in install.split() if "==" in word]
    assert pinned(words) == {"luthier": VERSION, **{name: TESTED[name] for name in TESTED if name not in left}}
    whole = "\n".join(code)
    places = [whole.index(step) for step in ("luthier doctor", "make_plan", "luthier.fit", "run.evaluate", "run.chat", "run.export", "google.colab")]
    assert places == sorted(places)


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_nothing_that_exists_is_overwritten_and_then_nothing_is_written(kind: Environment, tmp_path: Path) -> None:
    names = list(written(tmp_path / "project", kind))
    folder = tmp_path / "other" / "project"
    folder.mkdir(parents=True)
    (folder / names[-1]).write_text("mine", encoding="utf-8")
    with pytest.raises(CallError, match="is there already, and nothing is overwritten"):
        write_environment(folder, kind, Silent())
    assert [path.name for path in folder.iterdir()] == [names[-1]]
    assert (folder / names[-1]).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("kind", ENVIRONMENTS)
def test_what_is_written_is_filled_in_and_names_public_places_only(kind: Environment, tmp_path: Path) -> None:
    listener = Listener()
    for path in write_environment(tmp_path, kind, listener):
        text = path.read_text(encoding="utf-8")
        assert "@" not in text
        assert set(re.findall(r"https?://([^/\s\"]+)", text)) <= {"download.pytorch.org", "pypi.org"}
        assert str(path) in listener.lines[0]


def test_the_command_line_offers_every_environment() -> None:
    from luthier.cli.project import Environment as Offered

    assert {one.value for one in Offered} == set(get_args(Environment))


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, tiny_model: Path) -> None:
    """Headless, in a kernel of its own, on a tiny model; only the cell that installs is left out."""
    from nbclient import NotebookClient

    folder = write_project(tmp_path / "support", reporter=Silent())
    settings = folder / "luthier.yaml"
    text = settings.read_text(encoding="utf-8").replace("smollm2-135m-instruct", str(tiny_model))
    settings.write_text(text, encoding="utf-8")
    book = notebook(folder)
    book.cells = [cell for cell in book.cells if "install" not in cell.metadata.get("tags", [])]
    NotebookClient(book, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()

    said = "\n".join(output.get("text", "") for cell in book.cells if cell.cell_type == "code" for output in cell.outputs)
    assert "exact_match" in said
    assert '"passed": true' in said
    (run,) = (folder / "runs").iterdir()
    assert json.loads((run / "scorecard.json").read_text(encoding="utf-8"))["models"].keys() == {"base", "tuned"}
    assert (run / "merged" / "model.safetensors").is_file()
    assert (folder / "exported-model.zip").stat().st_size > 0
