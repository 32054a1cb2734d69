"""Serves a model: `python -m serving [--model models/leukdetect.onnx]`; `--help` tells every setting."""

import logging
import signal
import sys

import uvicorn
from pydantic import ValidationError
from pydantic_settings import CliApp

from serving import logs
from serving.app import create_app
from serving.model import RefusedError
from serving.registry import RegistryError
from serving.settings import Settings
from serving.startup import start

log = logging.getLogger("serving")


def main() -> None:
    try:
        settings = CliApp.run(Settings)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, item['loc']))}: {item['msg']} (it is {item['input']!r})" for item in error.errors()
        ]
        sys.exit("error: " + "; ".join(faults))
    logs.configure()
    # uvicorn drains, then raises the signal again for whoever was there before: being stopped is no failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        begun = start(settings)
    except (RegistryError, RefusedError) as error:
        sys.exit(f"error: {error}")
    model = begun.model
    log.info(
        "model loaded",
        extra={"version": model.located.version, "precision": model.contract.precision, "sha256": model.sha256},
    )
    config = uvicorn.Config(
        create_app(settings, begun),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,  # ours carries the request id
        server_header=False,
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    uvicorn.Server(config).run()
    sys.exit(0)


if __name__ == "__main__":
    main()
