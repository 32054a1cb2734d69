"""Where the stained white cells are, found without a model by Otsu's thresholds on the stain."""

import numpy as np
from scipy import ndimage

DILATION = 0.05  # of the side: how far the mask reaches beyond the nucleus, to cover the cytoplasm
QUANTILE, MOST = 0.95, 0.85  # the masked share covers the cells in this share of the images, and is at most 0.85
BLACK = 10  # grey levels; a pixel with no channel above was cut out, and is no stain
FAINT = 0.2  # optical density of red and green together; an image with less contrast has nothing stained
BINS = 64  # of the histogram that thresholds are sought in
SMALLEST = 0.2  # of the largest nucleus: what is smaller is a platelet or a fragment


def nuclei(image: np.ndarray) -> np.ndarray:
    """Bool [S, S]: stained nuclei of a uint8 RGB image [S, S, 3], holes filled.

    Two thresholds (Otsu 1979, section III) part glass, red cells and nuclei by how much red and green light they stop
    (Beer–Lambert): azure and eosin together stop both. The sum of both densities gives slightly better masks than
    `leukdetect.images.density` (docs/results.md).
    """
    side = image.shape[0]
    density = -np.log((image[..., :2].astype(np.float32) + 1) / 256).sum(axis=2)
    density[(image < BLACK).all(axis=2)] = 0
    density = ndimage.gaussian_filter(density, side / 64)
    if np.ptp(density) < FAINT:
        return np.zeros(density.shape, bool)
    stained = ndimage.binary_opening(density > _upper_otsu(density), iterations=max(1, side // 64))
    return ndimage.binary_fill_holes(stained)


def count(stained: np.ndarray) -> int:
    """How many `nuclei` a field has, as connected components; cells that touch count as one."""
    sizes = np.bincount(ndimage.label(stained)[0].ravel())[1:]
    return int((sizes >= SMALLEST * sizes.max(initial=0)).sum())


def cells(stained: np.ndarray) -> np.ndarray:
    """Bool [N, S, S]: the pixels nearest to `nuclei` (to the middle, where there are none), bool [N, S, S].

    The mask covers the same share of every image, so that its size does not reveal the class: on the demo a mask that
    follows the cell tells a large cell from a small one.
    """
    middle, whole = stained.shape[1] // 2, stained[0].size
    distances = np.empty(stained.shape, np.float16)
    for each, found in zip(stained, distances, strict=True):
        if not each.any():
            each = each.copy()
            each[middle, middle] = True
        found[:] = ndimage.distance_transform_edt(~each)
    area = [np.count_nonzero(each <= DILATION * len(each)) / whole for each in distances]
    last = int(min(np.quantile(area, QUANTILE), MOST) * whole) - 1
    # Numbers of 16 bits that are not negative lie in the order of their bits, and whole ones are found far sooner.
    ordered = distances.view(np.uint16)
    farthest = np.array([np.partition(each.ravel(), last)[last] for each in ordered])
    return np.asarray(ordered <= farthest[:, None, None])


def _upper_otsu(values: np.ndarray) -> float:
    """The higher of the two thresholds that divide values into three kinds with the largest variance between them."""
    counts, edges = np.histogram(values, BINS)
    below = np.append(0, counts.cumsum())
    sums = np.append(0, (counts * (edges[1:] + edges[:-1]) / 2).cumsum())
    first, second = np.triu_indices(BINS, 1)  # kinds are the bins up to `first`, up to `second`, and the rest
    between = np.zeros(len(first))
    for low, high in ((0, first + 1), (first + 1, second + 1), (second + 1, BINS)):
        n = below[high] - below[low]
        between += np.divide((sums[high] - sums[low]) ** 2, n, out=np.zeros(len(first)), where=n > 0)
    return float(edges[second[between.argmax()] + 1])
