"""Only safetensors and JSON are read: nothing that can run code when it is opened, and no shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "luthier"
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml"}
BANNED_CALLS = {"eval", "exec", "torch.load", "yaml.load", "os.system", "os.popen", "numpy.load", "np.load"}


# What the sandbox is for: it runs a program after all rights were given up.
SANDBOX = SOURCE / "evaluate" / "sandbox_inside.py"


def dangers(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"line {node.lineno}: import {alias.name}" for alias in node.names if alias.name.split(".")[0] in BANNED_MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in BANNED_MODULES:
            yield f"line {node.lineno}: from {node.module} import"
        elif isinstance(node, ast.Call):
            yield from dangers_of_call(node)


def dangers_of_call(call: ast.Call) -> Iterator[str]:
    if (name := ast.unparse(call.func)) in BANNED_CALLS:
        yield f"line {call.lineno}: {name}("
    for keyword in call.keywords:
        safe = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
        if keyword.arg in ("shell", "trust_remote_code") and not safe:
            yield f"line {call.lineno}: {keyword.arg}={ast.unparse(keyword.value)}"


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_nothing_that_runs_code_when_it_is_read(file: Path) -> None:
    found = list(dangers(ast.parse(file.read_text(encoding="utf-8"))))
    assert [one for one in found if file != SANDBOX or not one.endswith("exec(")] == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from yaml import load",
        "torch.load(path)",
        "eval(text)",
        "subprocess.run(line, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=flag)",
    ],
)
def test_each_danger_is_seen(line: str) -> None:
    assert list(dangers(ast.parse(line)))


def test_what_is_harmless_passes() -> None:
    assert list(dangers(ast.parse("model.eval(); subprocess.run(line, shell=False); from ruamel.yaml import YAML"))) == []
