"""Writes the Prometheus operator's copy of the rules and alerts: run `python -m deploy.prometheus_rule` on a change.

Reads monitoring/prometheus/{rules,alerts}.yml; writes deploy/kubernetes/base/prometheusrule.yaml.
"""

import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [ROOT / "monitoring/prometheus/rules.yml", ROOT / "monitoring/prometheus/alerts.yml"]
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


if __name__ == "__main__":
    MANIFEST.write_text(manifest())
