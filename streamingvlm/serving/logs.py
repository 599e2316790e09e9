"""Logs as a line of JSON an event, for machines to read; the fields of ``extra`` are fields of the object."""

import json
import logging
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, whatever ``extra`` brought, and the traceback of an error."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON; a line feed in what somebody sent stays inside its string."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({name: value for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def log_json(level: str = "info"):
    """Send all logs of the process to standard error as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("aioice", "aiortc", "websockets", "httpx"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
