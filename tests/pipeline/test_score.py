"""Batch scoring: the rows that /predict would answer, each once, whatever is broken, interrupted or repeated."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipeline import deploy, score, stage
from pipeline.data import image_files
from pipeline.scoring import job, worker
from pipeline.stage import Problem
from serving.app import create_app
from serving.models.startup import start
from serving.settings import Settings
from tests import object_store, tiny_model
from tests.leukdetect.formats.pictures import encoded, photograph, with_exif_beyond_pillow
from tests.leukdetect.formats.tiffs import Page, tiff
from tests.project import ROOT
from tests.registry import Registry
from tests.server import serve

BROKEN = {"empty.jpg": b"", "text.png": b"no image", "half.jpg": tiny_model.jpeg((9, 9, 9))[:300]}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    tiny_model.write(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """32 images of as many colours in two folders, three broken ones, and what is no image by its name."""
    for number in range(32):
        path = tmp_path / f"smears/{'ab'[number % 2]}/{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_model.jpeg((8 * number, 250 - 7 * number, 40 + 60 * (number % 3))))
    for name, content in (BROKEN | {"notes.txt": b"notes", ".hidden.jpg": b""}).items():
        (tmp_path / "smears/b" / name).write_bytes(content)
    return tmp_path / "smears"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "PART_ROWS", 10)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["score", *map(str, arguments)])
    score.main()


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """By path, each of which must be there once."""
    found = [row for part in sorted(out.glob("part-*.parquet")) for row in pq.read_table(part).to_pylist()]
    by_path = {row["path"]: row for row in found}
    assert len(by_path) == len(found)
    return by_path


def test_a_row_says_what_the_server_answers(
    tmp_path: Path, folder: Path, a_registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_registry.add()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", a_registry.uri)
    monkeypatch.setenv("LEUKDETECT_CACHE_DIR", str(tmp_path / "cache"))
    run(monkeypatch, folder, "--out", tmp_path / "out")
    scored = rows(tmp_path / "out")
    settings = Settings(cache_dir=tmp_path / "served", feedback_db=tmp_path / "feedback.db", watch_seconds=0)
    decisions = set()
    with serve(create_app(settings, start(settings))) as client:
        for path in sorted(folder.rglob("[!.]*.jpg")):
            row, reply = (
                scored.pop(path.relative_to(folder).as_posix()),
                client.post("/predict", content=path.read_bytes()),
            )
            answer = reply.json()
            if reply.status_code != 200:
                assert row["error"] == answer.get("detail", row["error"])
                assert row["decision"] is None
                continue
            decisions.add(row["decision"])
            assert row["error"] is None
            assert {key: row[f"p_{key}"] for key in answer["probabilities"]} == pytest.approx(
                answer["probabilities"], abs=2e-6
            )
            assert row["reasons"] == [reason["code"] for reason in answer["reasons"]]
            assert row["unlikeness"] == pytest.approx(answer["unlikeness"], abs=2e-4)
            for key in ("class", "decision", "malignant", "not_excluded"):
                assert row[key] == answer[key]
            for key in ("brightness", "sharpness", "stain"):
                assert row[key] == answer["quality"][key]
            assert row["sha256"] == answer["image"]["sha256"]
            assert (row["model_version"], row["precision"]) == (
                answer["model"]["version"],
                answer["model"]["precision"],
            )
    assert decisions == {"report", "refer"}
    assert set(scored) == {"b/text.png"}


def test_answers_are_put_together_by_patient(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = "^(?P<patient>[ab])/"
    run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model, "--patient", pattern)
    scored = pd.DataFrame([{"patient": path[0], **row} for path, row in rows(tmp_path / "out").items()])
    table = pd.read_csv(tmp_path / "out/patients.csv", index_col="patient")
    keys = [each.key for each in tiny_model.CLASSES]
    for patient, mine in scored.groupby("patient"):
        row, means = table.loc[patient], mine[[f"p_{key}" for key in keys]].mean()
        assert (row["images"], row["unusable"]) == (len(mine), mine["error"].notna().sum())
        assert row["referred"] == (mine["decision"] == "refer").sum()
        np.testing.assert_allclose(row[means.index].astype(float), means, atol=1e-6)
        assert row["class"] == keys[int(means.to_numpy().argmax())]
    for wrong, message in (("^(?P<patient>[c])/", "matches"), ("(", "no regular"), ("a", r"needs a group named")):
        with pytest.raises(Problem, match=message):
            run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model, "--patient", wrong)


def test_broken_images_are_rows_with_a_reason_and_stop_nothing(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a/gone.jpg").symlink_to(folder / "nowhere")
    run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
    errors = {path: row["error"] for path, row in rows(tmp_path / "out").items() if row["error"]}
    assert set(errors) == {"a/gone.jpg", *(f"b/{name}" for name in BROKEN)}
    assert errors["b/empty.jpg"] == "The file is empty."
    assert "No such file" in errors["a/gone.jpg"]
    assert "36 images" in (out := capsys.readouterr().out)
    assert "4 that could not be used" in out


def test_one_odd_image_never_ends_a_job(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    plain = tiny_model.jpeg((60, 60, 200))
    deep = Page(np.asarray(photograph()) * np.uint16(257), apart=True)
    odd = {
        "exif.jpg": with_exif_beyond_pillow(plain),
        "plain.jpg": plain,
        "deep.tif": tiff(deep),
        "dark.tif": tiff(Page(np.asarray(photograph())[..., 0] * np.uint16(16))),
        "gif.jpg": encoded(photograph().quantize(8), "GIF"),
        "profile.png": encoded(photograph(), "PNG", icc_profile=b"no profile"),
    }
    for name, content in odd.items():
        (folder / name).write_bytes(content)
    run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
    scored = rows(tmp_path / "out")
    assert scored["exif.jpg"]["p_pre"] == pytest.approx(scored["plain.jpg"]["p_pre"], abs=1e-3)
    assert scored["deep.tif"]["error"] is None
    assert "its colour profile is broken" in scored["profile.png"]["note"]
    assert "of a range that is not stated" in scored["dark.tif"]["error"]
    assert scored["gif.jpg"]["error"].startswith("The content is a GIF")


def test_it_goes_on_with_the_parts_that_are_missing_or_damaged_and_leaves_the_others(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(monkeypatch, folder, "--out", out, "--model", model)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert len(before) == 5
    (out / "part-00001.parquet").unlink()
    (out / "part-00003.parquet").write_bytes(b"")
    (out / ".part-00002.parquet.x").mkdir()  # of a process that was killed while it wrote
    kept = (out / "part-00000.parquet").stat().st_ino
    (folder / "a/new.jpg").write_bytes(b"")  # after the listing
    run(monkeypatch, folder, "--out", out, "--model", model)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert (out / "part-00000.parquet").stat().st_ino == kept


def test_another_model_is_refused_where_one_has_begun(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
    (tmp_path / "out/part-00001.parquet").unlink()
    tiny_model.write(tmp_path / "other.onnx", bias=60.0)
    with pytest.raises(Problem, match=r"was begun with model_sha256 \w+ \(now \w+\).*--out"):
        run(monkeypatch, folder, "--out", tmp_path / "out", "--model", tmp_path / "other.onnx")
    assert not (tmp_path / "out/part-00001.parquet").exists()


def test_a_manifest_names_the_images_and_may_not_name_one_twice(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some.csv").write_text(f"class,path\nx,a/00.jpg\nx,{folder}/a/02.jpg\n")
    run(monkeypatch, tmp_path / "some.csv", "--root", folder, "--out", tmp_path / "out", "--model", model)
    assert {path: row["error"] for path, row in rows(tmp_path / "out").items()} == {
        "a/00.jpg": None,
        f"{folder}/a/02.jpg": None,
    }
    (tmp_path / "twice.csv").write_text("path\na/00.jpg\na/02.jpg\na/00.jpg\n")
    with pytest.raises(Problem, match=r"names 1 images twice, such as a/00\.jpg"):
        run(monkeypatch, tmp_path / "twice.csv", "--root", folder, "--out", tmp_path / "2", "--model", model)
    (tmp_path / "none.csv").write_text("file\na/00.jpg\n")
    with pytest.raises(Problem, match="no column path"):
        run(monkeypatch, tmp_path / "none.csv", "--out", tmp_path / "2", "--model", model)
    assert not list((tmp_path / "2").iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1252", "utf-16", "utf-16-le"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_list_as_excel_writes_it_names_the_images(tmp_path: Path, encoding: str, separator: str) -> None:
    table = [["Fall", "Path "], ["Weiß", "a/Müller, 1.jpg"], ["2", "b\\2.jpg"], ["", ""]]
    quoted = (separator.join(f'"{cell}"' if separator in cell else cell for cell in row) for row in table)
    (tmp_path / "list.csv").write_bytes("\r\n".join([*quoted, ""]).encode(encoding))
    assert list(image_files.listed(tmp_path / "list.csv")) == ["a/Müller, 1.jpg", "b\\2.jpg"]


@pytest.mark.parametrize(
    ("content", "paths"),
    [
        (b"sep=;\r\nid;path\r\n1;a.jpg\r\n", ["a.jpg"]),
        (b"path\nsmear, 2.jpg\n", ["smear, 2.jpg"]),
        (b'path\n"smear, 2.jpg"\n', ["smear, 2.jpg"]),
    ],
)
def test_a_list_with_a_line_for_excel_or_of_one_column(tmp_path: Path, content: bytes, paths: list[str]) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    assert list(image_files.listed(tmp_path / "list.csv")) == paths


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a workbook", "is a workbook. Save it as CSV"),
        (b"", "no column path"),
        (b"id;path\r\n1;a.jpg\r\n2;\r\n", "line 3: `path` is empty"),
        (b"path\n\x81\x8d.jpg\n", "cannot be read as a table"),
        (b"path\n" + b"a" * 200_000 + b"\n", "cannot be read as a table"),
        (b"\xff\xfep\0a\0t\0h\0\n\0\x00", "cannot be read as a table"),
    ],
)
def test_a_list_that_cannot_be_read_is_one_message(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(Problem, match=message):
        list(image_files.listed(tmp_path / "list.csv"))


def test_a_list_of_another_system_finds_its_files(tmp_path: Path) -> None:
    for written, named in (("a/Mu\u0308ller.jpg", "a\\Müller.jpg"), ("ö/Weiß.jpg", "o\u0308/Weiß.jpg")):
        path = tmp_path / written
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"found")
        assert image_files.read(image_files.join(str(tmp_path), named), 10) == b"found"
    with pytest.raises(FileNotFoundError):
        image_files.read(str(tmp_path / "ü.jpg"), 10)


def test_what_is_left_out_is_said_also_when_the_job_goes_on(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(folder / "a/pipe.jpg")
    (folder / "a/no extension").write_bytes((folder / "a/00.jpg").read_bytes())
    (folder / "#recycle").mkdir()
    (folder / "#recycle/deleted.jpg").write_bytes((folder / "a/00.jpg").read_bytes())
    for _ in range(2):
        run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
        assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")] == [
            "left out: 1 deleted files, in #recycle",
            "left out: 1 files that are no image (*.txt)",
            "left out: 1 hidden files",
            "left out: 1 pipes, sockets and devices",
        ]
    assert rows(tmp_path / "out")["a/no extension"]["error"] is None


def test_a_pipe_in_a_list_is_a_row_with_its_reason(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "some.csv").write_text("path\npipe.jpg\n/dev/zero\n")
    run(monkeypatch, tmp_path / "some.csv", "--out", tmp_path / "out", "--model", model)
    assert all("It is no file, but" in row["error"] for row in rows(tmp_path / "out").values())


def test_two_jobs_into_one_folder_are_one_message(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage.alone(tmp_path / "out"), pytest.raises(Problem, match="another process is at work"):
        run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
    run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)


def test_an_empty_variable_is_one_message(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MODEL", "CACHE_DIR", "MAX_PIXELS"):
        with monkeypatch.context() as changed:
            changed.setenv(f"LEUKDETECT_{name}", "")
            with pytest.raises(Problem, match=f"LEUKDETECT_{name} is empty"):
                run(changed, folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["garbage", "empty", "cut", "another table"])
def test_a_listing_that_is_damaged_is_one_message(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
    (tmp_path / "out/part-00000.parquet").unlink()
    listing = tmp_path / "out" / job.LISTING
    if damage == "another table":
        pq.write_table(pq.read_table(listing).replace_schema_metadata({}), listing)
    else:
        listing.write_bytes({"garbage": b"x" * 5000, "empty": b"", "cut": listing.read_bytes()[:-50]}[damage])
    with pytest.raises(Problem, match=r"is damaged, or no scoring job's.*begin anew"):
        run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)


def test_where_nothing_can_be_read_any_more_it_stops_and_keeps_no_row_of_it(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "UNREADABLE", 8)
    monkeypatch.setattr(job, "PART_ROWS", 16)
    read = image_files.read

    def fails_in_b(path: str, most: int) -> bytes:
        if "/b/" in path:
            raise OSError(5, "Input/output error")
        return read(path, most)

    monkeypatch.setattr(image_files, "read", fails_in_b)
    with pytest.raises(Problem, match=r"8 images in a row could not be read.*Input/output error"):
        run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
    assert len(rows(tmp_path / "out")) == 16  # those of a/
    monkeypatch.setattr(image_files, "read", read)
    run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
    assert len(rows(tmp_path / "out")) == 35


def test_an_image_larger_than_the_server_takes_is_refused_and_never_read_whole(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "a/huge.jpg").open("wb") as file:
        file.truncate(10**11)
    run(monkeypatch, folder, "--out", tmp_path / "out", "--model", model)
    assert rows(tmp_path / "out")["a/huge.jpg"]["error"] == "At most 20 MB are accepted."


def test_the_limits_are_the_servers_and_its_variables_set_them(
    tmp_path: Path, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = Settings.model_fields
    assert (fields["max_body_bytes"].default, fields["max_pixels"].default) == (score.MAX_BODY_BYTES, score.MAX_PIXELS)
    monkeypatch.setenv("LEUKDETECT_MODEL", str(model))
    monkeypatch.setenv("LEUKDETECT_MAX_PIXELS", "1000")
    run(monkeypatch, folder, "--out", tmp_path / "out")
    assert "at most 0.001 megapixels" in rows(tmp_path / "out")["a/00.jpg"]["error"]
    monkeypatch.setenv("LEUKDETECT_PRECISION", "fp16")
    with pytest.raises(Problem, match="no precision fp16; there are auto, fp32, int8"):
        run(monkeypatch, folder, "--out", tmp_path / "2")


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """The environment of whoever asks a store, without what this machine's user may have set up."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    image_files._s3.cache_clear()
    yield monkeypatch
    image_files._s3.cache_clear()


