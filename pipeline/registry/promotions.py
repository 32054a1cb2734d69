"""The promotions log: who moved which alias to which version, when and why. It lives with the registered model.

Each line is a tag of the registered model: every clone that uses the registry has the same log, MLflow's page of the
model shows it, and two who write at once lose nothing. `register` copies it to reports/promotions.jsonl.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline import stage
from pipeline.registry import git

PROMOTIONS = Path("reports/promotions.jsonl")
PREFIX = "promotion."


def append(client: MlflowClient, name: str, alias: str, version: str, former: str | None, **more: Any) -> None:
    """Adds a line. `more`: what else is to be known, such as `why`."""
    now = datetime.now(UTC)
    line: dict[str, Any] = {"when": now.isoformat(timespec="seconds"), "who": git.who(), "name": name, "alias": alias}
    line |= {"version": version, "from_version": former, **more}
    key = f"{PREFIX}{now:%Y%m%dT%H%M%S.%f}.{alias}.{version}"
    client.set_registered_model_tag(name, key, json.dumps(line, ensure_ascii=False))


def read(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """All lines, oldest first."""
    tags = client.get_registered_model(name).tags
    return [json.loads(tags[key]) for key in sorted(tags) if key.startswith(PREFIX)]


def copy(client: MlflowClient, name: str) -> None:
    """Writes the log to reports/promotions.jsonl."""
    with stage.writing(PROMOTIONS) as path:
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in read(client, name)))
