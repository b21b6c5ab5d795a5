"""The size ratchet: what no longer fits on a screen is split by what it means. A limit rises only in a commit of its own."""

import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "luthier"
# In code lines: blank lines, comments and docstrings are free.
LONGEST = {"function": 60, "recipe": 80, "module": 500}
MEDIAN_FUNCTION = 10
FREE_TOKENS = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Part:
    kind: str
    name: str
    code_lines: int


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """The numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in FREE_TOKENS:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


def parts_of(file: Path) -> Iterator[Part]:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = code_lines(text, tree)
    place = file.relative_to(SOURCE) if file.is_relative_to(SOURCE) else file.name
    yield Part("module", str(place), len(lines))
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            kind = "recipe" if "recipes" in file.parts else "function"
            yield Part(kind, f"{place}:{node.lineno} {node.name}", len(lines & set(range(node.lineno, (node.end_lineno or 0) + 1))))


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_fits_on_a_screen(file: Path) -> None:
    for part in parts_of(file):
        limit = LONGEST[part.kind]
        assert part.code_lines <= limit, (
            f"{part.name} has {part.code_lines} code lines and a {part.kind} has at most {limit}; split it by what it means"
        )


def test_most_functions_are_small() -> None:
    sizes = [part.code_lines for file in FILES for part in parts_of(file) if part.kind != "module"]
    assert statistics.median(sizes) < MEDIAN_FUNCTION


def test_comments_docstrings_and_blank_lines_are_free(tmp_path: Path) -> None:
    file = tmp_path / "example.py"
    file.write_text(
        '"""Two\nlines."""\n\n# why\ndef f() -> str:\n    """What."""\n    return """a\n    b"""  # three with the def\n', encoding="utf-8"
    )
    assert [part.code_lines for part in parts_of(file)] == [3, 3]
