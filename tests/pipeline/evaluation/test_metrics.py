"""The metrics against scikit-learn, against cases done by hand, and against the laws they must keep."""

from collections.abc import Hashable, Sequence
from random import Random

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.evaluation import metrics
from pipeline.evaluation.metrics import Estimate

CLASSES = 4
unhurried = settings(deadline=None)  # how busy the machine is, is not what is tested


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels that hold every class, predictions, and groups of a few images."""
    n = draw(st.integers(8, 60))
    labels = np.append(np.arange(CLASSES), draw(hnp.arrays(int, n, elements=st.integers(0, CLASSES - 1))))
    predictions = draw(hnp.arrays(int, len(labels), elements=st.integers(0, CLASSES - 1)))
    groups = draw(hnp.arrays(int, len(labels), elements=st.integers(0, 12)))
    return labels, predictions, groups


def resamples(labels: np.ndarray, groups: Sequence[Hashable] | np.ndarray, n: int = 50) -> np.ndarray:
    return metrics.group_weights(labels, groups, n, seed=1)


def scores(seed: int, n: int = 80) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities [N, C] with ties, labels, and three rows of weights."""
    rng = np.random.default_rng(seed)
    labels = np.append(np.arange(CLASSES), rng.integers(0, CLASSES, n - CLASSES))
    probabilities = rng.dirichlet(np.ones(CLASSES), n).round(2) + 0.01
    probabilities /= probabilities.sum(1, keepdims=True)
    return probabilities, labels, rng.integers(1, 4, (3, n)).astype(float)


class TestAgainstScikitLearn:
    """Weighted by how often each image was drawn, as scikit-learn weighs samples."""

    @settings(deadline=None, max_examples=30)
    @given(samples())
    def test_what_needs_only_predictions(self, sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        labels, predictions, groups = sample
        weights = resamples(labels, groups, 3)
        matrix = metrics.confusion(labels, predictions, CLASSES, weights)
        for row, drawn in enumerate(weights):
            every = {"sample_weight": drawn, "labels": range(CLASSES)}
            np.testing.assert_allclose(matrix[row], sklearn.metrics.confusion_matrix(labels, predictions, **every))
            expected = sklearn.metrics.precision_recall_fscore_support(labels, predictions, zero_division=0, **every)
            for name, theirs in zip(("precision", "recall", "f1"), expected, strict=False):
                np.testing.assert_allclose(metrics.per_class(matrix)[name][row], theirs)
            np.testing.assert_allclose(
                metrics.balanced_accuracy(labels, predictions, weights)[row],
                sklearn.metrics.balanced_accuracy_score(labels, predictions, sample_weight=drawn),
            )
            np.testing.assert_allclose(
                metrics.mean(predictions == labels, weights)[row],
                sklearn.metrics.accuracy_score(labels, predictions, sample_weight=drawn),
            )

    @pytest.mark.parametrize("seed", range(5))
    def test_auroc_with_ties(self, seed: int) -> None:
        probabilities, labels, weights = scores(seed)
        for c in range(CLASSES):
            expected = [
                sklearn.metrics.roc_auc_score(labels == c, probabilities[:, c], sample_weight=w) for w in weights
            ]
            np.testing.assert_allclose(metrics.auroc(probabilities[:, c], labels == c, weights), expected)

    @pytest.mark.parametrize("seed", range(5))
    def test_brier_and_likelihood(self, seed: int) -> None:
        probabilities, labels, weights = scores(seed)
        for row, drawn in enumerate(weights):
            nll = sklearn.metrics.log_loss(labels, probabilities, sample_weight=drawn)
            np.testing.assert_allclose(metrics.mean(metrics.nll(probabilities, labels), weights)[row], nll)
            brier = sklearn.metrics.brier_score_loss(labels, probabilities, sample_weight=drawn, scale_by_half=False)
            np.testing.assert_allclose(metrics.mean(metrics.brier(probabilities, labels), weights)[row], brier)


class TestByHand:
    def test_balanced_accuracy_is_the_mean_of_recalls_however_rare_a_class(self) -> None:
        labels, predictions = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 0])
        assert metrics.balanced_accuracy(labels, predictions, np.ones((1, 6))) == pytest.approx([(3 / 4 + 1 / 2) / 2])

    def test_a_class_that_was_never_predicted_has_precision_zero(self) -> None:
        matrix = metrics.confusion(np.array([0, 1]), np.array([0, 0]), 2, np.ones((1, 2)))
        np.testing.assert_allclose(metrics.per_class(matrix)["precision"], [[0.5, 0]])

    def test_a_mean_over_nothing_is_zero(self) -> None:
        assert metrics.mean(np.ones(3), np.zeros((1, 3))) == [0]

    def test_a_certain_and_wrong_answer_costs_a_finite_likelihood(self) -> None:
        assert metrics.nll(np.array([[1.0, 0.0]]), np.array([1])) == pytest.approx(16.118, abs=1e-3)

    def test_ece_is_the_gap_between_confidence_and_accuracy_weighted_by_mass(self) -> None:
        confidence = np.array([0.6] * 4 + [0.9] * 6)
        correct = np.array([True] * 1 + [False] * 3 + [True] * 6)
        # 4 images: 0.60 said, 0.25 right. 6 images: 0.9 said, 1.0 right.
        expected = 0.4 * (0.6 - 0.25) + 0.6 * (1.0 - 0.9)
        assert metrics.ece(confidence, correct, np.ones((1, 10))) == pytest.approx([expected])

    def test_bins_hold_equally_many_images_but_never_part_equal_confidences(self) -> None:
        spread = np.random.default_rng(0).random(150)
        assert np.bincount(metrics.confidence_bins(spread)).tolist() == [10] * 15
        tied = np.append(np.full(100, 0.99), spread[:50] * 0.9)
        assert len(set(metrics.confidence_bins(tied)[:100])) == 1

    def test_the_interval_is_the_middle_95_percent_of_the_resamples(self) -> None:
        estimate = metrics.estimate(np.append(0.5, np.linspace(0, 1, 1001)))
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((0.5, 0.025, 0.975))

    def test_the_interval_holds_the_value_even_where_resampling_is_biased(self) -> None:
        estimate = metrics.estimate(np.array([0.1, 0.2, 0.2, 0.2]))
        assert (estimate.low, estimate.high) == pytest.approx((0.1, 0.2))


