"""The caches: what is there is listed, and only ours is ever deleted."""

import json
import os
import time
from pathlib import Path

import pytest

from luthier.errors import ModelError
from luthier.models import cache, fetch


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one model of 5 bytes."""
    folder = tmp_path / "hub" / "models--org--name"
    for part in ("blobs", "refs", f"snapshots/{'0' * 40}"):
        (folder / part).mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "blobs" / "abc").write_text("12345")
    (folder / "snapshots" / ("0" * 40) / "config.json").symlink_to(folder / "blobs" / "abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.utils._cache_manager.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return folder


def put(name: str, size: int, manifest: str | None = None) -> Path:
    folder = fetch.models_folder() / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0" * size)
    if manifest:
        (folder / "manifest.json").write_text(json.dumps({"model": manifest}))
    return folder


def test_empty_caches_are_empty_lists(luthier_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    assert cache.cached() == []
    assert cache.clean(None) == 0


def test_both_caches_are_listed(luthier_home: Path, hub_cache: Path):
    ours = put("small-1.0", 100, "small")
    listed = cache.cached()
    size = 100 + (ours / "manifest.json").stat().st_size
    assert listed == [cache.CachedModel("small", ours, size, "luthier"), cache.CachedModel("org/name", hub_cache, 5, "hub")]


def test_one_model_is_deleted_by_name_even_a_broken_one(luthier_home: Path, hub_cache: Path):
    broken, kept = put("half-1.0", 70), put("small-1.0", 100, "small")
    assert cache.clean(["half-1.0"]) == 70
    assert not broken.exists()
    assert kept.exists()


def test_all_means_all_of_ours_and_what_a_killed_fetch_left(luthier_home: Path, hub_cache: Path):
    put("small-1.0", 100)
    dead, living = put(".small-1.0.1.staging", 30), put(".small-1.0.2.staging", 40)
    long_ago = time.time() - 24 * 3600
    os.utime(dead, (long_ago, long_ago))
    assert cache.clean(None) == 130
    assert [path.name for path in fetch.models_folder().iterdir()] == [living.name]
    assert [model.source for model in cache.cached()] == ["hub"]


def test_a_name_that_is_not_ours_deletes_nothing(luthier_home: Path, hub_cache: Path):
    kept = put("small-1.0", 100, "small")
    with pytest.raises(ModelError, match="one of: small"):
        cache.clean(["small", "org/name"])
    assert kept.exists()
