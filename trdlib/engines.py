"""Who samples: four engines behind one `complete`, chosen by `models.engine`.

- `transformers`: the decode loop of generate.py on a model in this process. The default.
- `vllm`: vLLM's offline `LLM`, adapters swapped in per request.
- `unsloth`: the same engine, loaded by Unsloth (fast inference: one copy of the weights).
- `openai`: a server, `vllm serve` or `transformers serve`; no weights are loaded here.

All take prompts and return responses as token ids: the design's rule is to train on the sampled
ids, never on re-encoded text. vLLM's server returns ids, and the prompt's ids as it saw them, which
are compared with ours. `transformers serve` knows only text. Its responses are encoded again, those
that come out otherwise are counted, and they are for evaluation only: where ids would be trained
on, it is refused.

Every row has a random seed of its own. The same seed gives the same samples as far as the engine
keeps that promise: vLLM is not batch-invariant, so there another batch may give others.

Of a server it is checked that it serves a model of the wanted name and that prompts, stop tokens
and budgets come back as asked for, and of an adapter that it changes what the model says. It cannot
be checked which weights stand behind a name (their commit, precision, quantisation), nor how the
server samples. `transformers serve` takes the commit as part of the name.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import os
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from trdlib import config, generate, models
from trdlib.generate import Completion

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be built for


def identity(settings: config.Models) -> list:
    """What of an engine shapes samples, for fingerprints: no address, no key, no other engine."""
    kind = settings.engine
    weights = [settings.backend, settings.dtype, settings.load_in_4bit]
    if kind == "transformers":
        return [kind, *weights, config.code_hash(generate)]
    _check_packages(kind)
    code = config.code_hash(generate, row_seeds, completion, *_ENGINES[kind].__mro__[:-1])
    version = None if kind == "openai" else importlib.metadata.version("vllm")
    return [kind, *weights, code, version]


def _check_packages(kind: str) -> None:
    missing = [name for name in config.ENGINES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise config.SettingsError(
            f"the engine {kind} needs the package {missing[0]}: {config.ENGINE_INSTALL[kind]}, or "
            "set models.engine to transformers"
        )


def check(settings: config.Models) -> None:
    """SettingsError if the engine cannot run here; nothing is loaded or imported."""
    kind = settings.engine
    _check_packages(kind)
    if kind in ("vllm", "unsloth") and not torch.cuda.is_available():
        raise config.SettingsError(
            f"the engine {kind} needs a GPU and there is none: set models.engine to transformers, "
            "or to openai and serve the model elsewhere"
        )
    if kind != "openai":  # a server's weights are not loaded here
        models.check_4bit(settings)


def row_seeds(seed: int, rows: int) -> list[int]:
    """A seed for each row of a batch, of 31 bits: every engine takes those."""
    return [random.Random(f"{seed}/{row}").getrandbits(31) for row in range(rows)]


def completion(ids, budget: int, stop_ids: list[int], who: str) -> Completion:
    """The response, if it is one: it ends with its first stop token, or fills the budget."""
    ids = list(ids)
    ends = [token in stop_ids for token in ids]
    if not ids or any(ends[:-1]) or not (ends[-1] or len(ids) == budget):
        raise RuntimeError(
            f"{who} returned {len(ids)} tokens that neither end with their first stop token nor "
            f"fill the budget of {budget}: raise its context length (max_model_len), and let it "
            "return stop tokens"
        )
    return Completion(ids, ends[-1])


def check_adapter(without: list[float], with_it: list[float], folder: Path) -> None:
    """RuntimeError if the adapter changes nothing; both: log-probabilities of a greedy answer."""
    if without == with_it:
        raise RuntimeError(
            f"the adapter {folder} changes nothing in what the engine says: it was not applied, or "
            "not trained"
        )


def _probe_prompt(tokenizer) -> list[int]:
    """Shorter than a block of vLLM's prefix cache: asked twice, it is computed in the same way."""
    return tokenizer.encode("1+1=", add_special_tokens=False)


