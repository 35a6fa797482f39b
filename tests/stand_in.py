"""A stand-in for a model server: an OpenAI-compatible endpoint on loopback that remembers what it was asked."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODEL = "teacher"


def reply(text: str | None, *, finish_reason: str = "stop", tokens: int = 7, **message) -> tuple[int, dict]:
    """A 200 with one choice."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}


def refusal(status: int, message: str) -> tuple[int, dict]:
    return status, {"error": {"message": message, "type": "invalid_request_error"}}


class StandIn:
    """`answer(body)` gives the status and the JSON (or text) for a request."""

    def __init__(self, answer: Callable[[dict], tuple[int, dict | str]]):
        self.answer, self.key, self.delay = answer, None, 0.0
        self.headers: dict[str, str] = {}  # of every reply
        self.asked: list[dict] = []
        self.authorized: list[str | None] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def handle(self, path: str, body: dict | None, authorization: str | None) -> tuple[int, dict | str]:
        if self.key is not None and authorization != f"Bearer {self.key}":
            return refusal(401, f"Incorrect API key provided: {(authorization or '').removeprefix('Bearer ')}")
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": MODEL}, {"id": "other"}]}
        if path != "/v1/chat/completions" or body is None:
            return 404, {"detail": "Not Found"}
        with self.lock:
            self.asked.append(body)
            self.authorized.append(authorization)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        with self.lock:
            self.at_once -= 1
        if body["model"] != MODEL:
            return refusal(404, f"The model `{body['model']}` does not exist.")
        return self.answer(body)


@contextlib.contextmanager
def serving(answer: Callable[[dict], tuple[int, dict | str]]) -> Iterator[StandIn]:
    there = StandIn(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._say(*there.handle(self.path, None, self.headers["Authorization"]))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._say(*there.handle(self.path, body, self.headers["Authorization"]))

        def _say(self, status: int, content: dict | str):
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            with contextlib.suppress(ConnectionError):  # who asked was killed
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **there.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *words):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128  # a connection that finds the queue full is tried again a second later

    server = Server(("127.0.0.1", 0), Handler)
    there.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield there
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
