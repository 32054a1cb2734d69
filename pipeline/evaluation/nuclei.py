"""Where the stained white cells are, without a model: Otsu's thresholds on the stain, and what follows from them."""

import numpy as np
from scipy import ndimage

DILATION = 0.05  # of the side: from the nucleus, which the threshold finds, over the cytoplasm
QUANTILE, MOST = 0.95, 0.85  # the share that is masked covers the cells in so many images, and is at most this
BLACK = 10  # grey levels; a pixel with no channel above was cut out, and is no stain
FAINT = 0.2  # optical density, red and green together; with less between light and dark nothing is stained
BINS = 64  # of the histogram that thresholds are sought in
SMALLEST = 0.2  # of the largest nucleus: what is smaller is a platelet or a fragment


def nuclei(image: np.ndarray) -> np.ndarray:
    """Bool [S, S]: stained nuclei of a uint8 RGB image [S, S, 3], holes filled.

    Glass, red cells and nuclei are three kinds of pixels by how much red and green light they stop (Beer–Lambert):
    azure and eosin together stop both. Two thresholds part them: Otsu 1979, section III. The sum of both densities
    gives slightly better masks than `leukdetect.images.density` (docs/results.md).
    """
    side = image.shape[0]
    density = -np.log((image[..., :2].astype(np.float32) + 1) / 256).sum(axis=2)
    density[(image < BLACK).all(axis=2)] = 0
    density = ndimage.gaussian_filter(density, side / 64)
    if np.ptp(density) < FAINT:
        return np.zeros(density.shape, bool)
    stained = ndimage.binary_opening(density > _upper_otsu(density), iterations=max(1, side // 64))
    return ndimage.binary_fill_holes(stained)


def count(image: np.ndarray) -> int:
    """Stained nuclei in a field, as connected components; cells that touch count as one."""
    labelled, n = ndimage.label(nuclei(image))
    if n == 0:
        return 0
    sizes = np.bincount(labelled.ravel())[1:]
    return int((sizes >= SMALLEST * sizes.max()).sum())


def cells(images: np.ndarray) -> np.ndarray:
    """Bool [N, S, S]: the pixels nearest to stained nuclei, the same share of every image.

    The same share, so that the size of what is painted over says nothing of the class: on the demo a mask that
    follows the cell tells a large cell from a small one.

    Args:
        images: uint8 [N, S, S, 3].
    """
    distances = np.stack([_distance(image) for image in images])
    area = (distances <= DILATION * images.shape[1]).mean(axis=(1, 2))
    last = int(min(np.quantile(area, QUANTILE), MOST) * distances[0].size) - 1
    farthest = np.partition(distances.reshape(len(images), -1), last, axis=1)[:, last]
    return distances <= farthest[:, None, None]


def _distance(image: np.ndarray) -> np.ndarray:
    """Pixels to the nearest nucleus, float16 [S, S]; to the middle where there is none."""
    stained = nuclei(image)
    if not stained.any():
        stained[len(stained) // 2, len(stained) // 2] = True
    return ndimage.distance_transform_edt(~stained).astype(np.float16)


def _upper_otsu(values: np.ndarray) -> float:
    """The higher of the two thresholds that part values into three kinds with the largest variance between them."""
    counts, edges = np.histogram(values, BINS)
    below = np.append(0, counts.cumsum())
    sums = np.append(0, (counts * (edges[1:] + edges[:-1]) / 2).cumsum())
    first, second = np.triu_indices(BINS, 1)  # kinds are the bins up to `first`, up to `second`, and the rest
    between = np.zeros(len(first))
    for low, high in ((0, first + 1), (first + 1, second + 1), (second + 1, BINS)):
        n = below[high] - below[low]
        between += np.divide((sums[high] - sums[low]) ** 2, n, out=np.zeros(len(first)), where=n > 0)
    return float(edges[second[between.argmax()] + 1])
