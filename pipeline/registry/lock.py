"""Whether dvc.lock and the champion belong together: code, data and models as locked, and that very model champion.

Reads:  dvc.lock, what `dvc status` says, the registry
Run:    python -m pipeline.registry.lock   (in a recipe's folder, of that recipe; exit 1: what differs)
"""

import json
import subprocess
from pathlib import Path

import yaml

from pipeline import params, stage
from pipeline.registry import tracking, versions
from pipeline.stage import Problem

LOCK = Path("dvc.lock")
ALWAYS = {"outside", "register"}  # they run each time: what they depend on is a folder elsewhere, and the registry


def main() -> None:
    name = params.load().register_.name
    tracking.check()
    with tracking.reachable():
        client = tracking.client()
        version = versions.aliases(client, name).get("champion")
        if version is None:
            raise Problem(f"{name} has no champion: `python -m pipeline.register` on the main branch says why")
        tags = client.get_model_version(name, version).tags
    wrong = [*_status(), *_differences(tags, version)]
    if wrong:
        raise Problem("\n".join([f"{LOCK} and the champion do not belong together:", *wrong]))
    print(f"{LOCK} is up to date, and its model is champion version {version}")


def _differences(tags: dict[str, str], version: str) -> list[str]:
    locked = {
        out["path"]: out["md5"] for stage_ in yaml.safe_load(LOCK.read_text())["stages"].values()
        for out in stage_.get("outs", [])
    }  # fmt: skip
    return [
        f"  {file}: {LOCK} has {locked.get(str(file))}, champion version {version} has {tags.get(tag)}. Run "
        "`python -m pipeline.register` on the main branch, or commit the lock of what is champion."
        for file, tag in versions.LOCK_TAGS.items()
        if locked.get(str(file)) != tags.get(tag)
    ]


def _status() -> list[str]:
    """What `dvc status` finds changed."""
    done = subprocess.run(["dvc", "status", "--json", "dvc.yaml"], capture_output=True, text=True)
    if done.returncode != 0:
        raise Problem(f"`dvc status` says: {done.stderr.strip()}")
    found = []
    for name, changes in json.loads(done.stdout).items():
        parts = [part for part in changes if isinstance(part, dict)]
        if parts and name not in ALWAYS:
            found.append(f"  {name}: {json.dumps(parts, ensure_ascii=False)}. Run `dvc repro` and commit {LOCK}.")
    return found


if __name__ == "__main__":
    stage.guard(main)
