"""No setting stands there for nothing: each is read by the code that does the work, and says what it means."""

import ast
from collections.abc import Iterator
from pathlib import Path

import luthier.config
from luthier.config.load import all_settings
from luthier.config.methods import BLOCKS, METHODS
from luthier.config.settings import Settings

SOURCE = Path(next(iter(luthier.config.__path__))).parent


def attributes_read(tree: ast.Module) -> Iterator[str]:
    """Names behind a dot, but for those of an imported module (torch.optim is no setting)."""
    imports = (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    modules = {(alias.asname or alias.name).split(".")[0] for node in imports for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id in modules):
            yield node.attr


def unread() -> set[str]:
    """Settings that nothing outside config reads."""
    files = [file for file in SOURCE.rglob("*.py") if not {"config", "templates"} & set(file.relative_to(SOURCE).parts)]
    read = {name for file in files for name in attributes_read(ast.parse(file.read_text(encoding="utf-8")))}
    return {name for name in all_settings() if name.rpartition(".")[2] not in read}


def test_every_setting_is_read_outside_config() -> None:
    assert unread() == set()


def test_every_setting_says_what_it_means() -> None:
    for section in (Settings, *(field.annotation for field in Settings.model_fields.values())):
        for name, field in getattr(section, "model_fields", {}).items():
            is_section = hasattr(field.annotation, "model_fields")
            assert is_section or len(field.description or "") > 10, f"{name} has no description"


def test_every_method_reads_sections_that_exist() -> None:
    assert set(Settings.model_fields) >= BLOCKS
    assert all(method.blocks for method in METHODS.values())
