"""A server on loopback that speaks OpenAI's completions and chats with a real tiny model's true log-probabilities."""

import json

from judge_server import JudgeServer, send


class OpenAIServer(JudgeServer):
    """Serve the model in a folder.

    Args:
        folder: Of a model and its tokenizer.
        most: Top tokens that it gives; more are refused with 400, as vLLM does.
        bos: Token that it puts before a text of completions, as servers do for models that have one.
        strip: Show tokens without the blank that they begin with, as servers of SentencePiece models do.
        behave: Called first with the handler, the number of this prompt's attempt and the body; what it returns is not
            None where it has answered by itself.
    """

    def __init__(self, folder, most=20, bos=None, strip=False, behave=lambda *_: None, logprobs=True):
        super().__init__(self._reply)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.most, self.bos, self.strip, self.misbehave, self.logprobs = most, bos, strip, behave, logprobs

    def handle(self, handler):
        self.path = handler.path
        super().handle(handler)

    def _reply(self, handler, attempt, body):
        if self.misbehave(handler, attempt, body) is not None:
            return None
        chat = "messages" in body
        asked = body["top_logprobs"] if chat else body["logprobs"]
        if asked > self.most:
            return send(handler, 400, json.dumps({"error": {"message": f"at most {self.most} logprobs"}}))
        try:
            ids = self._ids(body)
        except Exception as error:
            return send(handler, 400, json.dumps({"error": {"message": str(error)}}))
        choice = self._choice(ids, asked, chat)
        usage = {"prompt_tokens": len(ids), "completion_tokens": 1, "total_tokens": len(ids) + 1}
        return {"id": "c", "created": 0, "model": body["model"], "choices": [choice], "usage": usage}

    def _ids(self, body):
        if "messages" in body:
            text = self.tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=True, **body.get("chat_template_kwargs", {})
            )
            return self.tokenizer(text)["input_ids"]
        return [*([self.bos] if self.bos is not None else []), *self.tokenizer(body["prompt"])["input_ids"]]

    def _choice(self, ids, asked, chat):
        import torch

        with torch.no_grad():
            logs = self.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        top = [
            (self._text(i), value)
            for value, i in zip(*(each.tolist() for each in logs.topk(min(asked, len(logs)))), strict=True)
        ]
        choice = {"index": 0, "finish_reason": "length", "logprobs": None}
        if chat:
            listed = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in top]
            content = [{**listed[0], "top_logprobs": listed}]
            choice["message"] = {"role": "assistant", "content": top[0][0]}
            return {**choice, "logprobs": {"content": content}} if self.logprobs else choice
        choice["text"] = top[0][0]
        shown = {"tokens": [top[0][0]], "token_logprobs": [top[0][1]], "top_logprobs": [dict(top)], "text_offset": [0]}
        return {**choice, "logprobs": shown} if self.logprobs else choice

    def _text(self, token):
        text = self.tokenizer.decode([token])
        return text.strip() if self.strip else text
