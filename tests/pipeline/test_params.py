"""params.yaml: every mistake is named with its key and value."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import params, sections
from pipeline.registry import bounds
from pipeline.stage import Problem

PRESETS = sorted(Path("presets").glob("*.yaml"))


@pytest.fixture
def recipe() -> dict[str, Any]:
    return yaml.safe_load(Path("presets/demo.yaml").read_text())


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_preset_can_be_used(path: Path) -> None:
    params.load(path)
    bounds.read(Path(f"presets/gates/{path.name}").read_text())


@pytest.mark.parametrize(("active", "preset"), [("params.yaml", "demo.yaml"), ("gate.yaml", "gates/demo.yaml")])
def test_the_active_recipe_ships_as_the_demo(active: str, preset: str) -> None:
    # As committed: `make repro PRESET=…` changes the file on disk, and may.
    shipped, demo = (
        subprocess.run(["git", "show", f"HEAD:{name}"], check=True, capture_output=True).stdout
        for name in (active, f"presets/{preset}")
    )
    assert shipped == demo


def test_an_unknown_key_is_named_with_its_value(recipe: dict[str, Any]) -> None:
    recipe["train_head"]["epoch"] = 12
    with pytest.raises(Problem, match=r"train_head\.epoch: unknown key \(its value is 12\)"):
        params.parse(recipe)


def test_a_missing_key_is_named(recipe: dict[str, Any]) -> None:
    del recipe["export"]["int8_images"]
    with pytest.raises(Problem, match=r"export\.int8_images: missing"):
        params.parse(recipe)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train_head", "epochs", 0, r"train_head\.epochs: .*greater than 0 \(it is 0\)"),
        ("fine_tune", "optimizer", "sgd", r"fine_tune\.optimizer: .*'adam' or 'adamw'.*'sgd'"),
        ("model", "pooling", "max", r"model\.pooling: .*'average', 'moments' or 'attention'.*'max'"),
        ("fine_tune", "learning_rate", "fast", r"fine_tune\.learning_rate: .*'fast'"),
        ("prepare", "patient", "(", r"patient: '\(' is no regular expression"),
        ("prepare", "patient", "x", r"needs a group named"),
        ("prepare", "fractions", {"train": 0.5, "val": 0.2, "test": 0.2}, r"must be 1, not 0\.9"),
        ("fetch", "source", "archive", r"source: archive needs fetch\.archive, fetch\.sha256, fetch\.origin"),
        ("fetch", "thumbnails", False, r"source: demo says itself .* thumbnails must be null"),
        ("fine_tune", "trainable_from", "conv5_block1_1_relu", r"must be all when features\.weights is none"),
    ],
)
def test_a_wrong_value_is_named(recipe: dict[str, Any], section: str, key: str, value: object, message: str) -> None:
    recipe[section][key] = value
    with pytest.raises(Problem, match=message):
        params.parse(recipe)


def test_drawn_stain_needs_a_view_beside_the_first(recipe: dict[str, Any]) -> None:
    recipe["augment"]["stain"], recipe["features"]["views"] = 1.0, 1
    with pytest.raises(Problem, match=r"augment\.stain: the first view keeps its stain, so features\.views must be 2"):
        params.parse(recipe)
    recipe["features"]["views"] = 2
    params.parse(recipe)


def test_the_digest_covers_what_builds_the_model(recipe: dict[str, Any]) -> None:
    before = params.digest(params.parse(recipe))
    assert params.digest(params.parse(dict(reversed(recipe.items())))) == before
    recipe["fine_tune"]["epochs"] += 1
    assert params.digest(params.parse(recipe)) != before


def test_no_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="Run from the project's root"):
        params.load(tmp_path / "params.yaml")


def test_what_images_of_another_source_are_must_be_said(recipe: dict[str, Any]) -> None:
    """A recipe that was the demo's must not pass a ward's images on as rendered ones under the demo's licence."""
    nothing = dict.fromkeys(("origin", "licence", "thumbnails", "synthetic"))
    recipe["fetch"] |= {"source": "folder", "folder": "ward"} | nothing
    with pytest.raises(Problem, match=r"needs fetch\.origin, fetch\.licence, fetch\.thumbnails, fetch\.synthetic"):
        params.parse(recipe)
    recipe["fetch"] |= {"source": "archive", "origin": "Our ward", "licence": "none", "thumbnails": False}
    with pytest.raises(Problem, match=r"needs fetch\.archive, fetch\.sha256, fetch\.synthetic"):
        params.parse(recipe)
    recipe["fetch"] |= {"source": "folder", "synthetic": False}
    assert params.parse(recipe).fetch.licence == "none"


def test_what_the_demo_says_of_its_images_is_said_of_no_others(recipe: dict[str, Any]) -> None:
    said = {"source": "folder", "folder": "ward", "thumbnails": True, "synthetic": True}
    recipe["fetch"] |= said | {key: sections.DEMO[key] for key in ("origin", "licence")}
    with pytest.raises(Problem, match="source: folder needs its own origin and licence, not the demo's"):
        params.parse(recipe)


@pytest.mark.parametrize("path", PRESETS, ids=lambda p: p.stem)
def test_every_bound_of_a_number_stands_beside_it(path: Path) -> None:
    """But for those that the file's head names: counts of 1 or more, shares and rates between 0 and 1."""
    text = path.read_text()
    assert "counts are 1 or more, and shares and rates lie between 0 and 1" in text
    checked = 0
    for name, field in params.Params.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, sections.Section)):
            continue
        (body,) = re.findall(rf"^{field.alias or name}:.*\n((?: .*\n|\n)+)", text, re.MULTILINE)
        for key, each in section.model_fields.items():
            (line,) = re.findall(rf"^  {key}:.*", body, re.MULTILINE)
            ends = {
                getattr(rule, end) for rule in each.metadata for end in ("ge", "gt", "le", "lt") if hasattr(rule, end)
            }
            beyond = ends - {0, 1}
            missing = [end for end in beyond if not re.search(rf"\b{end:g}\b", line.partition("#")[2])]
            assert not missing, f"{path}: {line!r} does not name {missing}"
            checked += len(beyond)
    assert checked >= 8
