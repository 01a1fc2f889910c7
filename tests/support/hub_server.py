"""A stub of the Hugging Face hub on loopback: repositories that are made, committed to and downloaded from."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OID = "0" * 40


class HubServer:
    """`repos` holds the files of each repository by its name ("ORG/NAME", "datasets/ORG/NAME"), `private` whether its
    owners alone see it, `gated` how others get in; `requests` method, path and authorization.

    What is posted to a path that contains `refuse` is refused, with a text that echoes the token.
    """

    def __init__(self, refuse=None):
        self.repos, self.private, self.gated, self.requests, self.refuse = {}, {}, {}, [], refuse
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self):
                outer.answer(self)

            do_GET = do_POST = do_PUT = do_HEAD = handle_one

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()

    def environment(self, folder, token="hf_secret"):
        """What points a process at this hub alone."""
        values = {"HF_ENDPOINT": self.url, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return values | ({"HF_TOKEN": token} if token else {})

    def answer(self, request):
        path = unquote(urlsplit(request.path).path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        self.requests.append((request.command, path, request.headers.get("Authorization")))
        if self.refuse and request.command == "POST" and self.refuse in path:
            return self.send(request, {"error": f"no rights for {request.headers.get('Authorization')}"}, 403)
        if path == "/api/repos/create":
            return self.create(request, json.loads(body))
        if path == "/api/whoami-v2":
            known = request.headers.get("Authorization") == "Bearer hf_secret"
            return self.send(request, {"name": "us"} if known else {"error": "who?"}, 200 if known else 401)
        if path == "/api/validate-yaml":
            return self.send(request, {"errors": [], "warnings": []})
        if path.startswith(("/api/models/", "/api/datasets/")):
            kind, repo, name, *rest = path.removeprefix("/api/").split("/")
            return self.repository(request, f"{repo}/{name}", kind, "/".join(rest), body)
        return self.download(request, path)

    def create(self, request, asked):
        kind = "datasets" if asked.get("type") == "dataset" else None
        repo = "/".join(filter(None, (kind, asked.get("organization"), asked["name"])))
        if repo in self.repos:
            return self.send(request, {"error": "there", "url": f"{self.url}/{repo}"}, 409)
        self.repos[repo] = {}
        self.private[repo] = asked.get("visibility") == "private" or bool(asked.get("private"))
        return self.send(request, {"url": f"{self.url}/{repo}", "name": repo, "id": repo})

    def repository(self, request, repo, kind, rest, body):
        told = {"id": repo, "modelId": repo, "sha": OID, "tags": [], "downloads": 0}
        repo = repo if kind == "models" else f"datasets/{repo}"
        if repo not in self.repos:
            return self.send(request, {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if rest.startswith("preupload/"):
            names = [each["path"] for each in json.loads(body)["files"]]
            return self.send(
                request, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        if rest.startswith("commit/"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.repos[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.send(request, {"commitUrl": f"{self.url}/{repo}/commit/{OID}", "commitOid": OID})
        if rest == "settings":
            self.gated[repo] = json.loads(body)["gated"]
            return self.send(request, {})
        files = sorted(self.repos[repo])
        if rest.startswith("paths-info/"):
            asked = parse_qs(body.decode())["paths"]
            files = [name for name in files if name in asked]
        if rest.startswith(("tree/", "paths-info/")):
            sizes = [
                {"type": "file", "path": n, "size": len(self.repos[repo][n]), "oid": git_hash(self.repos[repo][n])}
                for n in files
            ]
            return self.send(request, sizes)
        told["private"] = self.private[repo]
        return self.send(request, {**told, "siblings": [{"rfilename": name} for name in files]})

    def download(self, request, path):
        repo, _, rest = path.lstrip("/").partition("/resolve/")
        name = rest.partition("/")[2]
        if repo not in self.repos or name not in self.repos[repo]:
            code = "EntryNotFound" if repo in self.repos else "RepoNotFound"
            return self.send(request, {"error": code}, 404, {"X-Error-Code": code, "X-Repo-Commit": OID})
        data = self.repos[repo][name]
        return self.send(request, data, 200, {"ETag": f'"{git_hash(data)}"', "X-Repo-Commit": OID})

    def send(self, request, value, status=200, headers=None):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        request.send_response(status)
        kind = "application/octet-stream" if isinstance(value, bytes) else "application/json"
        for name, text in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            request.send_header(name, text)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)


def git_hash(data):
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