class Transformers:
    """The decode loop of generate.py. An adapter is merged, but not into 4 bits: that rounds."""

    swaps, exact = False, True

    def __init__(self, run: config.Run, name: str):
        self.model, self.tokenizer = models.load(name, run)
        self.stop_ids = models.stop_ids(self.model.generation_config, self.tokenizer)
        self.merge = not run.settings.models.load_in_4bit

    def use(self, adapter: Path | None) -> None:
        if adapter:
            self.model = models.with_adapter(self.model, adapter, merge=self.merge)

    def complete(self, prompts: list[list[int]], **how) -> list[Completion]:
        return generate.decode(self.model, prompts, stop_ids=self.stop_ids, **how)

    def close(self) -> None:
        del self.model
        if torch.cuda.is_available():
            gc.collect()
            torch.cuda.empty_cache()


class Vllm:
    """vLLM in this process (written for 0.31)."""

    swaps, exact = True, True

    def __init__(self, run: config.Run, name: str):
        self.tokenizer = models.load_tokenizer(name)
        self.stop_ids = models.stop_ids(models.generation_config(name), self.tokenizer)
        self.lora, self.adapters = None, {}
        self.llm = self.load(run, name)

    def load(self, run: config.Run, name: str):
        from vllm import LLM

        where, how = models.source(name), run.settings.models
        return LLM(
            model=where["pretrained_model_name_or_path"],
            revision=where.get("revision"),
            tokenizer_revision=where.get("revision"),
            dtype=how.dtype,
            quantization="bitsandbytes" if how.load_in_4bit else None,
            load_format="bitsandbytes" if how.load_in_4bit else "safetensors",
            max_model_len=run.context_length,
            gpu_memory_utilization=how.gpu_share,
            enable_lora=True,
            max_loras=1,
            max_lora_rank=_rank(run),
            generation_config="vllm",  # no sampling defaults from the model's folder
            trust_remote_code=False,
        )

    def request(self, adapter: Path):
        """What makes vLLM apply an adapter; known by its weights, not by its folder."""
        from vllm.lora.request import LoRARequest

        known = config.weights_hash(adapter)
        number = self.adapters.setdefault(known, len(self.adapters) + 1)
        return LoRARequest(lora_name=known, lora_int_id=number, lora_path=str(adapter.absolute()))

    def use(self, adapter: Path | None) -> None:
        """Sample with this adapter from now on."""
        lora = self.request(adapter) if adapter else None
        if lora is not None:
            check_adapter(self._logprobs(None), self._logprobs(lora), adapter)
        self.lora = lora

    def _logprobs(self, lora) -> list[float]:
        from vllm import SamplingParams

        prompt = {"prompt_token_ids": _probe_prompt(self.tokenizer)}
        greedy = SamplingParams(temperature=0, max_tokens=16, logprobs=0, ignore_eos=True)
        done = self.llm.generate([prompt], greedy, use_tqdm=False, lora_request=lora)
        answer = done[0].outputs[0]
        steps = zip(answer.token_ids, answer.logprobs, strict=True)
        return [logprobs[token].logprob for token, logprobs in steps]

    def complete(
        self, prompts: list[list[int]], *, max_new_tokens, temperature, top_p, top_k, seed
    ):
        from vllm import SamplingParams

        how = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                max_tokens=max_new_tokens,
                stop_token_ids=self.stop_ids,
                ignore_eos=True,  # it is among ours, which count
                seed=row,
                detokenize=False,
            )
            for row in row_seeds(seed, len(prompts))
        ]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        done = self.llm.generate(asked, how, use_tqdm=False, lora_request=self.lora)
        budget = max_new_tokens
        return [completion(d.outputs[0].token_ids, budget, self.stop_ids, "vLLM") for d in done]

    def close(self) -> None:
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()
        torch.cuda.empty_cache()


