"""An OpenAI-compatible server on 127.0.0.1 for the real client to talk to; its faults are put in a list."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What one request is answered in place of a completion."""

    status: int = 200
    body: Any = ""  # a text is sent as it is
    headers: dict[str, str] = field(default_factory=dict)
    silent: float = 0  # seconds before the answer
    hangs_up: bool = False


@dataclass
class Received:
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float


def last_word(asked: str) -> str:
    return f" after {asked.split()[-1]}"


class FakeEndpoint:
    """`write` gets a prompt or the last message, and gives the text; choices come in reversed order."""

    def __init__(self, write: Callable[[str], str | None] = last_word):
        self.write = write
        self.faults: list[Fault] = []
        self.received: list[Received] = []
        self.at_once = self.most_at_once = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, self))
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self) -> "FakeEndpoint":
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [received.body for received in self.received]

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        if path == "/v1/chat/completions":
            content = self.write(body["messages"][-1]["content"])
            choices = [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
        else:
            prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
            choices = [
                {"index": index, "text": self.write(prompt), "finish_reason": "stop"}
                for index, prompt in enumerate(prompts)
            ]
        return {"id": "1", "object": "completion", "created": 1, "model": body["model"], "choices": choices[::-1]}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, endpoint: FakeEndpoint, *arguments: Any):
        self.endpoint = endpoint
        super().__init__(*arguments)

    def log_message(self, *_: object) -> None:
        """Requests are not printed."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        endpoint = self.endpoint
        with endpoint.lock:
            headers = {name.lower(): value for name, value in self.headers.items()}
            endpoint.received.append(Received(self.path, body, headers, time.monotonic()))
            endpoint.at_once += 1
            endpoint.most_at_once = max(endpoint.most_at_once, endpoint.at_once)
            fault = endpoint.faults.pop(0) if endpoint.faults else None
        try:
            if fault:
                self.fail(fault)
            else:
                self.send(200, endpoint.answer(self.path, body), {})
        finally:
            with endpoint.lock:
                endpoint.at_once -= 1

    def fail(self, fault: Fault) -> None:
        self.endpoint.closing.wait(fault.silent)
        if fault.hangs_up:
            self.close_connection = True
        else:
            self.send(fault.status, fault.body, fault.headers)

    def send(self, status: int, body: Any, headers: dict[str, str]) -> None:
        content = (body if isinstance(body, str) else json.dumps(body)).encode()
        try:
            self.send_response(status)
            for name, value in {"content-type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except ConnectionError:  # a client that has stopped waiting
            self.close_connection = True