class TestGroupWeights:
    def test_the_first_row_is_the_sample_as_it_is(self) -> None:
        assert (resamples(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]))[0] == 1).all()

    @unhurried
    @given(samples())
    def test_images_of_a_group_are_drawn_together_and_every_class_is_always_there(
        self, sample: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        labels, _, groups = sample
        weights = resamples(labels, groups)
        for group in set(groups):
            assert (np.ptp(weights[:, groups == group], axis=1) == 0).all()
        for label in set(labels):
            assert (weights[:, labels == label].sum(1) > 0).all()

    def test_each_class_keeps_its_number_of_groups(self) -> None:
        labels, groups = np.repeat([0, 1], [6, 9]), np.repeat(np.arange(5), 3)
        one_image_each = resamples(labels, groups)[:, ::3]
        assert (one_image_each[:, :2].sum(1) == 2).all()
        assert (one_image_each[:, 2:].sum(1) == 3).all()

    def test_groups_may_be_any_hashables(self) -> None:
        labels = np.array([0, 0, 1, 1])
        assert resamples(labels, ["p1", 1, ("site", 2), None]).shape == (51, 4)

    def test_equal_seeds_give_equal_resamples_and_others_do_not(self) -> None:
        labels, groups = np.zeros(20, int), np.arange(20)
        assert (resamples(labels, groups) == resamples(labels, groups)).all()
        assert (resamples(labels, groups) != metrics.group_weights(labels, groups, 50, seed=2)).any()

    def test_groups_whose_images_are_alike_give_a_wider_interval_than_single_images(self) -> None:
        labels, groups = np.zeros(200, int), np.repeat(np.arange(10), 20)
        correct = groups % 2 == 0  # a whole patient is right, or wrong
        by_group = metrics.estimate(metrics.mean(correct, resamples(labels, groups, 500)))
        by_image = metrics.estimate(metrics.mean(correct, resamples(labels, np.arange(200), 500)))
        assert by_group.high - by_group.low > 2 * (by_image.high - by_image.low)

    @pytest.mark.parametrize(("labels", "groups"), [([0, 1], [1]), ([], [])])
    def test_lengths_that_differ_or_no_images_are_refused(self, labels: list[int], groups: list[int]) -> None:
        with pytest.raises(ValueError, match="one group an image"):
            metrics.group_weights(np.array(labels), groups, 10, 0)


class TestLaws:
    @unhurried
    @given(samples())
    def test_perfect_predictions_are_1_with_no_doubt(self, sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        labels, _, groups = sample
        weights = resamples(labels, groups)
        matrix = metrics.confusion(labels, labels, CLASSES, weights)
        certain = Estimate(1, 1, 1)
        assert metrics.estimate(metrics.balanced_accuracy(labels, labels, weights)) == certain
        assert metrics.estimate(metrics.per_class(matrix)["f1"].mean(1)) == certain
        assert metrics.estimate(metrics.auroc(labels * 1.0, labels > 0, weights)) == certain

    @unhurried
    @given(samples(), st.randoms(use_true_random=False))
    def test_the_order_of_images_does_not_matter(
        self, sample: tuple[np.ndarray, np.ndarray, np.ndarray], random: Random
    ) -> None:
        labels, predictions, groups = sample
        confidence = (predictions * 7 + labels * 3) % 10 / 10
        order = np.array(random.sample(range(len(labels)), len(labels)))

        def measure(rows: np.ndarray) -> np.ndarray:
            weights = resamples(labels[rows], groups[rows])
            correct = predictions[rows] == labels[rows]
            return np.array(
                [
                    metrics.balanced_accuracy(labels[rows], predictions[rows], weights),
                    metrics.ece(confidence[rows], correct, weights),
                    metrics.auroc(confidence[rows], labels[rows] > 0, weights),
                ]
            )

        np.testing.assert_allclose(measure(order), measure(np.arange(len(labels))), atol=1e-12)

    @unhurried
    @given(samples())
    def test_an_interval_holds_its_value_and_stays_between_0_and_1(
        self, sample: tuple[np.ndarray, np.ndarray, np.ndarray]
    ) -> None:
        labels, predictions, groups = sample
        weights = resamples(labels, groups)
        correct = predictions == labels
        confidence = 0.25 + 0.25 * predictions
        matrix = metrics.confusion(labels, predictions, CLASSES, weights)
        for values in (
            metrics.mean(correct, weights),
            metrics.balanced_accuracy(labels, predictions, weights),
            metrics.per_class(matrix)["precision"][:, 2],
            metrics.ece(confidence, correct, weights),
            metrics.auroc(confidence, labels > 0, weights),
        ):
            estimate = metrics.estimate(values)
            assert -1e-12 <= estimate.low <= estimate.value <= estimate.high <= 1 + 1e-12

    @unhurried
    @given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=6))
    def test_ece_is_zero_when_of_every_ten_answers_given_at_0_k_k_are_right(
        self, levels: list[tuple[int, int]]
    ) -> None:
        confidence = np.concatenate([np.full(10 * times, right / 10) for right, times in levels])
        correct = np.concatenate([np.tile(np.arange(10) < right, times) for right, times in levels])
        assert metrics.ece(confidence, correct, np.ones((1, len(correct)))) == pytest.approx([0], abs=1e-12)


