"""docs, README and examples: luthier reads their commands, their settings exist, their links lead somewhere; each step has its diagram."""

import functools
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer

from luthier.cli.app import _build
from luthier.config.load import all_settings

ROOT = Path(__file__).parents[2]
STEPS = sorted((ROOT / "docs" / "guide").glob("[0-9]*.md"))
PAGES = [*STEPS, ROOT / "docs" / "guide" / "README.md", *sorted((ROOT / "examples").rglob("README.md"))]
WITH_COMMANDS = [
    page for page in (*PAGES, ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if "luthier " in page.read_text(encoding="utf-8")
]


def commands(page: Path) -> list[str]:
    """The lines of its sh blocks, each once; a line that goes on (\\) is one."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.strip().replace("\\\n", " ").split("\n")]


@functools.cache
def verbs() -> dict[str, typer.core.TyperCommand]:
    """ "data check" -> the command."""
    found = {}
    top = typer.main.get_command(_build())
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        inside = getattr(command, "commands", None)
        found |= {f"{name} {other}": one for other, one in inside.items()} if inside else {name: command}
        for other, one in (inside or {}).items():
            found |= {f"{name} {other} {last}": deepest for last, deepest in getattr(one, "commands", {}).items()}
    return found


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_has_its_verb_its_options_and_its_settings(page: Path) -> None:
    settings = set(all_settings())
    for line in commands(page):
        if not line.startswith("luthier "):
            assert page not in PAGES or shlex.split(line)[0] in ("make", ".", "cd", "python", "pip"), line
            continue
        words = shlex.split(line, comments=True)[1:]
        verb = next((name for name in (" ".join(words[:count]) for count in (3, 2, 1)) if name in verbs()), None)
        assert verb, line
        command = verbs()[verb]
        # Raises for an option that is not there, and for one without its value.
        command.make_parser(command.context_class(command)).parse_args(words[len(verb.split()) :])
        given = {word.partition("=")[0] for word in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)}
        assert given <= settings or verb in ("serve", "judge"), line  # NAME=RUN and RATER=FILE there


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere_and_every_setting_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert targets or page not in STEPS
    assert [target for target in targets if not (page.parent / target).exists()] == []
    named = set(re.findall(r"`((?:training|lora|data|evaluation|checks|plan|preference)\.[a-z_]+)", text)) - {"data.jsonl"}
    assert named - set(all_settings()) == set()


def test_there_are_twelve_steps_that_lead_to_each_other() -> None:
    assert [page.name[:2] for page in STEPS] == [f"{number:02}" for number in range(1, 13)]
    index = (ROOT / "docs" / "guide" / "README.md").read_text(encoding="utf-8")
    for page, following in zip(STEPS, [*STEPS[1:], None], strict=True):
        text = page.read_text(encoding="utf-8")
        assert f"]({page.name})" in index
        assert "**What.**" in text
        assert "**What goes wrong" in text or page is STEPS[-1]
        assert following is None or f"]({following.name})" in text


@pytest.mark.parametrize("page", STEPS, ids=lambda page: page.stem)
def test_a_diagram_is_readable_in_light_and_dark_and_by_a_screen_reader(page: Path) -> None:
    drawing = page.with_suffix(".svg")
    assert f"]({drawing.name})" in page.read_text(encoding="utf-8")
    root = ElementTree.parse(drawing).getroot()
    names = {element.tag.rpartition("}")[2] for element in root.iter()}
    assert "title" in names
    assert not names & {"script", "image", "foreignObject"}
    assert "prefers-color-scheme:dark" in drawing.read_text(encoding="utf-8")


def test_every_example_stands_in_the_list() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    folders = sorted(path.parent.name for path in (ROOT / "examples").glob("*/luthier.yaml"))
    assert len(folders) == 8
    assert [folder for folder in folders if f"]({folder}/README.md)" not in text] == []
