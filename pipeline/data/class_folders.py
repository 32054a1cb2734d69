"""Which class each image belongs to, by the folders that it lies in."""

import filecmp
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.data import walk
from pipeline.params import ClassParams
from pipeline.stage import Problem

# Folders of the known data sets that hold no images to learn from, in lower case.
LEFT_OUT = {
    "segmented": "the same fields as in Original, with the background painted over",
    "c-nmc_test_prelim_phase_data": "the challenge withheld these labels",
    "c-nmc_test_final_phase_data": "the challenge withheld these labels",
}


def find_images(tree: Path, classes: Sequence[ClassParams]) -> tuple[dict[str, Path], Counter[str]]:
    """Finds every class's images, whatever the layout: of the folders that a class lists, the one nearest the file.

    Returns:
        The images as {"class/file name": path}, and how many files were left out, by reason.

    Raises:
        Problem: there are no images, or none of one class; images lie in a folder that no class lists; or two
            different images of a class have the same name.
    """
    key_of: dict[str, str] = {}
    for name, owner in ((name, c.key) for c in classes for name in c.folders):
        if key_of.setdefault(_plain(name), owner) != owner:
            raise Problem(f"classes: the folder {name!r} belongs to both {key_of[_plain(name)]} and {owner}")

    images: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    unknown: set[str] = set()
    for path in walk.image_files(tree, left_out):
        folder = path.relative_to(tree).parent
        names = [_plain(name) for name in reversed(folder.parts)]
        if excluded := LEFT_OUT.keys() & names:
            name = excluded.pop()
            left_out[f"images in {name}: {LEFT_OUT[name]}"] += 1
        elif key := next((key_of[name] for name in names if name in key_of), None):
            other = images.setdefault(f"{key}/{unicodedata.normalize('NFC', path.name)}", path)
            if other != path and not filecmp.cmp(other, path, shallow=False):
                raise Problem(f"two different images of class {key} have one name: {other} and {path}. Rename one.")
        else:
            unknown.add("the top folder" if folder == Path() else str(folder))

    declared = "; ".join(f"{c.key}: {', '.join(c.folders)}" for c in classes)
    if unknown:
        raise Problem(
            f"images in folders that belong to no class: {', '.join(sorted(unknown))}. Known folders are {declared}. "
            "Add a folder to its class in classes[].folders of params.yaml, or take it away."
        )
    if not images:
        raise Problem(f"no images to be found in {tree}{walk.but(left_out)}. Its folders should be named {declared}.")
    found = {target.partition("/")[0] for target in images}
    if missing := [c.key for c in classes if c.key not in found]:
        raise Problem(
            f"no images of class {', '.join(missing)}: no folder of that name holds any{walk.but(left_out)}. "
            f"Known folders are {declared}. "
            "Check the source, or classes[].folders in params.yaml."
        )
    return images, left_out


def _plain(name: str) -> str:
    """As macOS, Windows and people take names for equal: whatever the case, and accents composed or apart."""
    return unicodedata.normalize("NFC", name).casefold()
