"""One JSON object a line on stderr. Nothing of an upload is ever passed to a logger."""

import json
import logging
from datetime import UTC, datetime

from fastapi import Request

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message"}
_JSON = json.JSONEncoder(ensure_ascii=False, default=str)

log = logging.getLogger(__name__)


class JsonLines(logging.Formatter):
    """Formats a record, with whatever `extra` it was given, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return _JSON.encode(line)


def audit(request: Request, act: str, **fields: str | None) -> None:
    """Logs what somebody did to the server or its records; `key` is the name of whose key it was (None: no key)."""
    who = {"key": getattr(request.state, "key", None), "request_id": request.state.request_id}
    log.info("audit", extra={"audit": act} | who | fields)


def configure() -> None:
    """Sends every logger of the process through one JSON handler."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for chatty in ("alembic", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
