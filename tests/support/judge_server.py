"""A judge on loopback: speaks OpenAI's chat completions with log-probabilities, and misbehaves on request."""

import contextlib
import hashlib
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def prefers(probability):
    """Log-probabilities of ``m`` (the answer shown first is better) and ``M``, and tokens that are no verdict."""
    import math

    values = {"m": math.log(probability), "M": math.log(1 - probability), "The": -9.0}
    return [{"token": token, "logprob": value, "bytes": None} for token, value in values.items()]


def completion(top, content=None, refusal=None):
    token = (
        {"token": top[0]["token"], "logprob": top[0]["logprob"], "bytes": None, "top_logprobs": top} if top else None
    )
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": content, "refusal": refusal},
        "logprobs": {"content": [token]} if token else None,
    }
    usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "j", "choices": [choice], "usage": usage}


class JudgeServer:
    """``behave(server, number_of_this_prompt's_attempt, body)`` returns a dict (sent as 200) or acts by itself.

    ``seen`` counts requests by prompt, ``answered`` those that got a whole reply of HTTP 200: what is paid for.
    """

    def __init__(self, behave=None, delay=0.0):
        self.behave = behave or (lambda server, attempt, body: self.verdict(body))
        self.delay = delay
        self.seen, self.answered, self.times, self.bodies, self.headers = {}, {}, {}, [], []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                outer.handle(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        # It looks as often whether it is to stop.
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()

    def handle(self, handler):
        raw = handler.rfile.read(int(handler.headers["content-length"]))
        body = json.loads(raw)
        prompt = hashlib.sha256(json.dumps(body.get("messages", body.get("prompt"))).encode()).hexdigest()
        with self.lock:
            attempt = self.seen[prompt] = self.seen.get(prompt, 0) + 1
            self.times.setdefault(prompt, []).append(time.monotonic())
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
        time.sleep(self.delay)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            reply = self.behave(handler, attempt, body)
            if reply is not None:
                send(handler, 200, json.dumps(reply))
                with self.lock:
                    self.answered[prompt] = self.answered.get(prompt, 0) + 1

    @staticmethod
    def verdict(body):
        """Prefers the longer of the two answers in AlpacaEval's prompt, with probability 0.8."""
        return completion(prefers(0.8 if first_is_longer(body) else 0.2), content="m")


def first_is_longer(body):
    """Test answers are runs of ``x``; which of the two in the prompt is longer."""
    text = json.dumps(body["messages"])
    runs = [len(run) for run in "".join(c if c == "x" else " " for c in text).split() if len(run) >= 20]
    return runs[0] > runs[1]


def send(handler, status, text, headers=()):
    data = text.encode()
    handler.send_response(status)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", str(len(data)))
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def cut(handler):
    """Promise a whole reply, send half of it and drop the connection."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("content-length", "4000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.wfile.flush()
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True
