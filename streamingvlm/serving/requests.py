"""What clients may ask for: the shapes of their requests, each value with its range.

A session may ask for less than the operator's settings, never for more: the cache is allocated when a session opens,
so that a larger one would be memory taken from all others.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from streamingvlm.errors import ConfigError

MAX_TEXT_CHARACTERS = 8_000
LAST_TIME_S = 9_000_000.0
"""Three months: the longest stream that a session counts."""

Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


class Asked(BaseModel):
    """A part of a request; a name that it does not have is refused."""

    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """What was said, without what was left out."""
        return self.model_dump(exclude_none=True)


class CacheAsked(Asked):
    """How much is kept; each at most as the operator has it."""

    text_sink_tokens: int | None = Field(None, ge=0)
    text_window_tokens: int | None = Field(None, ge=0)
    vision_window_s: float | None = Field(None, ge=1)
    turn_window_s: float | None = Field(None, ge=1)


class SamplingAsked(Asked):
    """How tokens are chosen; ``max_new_tokens`` a second, at most as the operator has it."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.5, le=2)
    max_new_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0, lt=2**31)


class SourceAsked(Asked):
    """Where the frames come from: ``push`` for frames that are sent, else a file or an address that is allowed."""

    push: bool = False
    file: str | None = Field(None, min_length=1, max_length=1024)
    url: str | None = Field(None, min_length=1, max_length=2048)

    @model_validator(mode="after")
    def _one(self) -> "SourceAsked":
        if sum([self.push, self.file is not None, self.url is not None]) != 1:
            raise ValueError('give one of {"push": true}, {"file": "NAME"} and {"url": "ADDRESS"}')
        return self


class SessionAsked(Asked):
    """A session to be opened."""

    source: SourceAsked = Field(default_factory=lambda: SourceAsked(push=True))
    query: Text = ""
    previous_text: Text = ""
    lag: Literal["wait", "drop", "coalesce", "degrade"] | None = None
    cache: CacheAsked = Field(default_factory=CacheAsked)
    sampling: SamplingAsked = Field(default_factory=SamplingAsked)

    @field_validator("query", "previous_text")
    @classmethod
    def _readable(cls, text: str) -> str:
        return readable(text)


class InstructionAsked(Asked):
    """A new standing instruction."""

    query: Text

    _readable = field_validator("query")(staticmethod(lambda text: readable(text)))


class QuestionAsked(Asked):
    """A question in mid-stream."""

    question: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    max_new_tokens: int | None = Field(None, ge=1)

    _readable = field_validator("question")(staticmethod(lambda text: readable(text)))


class OfferAsked(Asked):
    """A browser's offer of WebRTC."""

    sdp: Annotated[str, Field(min_length=1, max_length=60_000)]
    type: Literal["offer"] = "offer"


def readable(text: str) -> str:
    """The text, unless it has half characters that no tokenizer reads."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("the text has half of a surrogate pair; send whole characters")
    return text


def check_no_more(asked: Mapping[str, Any], operators: Mapping[str, Any], group: str):
    """Raise ConfigError where more is asked for than the operator gives."""
    for name, value in asked.items():
        most = operators.get(name)
        is_size = name in _SIZES
        if is_size and most is not None and value > most:
            raise ConfigError(f"{group}.{name}={value:g} is more than this server gives; ask for {most:g} or less")


_SIZES = frozenset({"text_sink_tokens", "text_window_tokens", "vision_window_s", "turn_window_s", "max_new_tokens"})
