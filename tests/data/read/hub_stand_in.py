"""A hub on loopback, as far as the reader needs one: answers every question with one status, or serves one data set of two files."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

FILES = {"train.jsonl": b'{"q": "1 + 1", "a": "2"}\n{"q": "1 + 2", "a": "3"}\n', "test.jsonl": b'{"q": "2 + 2", "a": "4"}\n'}
COMMIT = "a" * 40
REFUSALS = {
    # name      status  header
    "missing": (401, "RepoNotFound"),
    "gated":   (401, "GatedRepo"),
    "private": (403, ""),
    "busy":    (429, ""),
    "broken":  (500, ""),
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """One request."""

    def log_message(self, *_: object) -> None: ...

    def answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        owner = path.split("/datasets/")[-1].split("/")[0]
        if owner in REFUSALS:
            status, code = REFUSALS[owner]
            self.answer(status, b'{"error": "no"}', **({"X_Error_Code": code} if code else {}), Content_Type="application/json")
        elif "/api/" not in path and path.rpartition("/")[2] in FILES:
            content = FILES[path.rpartition("/")[2]]
            self.answer(200, content, X_Repo_Commit=COMMIT, ETag='"' + path.rpartition("/")[2] + '"')
        elif "/api/datasets/" in path and "/revision/v9" in path:
            self.answer(404, b'{"error": "no"}', X_Error_Code="RevisionNotFound", Content_Type="application/json")
        elif "/api/datasets/" in path and "/tree/" in path:
            listed = [{"type": "file", "oid": "b" * 40, "size": len(content), "path": name} for name, content in FILES.items()]
            self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
        elif "/api/datasets/" in path and "/paths-info/" in path:
            self.answer(200, b"[]", Content_Type="application/json")
        elif "/api/datasets/" in path:
            about = {"_id": "1", "id": "org/sums", "sha": COMMIT, "siblings": [{"rfilename": name} for name in FILES], "tags": []}
            self.answer(200, json.dumps({**about, "private": False, "gated": False, "disabled": False}).encode(), Content_Type="application/json")
        else:
            self.answer(404, b'{"error": "no"}', X_Error_Code="EntryNotFound", Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "/paths-info/" in self.path:
            wanted = json.loads(body)["paths"] if body.startswith(b"{") else []
            listed = [{"type": "file", "oid": "b" * 40, "size": len(FILES[name]), "path": name} for name in wanted if name in FILES]
            self.answer(200, json.dumps(listed).encode(), Content_Type="application/json")
        else:
            self.do_GET()

    do_HEAD = do_GET


def start() -> ThreadingHTTPServer:
    """A running hub; its address is http://127.0.0.1:{server_port}."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    print(start().server_port, file=sys.stderr)
