"""Fetching from all four sources, against a real HTTP server on loopback and real archives."""

import hashlib
import http.server
import io
import json
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kagglehub  # noqa: F401 - its log keeps the stdout of its first import, which must not be one test's own
import pytest
import yaml
from PIL import Image

from pipeline import fetch
from pipeline.stage import Problem
from tests.project import ROOT

LEUKEMIA = ("Benign", "Early", "Pre", "Pro")
CNMC_CLASSES = [
    {"key": "hem", "label": "Normal", "malignant": False, "folders": ["hem"]},
    {"key": "all", "label": "ALL", "malignant": True, "folders": ["all"]},
]
PADDING = ("notes.txt", random.Random(0).randbytes(3_000_000))  # makes an archive worth interrupting


class Server(http.server.ThreadingHTTPServer):
    """Serves `files` by path; can cut or stall the first answer, forget how to resume, or refuse with a status."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.status: int | None = None
        self.ranges = True
        self.cut_after: int | None = None  # bytes of the next answer, after which the connection is closed
        self.stall_after: int | None = None  # bytes of the next answer, after which nothing more comes
        self.asked: list[tuple[str, str | None]] = []  # path, Range header
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, path = self.server, urlsplit(self.path).path
        server.asked.append((path, self.headers["Range"]))
        if server.status or path not in server.files:
            return self.send_error(server.status or 404)
        body = server.files[path]
        start = 0
        if server.ranges and (wanted := self.headers["Range"]):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        if server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if (stall := server.stall_after) is not None:
            server.stall_after = None
            self.wfile.write(body[start : start + stall])
            server.released.wait(30)
        elif (cut := server.cut_after) is not None:
            server.cut_after = None
            self.wfile.write(body[start : start + cut])
        else:
            self.wfile.write(body[start:])
        return None

    def do_POST(self) -> None:
        """Kaggle's API, as kagglehub calls it: the current version, then a redirect to the archive."""
        self.rfile.read(int(self.headers["Content-Length"]))
        method = self.path.rsplit("/", 1)[1]
        self.server.asked.append((method, self.headers["Authorization"]))
        if self.server.status:
            return self.send_error(self.server.status)
        if method == "GetDataset":
            body = json.dumps({"currentVersionNumber": 3}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_response(302)
            self.send_header("Location", f"{self.server.url}/kaggle.zip")
            self.send_header("Content-Length", "0")
            self.end_headers()
        return None

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


Recipe = Callable[..., None]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Makes an empty project the current folder, and returns what writes its params.yaml."""
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.chdir(project)
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's own credentials
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLEHUB_CACHE", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)

    def write(classes: list[dict[str, Any]] | None = None, **changes: object) -> None:
        params = yaml.safe_load((ROOT / "params.yaml").read_text())
        params["classes"] = classes or params["classes"]
        params["demo"] = {"patients": 1, "images_per_patient": 2, "size": 32}
        params["fetch"] |= {"origin": "a test", "licence": "MIT", "thumbnails": False, "synthetic": False} | changes
        Path("params.yaml").write_text(yaml.safe_dump(params))

    return write


def image(n: int, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 12), (n * 37 % 256, n * 91 % 256, n * 13 % 256)).save(buffer, format)
    return buffer.getvalue()


def leukemia(top: str = "", each: int = 2) -> dict[str, bytes]:
    """The layout of Kaggle's mehradaria/leukemia: {path: bytes}."""
    files, n = {}, 0
    for name in LEUKEMIA:
        stem = "WBC-Benign" if name == "Benign" else f"WBC-Malignant-{name}"
        for i in range(1, each + 1):
            n += 1
            files[f"{top}Original/{name}/{stem}-{i:03d}.jpg"] = image(n)
            files[f"{top}Segmented/{name}/{stem}-{i:03d}.jpg"] = image(n + 100)
    return files


def plain() -> dict[str, bytes]:
    return {path.removeprefix("Original/"): data for path, data in leukemia().items() if path.startswith("Original")}


def cnmc() -> dict[str, bytes]:
    files = {}
    for fold in range(3):
        folder = f"C-NMC_training_data/fold_{fold}"
        files[f"{folder}/all/UID_{fold + 11}_10_1_all.bmp"] = image(fold, "BMP")
        files[f"{folder}/hem/UID_H{fold + 2}_10_2_hem.bmp"] = image(fold + 10, "BMP")
    for i in (1, 2):
        files[f"validation_data/C-NMC_test_prelim_phase_data/{i}.bmp"] = image(i + 20, "BMP")
    return files


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, data in files.items():
            archive.writestr(path, data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes], mode: Any = "w", extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for member in extra:
            archive.addfile(member)
    return buffer.getvalue()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def raw_files() -> dict[str, bytes]:
    raw = Path("data/raw")
    return {path.relative_to(raw).as_posix(): path.read_bytes() for path in raw.rglob("*") if path.is_file()}


def source() -> dict[str, Any]:
    return json.loads(Path("data/source.json").read_text())


def assert_nothing_left() -> None:
    """Neither data nor anything on its way there; downloads may wait in .state/fetch for the next run."""
    assert not list(Path().glob("data/*"))
    assert not list(Path(".state/fetch").glob("work.*"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- the demo ---------------------------------------------------------------------------------------------------------


def test_the_demo_is_fetched_and_described(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(source="demo", origin=None, licence=None, thumbnails=None, synthetic=None)
    fetch.main()
    assert source()["images"] == {"benign": 2, "early": 2, "pre": 2, "pro": 2}
    assert source()["synthetic"] is True
    assert len(raw_files()) == 8
    out = capsys.readouterr().out
    assert "(synthetic)" in out
    assert "licence: MIT" in out
    assert "benign 2, early 2, pre 2, pro 2" in out


# --- layouts, from a folder -------------------------------------------------------------------------------------------


def test_the_four_class_kaggle_layout_gives_the_originals_and_never_the_segmented(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = leukemia(top="Blood cell Cancer [ALL]/")
    recipe(source="folder", folder=str(tree(tmp_path / "all", files)))
    fetch.main()
    expected = {
        f"{Path(path).parts[2].lower()}/{Path(path).name}": data for path, data in files.items() if "Original" in path
    }
    assert raw_files() == expected
    assert "left out: 8 images in segmented" in capsys.readouterr().out


def test_the_folds_of_c_nmc_are_merged_and_its_unlabelled_images_left_out(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(classes=CNMC_CLASSES, source="folder", folder=str(tree(tmp_path / "c", cnmc())))
    fetch.main()
    assert sorted(raw_files()) == [
        *(f"all/UID_{n}_10_1_all.bmp" for n in (11, 12, 13)),
        *(f"hem/UID_H{n}_10_2_hem.bmp" for n in (2, 3, 4)),
    ]
    assert "left out: 2 images in c-nmc_test_prelim_phase_data: the challenge withheld" in capsys.readouterr().out


def test_a_plain_folder_is_copied_byte_for_byte_and_left_as_it_was(recipe: Recipe, tmp_path: Path) -> None:
    files = plain() | {"Benign/broken.JPG": b"no image", "Benign/empty.png": b""}
    folder = tree(tmp_path / "plain", files)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}
    for path in folder.rglob("*"):
        path.chmod(0o500 if path.is_dir() else 0o400)
    recipe(source="folder", folder=str(folder))
    fetch.main()
    assert raw_files() == {f"{Path(p).parts[0].lower()}/{Path(p).name}": data for p, data in files.items()}
    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in folder.rglob("*")}
    copy = Path("data/raw/benign/WBC-Benign-001.jpg")
    assert copy.stat().st_nlink == 1
    assert copy.stat().st_mode & stat.S_IWUSR


def test_the_folder_nearest_the_file_decides_in_any_case(recipe: Recipe, tmp_path: Path) -> None:
    files = plain() | {"BENIGN/session 2/pro/a.jpg": image(50), "BENIGN/session 2/b.jpg": image(51)}
    recipe(source="folder", folder=str(tree(tmp_path / "early", files)))
    fetch.main()
    assert {"pro/a.jpg", "benign/session 2/b.jpg"} <= set(raw_files())


def test_what_is_no_image_to_learn_from_is_left_out_and_said(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = ("Thumbs.db", "Benign/.DS_Store", "README.md", "odd/labels.csv", "__MACOSX/odd/x.jpg", "odd/._y.jpg")
    deleted = {f"Pro/{folder}/z.jpg": image(90) for folder in ("#recycle", "@eaDir", "$RECYCLE.BIN")}
    by_content = {"Pro/camera.jfif": image(91), "Pro/IMG_0007": image(92)}
    files = plain() | dict.fromkeys(side, b"x") | deleted | by_content
    recipe(source="folder", folder=str(tree(tmp_path / "f", files)))
    os.mkfifo(tmp_path / "f/Pro/pipe.jpg")
    fetch.main()
    assert len(raw_files()) == 10
    assert {"pro/camera.jfif", "pro/IMG_0007"} <= set(raw_files())
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert said == [
        "left out: 1 deleted files, in #recycle",
        "left out: 1 deleted files, in $RECYCLE.BIN",
        "left out: 1 files of the system's own",
        "left out: 1 files of the system's own, in __MACOSX",
        "left out: 1 files that are no image (*.csv)",
        "left out: 1 files that are no image (*.md)",
        "left out: 2 hidden files",
        "left out: 1 pipes, sockets and devices",
        "left out: 1 thumbnails and indexes, in @eaDir",
    ]


def test_accents_may_be_composed_or_apart_as_macos_has_them(recipe: Recipe, tmp_path: Path) -> None:
    classes = [CNMC_CLASSES[0] | {"folders": ["früh"]}, CNMC_CLASSES[1] | {"folders": ["spa\u0308t"]}]
    files = {"fru\u0308h/Mu\u0308ller_1.jpg": image(1), "spät/Weiß_1.jpg": image(2)}
    recipe(classes=classes, source="folder", folder=str(tree(tmp_path / "f", files)))
    fetch.main()
    assert set(raw_files()) == {"hem/Müller_1.jpg", "all/Weiß_1.jpg"}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        pytest.param(b"Benign\\fall 2\\a.jpg", "benign/fall 2/a.jpg", id="backslashes"),
        pytest.param("Pro/Müller.jpg".encode(), "pro/Müller.jpg", id="UTF-8 that is not said to be"),
        pytest.param("Pro/Müller.jpg".encode("cp437"), "pro/Müller.jpg", id="MS-DOS"),
    ],
)
def test_a_zip_of_another_system_is_unpacked_under_the_names_that_were_meant(
    recipe: Recipe, tmp_path: Path, written: bytes, meant: str
) -> None:
    placeholder = b"x" * len(written)
    data = zipped(plain() | {placeholder.decode(): image(9)}).replace(placeholder, written)
    (tmp_path / "smears.zip").write_bytes(data)
    recipe(source="archive", archive=str(tmp_path / "smears.zip"), sha256=sha256(data))
    fetch.main()
    assert raw_files()[meant] == image(9)
    assert len(raw_files()) == 9


def test_linked_folders_are_followed_and_loops_of_links_end(recipe: Recipe, tmp_path: Path) -> None:
    stored = tree(tmp_path / "stored", plain())
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in LEUKEMIA:
        (linked / name).symlink_to(stored / name)
    for loop in ("loop", "another"):  # two of them: the paths through both would never end
        (linked / loop).symlink_to(linked)
    recipe(source="folder", folder=str(linked))
    fetch.main()
    assert len(raw_files()) == 8
    assert not any(path.is_symlink() for path in Path("data/raw").rglob("*"))


def test_the_same_image_in_two_folds_is_taken_once(recipe: Recipe, tmp_path: Path) -> None:
    twice = {f"again/{path}": data for path, data in plain().items()}
    recipe(source="folder", folder=str(tree(tmp_path / "f", plain() | twice)))
    fetch.main()
    assert len(raw_files()) == 8


def test_two_different_images_of_one_name_are_an_error_that_names_both(recipe: Recipe, tmp_path: Path) -> None:
    files = plain() | {"again/Pro/WBC-Malignant-Pro-001.jpg": image(99)}
    recipe(source="folder", folder=str(tree(tmp_path / "f", files)))
    with pytest.raises(Problem, match=r"again/Pro/WBC-Malignant-Pro-001\.jpg") as caught:
        fetch.main()
    assert "f/Pro/WBC-Malignant-Pro-001.jpg" in str(caught.value)
    assert_nothing_left()


@pytest.mark.parametrize(("path", "named"), [("T-ALL/x.png", "T-ALL"), ("x.png", "x.png, which has none")])
def test_images_in_an_unknown_folder_are_an_error_that_says_where_to_add_it(
    recipe: Recipe, tmp_path: Path, path: str, named: str
) -> None:
    recipe(source="folder", folder=str(tree(tmp_path / "f", plain() | {path: image(1)})))
    with pytest.raises(Problem, match=f"belong to no class: {named}.") as caught:
        fetch.main()
    assert "benign: benign; early: early" in str(caught.value)
    assert "classes[].folders of params.yaml" in str(caught.value)
    assert_nothing_left()


def test_equal_names_in_folders_of_patients_are_all_kept(recipe: Recipe, tmp_path: Path) -> None:
    files = plain() | {f"Pro/{patient}/image_0.png": image(number) for number, patient in enumerate(("AQK", "BCD"))}
    recipe(source="folder", folder=str(tree(tmp_path / "f", files)))
    fetch.main()
    assert {"pro/AQK/image_0.png", "pro/BCD/image_0.png"} <= set(raw_files())


def test_a_label_may_stand_in_the_file_name_and_classes_may_be_merged_or_left_out(
    recipe: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """ALL-IDB's names: Im001_1.jpg is a patient's with ALL, Im002_0.jpg a healthy person's."""
    classes = [
        {"key": "healthy", "label": "Healthy", "malignant": False, "folders": ["0"]},
        {"key": "ill", "label": "Ill", "malignant": True, "folders": ["1", "2"]},
    ]
    files = {f"all/Im{number:03d}_{number % 4}.jpg": image(number) for number in range(8)}
    folder = str(tree(tmp_path / "f", files))
    recipe(classes=classes, source="folder", folder=folder, label=r"_(?P<label>\d)\.", leave_out=["3"])
    fetch.main()
    kept = {f"{'healthy' if number % 4 == 0 else 'ill'}/all/Im{number:03d}_{number % 4}.jpg" for number in range(8)}
    assert set(raw_files()) == {path for path in kept if not path.endswith("_3.jpg")}
    assert "left out: 2 images in 3: fetch.leave_out names it" in capsys.readouterr().out


def test_a_table_says_label_and_patient(recipe: Recipe, tmp_path: Path) -> None:
    files = {f"scans/{number}.png": image(number) for number in range(8)}
    folder = tree(tmp_path / "f", files)
    labels = ["Benign", "Early", "Pre", "Pro"] * 2
    rows = [f"{number}.png;{label};P {number // 4}/a" for number, label in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(["image;label;patient", *rows]))
    recipe(source="folder", folder=str(folder), table="labels.csv")
    fetch.main()
    assert sorted(raw_files()) == sorted(
        f"{label.lower()}/P {number // 4}%2Fa/scans/{number}.png" for number, label in enumerate(labels)
    )


@pytest.mark.parametrize(("patient", "folder"), [("..", "%2E."), (".", "%2E"), ("../../x", "%2E.%2F..%2Fx")])
def test_a_patients_name_in_a_table_is_one_folder_below_its_class(
    recipe: Recipe, tmp_path: Path, patient: str, folder: str
) -> None:
    labels = ("Benign", "Early", "Pre", "Pro")
    files = tree(tmp_path / "f", {f"{label}.png": image(number) for number, label in enumerate(labels)})
    rows = [f"{label}.png,{label},{patient}" for label in labels]
    (files / "labels.csv").write_text("\n".join(["image,label,patient", *rows]))
    recipe(source="folder", folder=str(files), table="labels.csv")
    fetch.main()
    assert set(raw_files()) == {f"{label.lower()}/{folder}/{label}.png" for label in labels}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0.png,Benign", "0.png,Pro"], r"line 3: 0\.png has two labels"),
        (["0.png,Benign"], "belong to no class: 1.png, which has none"),
        (["0.png,Other", "1.png,Pro"], "belong to no class: Other"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(recipe: Recipe, tmp_path: Path, rows: list[str], message: str) -> None:
    folder = tree(tmp_path / "f", {f"{number}.png": image(number) for number in range(2)})
    (folder / "labels.csv").write_text("\n".join(["image,label", *rows]))
    recipe(source="folder", folder=str(folder), table="labels.csv")
    with pytest.raises(Problem, match=message):
        fetch.main()
    assert_nothing_left()


def test_a_class_without_images_is_named(recipe: Recipe, tmp_path: Path) -> None:
    files = {path: data for path, data in plain().items() if not path.startswith("Pro")} | {"Pro/README.md": b"soon"}
    recipe(source="folder", folder=str(tree(tmp_path / "f", files)))
    with pytest.raises(Problem, match="no images of class pro:"):
        fetch.main()
    assert_nothing_left()


def test_a_folder_without_any_image_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    recipe(source="folder", folder=str(tree(tmp_path / "f", {"Benign/README.md": b"soon"})))
    with pytest.raises(Problem, match="no images"):
        fetch.main()


def test_a_folder_name_that_two_classes_claim_is_an_error(recipe: Recipe, tmp_path: Path) -> None:
    classes = [CNMC_CLASSES[0], CNMC_CLASSES[1] | {"folders": ["all", "HEM"]}]
    recipe(classes=classes, source="folder", folder=str(tree(tmp_path / "f", cnmc())))
    with pytest.raises(Problem, match="'HEM' belongs to both hem and all"):
        fetch.main()


def test_a_missing_folder_and_a_dead_link_are_named(recipe: Recipe, tmp_path: Path) -> None:
    recipe(source="folder", folder=str(tmp_path / "nowhere"))
    with pytest.raises(Problem, match="nowhere is no folder"):
        fetch.main()
    folder = tree(tmp_path / "f", plain())
    (folder / "Pro" / "dead.jpg").symlink_to("gone.jpg")
    recipe(source="folder", folder=str(folder))
    with pytest.raises(Problem, match=r"dead\.jpg cannot be copied \(No such file"):
        fetch.main()
    assert_nothing_left()


# --- what is written down ---------------------------------------------------------------------------------------------


def test_the_same_bytes_give_the_same_source_json_and_one_bit_changes_the_digest(
    recipe: Recipe, tmp_path: Path
) -> None:
    folder = tree(tmp_path / "f", plain() | {"A fold/Pro/z.jpg": image(70)})  # found first, listed last
    recipe(source="folder", folder=str(folder))
    fetch.main()
    first = Path("data/source.json").read_bytes()
    # As a person would check it: sha256sum of the files in order, and of that.
    lines = "".join(f"{sha256(data)}  {path}\n" for path, data in sorted(raw_files().items()))
    assert source() == {
        "source": "folder",
        "origin": "a test",
        "licence": "MIT",
        "thumbnails": False,
        "synthetic": False,
        "version": None,
        "archive_sha256": None,
        "images": {"benign": 2, "early": 2, "pre": 2, "pro": 3},
        "sha256": sha256(lines.encode()),
    }
    fetch.main()
    assert Path("data/source.json").read_bytes() == first
    (folder / "Pro" / "WBC-Malignant-Pro-001.jpg").write_bytes(image(77))
    fetch.main()
    assert Path("data/source.json").read_bytes() != first


def test_a_failed_fetch_leaves_the_former_data_and_its_description(recipe: Recipe, tmp_path: Path) -> None:
    recipe(source="folder", folder=str(tree(tmp_path / "f", plain())))
    fetch.main()
    before = raw_files(), source()
    recipe(source="folder", folder=str(tree(tmp_path / "g", plain())))
    (tmp_path / "g" / "Pro" / "zz.jpg").symlink_to("gone.jpg")  # the last one to be copied
    with pytest.raises(Problem):
        fetch.main()
    assert (raw_files(), source()) == before
    assert sorted(path.name for path in Path("data").iterdir()) == ["raw", "source.json"]


def test_a_successful_fetch_replaces_the_former_data_entirely(recipe: Recipe, tmp_path: Path) -> None:
    recipe(source="folder", folder=str(tree(tmp_path / "f", plain() | {"Benign/old.jpg": image(60)})))
    fetch.main()
    recipe(source="folder", folder=str(tree(tmp_path / "g", plain())))
    fetch.main()
    assert len(raw_files()) == 8
    assert source()["images"]["benign"] == 2


# --- archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
def test_an_archive_on_disk_is_unpacked_and_kept(recipe: Recipe, tmp_path: Path, pack: str) -> None:
    mode = {"tar": "w", "tar.gz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}
    data = zipped(leukemia()) if pack == "zip" else tarred(leukemia(), mode[pack])
    path = tmp_path / "smears.data"  # the content tells the kind, not the name
    path.write_bytes(data)
    recipe(source="archive", archive=str(path), sha256=sha256(data))
    fetch.main()
    assert len(raw_files()) == 8
    assert source()["archive_sha256"] == sha256(data)
    assert path.read_bytes() == data
    assert not list(Path(".state/fetch").iterdir())


def test_a_wrong_checksum_of_ones_own_file_names_both_and_keeps_the_file(recipe: Recipe, tmp_path: Path) -> None:
    data = zipped(plain())
    path = tmp_path / "smears.zip"
    path.write_bytes(data)
    recipe(source="archive", archive=str(path), sha256="0" * 64)
    with pytest.raises(Problem, match=f"expected {'0' * 64}\n  actual   {sha256(data)}"):
        fetch.main()
    assert path.read_bytes() == data
    assert_nothing_left()


def test_a_missing_archive_is_named(recipe: Recipe) -> None:
    recipe(source="archive", archive="ftp://somewhere/x.zip", sha256="0" * 64)
    with pytest.raises(Problem, match=r"ftp://somewhere/x\.zip is no file, and no http"):
        fetch.main()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def zip_with_symlink() -> bytes:
    buffer = io.BytesIO(zipped(plain()))
    with zipfile.ZipFile(buffer, "a") as archive:
        info = zipfile.ZipInfo("Benign/link.jpg")
        info.create_system = 3  # Unix
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    return buffer.getvalue()


def zip_that_claims_a_petabyte() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Benign/bomb.jpg", b"x")
        archive.filelist[0].file_size = 10**15
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(zipped(plain() | {"../escaped.jpg": b"x"}), "member '../escaped.jpg' .* outside", id="zip-parent"),
        pytest.param(zipped(plain() | {"/escaped.jpg": b"x"}), "member '/escaped.jpg' .* outside", id="zip-absolute"),
        pytest.param(zipped(plain() | {"..\\escaped.jpg": b"x"}), "escaped.jpg' .* outside", id="zip-backslash"),
        pytest.param(zipped(plain() | {"C:\\escaped.jpg": b"x"}), "escaped.jpg' .* outside", id="zip-drive"),
        pytest.param(zip_with_symlink(), "'Benign/link.jpg' is a link", id="zip-symlink"),
        pytest.param(zip_that_claims_a_petabyte(), "would fill the disk", id="zip-bomb"),
        pytest.param(tarred(plain() | {"a/../../escaped.jpg": b"x"}), "escaped.jpg' .* outside", id="tar-parent"),
        pytest.param(tarred(plain() | {"/tmp/escaped.jpg": b"x"}), "'/tmp/escaped.jpg' .* outside", id="tar-absolute"),
        pytest.param(
            tarred(plain(), extra=(member("Benign/link.jpg", tarfile.SYMTYPE, "/etc/passwd"),)),
            "'Benign/link.jpg' is a link",
            id="tar-symlink",
        ),
        pytest.param(
            tarred(plain(), extra=(member("Benign/link.jpg", tarfile.LNKTYPE, "Benign/WBC-Benign-001.jpg"),)),
            "'Benign/link.jpg' is a link",
            id="tar-hardlink",
        ),
        pytest.param(
            tarred(plain(), extra=(member("Benign/null.jpg", tarfile.CHRTYPE),)), "or a device", id="tar-device"
        ),
        pytest.param(tarred({}, extra=(member("Benign/bomb.jpg", size=10**15),)), "would fill the disk", id="tar-bomb"),
        pytest.param(zipped(plain())[:-40] + b"!" * 40, "neither a zip nor a tar", id="zip-truncated"),
        pytest.param(zipped(plain()).replace(image(3), image(3)[::-1]), "cannot be unpacked", id="zip-damaged"),
        pytest.param(tarred(plain(), "w:gz")[:-200], "cannot be unpacked", id="tar-truncated"),
        pytest.param(tarred({"Benign": b"x", "Benign/a.jpg": b"x"}), "cannot be unpacked", id="tar-file-and-folder"),
        pytest.param(b"<html>Please log in</html>", "neither a zip nor a tar", id="html"),
    ],
)
def test_an_archive_that_cannot_be_trusted_is_refused_and_leaves_nothing(
    recipe: Recipe, tmp_path: Path, data: bytes, message: str
) -> None:
    path = tmp_path / "smears.archive"
    path.write_bytes(data)
    recipe(source="archive", archive=str(path), sha256=sha256(data))
    with pytest.raises(Problem, match=message):
        fetch.main()
    assert_nothing_left()
    assert not list(tmp_path.rglob("*escaped*"))
    assert not Path("/tmp/escaped.jpg").exists()


# --- downloads --------------------------------------------------------------------------------------------------------


def test_a_download_is_checked_unpacked_and_not_repeated(recipe: Recipe, server: Server) -> None:
    data = server.files["/smears.zip"] = zipped(leukemia())
    recipe(source="archive", archive=f"{server.url}/smears.zip", sha256=sha256(data))
    fetch.main()
    fetch.main()
    assert len(raw_files()) == 8
    assert source()["archive_sha256"] == sha256(data)
    assert server.asked == [("/smears.zip", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on_where_it_was_or_begins_again(recipe: Recipe, server: Server, ranges: bool) -> None:
    data = server.files["/smears.zip"] = zipped(plain() | dict([PADDING]))
    server.ranges, server.cut_after = ranges, 1_234_567
    recipe(source="archive", archive=f"{server.url}/smears.zip", sha256=sha256(data))
    with pytest.raises(Problem, match=r"connection was lost .* the next run goes on from there"):
        fetch.main()
    assert_nothing_left()
    fetch.main()
    assert len(raw_files()) == 8
    assert server.asked[1] == ("/smears.zip", "bytes=1234567-")
    assert [path.name for path in Path(".state/fetch").iterdir()] == [sha256(data)]


def test_a_download_that_was_whole_but_not_yet_checked_is_used(recipe: Recipe, server: Server) -> None:
    data = server.files["/smears.zip"] = zipped(plain())
    Path(".state/fetch").mkdir(parents=True)
    Path(f".state/fetch/{sha256(data)}.part").write_bytes(data)
    recipe(source="archive", archive=f"{server.url}/smears.zip", sha256=sha256(data))
    fetch.main()
    assert len(raw_files()) == 8


def test_a_download_with_a_wrong_checksum_is_removed_and_never_unpacked(recipe: Recipe, server: Server) -> None:
    data = server.files["/smears.zip"] = zipped(plain())
    recipe(source="archive", archive=f"{server.url}/smears.zip", sha256="0" * 64)
    with pytest.raises(Problem, match=f"expected {'0' * 64}\n  actual   {sha256(data)}\nThe download was removed"):
        fetch.main()
    assert_nothing_left()
    assert not list(Path(".state/fetch").iterdir())


def test_a_gzip_that_the_server_declares_as_an_encoding_keeps_its_bytes(recipe: Recipe, server: Server) -> None:
    data = server.files["/smears.tar.gz"] = tarred(plain(), "w:gz")

    class Encoding(Handler):
        def end_headers(self) -> None:
            self.send_header("Content-Encoding", "x-gzip")
            super().end_headers()

    server.RequestHandlerClass = Encoding
    recipe(source="archive", archive=f"{server.url}/smears.tar.gz", sha256=sha256(data))
    fetch.main()
    assert len(raw_files()) == 8


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_refused_download_names_the_address_and_the_status(recipe: Recipe, server: Server, status: int) -> None:
    server.status = status
    recipe(source="archive", archive=f"{server.url}/smears.zip", sha256="0" * 64)
    with pytest.raises(Problem, match=rf"smears\.zip answered {status} .* Check fetch\.archive"):
        fetch.main()
    assert_nothing_left()


def test_a_server_that_is_down_gives_one_line_about_the_network(recipe: Recipe) -> None:
    recipe(source="archive", archive=f"http://127.0.0.1:{free_port()}/smears.zip", sha256="0" * 64)
    with pytest.raises(Problem, match=r"could not be reached.*\(Connection refused\).* the proxy \(HTTPS_PROXY\)"):
        fetch.main()
    assert_nothing_left()


# --- Kaggle -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_kaggle(server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Kaggle's client has a fixed list of addresses: it asks its plain http one, through our server as the proxy."""
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")
    monkeypatch.setenv("http_proxy", server.url)
    return server


def test_a_public_kaggle_data_set_is_fetched_without_credentials(
    recipe: Recipe, as_kaggle: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    as_kaggle.files["/kaggle.zip"] = zipped(leukemia())
    recipe(source="kaggle", kaggle="mehradaria/leukemia")
    fetch.main()
    assert len(raw_files()) == 8
    assert source()["version"] == "3"
    assert source()["source"] == "kaggle"
    assert [what for what, _ in as_kaggle.asked] == ["GetDataset", "DownloadDataset", "/kaggle.zip"]
    assert as_kaggle.asked[0][1] is None
    assert Path(".state/fetch/kaggle/datasets/mehradaria/leukemia").is_dir()

    fetch.main()  # the same version is not downloaded twice
    assert as_kaggle.asked[3:] == [("GetDataset", None)]


def test_kaggle_credentials_are_sent_to_kaggle_alone(
    recipe: Recipe, as_kaggle: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "a-token")
    as_kaggle.files["/kaggle.zip"] = zipped(plain())
    recipe(source="kaggle", kaggle="owner/private/versions/7")
    fetch.main()
    assert as_kaggle.asked == [("DownloadDataset", "Bearer a-token"), ("/kaggle.zip", None)]
    assert source()["version"] == "7"


def test_a_cut_kaggle_download_goes_on_where_it_was(recipe: Recipe, as_kaggle: Server) -> None:
    as_kaggle.files["/kaggle.zip"] = zipped(plain() | dict([PADDING]))
    as_kaggle.cut_after = 2_000_000
    recipe(source="kaggle", kaggle="mehradaria/leukemia")
    with pytest.raises(Problem, match=r"connection was lost .*IncompleteRead.* goes on from there"):
        fetch.main()
    assert_nothing_left()
    fetch.main()
    assert len(raw_files()) == 8
    assert as_kaggle.asked[-1] == ("/kaggle.zip", "bytes=1048576-")  # kagglehub keeps whole MiB


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, r"wants credentials .* KAGGLE_API_TOKEN, or as KAGGLE_USERNAME and KAGGLE_KEY"),
        (403, r"wants credentials .* KAGGLE_API_TOKEN, or as KAGGLE_USERNAME and KAGGLE_KEY"),
        (404, r"no data set mehradaria/leukemia \(404\). Check fetch.kaggle"),
        (503, r"answered 503 .* fetch.source: folder"),
    ],
)
def test_a_refusal_by_kaggle_says_what_to_do(recipe: Recipe, as_kaggle: Server, status: int, message: str) -> None:
    as_kaggle.status = status
    recipe(source="kaggle", kaggle="mehradaria/leukemia")
    with pytest.raises(Problem, match=message):
        fetch.main()
    assert_nothing_left()


def test_kaggle_without_a_network_says_what_was_tried_and_what_to_do(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")  # the real address, through a dead proxy
    recipe(source="kaggle", kaggle="mehradaria/leukemia")
    with pytest.raises(Problem, match=r"Connection refused.*proxy \(HTTPS_PROXY\).*fetch\.source: folder"):
        fetch.main()
    assert_nothing_left()


def test_a_broken_kaggle_archive_is_removed_so_that_the_next_run_can_succeed(recipe: Recipe, as_kaggle: Server) -> None:
    as_kaggle.files["/kaggle.zip"] = b"<html>Please log in</html>"
    recipe(source="kaggle", kaggle="mehradaria/leukemia")
    with pytest.raises(Problem, match=r"cannot be used .* has been removed"):
        fetch.main()
    as_kaggle.files["/kaggle.zip"] = zipped(plain())
    fetch.main()
    assert len(raw_files()) == 8


def test_a_malformed_kaggle_handle_is_named(recipe: Recipe) -> None:
    recipe(source="kaggle", kaggle="leukemia")
    with pytest.raises(Problem, match="'leukemia' is no handle; write owner/name"):
        fetch.main()


# --- the command ------------------------------------------------------------------------------------------------------


def start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.fetch"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_ctrl_c_in_a_download_leaves_no_data_and_the_next_run_completes(recipe: Recipe, server: Server) -> None:
    data = server.files["/smears.zip"] = zipped(plain() | dict([PADDING]))
    server.stall_after = 2_500_000
    recipe(source="archive", archive=f"{server.url}/smears.zip", sha256=sha256(data))
    part = Path(f".state/fetch/{sha256(data)}.part")
    with start() as process:
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size >= 1_000_000):
            assert time.monotonic() < deadline, "the download did not begin"
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    assert_nothing_left()

    with start() as process:
        output, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert len(raw_files()) == 8
    assert "images:  8" in output
    assert server.asked[1][1] is not None  # it asked for the rest only


def test_a_full_disk_gives_one_message_and_leaves_no_data(recipe: Recipe, server: Server) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    data = server.files["/smears.zip"] = zipped(plain())
    Path(".state/fetch").mkdir(parents=True)
    Path(f".state/fetch/{sha256(data)}.part").symlink_to("/dev/full")
    recipe(source="archive", archive=f"{server.url}/smears.zip", sha256=sha256(data))
    with start() as process:
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "the disk is full" in error
    assert "Traceback" not in error
    assert_nothing_left()
