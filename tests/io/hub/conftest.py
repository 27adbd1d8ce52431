"""A stand-in for the Hub on this machine: huggingface_hub's own code speaks to it over HTTP, and no network is needed.

It keeps repositories as commits (path -> bytes), gives large files out of a store of their own as LFS does, and answers
with the Hub's own error codes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import slimvit

LARGE = (".safetensors", ".bin", ".pkl")
ROLES = {"writer": "write", "reader": "read"}


@dataclass
class Repo:
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    """What the lists say of files whose real size is another."""

    def commit(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        sha = hashlib.sha1(f"{branch}{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        self.messages.append(message)
        return sha

    def sha(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


def identity(path: str, content: bytes) -> str:
    """What git, or LFS for a large file, knows content by."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0%s" % (len(content), content)).hexdigest()


class Refused(Exception):
    """A status and the Hub's code for it."""


class Hub:
    """Its state, and what was asked of it."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.broken: dict[str, int] = {}
        """Part of a path -> the status it is answered with."""
        self.before: dict[str, Callable[[], Any]] = {}
        """Part of a path -> what happens once, just before it is answered."""

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit by somebody."""
        return self.repos.setdefault(repo, Repo()).commit(files, branch)

    def fetched(self) -> set[str]:
        """Files whose content was asked for."""
        return {
            a.split("/resolve/")[1].partition("/")[2] for a in self.asked if a.startswith("GET") and "/resolve/" in a
        }


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{method} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for part in [part for part in self.hub.before if part in path]:
            self.hub.before.pop(part)()
        try:
            for part, status in self.hub.broken.items():
                if part in path:
                    raise Refused(status, "")
            found = self._route(method, path, body)
        except Refused as refused:
            status, code = refused.args
            self._send(status, b"{}", {"X-Error-Code": code} if code else {})
            return
        if isinstance(found, tuple):
            self._send(200, *found, head=method == "HEAD")
        else:
            self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str], head: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head and self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _role(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in ROLES:
            raise Refused(401, "")
        return ROLES.get(token)

    def _route(self, method: str, path: str, body: bytes) -> Any:
        role = self._role
        if path == "/api/whoami-v2":
            return {"name": "me", "type": "user", "orgs": [], "auth": {"accessToken": {"role": role}}}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body), role)
        if path.startswith("/lfs/"):
            self.hub.stored[path.removeprefix("/lfs/")] = body
            return {}
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if path.startswith("/api/models/"):
            _, _, _, user, name, *rest = path.split("/")
            return self._api(f"{user}/{name}", rest, body, role)
        if "/resolve/" not in path:
            raise Refused(404, "")
        _, user, name, _, rest = path.split("/", 4)
        return self._content(self._repo(f"{user}/{name}", role), *rest.split("/", 1))

    def _repo(self, name: str, role: str | None) -> Repo:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and role is None):
            raise Refused(404 if role else 401, "RepoNotFound")
        return repo

    def _create(self, asked: dict[str, Any], role: str | None) -> Any:
        if role != "write" or asked["organization"] not in (None, "me"):
            raise Refused(403, "")
        name = f"me/{asked['name']}"
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repos[name] = Repo(private=private)
        self.hub.put(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        return {"url": f"{self._endpoint}/{name}", "name": name, "id": "1"}

    @property
    def _endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"  # type: ignore[attr-defined]

    def _api(self, name: str, rest: list[str], body: bytes, role: str | None) -> Any:
        repo = self._repo(name, role)
        what, revision = (rest or ["revision"])[0], "/".join(rest[1:]) or "main"
        if what == "branch":
            repo.branches[revision] = repo.branches["main"]
            return {}
        if (sha := repo.sha(revision)) is None:
            raise Refused(404, "RevisionNotFound")
        files = repo.commits[sha]
        if what in ("preupload", "commit") and role != "write":
            raise Refused(403, "")
        if what == "preupload":
            asked = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(LARGE) else "regular" for path in asked}
            oids = {path: identity(path, files[path]) for path in asked if path in files}
            told = [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]
            return {"files": [file | ({"oid": oids[p]} if (p := file["path"]) in oids else {}) for file in told]}
        if what == "commit":
            return self._commit(name, repo, revision, sha, body)
        entries = [self._entry(path, content, repo) for path, content in files.items()]
        if what == "tree":
            return entries
        siblings = [{"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]} for e in entries]
        return {"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings}

    def _entry(self, path: str, content: bytes, repo: Repo) -> dict[str, Any]:
        size = repo.sizes.get(path, len(content))
        entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": identity("", content)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": identity(path, content), "size": size, "pointerSize": 130}
        return entry

    def _batch(self, asked: dict[str, Any]) -> Any:
        upload = [{**o, "actions": {"upload": {"href": f"{self._endpoint}/lfs/{o['oid']}"}}} for o in asked["objects"]]
        return {"transfer": "basic", "objects": upload}

    def _commit(self, name: str, repo: Repo, branch: str, parent: str, body: bytes) -> Any:
        files, message = dict(repo.commits[parent]), ""
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, parent):
                    raise Refused(412, "")
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            else:
                assert item["key"] == "deletedFile"
                del files[value["path"]]
        sha = repo.commit(files, branch, message)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self._endpoint}/{name}/commit/{sha}"}

    def _content(self, repo: Repo, revision: str, path: str) -> tuple[bytes, dict[str, str]]:
        sha = repo.sha(revision)
        if repo.gated:
            raise Refused(403, "GatedRepo")
        if sha is None:
            raise Refused(404, "RevisionNotFound")
        if path not in repo.commits[sha]:
            raise Refused(404, "EntryNotFound")
        content = repo.commits[sha][path]
        return content, {"ETag": f'"{identity(path, content)}"', "X-Repo-Commit": sha}


@pytest.fixture(scope="session")
def _served() -> Iterator[tuple[Hub, str]]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def environment(_served: tuple[Hub, str], tmp_path: Path) -> dict[str, str]:
    """What points huggingface_hub at the stand-in, in a process of its own."""
    names = {"HF_ENDPOINT": _served[1], "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "writer"}
    return names | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}


@pytest.fixture
def hub(_served: tuple[Hub, str], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, empty, with somebody logged in who may write.

    huggingface_hub reads the environment when it is imported, so here its constants are set beside it.
    """
    from huggingface_hub import constants

    found, url = _served
    found.reset()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    home = Path(environment["HF_HOME"])
    set_to = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}"}
    set_to |= {"HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
    for name, value in (set_to | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
        assert hasattr(constants, name)
        monkeypatch.setattr(constants, name, value)
    yield found


@pytest.fixture
def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go offline from now on."""
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def run(slimvit_: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of the embedded ViT, half its heads."""
    out = tmp_path_factory.mktemp("pushed") / "runs" / "digits"
    few = ("--data", "digits", "--train-images", 64, "--eval-images", 40, "--calibration-images", 32)
    slimvit_("prune", "vit_digits", *few, "--ratio", 0.5, "--out", out)
    return out


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, bytes]]:
    """The files of a saved model, by name."""

    def files(model: Any, **more: Any) -> dict[str, bytes]:
        folder = tmp_path_factory.mktemp("saved") / "model"
        slimvit.save(model, folder, **more)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    return files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """huggingface_hub sends large files in a way that its own HTTP client warns of."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning"))
