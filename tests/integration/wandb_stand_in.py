"""A server of Weights & Biases on the loopback address, as good or as bad as a test wants."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "0123456789abcdef0123456789abcdef01234567"


class Server:
    """What a stand-in was asked, and which question it no longer answers."""

    def __init__(self, *, status=200, hangs_at=None):
        self.status = status
        self.hangs_at = hangs_at
        self.asked = []
        self.bodies = []
        self.over = threading.Event()

    def uploaded(self):
        """Yield every line of history that has arrived."""
        for body in self.bodies:
            for name, part in (json.loads(body).get("files") or {}).items() if body[:1] == b"{" else ():
                if name == "wandb-history.jsonl":
                    yield from map(json.loads, part["content"])


@contextmanager
def wandb_server(**how):
    """Serve; yields what was asked, with its address in `address`."""
    server = Server(**how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            graphql = self.path == "/graphql"
            asked = json.loads(body)["operationName"] if graphql else self.path.rpartition("/")[2]
            server.asked.append(asked)
            server.bodies.append(body)
            if asked == server.hangs_at or server.hangs_at == "anything":
                server.over.wait(60)
                return
            answer = {"errors": [{"message": "refused"}]} if server.status != 200 else {"exitcode": None}
            if graphql and server.status == 200:
                answer = {"data": _answers(json.loads(body).get("variables") or {}, server.address)[asked]}
            content = json.dumps(answer).encode()
            self.send_response(server.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST  # noqa: N815 - the names are http.server's

        def log_message(self, *args):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    listener.block_on_close = False
    listener.handle_error = lambda *_: None  # wandb closes its connections without a word
    server.address = f"http://127.0.0.1:{listener.server_port}"
    threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        listener.shutdown()
        listener.server_close()


def _answers(asked, address):
    project = {"id": "P", "name": "gemma_ft", "entity": {"id": "E", "name": "somebody"}}
    bucket = {"id": "B", "name": asked.get("name"), "displayName": asked.get("displayName"), "config": "{}"}
    bucket |= {"description": None, "sweepName": None, "project": project, "historyLineCount": 0}
    files = [{"name": name, "uploadUrl": f"{address}/upload/{name}"} for name in asked.get("files", [])]
    return {
        "Viewer": {"viewer": {"id": "V", "username": "somebody", "entity": "somebody", "flags": "{}"}},
        "RunResumeStatus": {"model": {**project, "bucket": None}},
        "UpsertBucket": {"upsertBucket": {"bucket": bucket, "inserted": True}},
        "CreateRunFiles": {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}},
    }
