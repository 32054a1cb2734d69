"""The registry as mlflow/ deploys it, on loopback: PostgreSQL, a stand-in for the object store, MLflow with accounts.

MLflow is started as its image starts it (entry point and environment are read from mlflow/), from this environment,
which holds the same versions. The stand-in keeps its objects in memory, so that it alone is not killed.
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import mlflow
import requests
import yaml

from leukdetect.contract import FILES, SHA256_TAGS
from pipeline.registry import tracking
from tests.conftest import require
from tests.project import ROOT

SERVICES = yaml.safe_load((ROOT / "mlflow/compose.yaml").read_text())["services"]
DOCKERFILE = (ROOT / "mlflow/Dockerfile").read_text()
BUCKET = "registry"
PASSWORDS = {name: f"{name}-has-a-long-password" for name in ("database", "objects", "admin", "server", "trainer")}


@dataclass
class Deployed:
    """A running registry."""

    folder: Path
    postgres: Path  # the folder of PostgreSQL's programs
    port: int  # MLflow's
    environment: dict[str, str]  # MLflow's, with which PostgreSQL's programs find the database, too
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def objects(self) -> Any:
        """The bucket, as only MLflow sees it."""
        return boto3.resource(
            "s3",
            endpoint_url=self.environment["MLFLOW_S3_ENDPOINT_URL"],
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        ).Bucket(BUCKET)

    def start(self, name: str, command: list[str], **options: Any) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **options
            )

    def kill(self, name: str) -> None:
        """SIGKILL, for the process and whatever it started."""
        process = self.processes.pop(name)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def start_database(self) -> None:
        command = [self.postgres / "postgres", "-D", self.folder / "database", "-p", self.environment["PGPORT"]]
        options = [*("-c", "listen_addresses=127.0.0.1"), *("-c", f"unix_socket_directories={self.folder}")]
        self.start("database", [*map(str, command), *options], **_unprivileged())
        self._wait("database", lambda: self.sql("SELECT 1") == "1")

    def start_mlflow(self) -> None:
        (entry_point,) = re.findall(r"^ENTRYPOINT (\[.*\])", DOCKERFILE, re.MULTILINE)
        _, *arguments = json.loads(entry_point)
        replaced = {"0.0.0.0": "127.0.0.1", "5000": str(self.port)}
        self.start("mlflow", [sys.executable, *(replaced.get(word, word) for word in arguments)], env=self.environment)
        self._wait("mlflow", lambda: requests.get(f"{self.uri}/health", timeout=1).ok)

    def run(self, *command: str) -> str:
        """Runs one of PostgreSQL's programs, or MLflow's Python (`python`), where MLflow runs."""
        program = sys.executable if command[0] == "python" else str(self.postgres / command[0])
        return subprocess.run(
            [program, *command[1:]], env=self.environment, cwd=self.folder, check=True, capture_output=True, text=True
        ).stdout.strip()

    def sql(self, statement: str) -> str:
        return self.run("psql", "--quiet", "--tuples-only", "--no-align", "--command", statement)

    def make_accounts(self) -> None:
        """What the Compose service of that name does, and one more account, for whoever trains."""
        script = SERVICES["accounts"]["command"][0]
        environment = self.client("admin") | {"SERVER_PASSWORD": PASSWORDS["server"]}
        subprocess.run([sys.executable, "-c", script], env=environment, cwd=self.folder, check=True)
        body = {"username": "trainer", "password": PASSWORDS["trainer"]}
        address = f"{self.uri}/api/2.0/mlflow/users/create"
        requests.post(address, json=body, auth=("admin", PASSWORDS["admin"]), timeout=30)

    def client(self, account: str) -> dict[str, str]:
        """The environment of a client with this account: no key of the object store, no password of the database."""
        return {
            "PATH": os.environ["PATH"],
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": account,
            "MLFLOW_TRACKING_PASSWORD": PASSWORDS[account],
        }

    def _wait(self, name: str, ready: Any) -> None:
        deadline = time.monotonic() + 180
        while True:
            try:
                if ready():
                    return
            except (requests.RequestException, subprocess.CalledProcessError):
                pass
            log = self.folder / f"{name}.log"
            assert self.processes[name].poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)


@contextmanager
def running() -> Iterator[Deployed]:
    """A registry with its accounts, until the block ends."""
    postgres = next(Path("/usr/lib/postgresql").glob("*/bin"), Path())
    require((postgres / "initdb").exists(), "PostgreSQL is not installed (Debian's package postgresql)")
    database, objects, port = _free_ports(3)
    mine = {
        "PGHOST": "127.0.0.1",
        "PGPASSWORD": PASSWORDS["database"],
        "AWS_SECRET_ACCESS_KEY": PASSWORDS["objects"],
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{objects}",
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORDS["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key-for-sessions",
    }
    (image,) = re.findall(r"^ENV (.*)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    environment = {
        **dict(pair.split("=", 1) for pair in image.split()),
        **{name: mine.get(name, value) for name, value in SERVICES["registry"]["environment"].items()},
        "MLFLOW_AUTH_CONFIG_PATH": str(ROOT / "mlflow/basic_auth.ini"),
        "PATH": os.environ["PATH"],
        "PGPORT": str(database),
    }
    with tempfile.TemporaryDirectory(prefix="registry-") as name:
        folder = Path(name)
        if os.getuid() == 0:
            shutil.chown(folder, "postgres", "postgres")  # PostgreSQL refuses to run as root
        deployed = Deployed(folder, postgres, port, environment)
        try:
            (folder / "password").write_text(PASSWORDS["database"])
            (folder / "password").chmod(0o644)
            settings = ["--username=mlflow", f"--pwfile={folder}/password", "--auth=scram-sha-256", "--encoding=UTF8"]
            subprocess.run(
                [postgres / "initdb", "--pgdata", folder / "database", *settings],
                check=True,
                capture_output=True,
                **_unprivileged(),
            )
            environment["PGDATABASE"] = "postgres"
            deployed.start_database()
            deployed.sql("CREATE DATABASE mlflow")
            environment["PGDATABASE"] = "mlflow"

            moto = str(Path(sys.executable).with_name("moto_server"))
            deployed.start("objects", [moto, "--host", "127.0.0.1", "--port", str(objects)])
            deployed._wait("objects", lambda: requests.get(f"http://127.0.0.1:{objects}/moto-api/", timeout=1).ok)
            deployed.objects.create()

            deployed.start_mlflow()
            deployed.make_accounts()
            yield deployed
        finally:
            for process in list(deployed.processes):
                deployed.kill(process)


def state() -> dict[str, Any]:
    """What must not be lost: every version, its hashes, its files' bytes, its run's metrics and files.

    Asked for with the account in the environment.
    """
    client = tracking.client()
    found: dict[str, Any] = {"aliases": client.get_registered_model("leukdetect").aliases}
    for version in client.search_model_versions("name = 'leukdetect'"):
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/leukdetect/{version.version}"))
        run = client.get_run(version.run_id or "")
        found[str(version.version)] = {
            "tags": version.tags,
            "files": {name: _sha256(folder / "artifacts" / name) for name in FILES.values()},
            "metrics": run.data.metrics,
            "artifacts": sorted(item.path for item in client.list_artifacts(run.info.run_id)),
        }
        for precision, name in FILES.items():
            assert found[str(version.version)]["files"][name] == version.tags[SHA256_TAGS[precision]]
    return found


def _unprivileged() -> dict[str, Any]:
    return {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
