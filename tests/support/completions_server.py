"""A server on loopback that speaks OpenAI's completions with echoed log-probabilities, by a real tiny model."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def scored(model, ids):
    """Return a choice: log-probabilities of each token and of the most likely one in its place, and one more token."""
    import torch

    with torch.no_grad():
        logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    own = [None, *(logs[i, token].item() for i, token in enumerate(ids[1:])), logs[-1].max().item()]
    top = [None, *({"top": logs[i].max().item()} for i in range(len(ids)))]
    return {"text": "", "finish_reason": "length", "logprobs": {"token_logprobs": own, "top_logprobs": top}}


@contextmanager
def completions_server(folder):
    """Serve the model in a folder; yields the server's address and the list of the requests' bodies."""
    import torch
    from transformers import AutoModelForCausalLM

    model, bodies = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bodies.append(body)
            prompts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
            choices = [{**scored(model, ids), "index": i} for i, ids in enumerate(prompts)]
            data = json.dumps({"object": "text_completion", "choices": choices}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_port}/v1", bodies
    finally:
        http.shutdown()
        http.server_close()
