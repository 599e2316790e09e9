"""A language model behind an address that speaks OpenAI's chat protocol: a hosted one, vLLM, SGLang, llama.cpp.

Every answer that could be used is kept on disk by the content of its question, so that a run that was broken off, or is
repeated, asks nothing twice. Delays, refusals for a while (429, 5xx) and cut connections are tried again.
"""

import base64
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from streamingvlm.atomic import write_json
from streamingvlm.config import above, at_least
from streamingvlm.errors import ConfigError, EndpointError

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

Part = Mapping[str, Any]
"""A piece of a message that is not text alone, as OpenAI's protocol writes it."""

CHARACTERS_PER_TOKEN = 4
"""Of English prose, for estimates; the endpoint's own tokenizer is not at hand."""

_JPEG_URL = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class EndpointConfig:
    """Which model answers, and how patiently it is asked.

    base_url: null stands for OpenAI's own. api_key_env: the environment variable that holds the key; null sends none.
    timeout_s: for one answer. max_retries: of one request, with growing pauses. max_attempts: answers that cannot be
        used before one gives up. num_parallel: requests at a time.
    usd_per_million_in, usd_per_million_out: what tokens cost; null where nobody knows.
    """

    model: str
    base_url: str | None = None
    api_key_env: str | None = "OPENAI_API_KEY"
    timeout_s: float = 120.0
    max_retries: int = 6
    max_attempts: int = 3
    num_parallel: int = 8
    temperature: float | None = 0.0
    token_limit_name: str | None = "max_tokens"
    usd_per_million_in: float | None = None
    usd_per_million_out: float | None = None

    def __post_init__(self):
        if not self.model:
            raise ConfigError("endpoint.model is empty; give the name under which the endpoint serves its model")
        above("endpoint.timeout_s", self.timeout_s, 0, "seconds for an answer")
        at_least("endpoint.max_retries", self.max_retries, 0, "0 tries once")
        at_least("endpoint.max_attempts", self.max_attempts, 1, "answers asked for")
        at_least("endpoint.num_parallel", self.num_parallel, 1, "requests at a time")

    def cost_usd(self, num_tokens_in: int, num_tokens_out: int) -> float | None:
        """What so many tokens cost, None where a price is not given."""
        if self.usd_per_million_in is None or self.usd_per_million_out is None:
            return None
        return (num_tokens_in * self.usd_per_million_in + num_tokens_out * self.usd_per_million_out) / 1e6


@dataclass(frozen=True)
class Request:
    """A question: all that decides about the answer, which is what is sent, and nothing else."""

    body: Mapping[str, Any]

    @property
    def num_characters(self) -> int:
        """Of the text of all messages, images apart."""
        return sum(len(part["text"]) for part in self._parts() if part["type"] == "text")

    def digest(self) -> str:
        """A name for the question, the same wherever and whenever it is asked."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()

    def described(self) -> dict[str, Any]:
        """The body for people: of each image, what would take megabytes, the digest alone."""
        return {**self.body, "messages": [_described(message) for message in self.body["messages"]]}

    def _parts(self) -> Iterator[Part]:
        return chain.from_iterable(map(_parts, self.body["messages"]))


def text_part(text: str) -> Part:
    """Text beside images."""
    return {"type": "text", "text": text}


def image_part(jpeg: bytes) -> Part:
    """An image that travels in the request."""
    return {"type": "image_url", "image_url": {"url": _JPEG_URL + base64.b64encode(jpeg).decode()}}


def _parts(message: Mapping[str, Any]) -> Sequence[Part]:
    content = message["content"]
    return [text_part(content)] if isinstance(content, str) else content


def _described(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_digested(part) for part in message["content"]]}


def _digested(part: Part) -> Part:
    if part["type"] != "image_url":
        return part
    return {"type": "image_url", "sha256": hashlib.sha256(part["image_url"]["url"].encode()).hexdigest()}


@dataclass(frozen=True)
class CostEstimate:
    """What is about to be asked; answers that are kept already cost nothing.

    purpose: what asks. cost_usd: None where no price is given.
    """

    purpose: str
    num_requests: int
    num_cached: int
    num_tokens_in: int
    num_tokens_out: int
    cost_usd: float | None

    def __str__(self) -> str:
        cost = "no price is given" if self.cost_usd is None else f"about {self.cost_usd:,.2f} USD"
        return (
            f"{self.purpose} will ask {self.num_requests:,} times ({self.num_cached:,} answers are kept already), "
            f"about {self.num_tokens_in:,} tokens in and {self.num_tokens_out:,} out: {cost}"
        )


@dataclass
class Usage:
    """What was asked, and what the endpoint says it counted."""

    num_requests: int = 0
    num_cached: int = 0
    num_malformed: int = 0
    num_tokens_in: int = 0
    num_tokens_out: int = 0


class AnswerCache:
    """Answers on disk, a small JSON file each, whole or not there at all; shared by any number of processes."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, request: Request) -> str | None:
        """Return the answer to a request; None where there is none that can be read."""
        try:
            return json.loads(self._path(request).read_text("utf-8"))["answer"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, request: Request, answer: str):
        """Keep an answer; EndpointError where the disk does not take it."""
        try:
            write_json(self._path(request), {"request": request.described(), "answer": answer})
        except OSError as error:
            raise EndpointError(f"{self.folder} cannot keep answers ({error.strerror}); make room there") from error

    def _path(self, request: Request) -> Path:
        name = request.digest()
        return self.folder / name[:2] / f"{name}.json"


