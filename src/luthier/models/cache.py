"""What lies in the caches, and room made in ours. The hub's cache is only read. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from luthier import files
from luthier.errors import ModelError, RunError
from luthier.models import fetch


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A model on this disk. `source` is luthier where we keep it, hub where the hub's own cache does."""

    name: str
    path: Path
    bytes: int
    source: Literal["luthier", "hub"]


def cached() -> list[CachedModel]:
    """Every model of our cache and of the hub's, ours first, by name."""
    return [*_ours(), *_of_hub()]


def clean(names: Sequence[str] | None) -> int:
    """Delete models of our cache by name, or all of them (None); bytes freed. Raises ModelError for a name that is not ours."""
    ours = _ours()
    known = sorted({model.name for model in ours})
    for name in names or ():
        if name not in known:
            raise ModelError(
                "is not in Luthier's cache",
                where=name,
                next_step=f"one of: {', '.join(known)}" if known else "nothing is cached; for the hub's cache: hf cache rm",
            )
    chosen = [model for model in ours if names is None or model.name in names]
    for model in chosen:
        files.remove_folder(model.path)
    return sum(model.bytes for model in chosen) + (fetch.sweep() if names is None else 0)


def _ours() -> list[CachedModel]:
    folder = fetch.models_folder()
    paths = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")) if folder.is_dir() else []
    return [CachedModel(_name(path), path, files.folder_bytes(path), "luthier") for path in paths]


def _name(path: Path) -> str:
    try:
        return str(files.read_json(path / fetch.MANIFEST)["model"])
    except (RunError, KeyError, TypeError):
        return path.name


def _of_hub() -> list[CachedModel]:
    if find_spec("huggingface_hub") is None:
        return []
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir().repos
    except (CacheNotFound, ValueError):
        return []
    models = [repository for repository in repositories if repository.repo_type == "model"]
    return sorted((CachedModel(model.repo_id, model.repo_path, model.size_on_disk, "hub") for model in models), key=lambda model: model.name)
