"""The commands in CONTRIBUTING.md, for the tests that run them."""

import re

from tests.project import ROOT


def commands(heading: str) -> list[str]:
    """Those of the block under a heading, in order, without comments."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    found = re.search(rf"^## {re.escape(heading)}.*?^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found, heading
    lines = (line.partition("#")[0].strip() for line in found[1].splitlines())
    return [line for line in lines if line]
