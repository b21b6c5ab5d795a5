"""The commands that do a run again."""

from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import RunError
from luthier.run_folder import RunFolder


def reproduce(run: RunFolder) -> list[str]:
    """Lines for a shell: the versions, the rows by their fingerprints, and the commands."""
    environment: dict[str, Any] = _read(run.environment)
    ledger: dict[str, Any] = _read(run.ledger)
    versions = {"luthier": environment.get("luthier"), **environment.get("libraries", {})}
    pins = " ".join(f"{name}=={str(version).partition('+')[0]}" for name, version in versions.items() if version)
    lines = [f"# Python {environment.get('python', '3.11')}", f"pip install {pins}"] if pins else []
    if digest := environment.get("base_sha256"):
        lines.append(f"# the base model's weights have the hash {digest[:16]}")
    for source in ledger.get("sources", []):
        if fingerprint := source.get("sha256") or source.get("fingerprint"):
            lines.append(f"# {Path(str(source.get('file'))).name}: {str(fingerprint)[:16]}")
    config = run.config.name
    return [*lines, f"luthier plan {config}", f"luthier train {config}", "luthier eval last"]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = files.read_json(path)
    except RunError:
        return {}
    return found if isinstance(found, dict) else {}
