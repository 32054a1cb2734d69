"""The tests of the maps, tested: each must tell a good map from a bad one."""

import numpy as np
import pytest

from pipeline.evaluation import explanations, randomisation
from pipeline.evaluation.answers import Maps, Sample, answer, enlarged, maps
from pipeline.model_file import onnx_model
from pipeline.model_file.onnx_model import OnnxModel
from tests import tiny_model

SIDE = tiny_model.SIZE


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxModel:
    path = tmp_path_factory.mktemp("model") / "m.onnx"
    tiny_model.write(path, index=tiny_model.index(thumbnails=False))
    return onnx_model.load(path)


def one_hot(row: int, column: int, n: int = 3) -> np.ndarray:
    grid = np.zeros((n, 4, 4), np.float32)
    grid[:, row, column] = 1
    return grid


def smears(n: int = 12) -> np.ndarray:
    """Grey images of 32 px, blue in one quarter: `pre` to the tiny model, whose map is bright there."""
    pixels = np.full((n, SIDE, SIDE, 3), 90, np.uint8)
    pixels[:, 16:, 16:] = (90, 90, 255)
    return pixels


class TestOnCells:
    weights = np.ones((11, 3))

    def cell(self) -> np.ndarray:
        cells = np.zeros((3, SIDE, SIDE), bool)
        cells[:, 8:16, 8:16] = True  # row 1, column 1 of the grid
        return cells

    def test_a_map_on_the_cell_is_the_best_there_is_and_one_beside_it_is_nothing(self) -> None:
        on = explanations.on_cells(one_hot(1, 1), self.cell(), self.weights)
        beside = explanations.on_cells(one_hot(3, 3), self.cell(), self.weights)
        assert on.pointing.map.value == 1
        assert on.energy.map.value == pytest.approx(on.energy.best.value)
        assert on.energy.map.value > on.energy.centre.value > on.energy.uniform.value
        assert (beside.pointing.map.value, beside.energy.map.value) == (0, 0)

    def test_an_even_map_has_the_cells_share_of_the_image(self) -> None:
        found = explanations.on_cells(np.ones((3, 4, 4), np.float32), self.cell(), self.weights)
        assert found.energy.map.value == pytest.approx(1 / 16)
        assert found.energy.uniform.value == pytest.approx(1 / 16)
        assert found.energy.above_uniform.value == pytest.approx(0)
        assert found.pointing.uniform.value == pytest.approx(1 / 16)

    def test_where_no_position_of_the_grid_lies_in_the_cell_no_map_can_point_at_it(self) -> None:
        cells = np.zeros((3, SIDE, SIDE), bool)
        cells[:, 13:19, 13:19] = True  # the middle, between four positions
        found = explanations.on_cells(one_hot(1, 1), cells, self.weights)
        assert found.pointing.best.value == found.pointing.map.value == 0
        assert found.pointing.centre.value == 1

    def test_images_without_a_map_do_not_count(self) -> None:
        grid = one_hot(1, 1)
        grid[0] = 0
        found = explanations.on_cells(grid, self.cell(), self.weights * [0, 1, 1])
        assert found.pointing.map.value == 1


class TestAltered:
    def gains(self, model: OnnxModel, grid: np.ndarray) -> tuple[float, float]:
        pixels = smears(len(grid))
        seen = Maps(np.full(len(grid), 2), grid, pixels)
        weights = np.ones((11, len(grid)))
        found = explanations.altered(model, seen, weights, np.random.default_rng(0))
        for test in found.values():
            assert len(test.curves.map) == explanations.STEPS + 1
            assert test.curves.map[0] == pytest.approx(test.curves.random[0])
            assert test.curves.map[-1] == pytest.approx(test.curves.random[-1])
        return found["deletion"].gain.value, found["insertion"].gain.value

    def test_a_map_of_what_the_answer_rests_on_gains_in_both(self, model: OnnxModel) -> None:
        blue = np.zeros((12, 4, 4), np.float32)
        blue[:, 2:, 2:] = 1
        deletion, insertion = self.gains(model, blue)
        assert deletion > 0.1
        assert insertion > 0  # little: the tiny model sees the mean colour, which a blurred copy keeps

    def test_a_map_of_what_it_does_not_rest_on_loses_in_both(self, model: OnnxModel) -> None:
        grey = np.ones((12, 4, 4), np.float32)
        grey[:, 2:, 2:] = 0
        deletion, insertion = self.gains(model, grey)
        assert deletion < -0.1
        assert insertion < 0

    def test_a_level_map_is_chance(self, model: OnnxModel) -> None:
        assert np.abs(self.gains(model, np.ones((40, 4, 4), np.float32))).max() < 0.05


