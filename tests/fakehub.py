"""A model hub on 127.0.0.1 that speaks what the real client asks for when it pushes and downloads.

The client reads its settings when it is first imported, so a test talks to the hub through `FakeHub.client`, a process
of its own: `client(function, *arguments, token=...)` runs the function there and returns or raises what it did.
"""

import base64
import hashlib
import json
import multiprocessing
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SILENT = 1.0  # seconds, longer than a client of the tests waits
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass
class User:
    name: str
    role: str = "write"
    orgs: tuple[tuple[str, str], ...] = ()

    def may_write(self, owner: str) -> bool:
        return self.role == "write" and (owner == self.name or (owner, "write") in self.orgs)


@dataclass
class Repo:
    private: bool
    proposals: dict[int, tuple[str, str]] = field(default_factory=dict)  # open pull requests: author and title
    branches: dict[str, list[dict[str, bytes]]] = field(default_factory=lambda: {"main": [{".gitattributes": b""}]})

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.branches[revision][-1]

    def branch(self, revision: str) -> str | None:
        """The branch that `revision`, a branch or the id of its newest commit, stands for."""
        return next((name for name in self.branches if revision in (name, self.commit_id(name))), None)

    def commit_id(self, branch: str) -> str:
        return hashlib.sha1(f"{id(self)} {branch} {len(self.branches[branch])}".encode()).hexdigest()


@dataclass
class Fault:
    """What happens to a request instead of its answer: a status, or by name

    reset: the connection breaks while the request is sent; lost: all is done, but the answer never arrives;
    silent: there is no answer for longer than a client waits.
    """

    what: int | str
    times: int = sys.maxsize
    headers: dict[str, str] = field(default_factory=dict)


class FakeHub:
    def __init__(self, home: Path, users: dict[str, User]):
        self.users = users
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.faults: dict[tuple[str, str], Fault] = {}  # by method and path pattern
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.environment = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
        }

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        spawn = multiprocessing.get_context("spawn")
        self.process = ProcessPoolExecutor(1, spawn, initializer=set_environment, initargs=(self.environment,))
        return self

    def __exit__(self, *_: object) -> None:
        self.process.shutdown()
        self.server.shutdown()
        self.server.server_close()

    def fault(self, method: str, path: str) -> Fault | None:
        for (of_method, pattern), fault in self.faults.items():
            if method == of_method and fault.times and re.search(pattern, path):
                fault.times -= 1
                return fault
        return None

    def client(self, function: Callable, *arguments: Any, token: str | None = None, **keywords: Any) -> Any:
        return self.process.submit(call_as, token, function, arguments, keywords).result(timeout=120)


def set_environment(values: dict[str, str]) -> None:
    os.environ.update(values)


