"""The rules, alerts and routes: checked by Prometheus' own tools, and held against a server that runs."""

import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deploy import prometheus_rule
from leukdetect import model_file, registry
from leukdetect.contract import FILES
from serving.metrics import SECONDS
from serving.settings import Settings
from tests.conftest import require
from tests.monitoring.conftest import ALERTS, MONITORING, RULES, Prometheus, exported, free_port, names, process
from tests.monitoring.conftest import selectors as selectors_of

UNIT_TESTS = sorted((MONITORING / "prometheus").glob("*_test.yml"))
OPERATIONS = Path("docs/operations.md").read_text()
ROUTES = MONITORING / "alertmanager" / "alertmanager.yml"
RECORDED = {rule["record"] for rule in RULES}

# What no request can bring about, so that Prometheus has never seen it.
UNSEEN = {'leukdetect_requests_total{code="500"}': "a 500 is a bug, and we know of none"}


def tool(*command: str | Path) -> str:
    require(
        shutil.which(str(command[0])), f"there is no {command[0]}; apt-get install prometheus prometheus-alertmanager"
    )
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_configuration_and_its_rules() -> None:
    tool("promtool", "check", "config", MONITORING / "prometheus" / "prometheus.yml")


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(path: Path) -> None:
    tool("promtool", "test", "rules", path)


@pytest.mark.parametrize("name", [alert["alert"] for alert in ALERTS])
def test_each_alert_is_tested_firing_and_silent(name: str) -> None:
    tests = [test for path in UNIT_TESTS for test in yaml.safe_load(path.read_text())["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"] if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases)
    if name != "Watchdog":  # which never is silent
        assert not all(case["exp_alerts"] for case in cases)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_says_what_is_wrong_how_much_and_what_to_do(alert: dict[str, Any]) -> None:
    says = alert["annotations"]
    assert alert["labels"]["severity"] in ({"none"} if alert["alert"] == "Watchdog" else {"page", "ticket"})
    assert says["summary"].endswith(".")
    assert "{{" not in says["summary"]
    assert "$value" in says["description"]


def test_a_notification_links_to_the_alerts_own_section() -> None:
    """Absolute, since a pager knows no folder; and one place for all."""
    links = [alert["annotations"]["runbook_url"].partition("#") for alert in ALERTS]
    assert [anchor for _, _, anchor in links] == [alert["alert"].lower() for alert in ALERTS]
    [page] = {page for page, _, _ in links}
    assert re.fullmatch(r"https://\S+/docs/operations\.md", page)
    anchors = re.findall(r"^#+ (.+)$", OPERATIONS, re.MULTILINE)
    assert {anchor for _, _, anchor in links} <= {heading.lower().replace(" ", "-") for heading in anchors}


