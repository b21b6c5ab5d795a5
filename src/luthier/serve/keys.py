"""Who may ask: keys that are kept as hashes only, each with the models that it may use."""

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from luthier import files
from luthier.errors import CallError, RunError
from luthier.serve.faults import Fault

ENVIRONMENT = "LUTHIER_API_KEY"
LEAST_CHARACTERS = 32
PREFIX = "lk-"


@dataclass(frozen=True, slots=True)
class Key:
    """A key: its name in logs, its hash, and the models it may use (none named: all)."""

    name: str
    sha256: str
    models: tuple[str, ...] = ()
    admin: bool = False  # may load and unload adapters, and read what the server counts

    def may_use(self, model: str) -> bool:
        return not self.models or model in self.models


class Keys:
    """All keys of a server; without any, everyone on this machine may ask."""

    def __init__(self, keys: list[Key]) -> None:
        self.keys = keys

    def who(self, authorization: str | None) -> Key | None:
        """Whose request this is; None where no keys are asked for. Raises a Fault (401) for a key that is missing or wrong."""
        if not self.keys:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        digest = _hash(given.strip())
        # Every key is compared, in constant time: how long it takes says nothing about which one is close.
        found = [key for key in self.keys if hmac.compare_digest(key.sha256, digest)]
        if scheme.lower() != "bearer" or not found:
            raise Fault(401, "invalid_api_key", "send an API key: Authorization: Bearer KEY")
        return found[0]


def read(path: Path | None, environment_key: str | None) -> Keys:
    """The keys of a file that `new` writes, and the one of the environment."""
    found = []
    if environment_key is not None:
        if len(environment_key) < LEAST_CHARACTERS:
            problem = f"the key has {len(environment_key)} characters, and {LEAST_CHARACTERS} are the least"
            raise CallError(problem, where=ENVIRONMENT, next_step="luthier serve --new-key NAME --keys FILE makes one")
        found.append(Key("environment", _hash(environment_key), admin=True))
    listed = _read_file(path) if path else []
    if path and not listed:
        raise CallError("holds no key, so nobody could ask", where=str(path), next_step=f"luthier serve --new-key NAME --keys {path}")
    return Keys(found + listed)


def _read_file(path: Path) -> list[Key]:
    try:
        listed = files.read_json(path)["keys"]
        return [Key(str(one["name"]), str(one["sha256"]), tuple(one.get("models", ())), one.get("admin") is True) for one in listed]
    except (RunError, KeyError, TypeError) as error:
        raise CallError("is not a file of keys", where=str(path), next_step=f"luthier serve --new-key NAME --keys {path}") from error


def new(path: Path, name: str, models: tuple[str, ...] = (), *, admin: bool = False) -> str:
    """Make a key, write its hash into `path` (made where it is not there), and give the key itself, which is kept nowhere."""
    known = _read_file(path) if path.exists() else []
    if any(key.name == name for key in known):
        raise CallError(f"there is a key called {name}", where=str(path), next_step="another name, or delete that key's entry")
    given = PREFIX + secrets.token_urlsafe(32)
    listed = [*known, Key(name, _hash(given), models, admin)]
    entries = [{"name": key.name, "sha256": key.sha256, "models": list(key.models), "admin": key.admin} for key in listed]
    files.write_text(path, json.dumps({"keys": entries}, indent=2) + "\n")
    return given


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
