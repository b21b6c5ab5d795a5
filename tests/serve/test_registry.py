"""Adapters in a folder that others write: only whole ones are loaded, and what was loaded keeps serving."""

import shutil
import time
from pathlib import Path

import pytest

from luthier.engine.by_row import RowAdapter
from luthier.errors import ModelError, RunError
from luthier.models.adapters import CONFIG, WEIGHTS
from luthier.serve import registry as registry_module
from luthier.serve.faults import Fault
from luthier.serve.registry import Registry, Served


def write(folder: Path, content: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text("{}")
    (folder / WEIGHTS).write_text(content)
    return folder


def read(folder: Path) -> RowAdapter:
    """An adapter that is known by its content; "cut" stands for one that was only half copied."""
    content = (folder / WEIGHTS).read_text()
    if content.startswith("cut"):
        raise ModelError("cut or damaged", where=str(folder), next_step="copy it again")
    return RowAdapter(content)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Served("base"), [], tmp_path, read, most_loaded=2)


def key(registry: Registry, name: str) -> str:
    """What a request to this name is answered with."""
    return (registry.ready(name) or registry.load(name)).key


def test_what_is_replaced_under_its_name_is_read_again(registry: Registry, tmp_path: Path) -> None:
    write(tmp_path / "one", "first")
    assert key(registry, "one") == "first"
    write(tmp_path / "one", "second, and longer")
    assert key(registry, "one") == "second, and longer"


def test_a_copy_that_is_not_whole_yet_is_no_model_and_a_cut_one_is_refused(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / CONFIG).write_text("{}")
    with pytest.raises(Fault, match="not served"):
        registry.served("half")
    assert [one.name for one in registry.all()] == ["base"]
    write(tmp_path / "half", "cut")
    with pytest.raises(Fault, match="cut or damaged") as refused:
        registry.load("half")
    assert refused.value.status == 422
    assert str(tmp_path) not in refused.value.message
    write(tmp_path / "half", "whole")
    assert key(registry, "half") == "whole"


def test_the_old_one_keeps_serving_while_the_new_one_is_not_whole(registry: Registry, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path / "one", "first")
    assert key(registry, "one") == "first"
    for content in ("cut", "cut again"):
        write(folder, content)
        assert [key(registry, "one") for _ in range(3)] == ["first"] * 3
    assert len([one for one in caplog.records if "goes on" in one.message]) == 2  # a broken file is read once, not with each request
    with pytest.raises(Fault, match="cut or damaged"):
        registry.load("one", anew=True)
    assert key(registry, "one") == "first"
    write(folder, "second")
    assert key(registry, "one") == "second"


def test_a_contract_beside_an_adapter_is_checked_and_its_system_message_belongs_to_what_is_loaded(tmp_path: Path) -> None:
    def promised(folder: Path) -> str | None:
        text = (folder / "contract.json").read_text() if (folder / "contract.json").is_file() else None
        if text == "broken":
            raise RunError("would now stop at nothing", where=str(folder), next_step="train again")
        return text

    folder = write(tmp_path / "one", "first")
    registry = Registry(Served("base"), [], tmp_path, read, 2, promised)
    assert key(registry, "one") == "first"
    assert registry.served("one").system is None
    (folder / "contract.json").write_text("Speak as trained.")
    assert registry.ready("one") is None  # it is another one now, though its weights are the same
    assert key(registry, "one") == "first"
    assert registry.served("one").system == "Speak as trained."
    (folder / "contract.json").write_text("broken")
    assert key(registry, "one") == "first"
    assert registry.served("one").system == "Speak as trained."  # what is loaded goes on, with its own
    with pytest.raises(Fault, match="would now stop at nothing"):
        registry.load("one", anew=True)


def test_a_contract_that_was_just_copied_is_perhaps_not_whole(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "SETTLED_S", 0.2)
    folder = write(tmp_path / "one", "first")
    time.sleep(0.3)
    assert not registry.just_changed("one")
    (folder / "contract.json").write_text("{")
    assert registry.just_changed("one")


def test_what_is_removed_while_it_is_loaded_keeps_serving_until_it_is_unloaded(registry: Registry, tmp_path: Path) -> None:
    folder = write(tmp_path / "one", "first")
    assert key(registry, "one") == "first"
    shutil.rmtree(folder)
    assert key(registry, "one") == "first"
    assert "one" in [served.name for served in registry.all()]
    registry.unload("one")
    for lookup in (registry.served, registry.load, registry.take_in):
        with pytest.raises(Fault, match="not served"):
            lookup("one")
    assert registry.ready("one") is None


def test_an_adapter_that_changes_while_it_is_read_is_told_to_come_again(tmp_path: Path) -> None:
    def slow(folder: Path) -> RowAdapter:
        write(folder, "longer than before")
        return RowAdapter("half of each")

    write(tmp_path / "one", "first")
    with pytest.raises(Fault, match="is being written") as refused:
        Registry(Served("base"), [], tmp_path, slow, most_loaded=2).load("one")
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1)


def test_those_asked_for_last_stay_in_memory(registry: Registry, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        write(tmp_path / name, name)
    for name in ("one", "two", "one", "three"):
        assert key(registry, name) == name
    assert registry.loaded == ["one", "three"]


def test_a_link_out_of_the_folder_is_no_model(registry: Registry, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    outside = write(tmp_path_factory.mktemp("outside") / "secret", "first")
    (tmp_path / "link").symlink_to(outside)
    for name in ("link", "..", ".", "../outside", "a/b", "", "one\x00"):
        with pytest.raises(Fault, match="not served"):
            registry.served(name)


def test_ten_thousand_adapters_make_no_request_wait(registry: Registry, tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"a{number}").mkdir()
    for number in range(0, 10_000, 100):
        write(tmp_path / f"a{number}", str(number))
    begun = time.process_time()
    assert [key(registry, f"a{number}") for number in range(0, 10_000, 100)] == [str(number) for number in range(0, 10_000, 100)]
    assert time.process_time() - begun < 1.0  # 100 lists of the folder take several
    assert len(registry.all()) == 101
