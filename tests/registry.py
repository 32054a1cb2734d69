"""A real MLflow registry in a SQLite file, whose versions are tiny models."""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow

from leukdetect.contract import FILES, SHA256_TAGS
from tests import tiny_model


class Registry:
    """`empty_database`: the fixture of that name. MLflow takes seconds to begin with a file: one for many tests."""

    def __init__(self, folder: Path, empty_database: Path) -> None:
        self.folder = folder
        self.database = folder / "mlflow.db"
        self.uri = f"sqlite:///{self.database}"
        self.sources: list[Path] = []  # a version's files, as they were uploaded
        self.make_anew(empty_database)

    def make_anew(self, empty_database: Path) -> None:
        """As if it were set up again: versions count from 1."""
        shutil.copy(empty_database, self.database)
        self.client = mlflow.MlflowClient(self.uri)
        self.client.create_registered_model("leukdetect")

    def add(
        self,
        alias: str = "champion",
        change: Callable[[Path], object] | None = None,
        tags: dict[str, str] | None = None,
        **fields: Any,
    ) -> str:
        """Registers a version, moves the alias to it, and returns it.

        Args:
            alias: the one to move.
            change: what is done to both files; the tags know their hashes afterwards.
            tags: in place of the files' hashes.
            **fields: as `tiny_model.write` has them.
        """
        source = self.folder / f"source-{len(self.sources)}"
        self.sources.append(source)
        hashes = {}
        for precision, name in FILES.items():
            file = source / "artifacts" / name
            tiny_model.write(file, precision=precision, **fields)
            if change:
                change(file)
            hashes[SHA256_TAGS[precision]] = hashlib.sha256(file.read_bytes()).hexdigest()
        created = self.client.create_model_version("leukdetect", str(source), tags=hashes if tags is None else tags)
        self.move(str(created.version), alias)
        return str(created.version)

    def move(self, version: str, alias: str = "champion") -> None:
        """Moves an alias."""
        self.client.set_registered_model_alias("leukdetect", alias, version)

    @contextmanager
    def down(self) -> Iterator[None]:
        """It cannot be asked while the block lasts."""
        away = self.database.rename(self.database.with_suffix(".away"))
        try:
            yield
        finally:
            away.rename(self.database)
