"""Writes the Prometheus operator's copy of the rules and alerts: run `python -m deploy.prometheus_rule` on a change.

Reads monitoring/prometheus/{rules,alerts}.yml; writes deploy/kubernetes/base/prometheusrule.yaml. `--runbooks URL`,
where people can open docs/operations.md, is first written into the alerts (and their tests), for the links in
notifications.
"""

import argparse
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "monitoring/prometheus"
SOURCES = [FOLDER / "rules.yml", FOLDER / "alerts.yml"]
MANIFEST = ROOT / "deploy/kubernetes/base/prometheusrule.yaml"
HEAD = """\
# Made by `python -m deploy.prometheus_rule` from monitoring/prometheus; change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: leukdetect
  labels: { app.kubernetes.io/name: leukdetect }
spec:
  groups:
"""


def manifest() -> str:
    """The PrometheusRule, as YAML, with the comments of its sources."""
    groups = [source.read_text().partition("\ngroups:\n")[2] for source in SOURCES]
    return HEAD + textwrap.indent("\n".join(groups), "  ")


def link(files: Iterable[Path], runbooks: str) -> None:
    """Puts the address of docs/operations.md before each alert's anchor."""
    for file in files:
        file.write_text(re.sub(r"(?<=runbook_url: )\S*(?=#)", lambda _: runbooks, file.read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runbooks", metavar="URL", help="where docs/operations.md can be opened, without an anchor")
    runbooks = parser.parse_args().runbooks
    if runbooks is not None:
        if not re.fullmatch(r"https?://[^\s#\"']+", runbooks):
            parser.error(
                f"--runbooks: {runbooks!r} is no address such as https://git.example/leukdetect/docs/operations.md"
            )
        link(FOLDER.glob("*.yml"), runbooks)
    MANIFEST.write_text(manifest())


if __name__ == "__main__":
    main()
