"""The dashboards: Grafana's own schema, a tidy grid, and every query on a server that runs."""

import importlib
import importlib.util
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from serving.metrics import Metrics
from tests.conftest import require
from tests.monitoring.conftest import ALERTS, MONITORING, RULES, Prometheus, exported, names, selectors

FOLDER = MONITORING / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "dashboards").glob("*.json"))}
PANELS: dict[str, dict[str, Any]] = {
    f"{name}: {panel['title']}": panel for name, dashboard in DASHBOARDS.items() for panel in dashboard["panels"]
}
RECORDED = {rule["record"] for rule in RULES}


def sdk(module: str) -> Any:
    require(importlib.util.find_spec("grafana_foundation_sdk"), "there is no grafana-foundation-sdk")
    return importlib.import_module(f"grafana_foundation_sdk.{module}")


def lost(before: object, after: object, path: str = "") -> Iterator[str]:
    """What of a document is not in another."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key, value in before.items():
            yield from lost(value, after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from lost(old, new, f"{path}[{index}]")
    elif before != after:
        yield path


@pytest.mark.parametrize("name", DASHBOARDS)
def test_grafanas_schema_knows_every_field(name: str) -> None:
    """Its SDK is generated from the schema and drops what is not in it."""
    sdk("cog.plugins").register_default_plugins()
    read = sdk("models.dashboard").Dashboard.from_json(DASHBOARDS[name])
    again = json.loads(json.dumps(read, cls=sdk("cog.encoder").JSONEncoder))
    of_the_data_source = {".annotations.list[0].step", ".annotations.list[0].titleFormat"}  # the schema leaves them out
    assert set(lost(DASHBOARDS[name], again)) == of_the_data_source


def test_units_are_grafanas() -> None:
    known = {value for value in vars(sdk("models.units")).values() if isinstance(value, str)}
    used = {panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS.values()}
    used |= {unit for panel in PANELS.values() if (unit := panel["options"].get("yAxis", {}).get("unit"))}
    assert used <= known


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str) -> None:
    panels = DASHBOARDS[name]["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for grid in (panel["gridPos"] for panel in panels):
        assert grid["x"] + grid["w"] <= 24
        cells = {(grid["x"] + i, grid["y"] + j) for i in range(grid["w"]) for j in range(grid["h"])}
        assert not cells & taken, grid
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken)), "a hole in the grid"


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_each_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["targets"]


def test_the_data_source_is_the_provisioned_one_and_uids_are_unique() -> None:
    [source] = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert {json.dumps(panel["datasource"]) for panel in PANELS.values()} == {
        json.dumps({"type": source["type"], "uid": source["uid"]})
    }
    scrape = yaml.safe_load((MONITORING / "prometheus/prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scrape
    uids = [dashboard["uid"] for dashboard in DASHBOARDS.values()]
    assert len(set(uids)) == len(uids)


def test_every_metric_of_the_server_is_looked_at() -> None:
    queries = [target["expr"] for panel in PANELS.values() for target in panel["targets"]]
    looked_at = {name for query in (*queries, *(rule["expr"] for rule in (*RULES, *ALERTS))) for name in names(query)}
    histograms = re.compile(r"_(bucket|count|sum)$")
    former = {family.name for family in Metrics().registry.collect() if "former name" in family.documentation}
    ours = {name for name in exported() if name.startswith("leukdetect_") and name.removesuffix("_total") not in former}
    assert {histograms.sub("", name) for name in ours} <= {histograms.sub("", name) for name in looked_at}
    assert not looked_at & {name for name in exported() if name.removesuffix("_total") in former}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_one_environment_is_shown_at_a_time_and_production_first(name: str) -> None:
    """Whatever is queried is of the chosen job, namespace and server; series recorded for a job have no server."""
    variables = {each["name"]: each for each in DASHBOARDS[name]["templating"]["list"]}
    assert list(variables) == ["job", "namespace", "instance"]
    assert variables["job"]["current"]["value"] == "leukdetect"
    assert "multi" not in variables["job"]
    assert variables["namespace"]["allValue"] == variables["instance"]["allValue"] == ".*"  # without the label, too
    queries = [target["expr"] for panel in DASHBOARDS[name]["panels"] for target in panel["targets"]]
    for selector in {found for query in queries for found in selectors(query)}:
        name, _, matchers = selector.partition("{")
        server = "" if ":" in name else ', instance=~"$instance"'
        assert matchers.startswith(f'job="$job", namespace=~"$namespace"{server}'), selector


def test_another_version_is_marked_on_every_dashboard(prometheus: Prometheus) -> None:
    [mark] = {dashboard["annotations"]["list"][0]["expr"] for dashboard in DASHBOARDS.values()}
    [series] = prometheus.numbers(shown(mark))  # the start; no other version ever served here
    assert series["version"] == "1"
    assert prometheus.series(shown("leukdetect_build_info"))  # of which the variables' values are


def shown(query: str) -> str:
    """As Grafana asks it while nothing else is chosen."""
    for variable, value in {"job": "leukdetect", "namespace": ".*", "instance": ".*", "__rate_interval": "10s"}.items():
        query = query.replace(f"${variable}", value)
    return query


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_each_query_names_only_what_exists_and_returns_data(panel: dict[str, Any], prometheus: Prometheus) -> None:
    for target in panel["targets"]:
        query = shown(target["expr"])
        assert names(query) <= exported() | RECORDED | {"up"}
        series = prometheus.numbers(query)
        assert series, query
        labels = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        assert any(set(labels) <= each.keys() for each in series), (query, labels)  # an empty label is none
