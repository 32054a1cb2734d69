"""The colours of a field, and how far they lie apart from one session at the microscope to the next."""

import numpy as np

# From RGB to lαβ by way of LMS: Reinhard et al. 2001, "Color transfer between images", doi 10.1109/38.946629.
LMS = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
LAB = np.diag([3**-0.5, 6**-0.5, 2**-0.5]) @ np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]])
# Standard deviations over pairs of blocks of one class of the four-class smears (benchmarks/levers.py): of the
# difference of their mean l, α and β, and of the log of the ratio of their spread in each.
SHIFT, LOG_RATIO = np.array([0.019, 0.013, 0.0014]), np.array([0.146, 0.153, 0.156])


def to_lab(image: np.ndarray) -> np.ndarray:
    """lαβ [S·S, 3] of uint8 RGB [S, S, 3]."""
    return np.asarray(np.log10((image.reshape(-1, 3) + 1.0) @ LMS.T) @ LAB.T)


def from_lab(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 RGB of that shape of lαβ [S·S, 3]."""
    rgb = 10 ** (values @ np.linalg.inv(LAB).T) @ np.linalg.inv(LMS).T - 1
    return np.asarray(np.clip(rgb.reshape(shape) + 0.5, 0, 255), np.uint8)


def moved(image: np.ndarray, shift: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """uint8 RGB [S, S, 3] with its mean l, α and β moved by `shift` [3], and their spread times `ratio` [3]."""
    lab = to_lab(image)
    mean = lab.mean(0)
    return from_lab((lab - mean) * ratio + mean + shift, image.shape)