class ChatEndpoint:
    """Asks a model, keeps its answers and counts; may be used from many threads.

    Raises ConfigError where the key's variable is not set, EndpointError where the client is not installed.
    """

    def __init__(self, config: EndpointConfig, cache_folder: str | Path):
        self.config = config
        self.cache = AnswerCache(cache_folder)
        self.usage = Usage()
        self._key = _api_key(config.api_key_env)
        self._client = _client(config, self._key)
        self._lock = threading.Lock()

    def request(self, messages: Sequence[tuple[str, str | Sequence[Part]]], *, max_tokens: int) -> Request:
        """A question of (role, content) messages to the endpoint's model; content is a text, or parts with images."""
        body = {
            "model": self.config.model,
            "messages": [{"role": role, "content": content} for role, content in messages],
            "temperature": self.config.temperature,
            self.config.token_limit_name: max_tokens,
        }
        return Request({name: value for name, value in body.items() if name and value is not None})

    def ask(self, request: Request, read: Callable[[str], Answer]) -> Answer | None:
        """Return what ``read`` makes of the answer; None where no answer of ``max_attempts`` could be read.

        ``read`` raises ValueError for an answer that is not what was asked for; such an answer is not kept. Raises
        EndpointError where the endpoint refuses, or cannot be reached after all retries.
        """
        kept = self.cache.get(request)
        if kept is not None:
            try:
                answer = read(kept)
            except ValueError:
                log.info("a kept answer cannot be read any more and is asked for again")
            else:
                self._count(num_cached=1)
                return answer
        for _ in range(self.config.max_attempts):
            text = self._answer(request)
            try:
                answer = read(text)
            except ValueError:
                self._count(num_malformed=1)
                continue
            self.cache.put(request, text)
            return answer
        return None

    def estimate(self, purpose: str, questions: Iterable[tuple[Request, int]]) -> CostEstimate:
        """Count what asking will take, of requests without images.

        questions: each with the number of tokens that its answer is likely to have.
        """
        num_requests = num_cached = num_in = num_out = 0
        for request, num_answer_tokens in questions:
            if self.cache.get(request) is not None:
                num_cached += 1
                continue
            num_requests += 1
            num_in += request.num_characters // CHARACTERS_PER_TOKEN
            num_out += num_answer_tokens
        cost_usd = self.config.cost_usd(num_in, num_out)
        return CostEstimate(purpose, num_requests, num_cached, num_in, num_out, cost_usd)

    def _answer(self, request: Request) -> str:
        """The text of an answer, "" for what is no chat completion."""
        import openai

        self._count(num_requests=1)
        try:
            completion = self._client.chat.completions.create(**request.body)
        except openai.APIStatusError as error:
            raise self._refused(f"answers {error.status_code}: {error.message}", error.status_code) from None
        except openai.APIConnectionError as error:
            raise self._refused(f"cannot be reached ({error.__cause__ or error})") from None
        except (openai.APIResponseValidationError, ValueError):
            return ""
        usage = getattr(completion, "usage", None)
        self._count(
            num_tokens_in=getattr(usage, "prompt_tokens", None) or 0,
            num_tokens_out=getattr(usage, "completion_tokens", None) or 0,
        )
        return _content(completion)

    def _refused(self, what: str, status: int | None = None) -> EndpointError:
        remedies = {
            401: f"set the key in {self.config.api_key_env}",
            403: f"set a key in {self.config.api_key_env} that may use the model",
            404: "check endpoint.model and endpoint.base_url",
        }
        remedy = remedies.get(status, "run the same command again later: answers so far are kept")
        what = what.replace(self._key, "***") if self._key else what
        return EndpointError(f"{self.config.base_url or 'api.openai.com'} {' '.join(what.split())[:300]}; {remedy}")

    def _count(self, **numbers: int):
        with self._lock:
            for name, number in numbers.items():
                setattr(self.usage, name, getattr(self.usage, name) + number)


def _content(completion: Any) -> str:
    """The client does not check what it was sent."""
    try:
        content = completion.choices[0].message.content
    except (AttributeError, IndexError, KeyError, TypeError):
        return ""
    return content if isinstance(content, str) else ""


def _api_key(variable: str | None) -> str:
    if variable is None:
        return ""
    if not (key := os.environ.get(variable, "").strip()):
        raise ConfigError(f"{variable} is not set; put the endpoint's key there, or say endpoint.api_key_env=null")
    return key


def _client(config: EndpointConfig, key: str):
    try:
        import openai
    except ImportError as error:
        raise EndpointError(
            'the client of OpenAI\'s protocol is missing; run: pip install "streamingvlm[llm]"'
        ) from error
    return openai.OpenAI(
        base_url=config.base_url,
        api_key=key or "none",
        timeout=config.timeout_s,
        max_retries=config.max_retries,
    )
