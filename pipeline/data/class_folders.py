"""Which class each image belongs to: by the folders that it lies in, by its path, or by a table."""

import filecmp
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from pipeline.data import table, walk
from pipeline.sections import ClassParams, Fetch
from pipeline.stage import Problem

# Folders of the known data sets that hold no images to learn from, in lower case.
LEFT_OUT = {
    "segmented": "the same fields as in Original, with the background painted over",
    "c-nmc_test_prelim_phase_data": "the challenge withheld these labels",
    "c-nmc_test_final_phase_data": "the challenge withheld these labels",
}


class Label(NamedTuple):
    """Of an image: names that a class may list, the nearest first, and where it is to lie below its class."""

    names: Sequence[str]
    place: Path


def find_images(tree: Path, classes: Sequence[ClassParams], fetch: Fetch) -> tuple[dict[str, Path], Counter[str]]:
    """Finds every class's images, whatever the layout; subfolders of a class stay, since they may be patients.

    Returns:
        The images as {"class/folders/file name": path}, and how many files were left out, by reason.

    Raises:
        Problem: there are no images, or none of one class; an image has no label, or one that no class lists; or two
            different images would have the same name.
    """
    key_of: dict[str, str] = {}
    for name, owner in ((name, c.key) for c in classes for name in c.folders):
        if key_of.setdefault(_plain(name), owner) != owner:
            raise Problem(f"classes: {name!r} belongs to both {key_of[_plain(name)]} and {owner}")
    unwanted = LEFT_OUT | dict.fromkeys(map(_plain, fetch.leave_out), "fetch.leave_out names it")
    if both := unwanted.keys() & key_of.keys():
        raise Problem(f"fetch.leave_out names {', '.join(sorted(both))}, which a class lists in classes[].folders")

    label_of = _labels(tree, fetch, key_of)
    images: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    unknown: set[str] = set()
    for path in walk.image_files(tree, left_out):
        label = label_of(path.relative_to(tree))
        names = [_plain(name) for name in label.names]
        if excluded := next((name for name in names if name in unwanted), None):
            left_out[f"images in {excluded}: {unwanted[excluded]}"] += 1
        elif key := next((key_of[name] for name in names if name in key_of), None):
            other = images.setdefault(unicodedata.normalize("NFC", f"{key}/{label.place}"), path)
            if other != path and not filecmp.cmp(other, path, shallow=False):
                raise Problem(
                    f"two different images of class {key} have one name: {other} and {path}. Rename one; or, where the "
                    "folders above a class are patients, set fetch.label to a pattern of the path, which keeps them all"
                )
        else:
            unknown.add(label.names[0] if label.names else f"{path.name}, which has none")
    _check(tree, classes, set(images), unknown, left_out)
    return images, left_out


def _labels(tree: Path, fetch: Fetch, known: Collection[str]) -> Callable[[Path], Label]:
    """The way that the recipe names from an image's path below the source to its label."""
    if fetch.table is not None:
        return _by_table(tree / fetch.table)
    if fetch.label is not None:
        pattern = re.compile(fetch.label)
        return lambda path: Label([found["label"]] if (found := pattern.search(str(path))) else [], path)

    def by_folders(path: Path) -> Label:
        parts = path.parts[:-1]
        nearest = next((i for i in reversed(range(len(parts))) if _plain(parts[i]) in known), len(parts) - 1)
        return Label(parts[::-1], Path(*path.parts[nearest + 1 :]))

    return by_folders


def _by_table(path: Path) -> Callable[[Path], Label]:
    """The columns image (a path below the source, or a file's name), label and, where there is one, patient.

    Where a patient is named, the image lies in a folder of that name, which `prepare.patient` can find.
    """
    if not path.is_file():
        raise Problem(f"fetch.table: {path} is no file; give a CSV's path below the source")
    hint = "fetch.table needs the columns image and label, and may have patient"
    rows: dict[str, tuple[str, str]] = {}
    for line, cells in table.rows(path, ("image", "label"), hint):
        said = cells["label"].strip(), cells.get("patient", "").strip()
        image = unicodedata.normalize("NFC", cells["image"].strip().replace("\\", "/"))
        if rows.setdefault(image, said) != said:
            raise Problem(f"{path}, line {line}: {image} has two labels or patients")

    def by_table(image: Path) -> Label:
        whole = Path(unicodedata.normalize("NFC", str(image)))
        label, patient = rows.get(str(whole)) or rows.get(whole.name) or ("", "")
        folder = re.sub(r"^\.", "%2E", quote(patient, safe=" "))  # one folder, seen by all, also for `..`
        return Label([label] if label else [], folder / whole)

    return by_table


def _check(
    tree: Path, classes: Sequence[ClassParams], images: set[str], unknown: set[str], left_out: Counter[str]
) -> None:
    """Raises Problem if an image has no class, or a class no image."""
    declared = "; ".join(f"{c.key}: {', '.join(c.folders)}" for c in classes)
    if unknown:
        some = ", ".join(sorted(unknown)[:10]) + (" …" if len(unknown) > 10 else "")
        raise Problem(
            f"images with labels that belong to no class: {some}. Known are {declared}. Add a label to its class in "
            "classes[].folders of params.yaml, or to fetch.leave_out, or take it away."
        )
    if not images:
        raise Problem(f"no images to be found in {tree}{walk.but(left_out)}. Known labels are {declared}.")
    found = {target.partition("/")[0] for target in images}
    if missing := [c.key for c in classes if c.key not in found]:
        raise Problem(
            f"no images of class {', '.join(missing)}: none is labelled so{walk.but(left_out)}. "
            f"Known labels are {declared}. Check the source, or classes[].folders in params.yaml."
        )


def _plain(name: str) -> str:
    """As macOS, Windows and people take names for equal: whatever the case, and accents composed or apart."""
    return unicodedata.normalize("NFC", name).casefold()
