"""The errors that a user can cause, each told in one line: what was given, what was expected, what to do."""


class StreamingVLMError(Exception):
    """Bad input or a bad setting; the message is one line and names the remedy."""


class ConfigError(StreamingVLMError):
    """A setting is out of range or contradicts another."""


class VideoError(StreamingVLMError):
    """A video cannot be opened or holds nothing to watch."""


class CheckpointError(StreamingVLMError):
    """A model folder or hub name cannot be loaded."""


class NonFiniteLossError(StreamingVLMError):
    """A loss is infinite or no number; the message names the examples that it came from."""


class DataError(StreamingVLMError):
    """Data for training cannot be read, prepared or written."""


class EndpointError(StreamingVLMError):
    """A language model behind an address does not answer, or not in the way it was asked to."""


class SnapshotError(StreamingVLMError):
    """A snapshot of a stream cannot be written, or not be taken up here."""


class EngineFull(StreamingVLMError):
    """An engine has no room for another stream, or for more of one."""


class ClosedError(StreamingVLMError):
    """A stream or an engine was closed; it takes nothing more."""