class TestPairedBootstrap:
    @unhurried
    @given(samples())
    def test_a_model_differs_from_itself_by_nothing(self, sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        labels, predictions, groups = sample
        assert metrics.paired_bootstrap(labels, predictions, predictions, resamples(labels, groups)) == Estimate(
            0, 0, 0
        )

    @unhurried
    @given(samples())
    def test_swapping_the_two_turns_the_sign(self, sample: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        labels, predictions, groups = sample
        others = predictions[::-1]
        weights = resamples(labels, groups)
        ab = metrics.paired_bootstrap(labels, predictions, others, weights)
        ba = metrics.paired_bootstrap(labels, others, predictions, weights)
        assert (ab.value, ab.low, ab.high) == pytest.approx((-ba.value, -ba.high, -ba.low), abs=1e-12)

    def test_the_value_is_the_difference_of_balanced_accuracies_and_names_will_do(self) -> None:
        labels = np.array(["benign", "benign", "pro", "pro"])
        a = np.array(["benign", "benign", "pro", "benign"])
        b = np.array(["pro", "benign", "pro", "early"])  # early occurs in no label
        assert metrics.paired_bootstrap(labels, a, b, np.ones((2, 4))).value == pytest.approx(0.75 - 0.5)

    def test_what_is_hard_for_both_cancels_out(self) -> None:
        rng = np.random.default_rng(0)
        labels, groups = np.repeat([0, 1], 200), np.repeat(np.arange(40), 10)
        hard = rng.random(40)[groups] < 0.4  # whole patients that both get wrong
        a = np.where(hard, 1 - labels, labels)
        b = np.where(hard | (np.arange(400) % 10 == 0), 1 - labels, labels)  # and one image of each more
        weights = resamples(labels, groups, 500)
        alone = metrics.estimate(metrics.balanced_accuracy(labels, a, weights))
        paired = metrics.paired_bootstrap(labels, a, b, weights)
        assert paired.low > 0
        assert paired.high - paired.low < (alone.high - alone.low) / 4

    def test_lengths_that_differ_are_refused(self) -> None:
        with pytest.raises(ValueError, match="3 labels, 3 and 2 predictions"):
            metrics.paired_bootstrap(np.zeros(3), np.zeros(3), np.zeros(2), np.ones((2, 3)))


class TestProportions:
    def test_wilson_agrees_with_a_published_example(self) -> None:
        """Newcombe 1998, Statistics in Medicine 17:857-872, table I: 81 of 263 and 0 of 20, 95 %, method 3."""
        assert (metrics.wilson(81, 263).low, metrics.wilson(81, 263).high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
        assert (metrics.wilson(0, 20).low, metrics.wilson(0, 20).high) == pytest.approx((0, 0.1611), abs=5e-5)

    def test_nothing_measured_may_be_anything(self) -> None:
        assert metrics.wilson(0, 0) == Estimate(0, 0, 1)


class TestMcNemar:
    def test_only_images_on_which_the_two_differ_count(self) -> None:
        right, wrong = np.array([True]), np.array([False])
        a = np.concatenate([np.repeat(right, 9), np.repeat(wrong, 3)])
        b = np.concatenate([np.repeat(right, 4), np.repeat(wrong, 5), np.repeat(right, 1), np.repeat(wrong, 2)])
        test = metrics.mcnemar(a, b)
        assert (test.only_a, test.only_b) == (5, 1)
        assert test.p == pytest.approx(2 * (1 + 6) / 2**6)  # both tails of six tosses of a fair coin

    def test_models_that_never_differ_are_not_told_apart(self) -> None:
        assert metrics.mcnemar(np.ones(5, bool), np.ones(5, bool)).p == 1


def test_further_groups_scatter_as_sampling_theory_says() -> None:
    """Groups drawn from one normal distribution: the interval of forty groups' mean, made wider, holds ten more's."""
    draws = np.random.default_rng(0).normal(0.8, 0.05, (4000, 50))
    half, further = 1.96 * 0.05 / np.sqrt(40), draws[:, 40:].mean(axis=1)
    wider = [Estimate(mean, mean - half, mean + half).of_further(4) for mean in draws[:, :40].mean(axis=1)]
    held = [one.low <= found <= one.high for one, found in zip(wider, further, strict=True)]
    assert np.mean(held) == pytest.approx(0.95, abs=0.015)


def test_what_further_groups_may_give_stays_a_share() -> None:
    assert Estimate(0.9, 0.5, 0.95).of_further(8) == Estimate(0.9, 0.0, 1.0)
