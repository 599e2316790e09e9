"""Request bodies of the session API, each value with its range.

A session may ask for less than the operator's settings, never for more: its cache is allocated when it opens, and a
larger one would take memory from all other sessions.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from streamingvlm.errors import ConfigError

MAX_TEXT_CHARACTERS = 8_000
MAX_TIME_S = 9_000_000.0
"""Three months: the longest stream time that a frame may have."""

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


class RequestBody(BaseModel):
    """Base of all request bodies: a null means that the field is absent, as at OpenAI."""

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, fields: Any) -> Any:
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields


class ApiRequest(RequestBody):
    """Base of the session API's request bodies; an unknown field is refused."""

    model_config = ConfigDict(extra="forbid")

    def overrides(self) -> dict[str, Any]:
        """Return the fields that the client has set."""
        return self.model_dump(exclude_none=True)


class CacheRequest(ApiRequest):
    """Windows of the cache; each at most the operator's."""

    text_sink_tokens: int | None = Field(None, ge=0)
    text_window_tokens: int | None = Field(None, ge=0)
    vision_window_s: float | None = Field(None, ge=1)
    turn_window_s: float | None = Field(None, ge=1)


class SamplingRequest(ApiRequest):
    """Sampling parameters; ``max_new_tokens``, per turn, is at most the operator's."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.5, le=2)
    max_new_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**31)


class SourceRequest(ApiRequest):
    """The source of the frames: ``push`` if the client sends them, otherwise an allowed file or address."""

    push: bool = False
    file: str | None = Field(None, min_length=1, max_length=1024)
    url: str | None = Field(None, min_length=1, max_length=2048)

    @model_validator(mode="after")
    def _exactly_one(self) -> "SourceRequest":
        if sum([self.push, self.file is not None, self.url is not None]) != 1:
            raise ValueError('give one of {"push": true}, {"file": "NAME"} and {"url": "ADDRESS"}')
        return self


class SessionRequest(ApiRequest):
    """A session to open."""

    source: SourceRequest = Field(default_factory=lambda: SourceRequest(push=True))
    query: Text = ""
    previous_text: Text = ""
    lag: Literal["wait", "drop", "coalesce", "degrade"] | None = None
    cache: CacheRequest = Field(default_factory=CacheRequest)
    sampling: SamplingRequest = Field(default_factory=SamplingRequest)

    @field_validator("query", "previous_text")
    @classmethod
    def _is_valid_unicode(cls, text: str) -> str:
        return check_unicode(text)


class QueryRequest(ApiRequest):
    """A new query for a running session."""

    query: Text

    _is_valid_unicode = field_validator("query")(staticmethod(lambda text: check_unicode(text)))


class QuestionRequest(ApiRequest):
    """A question about the stream."""

    question: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    max_new_tokens: int | None = Field(None, ge=1)

    _is_valid_unicode = field_validator("question")(staticmethod(lambda text: check_unicode(text)))


class WebRTCRequest(ApiRequest):
    """A browser's WebRTC offer."""

    sdp: Annotated[str, Field(min_length=1, max_length=60_000)]
    type: Literal["offer"] = "offer"


def check_unicode(text: str) -> str:
    """Return the text. Raises ValueError for an unpaired surrogate, which no tokenizer accepts."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the text has half of a surrogate pair; send whole characters")
    return text


def check_at_most(overrides: Mapping[str, Any], settings: Mapping[str, Any], group: str):
    """Raise ConfigError if a session asks for a larger window or more tokens than the operator's settings."""
    for name, value in overrides.items():
        most = settings.get(name)
        if name in _SIZES and most is not None and value > most:
            raise ConfigError(f"{group}.{name}={value:g} is more than this server gives; ask for {most:g} or less")


_SIZES = frozenset({"text_sink_tokens", "text_window_tokens", "vision_window_s", "turn_window_s", "max_new_tokens"})
