"""A push, against a stand-in of a model hub on this machine: what it is sent is what lay in the folder, and the token is shown nowhere."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from luthier import files
from luthier.errors import CallError, RunError
from luthier.export import hub

TOKEN = "hf_notARealTokenButLongEnough"


class Hub(ThreadingHTTPServer):
    """Keeps what it is sent: the repositories, the files of commits, and large files by their hash."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.large: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuses = False
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def do_GET(self) -> None:
        self.reply({"error": "not there"}, 404)

    def do_PUT(self) -> None:
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.reply({})

    def do_POST(self) -> None:
        content = self.body()
        self.server.tokens.add(str(self.headers.get("Authorization")))
        if self.server.refuses:
            self.reply({"error": f"no write rights for {TOKEN}"}, 403)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(content))
            self.reply({"url": f"{self.server.url}/me/support", "id": "me/support"})
        elif self.path.startswith("/api/validate-yaml"):
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(content)["files"]
            self.reply({"files": [{"path": one["path"], "uploadMode": self.mode(one["path"]), "shouldIgnore": False} for one in asked]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            asked = json.loads(content)["objects"]
            upload = {"upload": {"href": f"{self.server.url}/upload"}}
            self.reply({"transfer": "basic", "objects": [{**one, "actions": upload} for one in asked]})
        elif "/commit/" in self.path:
            for line in content.decode().splitlines():
                self.commit(json.loads(line))
            self.reply({"success": True, "commitUrl": f"{self.server.url}/me/support/commit/abc", "commitOid": "abc"})
        else:
            self.reply({"error": self.path}, 404)

    @staticmethod
    def mode(path: str) -> str:
        return "lfs" if path.endswith(".safetensors") else "regular"

    def commit(self, line: dict[str, Any]) -> None:
        value = line["value"]
        if line["key"] == "file":
            self.server.files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            self.server.files[value["path"]] = self.server.large[value["oid"]]


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that listens, and an environment that points there with a token."""
    hub_here = Hub()
    thread = threading.Thread(target=hub_here.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub_here.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)  # its storage is not stood in for
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield hub_here
    hub_here.shutdown()
    hub_here.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What an export leaves, with a file that is large to a hub."""
    for name, content in {"README.md": "---\nlicense: mit\n---\n# A card\n", "NOTICE": "of the base", "adapter_config.json": "{}"}.items():
        files.write_text(tmp_path / name, content)
    files.write_bytes(tmp_path / "adapter_model.safetensors", bytes(range(256)) * 40)
    return tmp_path


def test_what_lies_in_the_folder_arrives(standing: Hub, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    address = hub.push(folder, hub.check_repo("me/support", dry_run=False), private=True, say=said.append)
    assert address == f"{standing.url}/me/support/commit/abc"
    assert {name: (folder / name).read_bytes() for name in standing.files} == standing.files
    assert standing.files.keys() == {path.name for path in folder.iterdir()}
    assert standing.large
    (created,) = standing.created
    assert (created["organization"], created["name"]) == ("me", "support")
    assert created.get("private") is True or created.get("visibility") == "private"
    assert standing.tokens >= {f"Bearer {TOKEN}"}
    printed = capfd.readouterr()
    assert TOKEN not in "".join([*said, address, printed.out, printed.err])


def test_a_refusal_is_told_in_the_hubs_words_without_the_token(standing: Hub, folder: Path) -> None:
    standing.refuses = True
    with pytest.raises(RunError, match=r"me/support: the hub refused it: ") as refused:
        hub.push(folder, "me/support", private=False, say=print)
    assert TOKEN not in str(refused.value)
    assert str(folder) in str(refused.value)
    assert standing.files == {}


def test_a_hub_that_is_not_there_is_a_line(folder: Path, monkeypatch: pytest.MonkeyPatch, standing: Hub) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match="the hub refused it"):
        hub.push(folder, "me/support", private=False, say=print)


@pytest.mark.parametrize("repo", [None, "", "support", "a/b/c", "../x/y", "me/ support", "me/"])
def test_what_is_no_repository_is_refused_before_any_work(repo: str | None) -> None:
    with pytest.raises(CallError, match="is no repository"):
        hub.check_repo(repo, dry_run=True)


def test_a_push_needs_a_token_and_a_dry_run_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert hub.check_repo("me/support", dry_run=True) == "me/support"
    with pytest.raises(RunError, match=r"there is no token for the hub\n  Try: hf auth login"):
        hub.check_repo("me/support", dry_run=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RunError, match="HF_HUB_OFFLINE is set"):
        hub.check_repo("me/support", dry_run=False)


def test_a_dry_run_lists_every_file(folder: Path) -> None:
    assert hub.listed(folder) == ["NOTICE  0.00 MB", "README.md  0.00 MB", "adapter_config.json  0.00 MB", "adapter_model.safetensors  0.01 MB"]
