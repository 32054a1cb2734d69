"""Writes docs/licences.md: what is installed to serve and to build a model, and under which licence.

The serving image is distributed. So its licences may ask for no more than to keep their notice, or, as MPL does, for
the source of their own files. Building a model also runs DVC's dependencies; these may be GPL, since we neither link to
them nor distribute them, but each is named here.

Run:    make licences   (exit 1: a licence that is not allowed)
"""

import json
import re
import subprocess
import sys
from pathlib import Path

DOCUMENT = Path("docs/licences.md")
ENVIRONMENTS = {  # by lock: the interpreter that has it installed
    "serving": Path(".venv-serving/bin/python"),
    "pipeline": Path(".venv/bin/python"),
    "ray": Path(".venv/bin/python"),
}
ALLOWED = re.compile(  # how a licence's name or SPDX identifier begins
    r"(0BSD|(3-Clause )?BSD|Apache|CC0|MIT|MPL|Mozilla Public|PSF|Python Software Foundation|Unlicense|ZPL|Zlib|Zope)"
)
UNSAID = {  # the licence file says it, the package's metadata does not
    "huey": "MIT",
    "namex": "Apache-2.0",
    "skops": "MIT",
}
PIPELINE_ONLY = {
    "asyncssh": "DVC's SSH remotes",
    "grandalf": "draws `dvc dag`",
    "pygit2": "DVC's git library; its GPL has a linking exception",
}


def main() -> None:
    sections, refused = [], []
    for lock, python in ENVIRONMENTS.items():
        packages = installed(lock, python)
        for name, _, licence in packages:
            if not allowed(licence) and not (lock == "pipeline" and name in PIPELINE_ONLY):
                refused.append(f"{name} ({licence}), in requirements/{lock}.txt")
        sections.append(table(lock, packages))
    if refused:
        sys.exit("error: licences that deploy/licences.py does not allow:\n  " + "\n  ".join(refused))
    head = "# Licences\n\nOf what the locks install on Linux; `make licences`. The policy: `deploy/licences.py`.\n"
    DOCUMENT.write_text("\n".join([head, *sections]))


def installed(lock: str, python: Path) -> list[tuple[str, str, str]]:
    """Name, version and licence of each package of a lock that is installed here."""
    names = re.findall(r"^([\w.-]+)==", Path(f"requirements/{lock}.txt").read_text(), re.MULTILINE)
    command = [
        "pip-licenses",
        "--python",
        python,
        "--from=mixed",
        "--with-system",
        "--format=json",
        "--packages",
        *names,
    ]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [(each["Name"], each["Version"], UNSAID.get(each["Name"], each["License"])) for each in found]


def allowed(licence: str) -> bool:
    """Whether the policy allows a licence expression: any part of an OR, every part of an AND."""
    parts = [bool(ALLOWED.match(part.strip(" ()"))) for part in re.split(r" AND | OR |;", licence)]
    return any(parts) if " OR " in licence and " AND " not in licence else all(parts)


def table(lock: str, packages: list[tuple[str, str, str]]) -> str:
    rows = [f"| {name} | {version} | {licence} |" for name, version, licence in packages]
    return "\n".join([f"## {lock}.txt\n", "| package | version | licence |", "|---|---|---|", *rows, ""])


if __name__ == "__main__":
    main()