def call_as(token: str | None, function: Callable, arguments: tuple, keywords: dict[str, Any]) -> Any:
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    return function(*arguments, **keywords)


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = "", headers: dict[str, str] | None = None):
        self.status, self.message, self.code, self.headers = status, message, code, headers or {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: FakeHub, *arguments: Any):
        self.hub = hub
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        """Requests are not printed."""

    def answer(self) -> None:
        path = urlsplit(self.path).path
        fault = self.hub.fault(self.command, path)
        self.lost = fault is not None and fault.what == "lost"
        if fault and fault.what == "reset":
            self.rfile.read(min(100, int(self.headers.get("Content-Length") or 0)))
            return self.hang_up()
        self.body = self.read_body()
        try:
            if fault and fault.what == "silent":
                time.sleep(SILENT)
                return self.hang_up()
            if fault and not self.lost:
                raise Refused(fault.what, "injected fault", headers=fault.headers)
            self.user = self.find_user()
            for method, pattern, route in ROUTES:
                if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                    return route(self, *map(unquote, match.groups(default="")))
            raise Refused(404, f"no such route: {self.command} {path}")
        except Refused as refused:
            headers = {"X-Error-Message": refused.message} | ({"X-Error-Code": refused.code} if refused.code else {})
            self.send(refused.status, {"error": refused.message}, headers | refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        if self.lost:
            return self.hang_up()
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def find_user(self) -> User | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def find_repo(self, name: str, revision: str = "main", write: bool = False) -> tuple[Repo, str]:
        repo, owner = self.hub.repos.get(name), name.split("/")[0]
        hidden = repo is not None and repo.private and not (self.user and self.user.may_write(owner))
        if repo is None or hidden:
            raise Refused(404 if self.user else 401, "Repository not found", "RepoNotFound")
        if write and not (self.user and self.user.may_write(owner)):
            raise Refused(403, "You don't have the rights to write to this repo")
        branch = repo.branch(revision)
        if branch is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo, branch

    def whoami(self) -> None:
        if self.user is None:
            raise Refused(401, "Invalid username or password.")
        orgs = [{"name": name, "roleInOrg": role} for name, role in self.user.orgs]
        self.send(200, {"name": self.user.name, "orgs": orgs, "auth": {"accessToken": {"role": self.user.role}}})

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.user.name
        name = f"{owner}/{asked['name']}"
        if not self.user.may_write(owner):
            raise Refused(403, f"You don't have the rights to create a model under the namespace {owner}")
        status = 409 if name in self.hub.repos else 200
        self.hub.repos.setdefault(name, Repo(private=asked.get("visibility") == "private"))
        self.send(status, {"url": f"{self.hub.url}/{name}"})

    def validate_yaml(self) -> None:
        import yaml

        metadata = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
        if not REPO_ID.fullmatch(metadata.get("base_model", "none")):
            message = '"base_model" with value "%s" is not valid. Use a model id from https://hf.co/models.'
            errors = [{"message": message % metadata["base_model"]}]
            return self.send(400, {"errors": errors, "warnings": []})
        self.send(200, {"errors": [], "warnings": []})

    def branch(self, name: str, branch: str) -> None:
        repo, _ = self.find_repo(name, write=True)
        status = 409 if branch in repo.branches else 200
        repo.branches.setdefault(branch, [repo.files()])
        self.send(status, {})

    def preupload(self, name: str, revision: str) -> None:
        repo, branch = self.find_repo(name, revision, write=True)
        modes = [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if is_lfs(asked["path"]) else "regular",
                "shouldIgnore": False,
                "oid": object_id(asked["path"], repo.files(branch).get(asked["path"])),
            }
            for asked in json.loads(self.body)["files"]
        ]
        self.send(200, {"files": modes})

    def lfs_batch(self, name: str) -> None:
        self.find_repo(name, write=True)
        objects = json.loads(self.body)["objects"]
        for entry in objects:
            if entry["oid"] not in self.hub.blobs:
                address = f"{self.hub.url}/lfs/{entry['oid']}"
                entry["actions"] = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
        self.send(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "checksum mismatch")
        self.hub.blobs[oid] = self.body
        self.send(200, {})

    def lfs_verify(self, oid: str) -> None:
        if oid not in self.hub.blobs:
            raise Refused(404, "no such object")
        self.send(200, {})

    def commit(self, name: str, revision: str) -> None:
        repo, branch = self.find_repo(name, revision, write=True)
        files, header = dict(repo.files(branch)), {}
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            match entry["key"]:
                case "header":
                    header = value
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        answer = {}
        if "create_pr=1" in self.path:
            number = 1 + len(repo.proposals)
            repo.proposals[number] = self.user.name, header["summary"]
            branch = f"refs/pr/{number}"
            repo.branches[branch] = []
            answer = {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}"}
        repo.branches[branch].append(files)
        commit = repo.commit_id(branch)
        self.send(200, {"commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}", **answer})

    def discussions(self, name: str) -> None:
        repo, _ = self.find_repo(name)
        asked = parse_qs(urlsplit(self.path).query)
        found = [
            {"num": number, "title": title, "author": {"name": author}, "createdAt": "2026-01-01T00:00:00.000Z",
             "status": "open", "isPullRequest": True, "repo": {"name": name, "type": "model"}}
            for number, (author, title) in repo.proposals.items()
            if asked.get("author") == [author]
        ]  # fmt: skip
        self.send(200, {"discussions": found, "count": len(found), "start": 0})

    def info(self, name: str, revision: str = "main") -> None:
        repo, branch = self.find_repo(name, revision)
        siblings = [{"rfilename": path} for path in repo.files(branch)]
        self.send(200, {"id": name, "private": repo.private, "sha": repo.commit_id(branch), "siblings": siblings})

    def tree(self, name: str, revision: str, folder: str) -> None:
        repo, branch = self.find_repo(name, revision)
        if folder:
            raise Refused(404, f"{folder} does not exist", "EntryNotFound")
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": object_id(path, data)}
            for path, data in repo.files(branch).items()
        ]
        self.send(200, entries)

    def resolve(self, name: str, revision: str, path: str) -> None:
        repo, branch = self.find_repo(name, revision)
        commit = {"X-Repo-Commit": repo.commit_id(branch)}
        if path not in repo.files(branch):
            return self.send(404, {}, commit | {"X-Error-Code": "EntryNotFound"})
        data = repo.files(branch)[path]
        self.send(200, data, commit | {"ETag": f'"{object_id(path, data)}"'})


def is_lfs(path: str) -> bool:
    return path.endswith(".safetensors")


def object_id(path: str, data: bytes | None) -> str | None:
    """What the client compares to see whether a file has changed: git's blob id, or the sha256 of a large file."""
    if data is None:
        return None
    if is_lfs(path):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


MODEL = r"/api/models/([\w.-]+/[\w.-]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", Handler.whoami),
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.validate_yaml),
    ("POST", f"{MODEL}/branch/([^/]+)", Handler.branch),
    ("POST", f"{MODEL}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"{MODEL}/commit/([^/]+)", Handler.commit),
    ("POST", r"/(.+)\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", "/lfs/(.+)", Handler.lfs_put),
    ("POST", "/lfs/(.+)/verify", Handler.lfs_verify),
    ("GET", f"{MODEL}/discussions", Handler.discussions),
    ("GET", MODEL, Handler.info),
    ("GET", f"{MODEL}/revision/([^/]+)", Handler.info),
    ("GET", f"{MODEL}/tree/([^/]+)/?(.*)", Handler.tree),
    ("GET HEAD", r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", Handler.resolve),
]
