"""Errors that a user can cause. Each message is one line: what was found, what was expected, what to do."""


class StreamingVLMError(Exception):
    """Bad input or a bad setting. Base class of all errors in this module."""


class ConfigError(StreamingVLMError):
    """A setting is out of range or contradicts another."""


class VideoError(StreamingVLMError):
    """A video cannot be opened or has no frames."""


class CheckpointError(StreamingVLMError):
    """A model folder or hub name cannot be loaded."""


class NonFiniteLossError(StreamingVLMError):
    """A training loss is infinite or NaN; the message names the examples of the batch."""


class DataError(StreamingVLMError):
    """Training data cannot be read, prepared or written."""


class EndpointError(StreamingVLMError):
    """A language model endpoint does not answer, or refuses the request."""


class SnapshotError(StreamingVLMError):
    """A snapshot of a stream cannot be written, or cannot be restored here."""


class EngineFull(StreamingVLMError):
    """An engine has no memory for another stream, or for more tokens of one."""


class ClosedError(StreamingVLMError):
    """A stream or an engine was closed and takes no more input."""
