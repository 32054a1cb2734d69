"""Prediction sets: the classes that cannot be excluded, and how often the true one is among them.

Class-conditional (Mondrian) split conformal prediction (Vovk, Gammerman and Shafer 2005, chapter 4.5; Sadinle, Lei and
Wasserman 2019, JASA 114:223). If a class's future images are exchangeable with its n validation images, the set lacks
the true class in at most `error` of them. They are not quite: validation images come in groups (patients, sessions),
and future ones are of other groups. So `evaluate` measures the coverage, per class, on other groups.
"""

import numpy as np

from leukdetect.contract import PredictionSets


def fit(probabilities: np.ndarray, labels: np.ndarray, error: float) -> PredictionSets:
    """Thresholds from validation answers [n, C] and classes [n]: each class's k-th lowest own probability.

    With k = ⌊error · (n + 1)⌋ a new image of the class lies below it with a probability of at most k ÷ (n + 1). If k
    is 0, there are too few images to ever exclude the class.
    """
    thresholds, images = [], []
    for index in range(probabilities.shape[1]):
        own = np.sort(probabilities[labels == index, index].astype(np.float64))
        k = int(error * (len(own) + 1) + 1e-9)
        thresholds.append(np.floor(own[k - 1] * 1e6) / 1e6 if k else 0.0)  # six digits, and never above the answer
        images.append(len(own))
    return PredictionSets(error=error, thresholds=thresholds, images=images)
