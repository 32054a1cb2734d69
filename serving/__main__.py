"""Serves a model: `python -m serving [--model models/leukdetect.onnx]`; `--help` tells every setting."""

import re
import signal
import ssl
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import CliApp, SettingsError
from starlette.types import ASGIApp

from leukdetect.model_file import RefusedError
from leukdetect.registry import RegistryError
from serving import logs
from serving.app import application
from serving.request import connections, descriptors
from serving.request.auth import KeysError
from serving.settings import Settings
from serving.waiting import Waiting, may_come

_NO_FLAG = "error: {}: others see a flag in the process list; {} instead"
_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)  # scheme://user:password@


def main() -> None:
    for name, _, value in (flag.partition("=") for flag in sys.argv[1:]):
        if name == "--webhook-secret":
            sys.exit(_NO_FLAG.format("webhook_secret", "set LEUKDETECT_WEBHOOK_SECRET, or …_FILE,"))
        if _PASSWORD.match(value or name):
            sys.exit(_NO_FLAG.format("a password", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"))
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        sys.exit("error: " + "; ".join(_fault(item) for item in error.errors()))
    except SettingsError as error:  # of a list, which must be JSON
        sys.exit(f"error: {error}: it must be JSON" + (f" ({error.__cause__})" if error.__cause__ else ""))
    logs.configure()
    most, backlog = descriptors.allow_many()
    # uvicorn drains, then raises the signal again for whoever was there before: being stopped is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    if settings.tls_certificate and settings.tls_key:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_certificate, settings.tls_key)
        except OSError as error:  # a fault of TLS is one too
            sys.exit(f"error: {settings.tls_certificate} and {settings.tls_key} make no certificate: {error}")
    try:
        app: ASGIApp = application(settings)
    except KeysError as error:
        sys.exit(f"error: {error}")
    except (RegistryError, RefusedError) as error:
        if not may_come(settings):
            sys.exit(f"error: {error}")
        app = Waiting(settings, error)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # ours carries the request id
        server_header=False,
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=settings.drain_seconds,
        proxy_headers=False,  # the client's address is used for nothing
        loop="serving.request.handshakes:Loop",
        http=connections.Connection,
        ws="none",
        limit_concurrency=most,
        backlog=backlog,
        timeout_keep_alive=settings.keep_alive_seconds,
    )
    uvicorn.Server(config).run()


def _fault(item: ErrorDetails) -> str:
    """One line on one setting, or on several, which name themselves and include a secret's value."""
    name = ".".join(map(str, item["loc"]))
    if not name:
        return item["msg"]
    shown = "" if item["type"] == "empty" or "secret" in name else f" (it is {item['input']!r})"
    return f"{name}: {item['msg']}{shown}"


if __name__ == "__main__":
    main()
