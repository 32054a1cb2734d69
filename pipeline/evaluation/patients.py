"""Answers put together by patient, where a label is the patient's and many of the images do not show it."""

import numpy as np

from leukdetect.contract import Contract
from pipeline.evaluation import classification
from pipeline.evaluation.answers import Answers, Sample
from pipeline.evaluation.classification import Hits, PerClass
from pipeline.evaluation.metrics import Both, Count, Estimate


class Patients(Hits):
    """One answer a patient: the mean of the probabilities of all of the patient's images."""

    patients: Count
    malignant_sensitivity: Estimate | None = None
    malignant_specificity: Estimate | None = None
    malignant_auroc: Estimate | None = None
    ece: Estimate
    per_class: dict[str, PerClass]
    wilson: dict[str, Estimate]


def both(fp32: Answers, int8: Answers, test: Sample, contract: Contract) -> Both[Patients]:
    """Both files' answers; `contract`: one's, since their classes and operating point are the same."""
    return Both(fp32=measure(fp32, test, contract), int8=measure(int8, test, contract))


def measure(answers: Answers, test: Sample, contract: Contract) -> Patients:
    """As `classification.whole`, a patient being a case; `prepare` sees to it that each has one class."""
    _, first, of = np.unique(test.groups, return_index=True, return_inverse=True)
    mean = np.eye(len(first))[of].T / np.bincount(of)[:, None]  # [patients, N]
    p_malignant = None if answers.p_malignant is None else mean @ answers.p_malignant
    point = contract.thresholds.malignant
    together = Answers(
        probabilities=mean @ answers.probabilities,
        unlikeness=mean @ answers.unlikeness,
        embedding=mean @ answers.embedding,
        cam=answers.cam[first],
        p_malignant=p_malignant,
        malignant=None if p_malignant is None or point is None else p_malignant >= point,
        reasons=[set() for _ in first],
    )
    malignant = np.array([each.malignant for each in contract.classes])
    found = classification.whole(together, test.only(first), malignant, [each.key for each in contract.classes])
    return Patients(patients=len(first), **{k: v for k, v in dict(found).items() if k in Patients.model_fields})