def test_an_object_store_gives_the_rows_of_a_folder(
    tmp_path: Path, folder: Path, model: Path, aws: pytest.MonkeyPatch
) -> None:
    with object_store.running(tmp_path / "s3.log", bucket="smears") as address:
        for key, value in (object_store.KEYS | {"AWS_ENDPOINT_URL": address}).items():
            aws.setenv(key, value)
        client = object_store.client(address)
        for path in folder.rglob("*.*"):
            key = f"2026/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket="smears", Key=key, Body=path.read_bytes())
        client.put_object(Bucket="smears", Key="2025/other.jpg", Body=b"")
        run(aws, folder, "--out", tmp_path / "here", "--model", model)
        run(aws, "s3://smears/2026/", "--out", tmp_path / "there", "--model", model)
        with pytest.raises(Problem, match="s3://nothing/ cannot be listed"):
            run(aws, "s3://nothing/", "--out", tmp_path / "out", "--model", model)
    here, there = rows(tmp_path / "here"), rows(tmp_path / "there")
    assert len(here) == 35
    assert {f"s3://smears/2026/{path}": row | {"path": None} for path, row in here.items()} == {
        path: row | {"path": None} for path, row in there.items()
    }


@pytest.mark.parametrize(
    ("keys", "why"), [({}, "Unable to locate credentials"), (object_store.KEYS, "Could not connect")]
)
def test_a_store_that_cannot_be_asked_is_one_message_and_no_images_fault(
    tmp_path: Path, model: Path, aws: pytest.MonkeyPatch, keys: dict[str, str], why: str
) -> None:
    for key, value in (keys | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}).items():  # where nothing listens
        aws.setenv(key, value)
    (tmp_path / "some.csv").write_text("path\ns3://smears/a.jpg\n")
    with pytest.raises(Problem, match=rf"s3://smears/a\.jpg cannot be fetched \({why}.*Run it again"):
        run(aws, tmp_path / "some.csv", "--out", tmp_path / "out", "--model", model)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [job.LISTING]