class TestRandomised:
    def test_maps_change_with_the_weights_that_they_are_made_of(self, model: OnnxModel) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (30, SIDE, SIDE, 3)).astype(np.uint8)
        pixels[..., 2] = 255 - pixels[..., 0]  # so that other colours make other maps
        seen = maps(answer(model, pixels), pixels)
        found = randomisation.measure(model, seen, np.ones((11, 30)), seed=1)
        assert set(found) == {"other_images", *randomisation.PARTS}
        assert found["everything"].correlation.value < 0.9

    def test_equal_maps_correlate_fully_and_upside_down_ones_inversely(self) -> None:
        grid = np.random.default_rng(0).random((5, 4, 4)).astype(np.float32)
        weights = np.ones((11, 5))
        same, other = (randomisation.alike(grid, each[None], weights, 1) for each in (grid, 1 - grid))
        assert same.correlation.value == pytest.approx(1)
        assert same.same_highest.value == 1
        assert other.correlation.value == pytest.approx(-1)

    def test_shuffles_that_differ_widen_the_interval(self) -> None:
        grid = np.random.default_rng(0).random((5, 4, 4)).astype(np.float32)
        found = randomisation.alike(grid, np.stack([grid, 1 - grid]), np.ones((1001, 5)), 1).correlation
        assert (found.low, found.value, found.high) == pytest.approx((-1, 0, 1), abs=1e-6)

    def test_empty_maps_have_no_correlation_and_are_counted(self) -> None:
        grid = np.random.default_rng(0).random((4, 2, 2)).astype(np.float32)
        after = grid.copy()
        after[0] = 0
        found = randomisation.alike(grid, after[None], np.ones((11, 4)), 1)
        assert found.correlation.value == pytest.approx(1)
        assert found.empty.value == 0.25


def test_the_whole_measure_tells_empty_maps_and_needs_no_cells(model: OnnxModel) -> None:
    pixels = smears()
    pixels[:3] = 5  # dark: pro, of which the tiny model has no map
    labels = np.array([3] * 3 + [2] * 9)
    sample = Sample(pixels, labels, labels, np.ones((11, 12)))
    found = explanations.measure(model, sample, answer(model, pixels), 1, None)
    assert found.empty.value == 0.25
    assert found.grid == (4, 4)
    assert found.altered_images == 9
    assert found.cell is None
    assert found.similar
    assert found.similar.same_class.value > found.similar.chance.value == 0.25


def test_with_every_map_empty_nothing_is_said_of_curves(model: OnnxModel) -> None:
    dark = np.full((6, SIDE, SIDE, 3), 5, np.uint8)
    sample = Sample(dark, np.full(6, 3), np.arange(6), np.ones((11, 6)))
    found = explanations.measure(model, sample, answer(model, dark), 1, None)
    assert found.empty.value == 1
    assert found.deletion is found.randomised is None


def test_the_map_is_enlarged_as_the_server_lays_it_over_the_image() -> None:
    [large] = enlarged(one_hot(0, 0, 1), SIDE)
    assert large[0, 0] == large[3, 3] == 1  # held beyond the middle of the outermost cell
    assert large[16:, 16:].max() == 0
    assert np.all(np.diff(large[0]) <= 0)
