"""A stand-in for vLLM's server around a real small model: its completions dialect, and its faults.

Fields, defaults and refusals are those of vLLM's own sources (entrypoints/openai/completion,
entrypoints/openai/models, sampling_params.py). The tokens come from transformers' `generate`, one
prompt at a time, so nothing here shares code with the engines under test.
"""

import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

DEFAULTS = {  # of a request that does not say
    "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
    "presence_penalty": 0.0, "frequency_penalty": 0.0,
}  # fmt: skip


class Weights:
    """A model and its adapters; `answer` is one completion."""

    def __init__(self, folder):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.folder = Path(folder)
        self.models = {None: AutoModelForCausalLM.from_pretrained(folder).eval()}
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.lock = threading.Lock()  # one random state

    def load_adapter(self, name, folder):
        import peft
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.folder)
        self.models[name] = peft.PeftModel.from_pretrained(base, folder).eval()

    def answer(self, prompt, adapter, *, max_tokens, stop_token_ids, ignore_eos, seed, **how):
        """-> (token ids with the stop token, their log-probabilities)."""
        assert how["presence_penalty"] == how["frequency_penalty"] == 0
        stops = [*stop_token_ids, *([] if ignore_eos else [self.tokenizer.eos_token_id])]
        filters = {k: how[k] for k in ("temperature", "top_p", "top_k", "min_p")}
        with self.lock:
            torch.manual_seed(seed or 0)
            done = self.models[adapter].generate(
                torch.tensor([prompt]),
                max_new_tokens=max_tokens,
                eos_token_id=stops or None,
                pad_token_id=0,
                repetition_penalty=float(how["repetition_penalty"]),
                **({"do_sample": True, **filters} if how["temperature"] else {"do_sample": False}),
                return_dict_in_generate=True,
                output_logits=True,
            )
        ids = done.sequences[0, len(prompt) :].tolist()
        steps = [logits[0].log_softmax(-1) for logits in done.logits]
        return ids, [step[token].item() for step, token in zip(steps, ids, strict=True)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def reply(self, status, content, **headers):
        body = content if isinstance(content, str) else json.dumps(content)
        self.send_response(status)
        for name, value in {"Content-Length": len(body.encode()), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body.encode())

    def refuse(self, status, message):
        # Without this header the client waits for half a second and longer, as it should.
        error = {"error": {"message": message, "code": status}}
        self.reply(status, error, **{"retry-after-ms": 1})

    def do_GET(self):
        server = self.server
        cards = [{"id": server.name, "object": "model", "max_model_len": server.max_model_len}]
        cards += [{"id": n, "object": "model", "parent": server.name} for n in server.adapters]
        self.reply(200, {"object": "list", "data": cards})

    def do_POST(self):
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.seen.append((self.path, request, self.headers.get("Authorization")))
        if self.path == "/v1/load_lora_adapter":
            if not server.allow_adapters:
                return self.refuse(404, "Not Found")
            server.weights.load_adapter(request["lora_name"], request["lora_path"])
            server.adapters.append(request["lora_name"])
            return self.reply(200, f"Success: LoRA adapter '{request['lora_name']}' added.")
        if self.path == "/v1/unload_lora_adapter":
            server.adapters.remove(request["lora_name"])
            return self.reply(200, "Success")
        fault = server.faults.pop(0) if server.faults else None
        if fault == "drop":
            self.close_connection = True
            return self.connection.shutdown(socket.SHUT_RDWR)
        if fault == "slow":  # until others have been served
            server.served_two.wait(30)
        elif fault:
            return self.refuse(fault, f"injected {fault}")
        if request["model"] not in (server.name, *server.adapters):
            return self.refuse(404, f"The model `{request['model']}` does not exist.")
        prompt = request["prompt"]
        prompt = server.weights.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        prompt = [*server.prefix, *prompt]
        how = {key: default if request.get(key) is None else request[key]
               for key, default in {**DEFAULTS, **server.defaults}.items()}  # fmt: skip
        room = min(request.get("max_tokens", 16), server.max_model_len - len(prompt))
        adapter = request["model"] if request["model"] != server.name else None
        ids, logprobs = server.weights.answer(
            prompt,
            adapter if server.apply_adapters else None,
            max_tokens=room,
            stop_token_ids=request.get("stop_token_ids") or [],
            ignore_eos=request.get("ignore_eos", False),
            seed=request.get("seed"),
            **how,
        )
        stopped = ids[-1] in (
            request.get("stop_token_ids") or [server.weights.tokenizer.eos_token_id]
        )
        ids = ids[:-1] if stopped and server.drops_stops else ids
        asked = request.get("return_token_ids") and server.gives_ids
        choice = {
            "index": 0,
            "text": server.weights.tokenizer.decode(ids, skip_special_tokens=True),
            "finish_reason": "stop" if stopped else "length",
            "logprobs": None if request.get("logprobs") is None else {"token_logprobs": logprobs},
            "token_ids": ids if asked else None,
            "prompt_token_ids": prompt if asked else None,
        }
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids), "total_tokens": 0}
        answer = {"id": "x", "object": "text_completion", "created": 0, "model": request["model"]}
        self.reply(200, {**answer, "choices": [choice], "usage": usage})
        server.answered += 1
        if server.answered >= 2:
            server.served_two.set()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, weights: Weights, name: str):
        super().__init__(("127.0.0.1", 0), Handler)
        self.weights, self.name = weights, name
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.be_well()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def be_well(self):
        """No faults, and nothing remembered."""
        self.faults, self.seen, self.adapters, self.prefix, self.defaults = [], [], [], [], {}
        self.max_model_len, self.answered, self.served_two = 512, 0, threading.Event()
        self.allow_adapters = self.apply_adapters = self.gives_ids = True
        self.drops_stops = False

    def handle_error(self, request, address):
        pass  # a connection that was dropped on purpose