def test_where_the_links_lead_is_set_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (MONITORING / "prometheus").glob("*.yml"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(prometheus_rule, "FOLDER", tmp_path)
    monkeypatch.setattr(prometheus_rule, "SOURCES", [tmp_path / path.name for path in prometheus_rule.SOURCES])
    monkeypatch.setattr(prometheus_rule, "MANIFEST", tmp_path / "rule.yaml")
    monkeypatch.setattr(sys, "argv", ["rule", "--runbooks", "https://wiki.example/a?page=1"])
    prometheus_rule.main()
    for name in ("alerts.yml", "rule.yaml", "alerts_test.yml"):
        links = re.findall(r"runbook_url: (.*)#\w+$", (tmp_path / name).read_text(), re.MULTILINE)
        assert set(links) == {"https://wiki.example/a?page=1"}
    tool("promtool", "check", "rules", tmp_path / "alerts.yml")
    monkeypatch.setattr(sys, "argv", ["rule", "--runbooks", "docs/operations.md"])
    with pytest.raises(SystemExit):
        prometheus_rule.main()


@pytest.mark.parametrize("rule", [*RULES, *ALERTS], ids=lambda rule: str(rule.get("record") or rule["alert"]))
def test_no_rule_mixes_environments_or_namespaces(rule: dict[str, Any]) -> None:
    kept = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
    assert all(labels.startswith("environment, namespace, job") for labels in kept)
    assert not re.search(r"\b(sum|count|avg|min|max) ?\((?!.*\) by)", rule["expr"])


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    section = OPERATIONS.split("\n## Alerts\n")[1].split("\n## ")[0]
    assert re.findall(r"^### (.+)$", section, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_thresholds_are_those_of_the_servers_own_settings() -> None:
    expressions = {alert["alert"]: alert["expr"] for alert in ALERTS}
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert expressions["QueueNearlyFull"].endswith(f"> 0.8 * {defaults['queue_size']}")
    assert expressions["WaitNearDeadline"].endswith(f"> 0.75 * {defaults['deadline_ms'] / 1000:g}")
    [bucket] = {float(found) for rule in RULES for found in re.findall(r'le="([^"]+)"', rule["expr"])}
    assert bucket in SECONDS


def test_rules_and_alerts_name_only_what_exists() -> None:
    for rule in (*RULES, *ALERTS):
        assert names(rule["expr"]) <= exported() | RECORDED | {"up"}, rule


def test_prometheus_evaluates_each_rule_without_an_error(prometheus: Prometheus) -> None:
    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) == len(RULES) + len(ALERTS)
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_each_recorded_series_is_a_number(name: str, prometheus: Prometheus) -> None:
    assert prometheus.numbers(name)


@pytest.mark.parametrize("selector", sorted({found for alert in ALERTS for found in selectors_of(alert["expr"])}))
def test_what_an_alert_looks_at_is_there(selector: str, prometheus: Prometheus) -> None:
    """Name and labels: a wrong value of a label would keep an alert silent for ever."""
    assert bool(prometheus.series(selector)) == (selector not in UNSEEN)


def test_amtool_accepts_the_routes() -> None:
    tool("amtool", "check-config", ROUTES)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_goes_where_its_severity_says(alert: dict[str, Any]) -> None:
    receiver = {"page": "pages", "ticket": "tickets", "none": "heartbeat"}[alert["labels"]["severity"]]
    labels = [f"{name}={value}" for name, value in (alert["labels"] | {"alertname": alert["alert"]}).items()]
    expect(receiver, *labels)
    expect(receiver, *labels, "environment=production")


def expect(receiver: str, *labels: str) -> None:
    tool("amtool", "config", "routes", "test", f"--config.file={ROUTES}", f"--verify.receivers={receiver}", *labels)


@pytest.mark.parametrize("environment", ["staging", "production-2", "test"])
def test_what_is_not_production_pages_nobody(environment: str) -> None:
    for severity in ("page", "ticket"):
        expect("staging", "alertname=X", "job=leukdetect", f"severity={severity}", f"environment={environment}")


class Heard:
    """A bridge behind the webhooks, and what it was told: (receiver, alert)."""

    def __init__(self) -> None:
        self.alerts: set[tuple[str, str]] = set()
        self.tokens: set[str | None] = set()


@contextmanager
def bridge() -> Iterator[tuple[str, Heard]]:
    heard = Heard()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            heard.tokens.add(self.headers["Authorization"])
            heard.alerts |= {(body["receiver"], alert["labels"]["alertname"]) for alert in body["alerts"]}
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", heard
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def alertmanager(folder: Path, bridge_url: str) -> Iterator[str]:
    """The shipped configuration, but for the bridge's address and token, and the patience."""
    require(shutil.which("prometheus-alertmanager"), "there is no prometheus-alertmanager; apt-get install it")
    text = ROUTES.read_text().replace("http://alerts:8080", bridge_url)
    text = re.sub(r"/etc/alertmanager/secrets/webhook_token", str(folder / "token"), text)
    text = re.sub(r"group_wait: \S+", "group_wait: 1s", text)
    (folder / "token").write_text("a token")
    (folder / "alertmanager.yml").write_text(text)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = (
        "prometheus-alertmanager",
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    )
    with process(*command, ready=f"{url}/-/ready", log=folder / "alertmanager.log"):
        yield url


def told(folder: Path, *firing: str, staging: tuple[str, ...] = ()) -> Heard:
    """What the bridge hears when these alerts fire together, as rules label them, on server a, and those in staging."""
    labels = {alert["alert"]: alert["labels"] for alert in ALERTS}
    alerts = []
    for name in (*firing, "Watchdog"):
        own = {} if name == "Watchdog" else {"job": "leukdetect"}
        where = {"instance": "a:8000"} if name in ("ChampionStale", "RegistryUnreachable") else {}
        alerts.append({"labels": {"alertname": name, **own, **where, **labels[name]}, "annotations": {}})
    for name in staging:
        elsewhere = {"job": "leukdetect-staging", "environment": "staging"}
        alerts.append({"labels": {"alertname": name, **labels[name], **elsewhere}, "annotations": {}})
    with bridge() as (bridge_url, heard), alertmanager(folder, bridge_url) as url:
        httpx.post(f"{url}/api/v2/alerts", json=alerts).raise_for_status()
        deadline = time.monotonic() + 30
        while ("heartbeat", "Watchdog") not in heard.alerts:
            assert time.monotonic() < deadline, (folder / "alertmanager.log").read_text()
            time.sleep(0.1)
        time.sleep(1.5)  # each group had as long to wait; what is not there by now was held back
    return heard


def test_where_nothing_can_be_scraped_that_is_all_that_is_told(tmp_path: Path) -> None:
    heard = told(tmp_path, "NothingToScrape", "AvailabilityBurnsFast", "Drift", "InstanceDown")
    assert heard.alerts == {("pages", "NothingToScrape"), ("heartbeat", "Watchdog")}
    assert heard.tokens == {"Bearer a token"}


def test_a_page_holds_back_tickets_of_its_own_concern_only(tmp_path: Path) -> None:
    heard = told(tmp_path, "LatencyBurnsFast", "QueueNearlyFull", "ShadowDisagrees", staging=("BusyRefusals",))
    expected = {("pages", "LatencyBurnsFast"), ("tickets", "ShadowDisagrees"), ("heartbeat", "Watchdog")}
    assert heard.alerts == expected | {("staging", "BusyRefusals")}  # of another environment


def test_stagings_page_wakes_nobody_and_hides_nothing_of_productions(tmp_path: Path) -> None:
    heard = told(tmp_path, "QueueNearlyFull", staging=("AvailabilityBurnsFast", "BusyRefusals"))
    assert heard.alerts == {
        ("staging", "AvailabilityBurnsFast"),
        ("tickets", "QueueNearlyFull"),
        ("heartbeat", "Watchdog"),
    }


def test_a_registry_that_is_down_explains_a_stale_champion(tmp_path: Path) -> None:
    heard = told(tmp_path, "RegistryUnreachable", "ChampionStale", "ReferralsHigh")
    assert heard.alerts == {
        ("tickets", "RegistryUnreachable"),
        ("tickets", "ReferralsHigh"),
        ("heartbeat", "Watchdog"),
    }


def test_a_thread_that_keeps_to_its_budgets_never_counts_as_hanging() -> None:
    budgets = registry.ASK_SECONDS + registry.DOWNLOAD_SECONDS + len(FILES) * model_file.TRIAL_SECONDS
    [limit] = re.findall(r"leukdetect_thread_busy_seconds > (\d+)", (MONITORING / "prometheus/alerts.yml").read_text())
    assert budgets < int(limit)
