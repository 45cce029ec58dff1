"""A hub on the loopback address that answers as a test wants, and a process that asks it."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_that_refuses(status, **headers):
    """Answer every request with one status."""

    class Handler(_Quiet):
        def answer(self):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with _serving(Handler) as address:
        yield address


@contextmanager
def silent_hub():
    """Accept connections and say nothing."""
    over = threading.Event()

    class Handler(_Quiet):
        def answer(self):
            over.wait(60)

    with _serving(Handler) as address:
        try:
            yield address
        finally:
            over.set()


@contextmanager
def hub_with(files, served=None, hang_up_at=None):
    """Serve files (name: text or bytes) as every repository that is asked for, at one commit.

    served: a list that gets name and size of each content sent; hang_up_at: the byte of a file from which on
    no answer is given any more.
    """

    class Handler(_Quiet):
        def answer(self):
            path = self.path.partition("?")[0]
            if path.startswith("/api/") and "/tree/" in path:
                self.reply(json.dumps([_entry(name, data) for name, data in files.items()]))
            elif path.startswith("/api/") and "/paths-info/" in path:
                asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
                self.reply(json.dumps([_entry(n, d) for n, d in files.items() if n in asked]))
            elif path.startswith("/api/"):
                siblings = [{"rfilename": name} for name in files]
                self.reply(json.dumps({"_id": "1", "id": "some/thing", "sha": COMMIT, "siblings": siblings}))
            else:
                self.file(path.partition("/resolve/")[2].partition("/")[2])

        def file(self, name):
            if name in files:
                start, stop = self.asked_range()
                if hang_up_at is not None and start >= hang_up_at:
                    self.close_connection = True
                    return
                part = _bytes(files[name])[start:stop]
                if served is not None and self.command == "GET":
                    served.append((name, len(part)))
                size = len(_bytes(files[name]))
                whole = len(part) == size
                shown = {} if whole else {"Content-Range": f"bytes {start}-{start + len(part) - 1}/{size}"}
                self.reply(part, status=200 if whole else 206, **shown)
            else:
                self.reply("", status=404, **{"X-Error-Code": "EntryNotFound"})

        def asked_range(self):
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not asked:
                return 0, None
            return int(asked[1]), int(asked[2]) + 1 if asked[2] else None

        def reply(self, text, status=200, **headers):
            body = _bytes(text)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(text) & 0xFFFFFFFF:x}"')
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    with _serving(Handler) as address:
        yield address


class Uploads:
    """What a hub has been given: repositories by name, and contents by their hash."""

    def __init__(self, token="hf_good", name="me", orgs=(), access=None):
        self.token = token
        self.account = {
            "name": name,
            "orgs": list(orgs),
            "auth": {"accessToken": access or {"role": "write"}},
        }
        self.private = {}
        self.files = {}
        self.contents = {}
        self.received = []
        """Each content that was sent, by its hash."""
        self.takes_content = lambda count: True
        """Asked when a content begins to arrive, with how many have arrived before; False hangs up."""
        self.one_at_a_time = threading.Lock()
        self.refuse_writing = False
        self.spoil = lambda files: None

    def add(self, repository, private):
        """Make a repository."""
        self.private[repository], self.files[repository] = private, {}


@contextmanager
def hub_that_takes(uploads):
    """Take uploads: whole files of safetensors by their hash, all others within the commit."""

    class Handler(_Quiet):
        def answer(self):
            path = self.path.partition("?")[0]
            body = self.body()
            if path.startswith("/contents/"):
                with uploads.one_at_a_time:
                    return self.take_content(path.rpartition("/")[2])
            if self.headers.get("Authorization") != f"Bearer {uploads.token}":
                return self.reply({"error": "Invalid credentials in Authorization header"}, 401)
            if path == "/api/whoami-v2":
                return self.reply(uploads.account)
            if self.command == "POST" and uploads.refuse_writing:
                return self.reply({"error": "You don't have the rights"}, 403)
            if path == "/api/validate-yaml":
                return self.reply({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                return self.create(json.loads(body))
            if path.endswith(".git/info/lfs/objects/batch"):
                return self.reply({"objects": [self.transfer(item) for item in json.loads(body)["objects"]]})
            found = re.fullmatch(
                r"/api/models/([^/]+/[^/]+)(?:/(preupload|commit|tree|paths-info)/.*)?", path
            )
            assert found, path
            if found[1] not in uploads.files:
                return self.reply({"error": "none"}, 404, "RepoNotFound")
            return getattr(self, "answer_" + (found[2] or "info").replace("-", "_"))(found[1], body)

        def body(self):
            if self.path.startswith("/contents/"):
                return b""
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def reply(self, content, status=200, code=None):
            body = json.dumps(content).encode()
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def create(self, asked):
            repository = f"{asked['organization']}/{asked['name']}"
            known = repository in uploads.files
            if not known:
                uploads.add(repository, asked.get("visibility") == "private")
            self.reply({"url": f"http://{self.headers['Host']}/{repository}"}, 409 if known else 200)

        def transfer(self, item):
            made = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in uploads.contents:
                href = f"http://{self.headers['Host']}/contents/{item['oid']}"
                made["actions"] = {"upload": {"href": href}}
            return made

        def take_content(self, oid):
            if not uploads.takes_content(len(uploads.received)):
                self.close_connection = True
                return
            if "Content-Length" in self.headers:
                data = self.rfile.read(int(self.headers["Content-Length"]))
            else:
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            assert hashlib.sha256(data).hexdigest() == oid
            uploads.contents[oid] = data
            uploads.received.append(oid)
            self.reply({})

        def answer_info(self, repository, body):
            siblings = [{"rfilename": name} for name in uploads.files[repository]]
            facts = {"_id": "1", "id": repository, "sha": COMMIT, "private": uploads.private[repository]}
            self.reply(facts | {"siblings": siblings})

        def answer_preupload(self, repository, body):
            held = {entry["path"]: entry["oid"] for entry in self.entries(repository)}
            self.reply(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                            "shouldIgnore": False,
                            "oid": held.get(file["path"]),
                        }
                        for file in json.loads(body)["files"]
                    ]
                }
            )

        def answer_commit(self, repository, body):
            files = uploads.files[repository]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = uploads.contents[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            uploads.spoil(files)
            self.reply(
                {
                    "commitUrl": f"http://{self.headers['Host']}/{repository}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                }
            )

        def entries(self, repository):
            for name, data in uploads.files[repository].items():
                blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
                entry = {"type": "file", "path": name, "size": len(data), "oid": blob}
                if name.endswith(".safetensors"):
                    sha256 = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 100}
                yield entry

        def answer_tree(self, repository, body):
            self.reply(list(self.entries(repository)))

        def answer_paths_info(self, repository, body):
            self.reply([entry for entry in self.entries(repository) if entry["path"] in body.decode()])

    with _serving(Handler) as address:
        yield address


def _bytes(data):
    return data if isinstance(data, bytes) else data.encode()


def _entry(name, data):
    return {"type": "file", "path": name, "size": len(_bytes(data)), "oid": "0" * 40}


class _Quiet(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - the names are http.server's

    def log_message(self, *args):
        pass


@contextmanager
def _serving(handler):
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ask_hub(code, address, home, **environment):
    """Run code in a new process, since the hub's address is read at import; return output, errors, time."""
    unwanted = ("HF_", "TRANSFORMERS_", "HUGGING", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    clean |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    program = "from gemma_ft.errors import GemmaFTError\ntry:\n"
    program += "".join(f"    {line}\n" for line in code.splitlines())
    program += "except GemmaFTError as error:\n    print(type(error).__name__, error)\n"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr, time.monotonic() - start
