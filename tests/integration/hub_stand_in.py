"""A hub on the loopback address that answers as a test wants, and a process that asks it."""

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


def _bytes(data):
    return data if isinstance(data, bytes) else data.encode()


def _entry(name, data):
    return {"type": "file", "path": name, "size": len(_bytes(data)), "oid": "0" * 40}


class _Quiet(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names are http.server's

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