class Unsloth(Vllm):
    """vLLM as Unsloth builds it (fast inference)."""

    def load(self, run: config.Run, name: str):
        import unsloth  # before transformers: it patches it

        where, how = models.source(name), run.settings.models
        folder = where["pretrained_model_name_or_path"]
        if "revision" in where:  # fast inference ignores a revision: give it the files
            from huggingface_hub import snapshot_download

            folder = snapshot_download(folder, revision=where["revision"])
        self.model, _ = unsloth.FastLanguageModel.from_pretrained(
            folder,
            max_seq_length=run.context_length,
            dtype=getattr(torch, how.dtype),
            load_in_4bit=how.load_in_4bit,
            fast_inference=True,
            max_lora_rank=_rank(run),
            gpu_memory_utilization=how.gpu_share,
            use_exact_model_name=True,  # else it may load a copy of its own
            trust_remote_code=False,
        )
        if not hasattr(self.model, "vllm_engine"):  # it would go on without
            raise RuntimeError("Unsloth did not start vLLM: see its messages, or choose an engine")
        return self.model.vllm_engine

    def request(self, adapter: Path):
        from unsloth_zoo.vllm_utils import load_lora

        return load_lora(self.model, str(adapter.absolute()))

    def close(self) -> None:
        from unsloth_zoo.vllm_utils import delete_vllm

        llm = self.llm
        del self.model, self.llm
        delete_vllm(llm)


def _rank(run: config.Run) -> int:
    fitting = [rank for rank in LORA_RANKS if rank >= run.settings.lora.r]
    if not fitting:
        raise config.SettingsError(f"vLLM takes adapters up to lora.r = {LORA_RANKS[-1]}: lower it")
    return fitting[0]


