"""A small server on loopback that speaks the Hub's protocol, for the real client: listings, files with ETag and commit,
redirects, ranges, commits, and on request its failures."""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"
LARGE = ".safetensors", ".gguf"  # which the Hub keeps elsewhere: answered by a redirect


class Hub:
    """Repositories by name, each a dict of files; `log` has the requests, `failing` makes some fail."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.refused: dict[str, str] = {}  # repository: "private" or "gated"
        self.failing: dict[str, int] = {}  # name of a file or "api": the status of the next answers
        self.cut: dict[str, int] = {}  # name of a file: bytes after which its connection is cut, once
        self.log: list[str] = []

    def downloads(self):
        """The names of the files whose content was asked for."""
        return [line.split("/")[-1] for line in self.log if line.startswith("GET /content")]


@contextlib.contextmanager
def serving(hub):
    """The address of a server of `hub`'s repositories."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def answer(self, status, body=b"", **headers):
            body = json.dumps(body).encode() if not isinstance(body, bytes) else body
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.split("?")[0]
            hub.log.append(f"{self.command} {path}")
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
                self.about(*found.groups())
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
                self.tree(found[1])
            elif found := re.fullmatch(r"/(?:(content)/)?([^/]+/[^/]+)/(?:resolve/([^/]+)/)?(.+)", path):
                self.file(found[1] == "content", found[2], found[4])
            else:
                self.answer(404, {"error": "not found"})

        def refuses(self, name):
            """Whether the repository may not be read, answered."""
            token = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            if "api" in hub.failing:
                self.answer(hub.failing["api"], {"error": "on request"})
            elif name not in hub.repositories or (hub.refused.get(name) == "private" and not token):
                self.answer(401, {"error": "Invalid username or password."}, X_Error_Code="RepoNotFound")
            elif hub.refused.get(name) == "gated" and not token:
                self.answer(403, {"error": "Access is restricted."}, X_Error_Code="GatedRepo")
            else:
                return False
            return True

        def about(self, name, revision):
            if self.refuses(name):
                return
            if revision not in (None, "main", "v1", COMMIT):
                self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
                return
            files = [{"rfilename": file} for file in hub.repositories[name]]
            self.answer(200, {"id": name, "modelId": name, "sha": COMMIT, "siblings": files, "private": False})

        def tree(self, name):
            if self.refuses(name):
                return
            entries = []
            for file, content in hub.repositories[name].items():
                entry = {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                if file.endswith(LARGE):
                    digest = hashlib.sha256(content).hexdigest()
                    entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
                entries.append(entry)
            self.answer(200, entries)

        def file(self, elsewhere, name, file):
            if not elsewhere and self.refuses(name):
                return
            content = hub.repositories[name].get(file)
            if content is None:
                self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
                return
            if file in hub.failing:
                self.answer(hub.failing[file], {"error": "on request"})
                return
            large = file.endswith(LARGE)
            digest = (hashlib.sha256 if large else hashlib.sha1)(content).hexdigest()
            about = {"ETag": f'"{digest}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
            if not elsewhere:  # small files by a relative redirect, as for a renamed repository; large ones as by LFS
                if large:
                    about |= {"X_Linked_ETag": f'"{digest}"', "X_Linked_Size": len(content)}
                    host = f"http://{self.headers['Host']}"
                    self.answer(302, Location=f"{host}/content/{name}/{file}", **about)
                elif self.command == "HEAD":
                    self.answer(200, content, Content_Length=len(content), **about)
                else:
                    self.answer(307, Location=f"/content/{name}/{file}", **about)
                return
            start = int(((found := re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))) and found[1]) or 0)
            part = content[start:]
            if start:
                about["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            cut = hub.cut.pop(file, None) if self.command == "GET" else None
            if cut is not None:
                self.send_response(200)
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                self.wfile.write(part[:cut])
                self.close_connection = True
                return
            hub.log.append(f"RANGE {start} /{file}")
            self.answer(206 if start else 200, part, Content_Length=len(part), **about)

        def do_POST(self):
            path = self.path.split("?")[0]
            hub.log.append(f"POST {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid username or password."})
            elif path == "/api/validate-yaml":
                self.answer(200, {"errors": [], "warnings": []})
            elif path == "/api/repos/create":
                about = json.loads(body)
                name = f"{about.get('organization') or 'me'}/{about['name']}"
                hub.repositories.setdefault(name, {})
                self.answer(200, {"url": f"http://{self.headers['Host']}/{name}", "id": name})
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
                files = json.loads(body)["files"]
                self.answer(
                    200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
                )
            elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        hub.repositories[found[1]][line["value"]["path"]] = content
                url = f"http://{self.headers['Host']}/{found[1]}/commit/{COMMIT}"
                self.answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url, "hookOutput": ""})
            else:
                self.answer(404, {"error": "not found"})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
