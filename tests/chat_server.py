"""A server on the loopback interface with OpenAI's chat protocol, correct or faulty as a test wants it."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = str | int | bytes | tuple[int, bytes] | None
"""A response: a text as the answer; a status; a body; a status and its body; None cuts the connection."""


class ChatServer:
    """Answers each request by ``reply``, a function of the body and of the number of earlier requests with this body.

    requests: the bodies, in order of arrival; keys: their authorization headers; answered: the bodies that got a text.
    """

    def __init__(self, reply: Callable[[dict, int], Reply]):
        self.requests: list[dict] = []
        self.keys: list[str] = []
        self.answered: list[dict] = []
        self._reply = reply
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def next_reply(self, body: dict, key: str) -> Reply:
        with self._lock:
            num_before = self.requests.count(body)
            self.requests.append(body)
            self.keys.append(key)
        reply = self._reply(body, num_before)
        if isinstance(reply, str):
            with self._lock:
                self.answered.append(body)
        return reply

    def _handler(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert self.path == "/v1/chat/completions"
                self.send(server.next_reply(body, self.headers["Authorization"]))

            def send(self, reply):
                if reply is None:  # the connection is cut in the middle of the answer
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.close_connection = True
                    return
                status, payload = encoded(reply)
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.send_header("Retry-After", "0.01")
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *args):
                pass

        return Handler


def encoded(reply: Reply) -> tuple[int, bytes]:
    """Status and body."""
    if isinstance(reply, tuple):
        return reply
    if isinstance(reply, bytes):
        return 200, reply
    return (reply if isinstance(reply, int) else 200), json.dumps(document(reply)).encode()


def document(reply: str | int) -> dict:
    """A chat completion, or an error document."""
    if isinstance(reply, int):
        return {"error": {"message": f"status {reply}", "type": "server_error"}}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    }