def test_serving_scoring_and_deploying_follow_the_recipes_registered_name(
    tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((ROOT / "presets/mll23.yaml").read_text())
    python = Path(".venv-serving/bin/python")
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho serves $LEUKDETECT_MODEL on $LEUKDETECT_PORT\n")
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{empty_database}")
    monkeypatch.delenv("LEUKDETECT_MODEL", raising=False)
    made = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv-serving/.ready", "serve"]
    assert "serves models:/mll23@champion on 8000" in subprocess.run(made, capture_output=True, text=True).stdout
    Path("recipes/ward").mkdir(parents=True)
    Path("recipes/ward/params.yaml").write_text((ROOT / "presets/cll.yaml").read_text())
    ward = subprocess.run([*made, "PRESET=ward"], capture_output=True, text=True)
    assert "serves models:/cll@champion" in ward.stdout
    own = subprocess.run([*made, "LEUKDETECT_MODEL=models:/mine@canary"], capture_output=True, text=True)
    assert "serves models:/mine@canary" in own.stdout
    monkeypatch.setattr(sys, "argv", ["score", ".", "--out", "out"])
    with pytest.raises(Problem, match="mll23@champion"):
        score.main()
    monkeypatch.setattr(sys, "argv", ["deploy", "production", "--server", "http://localhost:1"])
    with pytest.raises(Problem, match="mll23"):
        deploy.main()
