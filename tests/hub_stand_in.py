"""A Hub on loopback, as much of it as huggingface_hub's client needs to create, upload, commit, list, download and
stream."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

WRITES, READS = "hf_token_that_may_write", "hf_token_that_only_reads"


@dataclass
class Repo:
    """Branches, each a list of commit ids; a commit's files are path -> content."""

    name: str
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, list[str]] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{branch}/{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches.setdefault(branch, []).append(oid)
        return oid

    def at(self, revision: str) -> str | None:
        """The id of the commit that a branch, or a commit's own id, names."""
        return (
            self.branches[revision][-1] if revision in self.branches else revision if revision in self.commits else None
        )


@dataclass
class Hub:
    """What the server remembers. Once `hold_after` uploads have arrived, the next ones wait until `release` is set.

    `full` has no room for one more.
    """

    url: str = ""
    private_by_default: bool = False
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    puts: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    full: bool = False
    hold_after: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.repos[repo].commits[self.repos[repo].at(revision)]

    def put(self, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """A commit on a branch of a repository, which it makes where it must; a data set's name begins `datasets/`."""
        return self.repos.setdefault(repo, Repo(repo, private=False)).commit(branch, files)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin"))


def oid_of(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_oid(content)


def entry_of(path: str, content: bytes) -> dict:
    """One file as the Hub lists it."""
    entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_large(path):
        entry["lfs"] = {"oid": oid_of(path, content), "size": len(content), "pointerSize": 130}
    return entry


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def answer(self, status: int, content=b"", **headers) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str, **told) -> None:
        self.answer(status, {"error": message, **told}, X_Error_Code=code, X_Error_Message=message)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do(self) -> None:
        address = urlsplit(self.path)
        self.query, path, body = parse_qs(address.query), unquote(address.path), self.body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.hub.seen.append(f"{self.command} {path}")
        for method, pattern, rights, reply in ROUTES:
            found = re.fullmatch(pattern, path) if self.command in method else None
            if not found:
                continue
            if rights and token not in (WRITES, READS):
                return self.refuse(401, "", "Invalid credentials in Authorization header")
            if rights == "write" and token != WRITES:
                return self.refuse(403, "", "you need a token with the right to write")
            groups = {name: group for name, group in found.groupdict().items() if group is not None}
            if "repo" in groups:
                repo = self.hub.repos.get(groups["repo"])
                if repo is None or (repo.private and token not in (WRITES, READS)):
                    return self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
                groups["repo"] = repo
            return reply(self, body, **groups)
        self.refuse(404, "", f"no such route: {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do

    def whoami(self, body):
        self.answer(200, {"name": "me", "type": "user", "orgs": []})

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repos:
            return self.refuse(409, "", "You already created this model repo", url=f"{self.hub.url}/{name}")
        private = asked.get("visibility", "private" if self.hub.private_by_default else "public") == "private"
        self.hub.repos[name] = Repo(name, private)
        self.hub.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def info(self, body, repo, revision="main"):
        oid = repo.at(revision)
        if oid is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        self.answer(200, {"id": repo.name, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []})

    def history(self, body, repo, revision):
        ids = reversed(repo.branches[revision])
        told = {"title": "a commit", "message": "", "authors": [], "date": "2026-01-01T00:00:00.000Z"}
        self.answer(200, [{"id": oid, **told} for oid in ids])

    def branch(self, body, repo, revision):
        if revision in repo.branches:
            return self.refuse(409, "", "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint", "main")
        repo.branches[revision] = [repo.at(start)]
        self.answer(200, {})

    def tree(self, body, repo, revision, under=""):
        oid = repo.at(revision)
        if oid is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = {path: content for path, content in repo.commits[oid].items() if path.startswith(under)}
        if under and not files:
            return self.refuse(404, "EntryNotFound", f"{under} does not exist on {revision}")
        folders = {str(parent) for path in files for parent in PurePosixPath(path).parents if str(parent) != "."}
        self.answer(
            200,
            [{"type": "directory", "path": folder, "oid": git_oid(folder.encode())} for folder in sorted(folders)]
            + [entry_of(path, content) for path, content in files.items()],
        )

    def paths(self, body, repo, revision):
        oid, asked = repo.at(revision), parse_qs(body.decode()).get("paths", [])
        if oid is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        self.answer(200, [entry_of(path, content) for path, content in repo.commits[oid].items() if path in asked])

    def preupload(self, body, repo, revision):
        if repo.at(revision) is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        there = repo.commits[repo.at(revision)]
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if is_large(file["path"]) else "regular",
                "shouldIgnore": False,
                "oid": oid_of(file["path"], there[file["path"]]) if file["path"] in there else None,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def batch(self, body, repo):
        objects = []
        for item in json.loads(body)["objects"]:
            upload = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
            objects.append({**item, **({} if item["oid"] in self.hub.blobs else {"actions": upload})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def put(self, body, oid):
        if self.hub.full:
            return self.refuse(403, "", "no room")
        with self.hub.lock:  # one after the other, so that a test knows what has arrived
            if self.hub.hold_after is not None and len(self.hub.puts) >= self.hub.hold_after:
                self.hub.held.set()
                self.hub.release.wait(60)
                self.close_connection = True
                return None
            assert hashlib.sha256(body).hexdigest() == oid
            self.hub.puts.append(oid)
            self.hub.blobs[oid] = body
        return self.answer(200)

    def commit(self, body, repo, revision):
        files = dict(repo.commits[repo.at(revision)])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(revision, files)
        self.answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{repo.name}/commit/{oid}"})

    def yaml(self, body):
        self.answer(200, {"errors": [], "warnings": []})

    def resolve(self, body, repo, revision, path):
        oid = repo.at(revision)
        if oid is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if path not in repo.commits[oid]:
            headers = {"X_Error_Code": "EntryNotFound", "X_Error_Message": "Entry not found", "X_Repo_Commit": oid}
            return self.answer(404, b"", **headers)
        content = repo.commits[oid][path]
        headers = {"ETag": f'"{oid_of(path, content)}"', "X_Repo_Commit": oid, "Accept_Ranges": "bytes"}
        if not (part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            return self.answer(200, content, **headers)
        start, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        headers["Content_Range"] = f"bytes {start}-{last}/{len(content)}"
        return self.answer(206, content[start : last + 1], **headers)


_REPO, _MODEL = r"/(?P<repo>[\w.-]+/[\w.-]+)", r"/api/models/(?P<repo>[\w.-]+/[\w.-]+)"
_DATA = r"/(?P<repo>datasets/[\w.-]+/[\w.-]+)"
_AT = r"/(?P<revision>[^/]+)"
# (methods, path, right that is asked for, what answers)
ROUTES = (
    ("GET", "/api/whoami-v2", "read", Handler.whoami),
    ("POST", "/api/repos/create", "write", Handler.create),
    ("POST", "/api/validate-yaml", None, Handler.yaml),
    ("GET", _MODEL, None, Handler.info),
    ("GET", f"{_MODEL}/revision{_AT}", None, Handler.info),
    ("GET", f"{_MODEL}/commits{_AT}", None, Handler.history),
    ("GET", f"{_MODEL}/tree{_AT}", None, Handler.tree),
    ("POST", f"{_MODEL}/branch{_AT}", "write", Handler.branch),
    ("POST", f"{_MODEL}/preupload{_AT}", "write", Handler.preupload),
    ("POST", f"{_MODEL}/commit{_AT}", "write", Handler.commit),
    ("POST", f"{_REPO}.git/info/lfs/objects/batch", "write", Handler.batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", None, Handler.put),
    ("GET HEAD", f"{_REPO}/resolve{_AT}/(?P<path>.+)", None, Handler.resolve),
    ("GET", f"/api{_DATA}", None, Handler.info),
    ("GET", f"/api{_DATA}/revision{_AT}", None, Handler.info),
    ("GET", f"/api{_DATA}/tree{_AT}(?:/(?P<under>.+))?", None, Handler.tree),
    ("POST", f"/api{_DATA}/paths-info{_AT}", None, Handler.paths),
    ("GET HEAD", f"{_DATA}/resolve{_AT}/(?P<path>.+)", None, Handler.resolve),
)


def connect(monkeypatch, hub: Hub, home: Path) -> None:
    """Have this process speak to a Hub, and cache in `home`; what is set here, the environment sets for another one."""
    import datasets.config
    from huggingface_hub import constants

    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no-token"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets/downloads")
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it keeps the address it first saw


@contextmanager
def a_hub(**how) -> Iterator[Hub]:
    """A Hub that runs until the block ends."""
    hub = Hub(**how)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()
