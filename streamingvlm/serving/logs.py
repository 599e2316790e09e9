"""JSON logs: one object per line; the fields of ``extra`` become fields of the object."""

import json
import logging
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one JSON object: time, level, logger, message, the fields of ``extra``, and a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line; JSON escapes line feeds in client data, so no log entry can be forged."""
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
    for verbose in ("aioice", "aiortc", "websockets", "httpx"):
        logging.getLogger(verbose).setLevel(logging.WARNING)
