"""The token counts of earlier runs, kept in the cache: so that a plan without torch and without the model need not estimate them."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier import files
from luthier.config.settings import Settings
from luthier.errors import RunError
from luthier.plan.cost import DataShape
from luthier.version import VERSION


def counts_file(home: Path, settings: Settings, sources: Sequence[dict[str, Any]]) -> Path:
    """Where the counts of these rows lie: named by their content and by the settings that decide how they are cut into tokens.

    `sources` are those that were read, as the ledger has them; where their files lie does not matter.
    """
    of_rows = [[source.get("sha256"), source.get("weight")] for source in sources]
    how = settings.model_dump(mode="json", include={"model", "template", "tokenizer", "objective", "seed"})
    data = settings.data.model_dump(mode="json", exclude={"train", "eval"})
    share = settings.data.eval if settings.data.eval_source is None else "a source"
    key = json.dumps([VERSION, of_rows, how, data, share, settings.virtual_tokens], sort_keys=True, default=str)
    return home / "counts" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def keep(path: Path, rows: DataShape) -> None:
    """Keep the counts; where the cache cannot be written, later plans estimate."""
    try:
        files.make_folder(path.parent)
        files.write_json(path, dataclasses.asdict(rows))
    except (OSError, RunError):
        return


def known(path: Path) -> DataShape | None:
    """The counts that are kept; None where there are none, or where the file is not whole."""
    try:
        stored = files.read_json(path) if path.is_file() else None
        return DataShape(**stored) if isinstance(stored, dict) else None
    except (RunError, TypeError):
        return None
