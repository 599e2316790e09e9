"""A client of OpenAI-compatible chat endpoints: hosted models, vLLM, SGLang, llama.cpp.

Every valid answer is cached on disk under a hash of its request, so that a run that is interrupted or repeated sends no
request twice. Timeouts, temporary errors (429, 5xx) and broken connections are retried.
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

ContentPart = Mapping[str, Any]
"""A text or an image in a message, in the form of OpenAI's protocol."""

CHARACTERS_PER_TOKEN = 4
"""For estimates of English text; the endpoint's own tokenizer is unknown."""

_ADAPTATIONS = {
    "max_tokens": ("max_completion_tokens", "sent as max_completion_tokens"),
    "temperature": (None, "left to the model"),
}
"""Parameters that newer models refuse: the name to send in their place (None: leave it out), and what to log."""

_JPEG_URL = "data:image/jpeg;base64,"


@dataclass(frozen=True)
class EndpointConfig:
    """The endpoint's address, model and limits.

    model: the name under which the endpoint serves the model.
    base_url: null is OpenAI's own.
    api_key_env: the environment variable with the key; null sends no key.
    timeout_s: seconds to wait for one answer.
    max_retries: retries of one request after temporary errors, with exponential backoff; 0 tries once.
    max_attempts: malformed answers to a request before it is given up.
    num_parallel: concurrent requests.
    temperature: null leaves it to the model.
    token_limit_name: the parameter that limits an answer's tokens: max_tokens or max_completion_tokens.
    usd_per_million_in, usd_per_million_out: price of a million tokens; null if unknown.
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
        at_least("endpoint.max_attempts", self.max_attempts, 1, "answers to try")
        at_least("endpoint.num_parallel", self.num_parallel, 1, "concurrent requests")

    def cost_usd(self, num_tokens_in: int, num_tokens_out: int) -> float | None:
        """Return the price of these tokens; None if a price is unknown."""
        if self.usd_per_million_in is None or self.usd_per_million_out is None:
            return None
        return (num_tokens_in * self.usd_per_million_in + num_tokens_out * self.usd_per_million_out) / 1e6


@dataclass(frozen=True)
class EndpointRequest:
    """The body of a chat completion request."""

    body: Mapping[str, Any]

    @property
    def num_characters(self) -> int:
        """Characters of text in all messages, without images."""
        return sum(len(part["text"]) for part in self._parts() if part["type"] == "text")

    def digest(self) -> str:
        """Return a hash of the body, the key of the answer cache."""
        return hashlib.sha256(json.dumps(self.body, sort_keys=True).encode()).hexdigest()

    def with_hashed_images(self) -> dict[str, Any]:
        """Return the body with a hash in place of each image, which would take megabytes."""
        return {**self.body, "messages": [_with_hashed_images(message) for message in self.body["messages"]]}

    def _parts(self) -> Iterator[ContentPart]:
        return chain.from_iterable(map(_parts, self.body["messages"]))


def text_part(text: str) -> ContentPart:
    """Make a text part, for a message with images."""
    return {"type": "text", "text": text}


def image_part(jpeg: bytes) -> ContentPart:
    """Make an image part that carries the image itself."""
    return {"type": "image_url", "image_url": {"url": _JPEG_URL + base64.b64encode(jpeg).decode()}}


def _parts(message: Mapping[str, Any]) -> Sequence[ContentPart]:
    content = message["content"]
    return [text_part(content)] if isinstance(content, str) else content


def _with_hashed_images(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(message["content"], str):
        return message
    return {**message, "content": [_hash_image(part) for part in message["content"]]}


def _hash_image(part: ContentPart) -> ContentPart:
    if part["type"] != "image_url":
        return part
    return {"type": "image_url", "sha256": hashlib.sha256(part["image_url"]["url"].encode()).hexdigest()}


@dataclass(frozen=True)
class CostEstimate:
    """The expected cost of a run; cached answers cost nothing.

    purpose: name of the run. cost_usd: None if a price is unknown.
    """

    purpose: str
    num_requests: int
    num_cached: int
    num_tokens_in: int
    num_tokens_out: int
    cost_usd: float | None

    def __str__(self) -> str:
        cost = "the price is unknown" if self.cost_usd is None else f"about {self.cost_usd:,.2f} USD"
        return (
            f"{self.purpose} will ask {self.num_requests:,} times ({self.num_cached:,} answers are kept already), "
            f"about {self.num_tokens_in:,} tokens in and {self.num_tokens_out:,} out: {cost}"
        )


@dataclass
class Usage:
    """Counters of a run; tokens as reported by the endpoint."""

    num_requests: int = 0
    num_cached: int = 0
    num_malformed: int = 0
    num_tokens_in: int = 0
    num_tokens_out: int = 0


class AnswerCache:
    """Answers on disk, one JSON file each, written atomically; any number of processes may share a folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def get(self, request: EndpointRequest) -> str | None:
        """Return the cached answer to a request; None if it is missing or unreadable."""
        try:
            return json.loads(self._path(request).read_text("utf-8"))["answer"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def put(self, request: EndpointRequest, answer: str):
        """Store an answer. Raises EndpointError if it cannot be written."""
        try:
            write_json(self._path(request), {"request": request.with_hashed_images(), "answer": answer})
        except OSError as error:
            raise EndpointError(
                f"answers cannot be written to {self.folder} ({error.strerror}); free some space there"
            ) from error

    def _path(self, request: EndpointRequest) -> Path:
        name = request.digest()
        return self.folder / name[:2] / f"{name}.json"


class ChatEndpoint:
    """Sends requests to a model, caches its answers and counts usage. Thread-safe.

    Raises ConfigError if the key's variable is not set, EndpointError if the client is not installed.
    """

    def __init__(self, config: EndpointConfig, cache_folder: str | Path):
        self.config = config
        self.cache = AnswerCache(cache_folder)
        self.usage = Usage()
        self._key = _api_key(config.api_key_env)
        self._client = _client(config, self._key)
        self._lock = threading.Lock()
        self._refused: set[str] = set()  # parameters that the model does not accept

    def request(
        self, messages: Sequence[tuple[str, str | Sequence[ContentPart]]], *, max_tokens: int
    ) -> EndpointRequest:
        """Build a request of (role, content) messages; content is a text, or a list of parts."""
        body = {
            "model": self.config.model,
            "messages": [{"role": role, "content": content} for role, content in messages],
            "temperature": self.config.temperature,
            self.config.token_limit_name: max_tokens,
        }
        return EndpointRequest({name: value for name, value in body.items() if name and value is not None})

    def ask(self, request: EndpointRequest, read: Callable[[str], Answer]) -> Answer | None:
        """Return ``read(answer)``; None if all of ``max_attempts`` answers are malformed.

        read: parses an answer and raises ValueError if it is malformed. Malformed answers are not cached.
        Raises EndpointError if the endpoint refuses the request, or cannot be reached after all retries.
        """
        cached = self.cache.get(request)
        if cached is not None:
            try:
                answer = read(cached)
            except ValueError:
                log.info("a cached answer is malformed; sending the request again")
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

    def estimate(self, purpose: str, questions: Iterable[tuple[EndpointRequest, int]]) -> CostEstimate:
        """Estimate the cost of requests without images.

        questions: each request with the expected number of tokens in its answer.
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

    def _answer(self, request: EndpointRequest) -> str:
        """Return the text of an answer; "" if it is not a chat completion."""
        import openai

        self._count(num_requests=1)
        try:
            completion = self._create(request.body)
        except openai.APIStatusError as error:
            raise self._error(f"answers {error.status_code}: {error.message}", error.status_code) from None
        except openai.APIConnectionError as error:
            raise self._error(f"cannot be reached ({error.__cause__ or error})") from None
        except (openai.APIResponseValidationError, ValueError):
            return ""
        usage = getattr(completion, "usage", None)
        self._count(
            num_tokens_in=getattr(usage, "prompt_tokens", None) or 0,
            num_tokens_out=getattr(usage, "completion_tokens", None) or 0,
        )
        return _content(completion)

    def _create(self, body: Mapping[str, Any]) -> Any:
        """Send a request; a parameter that the model refuses by name is replaced or left out from then on."""
        import openai

        while True:
            adapted = self._adapted(body)
            try:
                return self._client.chat.completions.create(**adapted)
            except openai.BadRequestError as error:
                name = _refused_parameter(error, adapted)
                if name is None:
                    raise
                log.warning("%s does not accept %s; it is %s", self.config.model, name, _ADAPTATIONS[name][1])
                with self._lock:
                    self._refused.add(name)

    def _adapted(self, body: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {name: _ADAPTATIONS[name][0] for name in self._refused}
        adapted = {renamed.get(name, name): value for name, value in body.items()}
        adapted.pop(None, None)
        return adapted

    def _error(self, reason: str, status: int | None = None) -> EndpointError:
        remedies = {
            400: "check the endpoint.* options that the message names; endpoint.temperature=null sends none",
            401: f"set the key in {self.config.api_key_env}",
            403: f"set a key in {self.config.api_key_env} that may use the model",
            404: "check endpoint.model and endpoint.base_url",
        }
        remedy = remedies.get(status, "run the same command again later: answers so far are kept")
        reason = reason.replace(self._key, "***") if self._key else reason
        return EndpointError(f"{self.config.base_url or 'api.openai.com'} {' '.join(reason.split())[:300]}; {remedy}")

    def _count(self, **numbers: int):
        with self._lock:
            for name, number in numbers.items():
                setattr(self.usage, name, getattr(self.usage, name) + number)


def _refused_parameter(error: Any, body: Mapping[str, Any]) -> str | None:
    """Return the parameter that a 400 names, if it can be replaced or left out."""
    named = getattr(error, "param", None)
    candidates = [named] if named else [name for name in _ADAPTATIONS if f"'{name}'" in str(error.message)]
    return next((name for name in candidates if name in _ADAPTATIONS and name in body), None)


def _content(completion: Any) -> str:
    """Return the text of a completion; "" if it has none. The client does not validate responses."""
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
        raise EndpointError('the package openai is not installed; pip install "streamingvlm[llm]"') from error
    return openai.OpenAI(
        base_url=config.base_url,
        api_key=key or "none",
        timeout=config.timeout_s,
        max_retries=config.max_retries,
    )
