"""Compose file and Kubernetes manifests against their schemas, and against the code that they start."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from fastapi.routing import APIRoute

from deploy import prometheus_rule
from deploy import serve_like_the_image as like_the_image
from pipeline import deploy as model_deployment
from serving import shutdown
from serving.app import ROUTERS
from serving.metrics import Metrics
from serving.problems import ProblemError
from serving.request.auth import Access, Key, digest_of
from serving.settings import Settings
from tests.project import ROOT

COMPOSE = [ROOT / "deploy/compose.yaml", ROOT / "mlflow/compose.yaml"]
SERVICES: dict[str, tuple[Path, dict[str, Any]]] = {
    name: (path, service) for path in COMPOSE for name, service in yaml.safe_load(path.read_text())["services"].items()
}
KUBERNETES = ROOT / "deploy/kubernetes"
MANIFESTS = {
    f"{path.parent.name}/{path.name}": yaml.safe_load(path.read_text())
    for path in sorted(KUBERNETES.glob("*/*.yaml"))
    if path.name != "kustomization.yaml"
}
CUSTOM = {
    "PrometheusRule",
    "ServiceMonitor",
    "ServingRuntime",
    "InferenceService",
}  # of operators, whose schemas no package ships
DEPLOYMENT = MANIFESTS["base/deployment.yaml"]
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
RUNTIME = MANIFESTS["kserve/servingruntime.yaml"]["spec"]
IMAGE = like_the_image.environment(like_the_image.stages()["serving"])
LABELS = {"app.kubernetes.io/name": "leukdetect"}
GUIDES = [ROOT / "deploy/README.md", ROOT / "mlflow/README.md"]
DELIVERY = [ROOT / "Dockerfile", *COMPOSE, *sorted(KUBERNETES.rglob("*.yaml")), *GUIDES]

ROUTES = {
    route.path
    for router in ROUTERS
    for route in router.routes
    if isinstance(route, APIRoute) and "GET" in (route.methods or ())
}


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def stop_seconds(environment: dict[str, str]) -> float:
    """How long a server with these settings may take from SIGTERM to its end."""
    settings = Settings.model_validate(
        {name.removeprefix("LEUKDETECT_").lower(): value for name, value in environment.items() if "SECONDS" in name}
    )
    return settings.grace_seconds + shutdown.LAST_SECONDS + settings.drain_seconds


def test_every_leukdetect_variable_is_a_setting() -> None:
    settings = {f"LEUKDETECT_{name.upper()}" for name in Settings.model_fields}
    settings.add("LEUKDETECT_ADMIN_KEY")  # a deployer's
    for path in DELIVERY:
        assert set(re.findall(r"LEUKDETECT_[A-Z_]+", path.read_text())) <= settings, path


def test_every_leukdetect_metric_exists() -> None:
    metrics = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    metrics |= {family.name for family in Metrics().registry.collect()}
    for path in DELIVERY:
        if path == prometheus_rule.MANIFEST:  # tests/monitoring knows which series are recorded
            continue
        assert set(re.findall(r"(?<!--network )\bleukdetect_[a-z_]+", path.read_text())) <= metrics, path


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_guide_names_exists(path: Path) -> None:
    text = path.read_text()
    for file in re.findall(r"(?<![\w./])(?:deploy|mlflow|monitoring|tests)/[\w./-]+\w", text):
        assert (ROOT / file).exists() or file in ("deploy/.env", "deploy/webhook_token", "deploy/keys/keys"), file
    for name in re.findall(r"\$(REGISTRY_\w+)", text):
        assert f"{name}=" in (ROOT / "deploy/.env.example").read_text(), name
    for service in re.findall(r"docker compose -f \S+ (?:stop|build|exec -T|up --wait) ([a-z]+)", text):
        assert service in SERVICES, service
    for image in re.findall(r"(?<=\s)leukdetect-\w+:[\w.-]+", text):
        assert image.removesuffix("-gpu") in (ROOT / "Dockerfile").read_text(), image


# Compose


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_compose_file_fits_the_specification(path: Path) -> None:
    program = Path(sys.executable).with_name("check-jsonschema")
    check = [str(program), "--builtin-schema", "vendor.compose-spec", str(path)]
    result = subprocess.run(check, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_one_compose_file_brings_up_everything() -> None:
    assert set(SERVICES) == {
        *("database", "objects", "registry", "accounts"),
        *("leukdetect", "prometheus", "alertmanager", "grafana"),
    }
    assert yaml.safe_load(COMPOSE[0].read_text())["include"] == ["../mlflow/compose.yaml"]


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_by_a_full_version(name: str) -> None:
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-\w+)?", SERVICES[name][1]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_no_rights_it_does_not_need(name: str) -> None:
    service = SERVICES[name][1]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_to_this_machine_only(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name][1].get("ports", []))


def test_only_the_registry_reaches_database_and_objects() -> None:
    assert {name for name, (_, service) in SERVICES.items() if "storage" in service["networks"]} == {
        *("database", "objects", "registry")
    }
    assert yaml.safe_load(COMPOSE[1].read_text())["networks"]["storage"]["internal"] is True
    assert SERVICES["database"][1]["networks"] == SERVICES["objects"][1]["networks"] == ["storage"]


def test_a_service_waits_for_the_health_of_what_it_needs() -> None:
    dockerfiles = {"leukdetect": ROOT / "Dockerfile", "registry": ROOT / "mlflow/Dockerfile"}
    for name, (_, service) in SERVICES.items():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                declared = "healthcheck" in SERVICES[needed][1] or "HEALTHCHECK" in dockerfiles[needed].read_text()
                assert declared, f"{name} waits for {needed}"
            else:
                assert SERVICES[needed][1]["restart"] == "no", f"{name} waits for the end of {needed}"


def test_secrets_come_from_outside_and_have_no_default() -> None:
    example = (ROOT / "deploy/.env.example").read_text()
    declared = re.findall(r"^([A-Z_]+)=(.*)$", example, re.MULTILINE)
    assert all(value == "" for _, value in declared)
    used = {use for path in COMPOSE for use in re.findall(r"\$\{([^}]+)\}", path.read_text())}
    in_files = {"ALERT_WEBHOOK_TOKEN", "LEUKDETECT_ADMIN_KEY"}
    assert {use.partition(":?")[0] for use in used} | in_files == {name for name, _ in declared}
    assert all(":?" in use for use in used), "unset is an error, not empty"
    for name, (_, service) in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN", variable):
                assert value.startswith("${"), f"{name}: {variable}"


def test_make_env_fills_in_every_secret_once(tmp_path: Path) -> None:
    for name in ("make_env.sh", ".env.example"):
        shutil.copy(ROOT / "deploy" / name, tmp_path)
    subprocess.run(["sh", tmp_path / "make_env.sh"], check=True)
    first = (tmp_path / ".env").read_text()
    values = dict(re.findall(r"^([A-Z_]+)=(.*)$", first, re.MULTILINE))
    assert values.pop("KEYS_GROUP") == str(os.getgid())
    assert all(re.fullmatch("[0-9a-f]{48}", value) for value in values.values())
    assert len(set(values.values())) == len(values)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert (tmp_path / "webhook_token").read_text().strip() == values["ALERT_WEBHOOK_TOKEN"]
    keys = tmp_path / "keys/keys"
    assert (keys.stat().st_mode & 0o777, keys.stat().st_gid, keys.parent.stat().st_mode & 0o777) == (
        (0o640, os.getgid(), 0o750)
    )
    access = Access(keys)  # takes the file as it is
    access.allow("admin", access.known(values["LEUKDETECT_ADMIN_KEY"]))
    subprocess.run(["sh", tmp_path / "make_env.sh"], check=True)
    assert (tmp_path / ".env").read_text() == first
    (tmp_path / ".env").write_text(first.replace("GRAFANA", "#"))  # as an earlier version left it
    subprocess.run(["sh", tmp_path / "make_env.sh"], check=True)
    now = dict(re.findall(r"^([A-Z_]+)=(.*)$", (tmp_path / ".env").read_text(), re.MULTILINE))
    assert {name for name, value in now.items() if value != values.get(name)} == (
        {"GRAFANA_ADMIN_PASSWORD", "KEYS_GROUP"}
    )


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists(name: str) -> None:
    path, service = SERVICES[name]
    volumes = yaml.safe_load(path.read_text()).get("volumes", {})
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        made = source == "./keys"  # by make_env.sh
        assert source in volumes or made or (path.parent / source).exists(), source


def test_keys_are_mounted_as_folders_so_that_new_ones_are_read_and_only_the_server_reads_them() -> None:
    """A file or a subPath stays the one that it was at the start."""
    service = SERVICES["leukdetect"][1]
    file = Path(service["environment"]["LEUKDETECT_KEYS_FILE"])
    assert f"./keys:{file.parent}:ro" in service["volumes"]
    assert "/deploy/keys/" in (ROOT / ".gitignore").read_text().splitlines()
    assert service["group_add"] == ["${KEYS_GROUP:?run deploy/make_env.sh}"]
    (file,) = (Path(each["value"]) for each in CONTAINER["env"] if each["name"] == "LEUKDETECT_KEYS_FILE")
    (mount,) = (each for each in CONTAINER["volumeMounts"] if each["name"] == "keys")
    assert mount == {"name": "keys", "mountPath": str(file.parent), "readOnly": True}
    (volume,) = (each for each in POD["volumes"] if each["name"] == "keys")
    assert volume["secret"] == {"secretName": "leukdetect-keys", "defaultMode": 0o440}
    assert POD["securityContext"]["fsGroup"] == POD["securityContext"]["runAsGroup"]
    guide = (ROOT / "deploy/README.md").read_text()
    assert f"create secret generic leukdetect-keys --from-file={file.name}=keys.txt" in guide
    assert "leukdetect-keys" not in str(MANIFESTS["kserve/servingruntime.yaml"])


def test_a_secret_that_kubernetes_renews_is_read_again(tmp_path: Path) -> None:
    """The kubelet writes a new folder beside the old and moves the link `..data`."""

    def write(number: int, *names: str) -> None:
        (tmp_path / f"..{number}").mkdir()
        lines = [Key(name, "predict", digest_of(name)).line() + "\n" for name in names]
        (tmp_path / f"..{number}/keys").write_text("".join(lines))
        (tmp_path / f"..{number}/keys").chmod(0o440)
        (tmp_path / "..new").symlink_to(f"..{number}")
        (tmp_path / "..new").replace(tmp_path / "..data")

    write(1, "ward")
    (tmp_path / "keys").symlink_to("..data/keys")
    access = Access(tmp_path / "keys")
    assert access.known("ward")
    write(2, "ward-2")
    access.look()
    assert access.known("ward-2")
    with pytest.raises(ProblemError):
        access.known("ward")


def test_the_server_is_told_of_in_prometheus_where_it_listens() -> None:
    config = yaml.safe_load((ROOT / "monitoring/prometheus/prometheus.yml").read_text())
    (job,) = (job for job in config["scrape_configs"] if job["job_name"] == "leukdetect")
    (discovery,) = job["dns_sd_configs"]
    assert discovery["names"] == ["leukdetect"]
    assert str(discovery["port"]) == IMAGE["LEUKDETECT_PORT"]
    (alertmanager,) = config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    assert alertmanager == "alertmanager:9093"
    assert SERVICES["alertmanager"][1]["ports"] == ["127.0.0.1:9093:9093"]


def test_alertmanager_finds_its_token() -> None:
    config = yaml.safe_load((ROOT / "monitoring/alertmanager/alertmanager.yml").read_text())
    (secret,) = SERVICES["alertmanager"][1]["secrets"]
    assert secret["target"] == config["global"]["http_config"]["authorization"]["credentials_file"]


def test_grafana_finds_its_dashboards_and_prometheus() -> None:
    provisioning = ROOT / "monitoring/grafana/provisioning"
    (provider,) = (yaml.safe_load(path.read_text()) for path in (provisioning / "dashboards").glob("*.y*ml"))
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"][1]["volumes"])
    assert provider["providers"][0]["options"]["path"] == mounts["../monitoring/grafana/dashboards"]
    (source,) = (yaml.safe_load(path.read_text()) for path in (provisioning / "datasources").glob("*.y*ml"))
    assert source["datasources"][0]["url"] == "http://prometheus:9090"


def test_prometheus_keeps_as_long_as_its_configuration_asks() -> None:
    (asked,) = re.findall(
        r"--storage\.tsdb\.retention\.time=\w+", (ROOT / "monitoring/prometheus/prometheus.yml").read_text()
    )
    assert asked in SERVICES["prometheus"][1]["command"]


def test_compose_waits_for_the_server_to_drain() -> None:
    service = SERVICES["leukdetect"][1]
    assert seconds(service["stop_grace_period"]) > stop_seconds(IMAGE | service["environment"])


def test_the_registry_accepts_the_names_it_is_called_by() -> None:
    allowed = SERVICES["registry"][1]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    for name in ("leukdetect", "accounts"):
        assert SERVICES[name][1]["environment"]["MLFLOW_TRACKING_URI"].removeprefix("http://") in allowed
    assert "localhost:*" in allowed


# Kubernetes


@pytest.mark.parametrize("name", [name for name, manifest in MANIFESTS.items() if manifest["kind"] not in CUSTOM])
def test_a_manifest_fits_the_schema_of_every_supported_kubernetes(name: str) -> None:
    for version in ("1.32", "1.37"):
        kubernetes_validate.validate(MANIFESTS[name], version, strict=True)


def built(folder: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    if not shutil.which("kubectl"):  # Debian has none, so that CI cannot require it
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(KUBERNETES / folder)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


@pytest.mark.parametrize("folder", ["base", "kserve"])
def test_kustomize_builds_all_of_a_folder_and_names_the_image(folder: str) -> None:
    listed = yaml.safe_load((KUBERNETES / folder / "kustomization.yaml").read_text())["resources"]
    assert {f"{folder}/{name}" for name in listed} == {name for name in MANIFESTS if name.startswith(folder)}
    manifests = built(folder)
    assert len(manifests) == len(listed)
    (image,) = re.findall(r"'image': '([^']+)'", str(manifests))
    assert re.fullmatch(r".+/leukdetect-serving:\d+\.\d+\.\d+", image)


def test_staging_is_production_but_for_its_namespace_its_alias_and_its_job() -> None:
    production, staging = built("base"), built("staging")
    assert {each["kind"] for each in production} - {each["kind"] for each in staging} == {"PrometheusRule"}
    (monitor,) = (each for each in staging if each["kind"] == "ServiceMonitor")
    (of_production,) = (each for each in production if each["kind"] == "ServiceMonitor")
    its_own = {each["targetLabel"]: each["replacement"] for each in monitor["spec"]["endpoints"][0].pop("relabelings")}
    assert its_own == {"job": "leukdetect-staging", "environment": "staging"}
    relabellings = of_production["spec"]["endpoints"][0].pop("relabelings")
    assert relabellings == [{"targetLabel": "environment", "replacement": "production"}]
    for manifest in staging:
        name, namespace = manifest["metadata"]["name"], manifest["metadata"].get("namespace")
        assert (namespace or name) == "leukdetect-staging"
    same = str(staging).replace("leukdetect-staging", "leukdetect").replace("@staging", "@production")
    assert same == str([each for each in production if each["kind"] != "PrometheusRule"])


def test_the_operator_gets_the_rules_that_are_tested() -> None:
    """On inequality: `python -m deploy.prometheus_rule`."""
    assert prometheus_rule.MANIFEST.read_text() == prometheus_rule.manifest()
    groups = [group for path in prometheus_rule.SOURCES for group in yaml.safe_load(path.read_text())["groups"]]
    assert MANIFESTS["base/prometheusrule.yaml"]["spec"] == {"groups": groups}
    config = yaml.safe_load((ROOT / "monitoring/prometheus/prometheus.yml").read_text())
    assert [path.name for path in prometheus_rule.SOURCES] == config["rule_files"]


def test_each_environment_serves_the_alias_that_its_deployment_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The workflow's environments, the manifests and pipeline/deploy.py mean the same model and the same aliases."""
    recipe = yaml.safe_load((ROOT / "params.yaml").read_text())["register"]["name"]
    workflow = yaml.safe_load((ROOT / ".github/workflows/deploy.yml").read_text())["jobs"]
    [job] = yaml.safe_load((ROOT / ".github/workflows/deploy-to.yml").read_text())["jobs"].values()
    assert 'pipeline.deploy "$ENVIRONMENT" --version' in str(job["steps"])
    (served,) = (each["value"] for each in CONTAINER["env"] if each["name"] == "LEUKDETECT_MODEL")
    (patch,) = re.findall(r"models:/\w+@\w+", (KUBERNETES / "staging/kustomization.yaml").read_text())
    serves = {"production": served, "staging": patch}
    assert set(workflow) == set(serves)
    for environment, model in serves.items():
        moved = workflow[environment]["with"]["environment"]
        assert moved == environment
        assert model == f"models:/{recipe}@{moved}"
        assert moved not in {"champion", "challenger", "previous"}, "those are the gate's"
        monkeypatch.setattr(sys, "argv", ["deploy", moved, "--server", "http://x"])
        assert model == f"models:/{recipe}@{model_deployment._options().environment}"
    assert workflow["production"]["needs"] == "staging"
    # One machine has no environments, and KServe is told a file.
    compose = SERVICES["leukdetect"][1]["environment"]["LEUKDETECT_MODEL"]
    assert compose == Settings.model_fields["model"].default == f"models:/{recipe}@champion"