class OpenAI:
    """A server. `exact`: it speaks of token ids (vLLM's dialect), not of text alone."""

    swaps = True

    def __init__(self, run: config.Run, name: str):
        import openai

        self.settings, self.name = run.settings.models.server, name
        self.tokenizer = models.load_tokenizer(name)
        self.stop_ids = models.stop_ids(models.generation_config(name), self.tokenizer)
        student = any(name == run.model_path("student", seed) for seed in run.settings.seeds)
        self.url = (not student and self.settings.teacher_url) or self.settings.url
        self.client = openai.OpenAI(
            base_url=self.url,
            api_key=os.environ.get(self.settings.key) or "none",
            max_retries=self.settings.retries,
            timeout=self.settings.timeout,
        )
        self.lora, self.loaded, self.recoded = None, [], 0
        self.served, self.context = name, None
        self.exact = self._speaks_ids()

    def _call(self, function, **request):
        """The server's answer; RuntimeError with its words. The client tries again by itself."""
        import openai

        try:
            return function(**request)
        except openai.APIStatusError as error:
            raise RuntimeError(f"the server {self.url} refused: {error.message}") from error
        except openai.APIConnectionError as error:
            raise RuntimeError(
                f"no answer from {self.url} in {self.settings.retries + 1} tries "
                f"({error.__cause__ or error}): start the server, or set models.server"
            ) from error

    def _ask(self, **request):
        """(choice, usage) of one completion."""
        model = self.lora or self.served
        done = self._call(self.client.completions.create, model=model, **request)
        return done.choices[0], done.usage

    def _cards(self) -> dict:
        """What the server says it serves, by name; a server may be silent about it."""
        try:
            return {card.id: card for card in self._call(self.client.models.list)}
        except RuntimeError as error:
            if _status(error) is None:  # no answer at all
                raise
            return {}

    def _speaks_ids(self) -> bool:
        """Find the model on the server, and the language in which to ask for it."""
        cards, prompt = self._cards(), _probe_prompt(self.tokenizer)
        names = (self.name, self.name.partition("@")[0], str(config.root() / self.name))
        self.served = next((name for name in names if name in cards), self.name)
        self.context = getattr(cards.get(self.served), "max_model_len", None)
        probe = {"max_tokens": 1, "temperature": 0}
        try:
            choice, _ = self._ask(prompt=prompt, **probe, extra_body={"return_token_ids": True})
            if getattr(choice, "token_ids", None) is not None:
                return True
        except RuntimeError as error:
            if _status(error) == 404:
                raise config.SettingsError(self._not_served(cards)) from error
            if _status(error) not in (400, 422):
                raise
        self.served = self.name  # with its commit: transformers serve loads what it is asked for
        how = json.dumps({"max_new_tokens": 1})
        try:
            _, usage = self._ask(
                prompt=self.tokenizer.decode(prompt), extra_body={"generation_config": how}
            )
        except RuntimeError as error:
            raise config.SettingsError(f"{self._not_served(cards)} ({error})") from error
        if usage is None or usage.completion_tokens != 1:
            raise config.SettingsError(
                f"the server {self.url} returns no token ids and takes no generation_config: use "
                "`vllm serve` or `transformers serve`"
            )
        return False

    def _not_served(self, cards: dict) -> str:
        repo, _, commit = self.name.partition("@")
        revision = f" --revision {commit}" if commit else ""
        said = ", ".join(cards) or "none"
        return (
            f"the server {self.url} does not serve {self.name} (it names {said}): start it with "
            f"`vllm serve {repo}{revision}`"
        )

    def use(self, adapter: Path | None) -> None:
        """Sample with this adapter from now on; the server is made to load it if it has not."""
        self.lora = None
        if adapter is None:
            return
        if not self.exact:
            raise config.SettingsError(
                f"the server {self.url} (transformers serve) cannot apply an adapter: use `vllm "
                "serve --enable-lora`, or set models.engine to transformers"
            )
        without, name = self._logprobs(), f"trd-{config.weights_hash(adapter)}"
        if name not in self._cards():
            body = {"lora_name": name, "lora_path": str(adapter.absolute())}
            try:
                self._call(self.client.post, path="/load_lora_adapter", cast_to=str, body=body)
            except RuntimeError as error:
                rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
                raise RuntimeError(
                    f"the server {self.url} cannot load the adapter {adapter}: start it with "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True and --enable-lora --max-lora-rank "
                    f"{rank} where it can read that folder, or with --lora-modules {name}=FOLDER "
                    f"({error})"
                ) from error
            self.loaded.append(name)
        self.lora = name
        check_adapter(without, self._logprobs(), adapter)

    def _logprobs(self) -> list[float]:
        choice, _ = self._ask(
            prompt=_probe_prompt(self.tokenizer), max_tokens=16, temperature=0, logprobs=0,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        return choice.logprobs.token_logprobs

    def complete(self, prompts: list[list[int]], *, seed: int, **how) -> list[Completion]:
        need = max(map(len, prompts)) + how["max_new_tokens"]
        if self.context is not None and need > self.context:
            raise config.SettingsError(
                f"the server {self.url} has room for {self.context} tokens and {need} are needed: "
                f"start it with --max-model-len {need}"
            )
        one = self._by_ids if self.exact else self._by_text
        # transformers serve has one random state: two requests at a time would share it
        pool = ThreadPoolExecutor(self.settings.concurrency if self.exact else 1)
        try:
            seeds = row_seeds(seed, len(prompts))
            return list(pool.map(lambda prompt, row: one(prompt, row, **how), prompts, seeds))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _by_ids(self, prompt, seed, *, max_new_tokens, temperature, top_p, top_k) -> Completion:
        choice, _ = self._ask(
            prompt=prompt,
            max_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            presence_penalty=0,
            frequency_penalty=0,
            extra_body={  # all of it: what is left out, vLLM takes from the model's folder
                "top_k": top_k,
                "min_p": 0,
                "repetition_penalty": 1,
                "stop_token_ids": self.stop_ids,
                "ignore_eos": True,  # it is among ours, which count
                "return_token_ids": True,
            },
        )
        seen = choice.prompt_token_ids
        if seen != prompt:
            raise RuntimeError(
                f"the server {self.url} saw other prompt tokens ({len(seen)}) than were sent "
                f"({len(prompt)}): it cut them, or added to them"
            )
        return completion(choice.token_ids, max_new_tokens, self.stop_ids, f"the server {self.url}")

    def _by_text(self, prompt, seed, *, max_new_tokens, temperature, top_p, top_k) -> Completion:
        """A response that ends with its very last token allowed counts as unfinished: the server
        does not tell the two apart."""
        text = self.tokenizer.decode(prompt)
        if self.tokenizer(text)["input_ids"] != prompt:
            raise RuntimeError(
                f"a prompt is not the same after decoding and encoding, and {self.url} takes text "
                "only: use `vllm serve`"
            )
        filters = {"temperature": temperature, "top_p": top_p, "top_k": top_k}
        how = {"max_new_tokens": max_new_tokens, "eos_token_id": self.stop_ids}
        how |= {"do_sample": True, **filters} if temperature else {"do_sample": False}
        choice, usage = self._ask(
            prompt=text, seed=seed, extra_body={"generation_config": json.dumps(how)}
        )
        if usage.prompt_tokens != len(prompt):
            raise RuntimeError(f"the server {self.url} encodes a prompt to other tokens than we do")
        ids = self.tokenizer.encode(choice.text, add_special_tokens=False)
        finished = choice.finish_reason == "stop"
        if finished and not (ids and ids[-1] in self.stop_ids):
            ids.append(self.tokenizer.eos_token_id)  # special tokens are not in the text
        same = self.tokenizer.decode(ids, skip_special_tokens=True) == choice.text
        self.recoded += not (same and len(ids) == usage.completion_tokens)
        return Completion(ids, finished)

    def close(self) -> None:
        if self.recoded:
            warnings.warn(
                f"{self.recoded} responses of {self.url}, encoded again, are not the tokens that "
                "were sampled: only their text is used",
                stacklevel=2,
            )
        once = self.client.with_options(max_retries=0)
        for name in self.loaded:
            with contextlib.suppress(RuntimeError):  # a server that has gone has none of it
                body = {"lora_name": name}
                self._call(once.post, path="/unload_lora_adapter", cast_to=str, body=body)
        self.client.close()


def _status(error: RuntimeError) -> int | None:
    """The HTTP status behind an error of OpenAI._call; None: there was no answer."""
    return getattr(error.__cause__, "status_code", None)


_ENGINES = {"transformers": Transformers, "vllm": Vllm, "unsloth": Unsloth, "openai": OpenAI}
_held = {"depth": 0, "key": None, "engine": None}


def _release() -> None:
    engine, _held["engine"] = _held["engine"], None
    if engine is not None:
        engine.close()


@contextlib.contextmanager
def kept():
    """Within, an engine that can swap adapters stays loaded from one use to the next.

    One engine at most, and none after the last `kept`: training finds the GPU empty.
    """
    _held["depth"] += 1
    try:
        yield
    finally:
        _held["depth"] -= 1
        if not _held["depth"]:
            _release()


@contextlib.contextmanager
def opened(run: config.Run, name: str, adapter: Path | None = None, *, exact: bool = True):
    """The run's engine with these weights and this adapter: complete(), tokenizer.

    exact: the token ids are needed as they were sampled (to train on them).
    """
    key = (name, run.settings.models, run.context_length)
    if _held["engine"] is not None and _held["key"] != key:
        _release()
    if _held["engine"] is None:
        check(run.settings.models)
        _held.update(key=key, engine=_ENGINES[run.settings.models.engine](run, name))
    engine = _held["engine"]
    try:
        if exact and not engine.exact:
            raise config.SettingsError(
                f"the server {engine.url} returns text without token ids, and these responses are "
                "trained on: use `vllm serve`; for evaluation alone it would do"
            )
        engine.use(adapter)
        yield engine
    except BaseException:
        _release()
        raise
    if not (engine.swaps and _held["depth"]):
        _release()
