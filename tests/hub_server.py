"""A small stand-in for the Hub on loopback, spoken to by the real client of ``huggingface_hub``.

It has what the client calls when a model is published and loaded again: who am I, create, validation of a card, upload
modes, LFS by one PUT, commits as lines of JSON, model info, and files at a revision. Whatever is published can be
looked at byte for byte.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
import transformers.utils.hub

TOKEN = "hf_of_the_owner"
LARGE = (".safetensors", ".bin", ".pt", ".png", ".webp")
"""Endings of what the Hub keeps in LFS."""


@dataclass
class Repository:
    """One repository: its commits, the newest last, each with all files."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][2]

    @property
    def summaries(self) -> list[str]:
        return [summary for _, summary, _ in self.commits[1:]]

    def commit(self, summary: str, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(f"{len(self.commits)} {summary}".encode()).hexdigest()
        self.commits.append((name, summary, files))
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        wanted = [(name, files) for name, _, files in self.commits if revision in ("main", name)]
        return wanted[-1] if wanted else None


class Hub:
    """The state of the stand-in.

    Attributes:
        repositories: By id.
        requests: Method and path of every request.
        refuse: Called with method and path; a status other than 0 is the answer to the request.
        delay: Seconds before files are sent, and for each of them.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[tuple[str, str]] = []
        self.refuse: Callable[[str, str], int] = lambda method, path: 0
        self.delay = 0.0
        self.blobs: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.url = ""

    def __getitem__(self, name: str) -> Repository:
        return self.repositories[name]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""

    def answer(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
        refused = self.hub.refuse(self.command, path)
        if refused:
            return self.answer(refused, {"error": "refused"}, {"X-Error-Message": "Invalid credentials"})
        for method, pattern, action, needs_token in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method.split():
                if needs_token and not self.known():
                    return self.answer(401, {"error": "Invalid username or password."})
                return action(self, body, *found.groups())
        return self.answer(404, {"error": f"no route for {self.command} {path}"})

    do_GET = do_POST = do_PUT = do_HEAD = handle_one

    def known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def whoami(self, body: bytes) -> None:
        self.answer(200, {"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name in self.hub.repositories:
            return self.answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
        made = Repository(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        made.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.hub.repositories[name] = made
        return self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        errors = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def upload_modes(self, body: bytes, name: str, revision: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, body: bytes, name: str) -> None:
        time.sleep(self.hub.delay)  # the client has hashed the files, and reads them again when it is answered
        objects = []
        for wanted in json.loads(body)["objects"]:
            actions = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}", "header": {}}}
            objects.append({**wanted, "authenticated": True, "actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> None:
        time.sleep(self.hub.delay)
        if hashlib.sha256(body).hexdigest() != oid:
            return self.answer(400, {"error": "the content is not what was announced"})
        self.hub.blobs[oid] = body
        return self.answer(200)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository, summary = self.hub[name], ""
        with self.hub.lock:
            files = dict(repository.files)
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    summary = value["summary"]
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                else:
                    assert line["key"] == "deletedFile", line
                    del files[value["path"]]
            oid = repository.commit(summary, files)
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def readable(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a repository, or ``None`` after the answer that it may not be read."""
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self.known()):
            self.answer(404 if self.known() else 401, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        found = repository.at(revision)
        if found is None:
            self.answer(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return found

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        if found := self.readable(name, revision or "main"):
            siblings = [{"rfilename": path} for path in sorted(found[1])]
            private = self.hub[name].private
            self.answer(200, {"id": name, "sha": found[0], "private": private, "tags": [], "siblings": siblings})

    def tree(self, body: bytes, name: str, revision: str, folder: str | None) -> None:
        if found := self.readable(name, revision):
            inside = (folder or "").strip("/")
            paths = [path for path in sorted(found[1]) if not inside or path.startswith(f"{inside}/")]
            if inside and not paths:
                return self.answer(404, {"error": "not there"}, {"X-Error-Code": "EntryNotFound"})
            files = [{"type": "file", "path": path, "size": len(found[1][path]), "oid": "0"} for path in paths]
            return self.answer(200, files)
        return None

    def file(self, body: bytes, name: str, revision: str, path: str) -> None:
        if found := self.readable(name, revision):
            headers = {"X-Repo-Commit": found[0]}
            if path not in found[1]:
                return self.answer(404, None, {**headers, "X-Error-Code": "EntryNotFound"})
            content = found[1][path]
            headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, headers)
        return None


_ID = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Callable[..., None], bool]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami, True),
    ("POST", r"/api/repos/create", _Handler.create, True),
    ("POST", r"/api/validate-yaml", _Handler.validate, False),
    ("POST", rf"/api/models/{_ID}/preupload/([\w.-]+)", _Handler.upload_modes, True),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch, True),
    ("PUT", r"/lfs/(\w+)", _Handler.lfs_upload, False),
    ("POST", rf"/api/models/{_ID}/commit/([\w.-]+)", _Handler.commit, True),
    ("GET", rf"/api/models/{_ID}/revision/([\w.-]+)", _Handler.info, False),
    ("GET", rf"/api/models/{_ID}/tree/([\w.-]+)(?:/(.*))?", _Handler.tree, False),
    ("GET", rf"/api/models/{_ID}", _Handler.info, False),
    ("GET HEAD", rf"/{_ID}/resolve/([\w.-]+)/(.+)", _Handler.file, False),
]


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a stand-in until the context ends."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def point_client_to(hub: Hub, patch: pytest.MonkeyPatch, cache: Any, token: str | None = TOKEN) -> None:
    """Let the client in this process speak to the stand-in; what the environment sets when Python starts."""
    constants = huggingface_hub.constants
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(huggingface_hub.hf_api.api, "endpoint", hub.url)
    patch.setattr(transformers.utils.hub, "_hf_api", None)
    if token is None:
        patch.delenv("HF_TOKEN", raising=False)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache) + "/no-token")
    else:
        patch.setenv("HF_TOKEN", token)