def test_every_selector_finds_the_pods() -> None:
    spec = {name.removeprefix("base/"): manifest.get("spec") for name, manifest in MANIFESTS.items()}
    assert DEPLOYMENT["spec"]["template"]["metadata"]["labels"] == LABELS
    assert MANIFESTS["base/service.yaml"]["metadata"]["labels"] == LABELS
    for selector in (
        spec["deployment.yaml"]["selector"]["matchLabels"],
        spec["service.yaml"]["selector"],
        spec["pdb.yaml"]["selector"]["matchLabels"],
        spec["networkpolicy.yaml"]["podSelector"]["matchLabels"],
        spec["servicemonitor.yaml"]["selector"]["matchLabels"],
        POD["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector == LABELS
    target = spec["hpa.yaml"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (DEPLOYMENT["kind"], DEPLOYMENT["metadata"]["name"])


def test_probes_ask_the_server_what_it_answers() -> None:
    assert CONTAINER["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert CONTAINER["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    # Not /readyz: a pod that waits for a first model would be killed.
    assert CONTAINER["startupProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    for container in (CONTAINER, *RUNTIME["containers"]):
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if probe in container:
                assert container[probe]["httpGet"]["path"] in ROUTES


def test_a_name_stands_for_every_pod_and_adds_no_scrape() -> None:
    pods = MANIFESTS["base/service-pods.yaml"]
    assert pods["spec"]["clusterIP"] == "None"
    assert pods["spec"]["selector"] == LABELS
    assert not LABELS.items() <= pods["metadata"]["labels"].items()
    assert pods["spec"]["ports"] == [{"name": "http", "port": int(IMAGE["LEUKDETECT_PORT"]), "targetPort": "http"}]
    address = f"http://{pods['metadata']['name']}.leukdetect.svc:{IMAGE['LEUKDETECT_PORT']}"
    for guide in ("deploy/README.md", "docs/operations.md"):
        assert f"--server {address}" in (ROOT / guide).read_text()


def test_the_ingress_ends_tls_and_lets_out_all_but_metrics() -> None:
    ingress = MANIFESTS["ingress/ingress.yaml"]
    (tls,), (rule,) = ingress["spec"]["tls"], ingress["spec"]["rules"]
    assert tls["hosts"] == [rule["host"]]
    assert f"create secret tls {tls['secretName']}" in (KUBERNETES / "ingress/kustomization.yaml").read_text()
    service = MANIFESTS["base/service.yaml"]
    paths = rule["http"]["paths"]
    port = {"name": service["spec"]["ports"][0]["name"]}
    for each in paths:
        assert each["backend"] == {"service": {"name": service["metadata"]["name"], "port": port}}

    def let_out(path: str) -> bool:
        return any(
            path == each["path"] or (each["pathType"] == "Prefix" and path.startswith(each["path"] + "/"))
            for each in paths
        )

    every = {route.path for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)}
    inside = {"/metrics", "/livez"}
    for path in every | {"/static/app.js", "/static/swagger-ui/swagger-ui.css", "/openapi.json"}:
        assert let_out(path) == (path not in inside), path
    nginx = {name.rpartition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    body = Settings.model_fields["max_batch_bytes"].default
    assert int(nginx["proxy-body-size"].removesuffix("m")) * 1_000_000 >= body
    assert int(nginx["proxy-read-timeout"]) * 1000 > Settings.model_fields["max_deadline_ms"].default


def test_every_port_is_the_servers() -> None:
    port = int(IMAGE["LEUKDETECT_PORT"])
    assert CONTAINER["ports"] == [{"name": "http", "containerPort": port}]
    assert MANIFESTS["base/service.yaml"]["spec"]["ports"][0]["targetPort"] == "http"
    assert MANIFESTS["base/networkpolicy.yaml"]["spec"]["ingress"][0]["ports"] == [{"port": "http"}]
    (endpoint,) = MANIFESTS["base/servicemonitor.yaml"]["spec"]["endpoints"]
    assert endpoint["port"] == MANIFESTS["base/service.yaml"]["spec"]["ports"][0]["name"]
    assert endpoint["path"] in ROUTES
    (container,) = RUNTIME["containers"]
    assert [each["containerPort"] for each in container["ports"]] == [port]
    assert container["readinessProbe"]["httpGet"]["port"] == port
    assert RUNTIME["annotations"]["prometheus.kserve.io/port"] == str(port)


def test_no_service_by_its_name_changes_a_setting() -> None:
    """Kubernetes tells a pod of each Service beside it: of ours as LEUKDETECT_PORT=tcp://…, over the image's own."""
    assert MANIFESTS["base/service.yaml"]["metadata"]["name"] == "leukdetect"
    assert POD["enableServiceLinks"] is False
    # A ServingRuntime has no such field.
    assert {"name": "LEUKDETECT_PORT", "value": IMAGE["LEUKDETECT_PORT"]} in RUNTIME["containers"][0]["env"]


def test_kubernetes_waits_for_the_server_to_drain() -> None:
    def variables(container: dict[str, Any]) -> dict[str, str]:
        return {each["name"]: each["value"] for each in container["env"]}

    assert POD["terminationGracePeriodSeconds"] > stop_seconds(IMAGE | variables(CONTAINER))
    predictor = MANIFESTS["kserve/inferenceservice.yaml"]["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] > stop_seconds(IMAGE | variables(RUNTIME["containers"][0]))


def test_a_pod_may_do_nothing_but_write_its_volumes() -> None:
    assert MANIFESTS["base/namespace.yaml"]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    user = int(like_the_image.said(like_the_image.stages()["serving"], "USER").split(":")[0])
    for pod, container in ((POD["securityContext"], CONTAINER), ({}, RUNTIME["containers"][0])):
        context = pod | container["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == user
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        assert writable == {"/tmp", IMAGE["LEUKDETECT_CACHE_DIR"]}
        assert set(container["resources"]) == {"requests", "limits"}


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes_of_the_servers() -> None:
    (asked,) = MANIFESTS["base/hpa.yaml"]["spec"]["metrics"]
    (rule,) = yaml.safe_load((KUBERNETES / "adapter.yaml").read_text())["rules"]["custom"]
    metric, lane = re.findall(r'(\w+)\{lane="(\w+)"', rule["seriesQuery"])[0]
    assert asked["pods"]["metric"]["name"] == metric
    (family,) = (family for family in Metrics().registry.collect() if family.name == metric)
    assert family.type == "gauge"
    assert lane == "predict"
    assert f'lane="{lane}"' in rule["metricsQuery"]
    assert float(asked["pods"]["target"]["averageValue"]) < Settings.model_fields["queue_size"].default


def test_kserve_starts_the_runtime_by_its_format_and_protocol() -> None:
    model = MANIFESTS["kserve/inferenceservice.yaml"]["spec"]["predictor"]["model"]
    assert model["runtime"] == MANIFESTS["kserve/servingruntime.yaml"]["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in RUNTIME["supportedModelFormats"]}
    assert model["protocolVersion"] in RUNTIME["protocolVersions"]
    assert "/v2/models/{name}" in ROUTES
    (served,) = (each["value"] for each in RUNTIME["containers"][0]["env"] if each["name"] == "LEUKDETECT_MODEL")
    assert Path(served).is_relative_to("/mnt/models"), "where KServe's storage initialiser puts the model"
