"""The public door: these names and signatures are what scripts rely on."""

import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import luthier
from luthier.version import VERSION

PUBLIC = {"Run", "__version__", "fit", "load_config", "make_plan", "open_run"}


def rooms() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(luthier.__path__) if module.name != "__main__")


@pytest.fixture(autouse=True)
def every_room_is_imported() -> None:
    """A submodule, once imported, becomes an attribute of the package: it would take the place of a public name."""
    for room in rooms():
        importlib.import_module(f"luthier.{room}")


def test_the_public_names_are_these() -> None:
    assert set(luthier.__all__) == PUBLIC


def test_no_public_name_is_a_rooms_name() -> None:
    assert PUBLIC.isdisjoint(rooms())


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_name_is_there_whatever_was_imported_before(name: str) -> None:
    assert not isinstance(getattr(luthier, name), ModuleType)
    assert name in dir(luthier)


def test_the_version_is_the_packages() -> None:
    assert luthier.__version__ == VERSION


@pytest.mark.parametrize(
    ("owner", "name", "must_give", "may_give"),
    [
        ("luthier", "fit", ["config"], ["overrides"]),
        ("luthier", "load_config", ["config"], ["overrides"]),
        ("luthier", "make_plan", ["config"], ["overrides"]),
        ("luthier", "open_run", ["name"], []),
        ("luthier.Run", "evaluate", [], []),
        ("luthier.Run", "chat", ["text"], []),
        ("luthier.Run", "export", ["to"], []),
    ],
)
def test_the_signature(owner: str, name: str, must_give: list[str], may_give: list[str]) -> None:
    holder = luthier.Run if owner == "luthier.Run" else luthier
    parameters = [parameter for parameter in inspect.signature(getattr(holder, name)).parameters.values() if parameter.name != "self"]
    assert [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty] == must_give
    assert set(may_give) <= {parameter.name for parameter in parameters}


def test_fit_gives_a_run() -> None:
    annotation = inspect.signature(luthier.fit).return_annotation
    assert annotation in ("Run", luthier.Run)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        luthier.fitt  # noqa: B018
