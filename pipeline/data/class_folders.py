"""Which class each image belongs to, by the folders that it lies in."""

import filecmp
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.data import image_files
from pipeline.params import ClassParams
from pipeline.stage import Problem

# Folders of the known data sets that hold no images to learn from, in lower case.
LEFT_OUT = {
    "segmented": "the same fields as in Original, with the background painted over",
    "c-nmc_test_prelim_phase_data": "the challenge withheld these labels",
    "c-nmc_test_final_phase_data": "the challenge withheld these labels",
}


def find_images(tree: Path, classes: Sequence[ClassParams]) -> tuple[dict[str, Path], Counter[str]]:
    """Finds every class's images, whatever the layout: the folder nearest the file that a class lists decides.

    Returns:
        The images as {"class/file name": path}, and how many were left out for each folder of `LEFT_OUT`.

    Raises:
        Problem: there are no images, or none of one class; images lie in a folder that no class lists; or two
            different images of a class have the same name.
    """
    key_of: dict[str, str] = {}
    for one in classes:
        for name in one.folders:
            if key_of.setdefault(name.casefold(), one.key) != one.key:
                raise Problem(f"classes: the folder {name!r} belongs to both {key_of[name.casefold()]} and {one.key}")

    images: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    unknown: set[str] = set()
    for path in image_files.image_files(tree):
        place_in_tree = path.relative_to(tree).parent
        parts = [part.casefold() for part in place_in_tree.parts]
        excluded = next((part for part in parts if part in LEFT_OUT), None)
        key = next((key_of[part] for part in reversed(parts) if part in key_of), None)
        if excluded:
            left_out[excluded] += 1
        elif key is None:
            unknown.add("the top folder" if place_in_tree == Path() else str(place_in_tree))
        else:
            other = images.setdefault(f"{key}/{path.name}", path)
            if other != path and not filecmp.cmp(other, path, shallow=False):
                raise Problem(f"two different images of class {key} have one name: {other} and {path}. Rename one.")

    known = "; ".join(f"{c.key}: {', '.join(c.folders)}" for c in classes)
    if unknown:
        raise Problem(
            f"images in folders that belong to no class: {', '.join(sorted(unknown))}. Known folders are {known}. "
            "Add a folder to its class in classes[].folders of params.yaml, or take it away."
        )
    if not images:
        raise Problem(
            f"no images ({' '.join(sorted(image_files.EXTENSIONS))}) to be found in {tree}. "
            f"Its folders should be named {known}."
        )
    missing = [c.key for c in classes if not any(target.startswith(f"{c.key}/") for target in images)]
    if missing:
        raise Problem(
            f"no images of class {', '.join(missing)}: no folder of that name holds any. Known folders are {known}. "
            "Check the source, or classes[].folders in params.yaml."
        )
    return images, left_out
