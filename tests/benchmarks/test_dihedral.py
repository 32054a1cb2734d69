"""The eight symmetries of the square."""

import numpy as np

from benchmarks.dihedral import symmetries


def test_they_are_eight_the_image_first_and_none_twice() -> None:
    images = np.arange(2 * 3 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3, 3)
    found = list(symmetries(images))
    assert (found[0] == images).all()
    assert len({each.tobytes() for each in found}) == 8
    assert all(sorted(each[1].ravel()) == sorted(images[1].ravel()) for each in found)
