"""What of a folder is an image, what is left out, and that walking it always ends."""

import io
import os
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from leukdetect import images
from pipeline.data import walk
from pipeline.stage import Problem


def picture(format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 150, 180)).save(buffer, format)
    return buffer.getvalue()


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def found(tree: Path) -> tuple[list[str], dict[str, int]]:
    left_out: Counter[str] = Counter()
    return [path.relative_to(tree).as_posix() for path in walk.image_files(tree, left_out)], dict(left_out)


@pytest.mark.parametrize("format", images.FORMATS)
@pytest.mark.parametrize("name", ["image", "image.001", "image.dat", "1.2.840.10008"])
def test_an_image_is_known_by_its_content_whatever_its_name(tmp_path: Path, format: str, name: str) -> None:
    write(tmp_path / name, picture(format))
    assert found(tmp_path) == ([name], {})


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.JPG", "a.dib", "a.tif"])
def test_what_is_named_as_an_image_is_listed_though_broken(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, b"broken")
    assert found(tmp_path) == ([name], {})


@pytest.mark.parametrize("content", [b"", b"BM", b"BMI and age of the patients", b"RIFF....WAVEfmt "])
def test_what_is_no_image_is_counted_by_its_extension(tmp_path: Path, content: bytes) -> None:
    for name in ("a.txt", "b.TXT", "c"):
        write(tmp_path / name, content)
    assert found(tmp_path) == (
        [],
        {
            "files that are no image (*.txt)": 2,
            "files that are no image (* without extension)": 1,
        },
    )


def test_an_image_that_is_not_decoded_is_counted_as_what_it_is(tmp_path: Path) -> None:
    write(tmp_path / "IMG_1", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    write(tmp_path / "IMG_2.HEIC", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")
    write(tmp_path / "1.2.840", bytes(128) + b"DICM")
    assert found(tmp_path) == (
        [],
        {
            "files that are not decoded, HEIC: send JPEG (on an iPhone: Settings, Camera, Formats, Most Compatible), "
            "or convert it to PNG": 2,
            "files that are not decoded, a DICOM file: export its picture as PNG or TIFF": 1,
        },
    )


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("#recycle", "deleted files, in #recycle"),
        ("@Recycle", "deleted files, in @Recycle"),
        ("$RECYCLE.BIN", "deleted files, in $RECYCLE.BIN"),
        (".Trashes", "deleted files, in .Trashes"),
        (".Trash-1000", "deleted files, in .Trash-1000"),
        ("@eaDir", "thumbnails and indexes, in @eaDir"),
        ("#snapshot", "earlier states of files, in #snapshot"),
        ("lost+found", "files of the system's own, in lost+found"),
        ("System Volume Information", "files of the system's own, in System Volume Information"),
        (".cache", "hidden files, in .cache"),
    ],
)
def test_what_file_servers_and_systems_keep_is_left_out_and_counted(tmp_path: Path, folder: str, why: str) -> None:
    write(tmp_path / "benign/a.jpg")
    for name in ("1.jpg", "deep/2.jpg", "deep/er/notes.txt"):
        write(tmp_path / "benign" / folder / name, picture())
    assert found(tmp_path) == (["benign/a.jpg"], {why: 3})


def test_system_files_and_hidden_twins_are_left_out(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini"):
        write(tmp_path / name, picture())
    assert found(tmp_path) == (["a.jpg"], {"hidden files": 2, "files of the system's own": 2})


def test_a_folder_that_is_left_out_need_not_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: Path) -> object:  # root, who may run this, may read everything
        if path.name in ("lost+found", "pro"):
            raise PermissionError(13, "Permission denied")
        return really(path)

    really = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    write(tmp_path / "a.jpg")
    (tmp_path / "lost+found").mkdir()
    assert found(tmp_path) == (["a.jpg"], {"files of the system's own, in lost+found": 1})
    (tmp_path / "pro").mkdir()
    with pytest.raises(Problem, match=r"pro cannot be read \(Permission denied\)"):
        found(tmp_path)


def test_pipes_sockets_and_devices_are_left_out_whatever_their_name(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.jpg"))
        assert found(tmp_path) == (["a.jpg"], {"pipes, sockets and devices": 4})


def test_reading_a_pipe_is_an_error_and_no_wait(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="no file, but a folder, a pipe, a socket or a device"):
        walk.read(tmp_path / "pipe.jpg", 10)
    assert walk.read(write(tmp_path / "a.jpg", b"0123456789abc"), 10) == b"0123456789"


def test_each_folder_is_walked_once_and_by_its_own_name(tmp_path: Path) -> None:
    write(tmp_path / "b/a.jpg")
    write(tmp_path / "c/a.jpg")
    for folder, other in (("b", "c"), ("c", "b")):
        for number in (1, 2):  # two links each to each other: paths without end
            (tmp_path / folder / f"link{number}").symlink_to(tmp_path / other)
    (tmp_path / "a-link-to-b").symlink_to("b")
    (tmp_path / "all").symlink_to(".")
    names, left_out = found(tmp_path)
    assert names == ["b/a.jpg", "c/a.jpg"]
    assert left_out == {"folders that have another name too, by which they were walked": 6}


def test_a_link_leads_to_folders_and_files_elsewhere(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/x/a.jpg")
    write(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/pro").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "tree/b.jpg").symlink_to(tmp_path / "elsewhere/b.jpg")
    (tmp_path / "tree/self").symlink_to("self")
    (tmp_path / "tree/gone.jpg").symlink_to("nowhere")  # whoever reads it says so
    assert found(tmp_path / "tree") == (["b.jpg", "gone.jpg", "pro/a.jpg"], {"links that lead nowhere": 1})


def test_a_name_that_is_not_utf_8_is_one_message(tmp_path: Path) -> None:
    write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/fr\xfch")) / "a.jpg")
    with pytest.raises(Problem, match=r"fr\\xfch/a\.jpg is not UTF-8.*convmv"):
        found(tmp_path)


def test_very_deep_folders_are_walked(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    names, _ = found(tmp_path)
    assert names == ["d/" * 1200 + "a.jpg"]
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # deeper than shutil.rmtree goes
