"""JSON logs: one object per line; the fields of ``extra`` become fields of the object.

A thread writes them, because a standard error that is not read would otherwise stop the event loop.
"""

import atexit
import io
import json
import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener

_MAX_WAITING = 10_000  # records
_FLUSH_S = 2.0
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, the fields of ``extra``, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of ASCII: line feeds and control characters of clients are escaped."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class DroppingQueueHandler(QueueHandler):
    """Queues records for a thread; drops those for which there is no room, and logs how many."""

    def __init__(self, max_waiting: int = _MAX_WAITING):
        super().__init__(queue.Queue(max_waiting))
        self._num_dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Return the record as it is; the thread formats it."""
        return record

    def enqueue(self, record: logging.LogRecord):
        """Add the record if there is room; handlers call this under their lock."""
        try:
            if self._num_dropped:
                told = {"levelno": logging.WARNING, "levelname": "WARNING", "name": __name__}
                lost = logging.makeLogRecord(told | {"msg": f"{self._num_dropped} log lines were dropped"})
                self.queue.put_nowait(lost)
                self._num_dropped = 0
            self.queue.put_nowait(record)
        except queue.Full:
            self._num_dropped += 1


class StderrWriter:
    """Writes records to standard error, without a lock for which the interpreter would wait when it ends."""

    def __init__(self):
        self._file = io.FileIO(sys.__stderr__.fileno(), "w", closefd=False)
        self._formatter = JsonFormatter()

    def handle(self, record: logging.LogRecord):
        """Write one line."""
        self._file.write(self._formatter.format(record).encode() + b"\n")


def log_json(level: str = "info"):
    """Send all logs of the process to standard error as JSON, without ever waiting for its reader."""
    handler = DroppingQueueHandler()
    listener = QueueListener(handler.queue, StderrWriter())  # type: ignore[arg-type] # it calls `handle` alone
    listener.start()
    atexit.register(_stop, listener)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for verbose in ("aioice", "aiortc", "websockets", "httpx"):
        logging.getLogger(verbose).setLevel(logging.WARNING)


def _stop(listener: QueueListener):
    """Write what waits, for a limited time."""
    stopping = threading.Thread(target=listener.stop, daemon=True)
    stopping.start()
    stopping.join(_FLUSH_S)
