"""Writes what a release's page has beside the images: the wheel, the OpenAPI file, the changelog's section.

Reads:  leukdetect.__version__, CHANGELOG.md, the server's routes
Writes: FOLDER/leukdetect-VERSION-py3-none-any.whl, FOLDER/openapi.json, FOLDER/notes.md
Run:    python -m deploy.release v0.1.0 --out dist
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from leukdetect import __version__
from serving.app import ROUTERS

ROOT = Path(__file__).parents[1]
KUBERNETES = "deploy/kubernetes"
NAMED = ("deploy/compose.yaml", f"{KUBERNETES}/base/kustomization.yaml", f"{KUBERNETES}/kserve/kustomization.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tag", help="the tag that is released")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where to")
    options = parser.parse_args()
    if options.tag != f"v{__version__}":
        sys.exit(f"error: the tag is {options.tag}, and leukdetect/__init__.py says {__version__}")
    for name in NAMED:
        if set(versions((ROOT / name).read_text())) != {__version__}:
            sys.exit(f"error: {name} names another version of the image than {__version__}")
    text = notes((ROOT / "CHANGELOG.md").read_text(), __version__)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "notes.md").write_text(text)
    (options.out / "openapi.json").write_text(json.dumps(openapi(), indent=2) + "\n")
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(options.out), str(ROOT)]
    subprocess.run(wheel, check=True)


def versions(text: str) -> list[str]:
    """The versions of our image that a manifest names."""
    return re.findall(r"(?:leukdetect-serving:|newTag: )(\S+)", text)


def notes(changelog: str, version: str) -> str:
    """The changelog's section on a version."""
    found = re.search(rf"^## {re.escape(version)}\b.*?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if not found or not found[1].strip():
        sys.exit(f"error: CHANGELOG.md has no section `## {version}` with something in it; `## Unreleased` becomes it")
    return found[1].strip() + "\n"


def openapi() -> dict[str, Any]:
    """The API of this version. A running server's has its model in it, too: subject, version, an example."""
    app = FastAPI(title="LeukDetect", version=__version__)
    for router in ROUTERS:
        app.include_router(router)
    return app.openapi()


if __name__ == "__main__":
    main()
