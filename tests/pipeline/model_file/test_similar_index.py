"""The index of similar cases: which training images are in it, and whether it finds what a search of all would."""

import io

import numpy as np
import pytest
from PIL import Image

from leukdetect.similar import Index
from pipeline.model_file import similar_index


def clusters(n: int, seed: int, classes: int = 4, dimensions: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [n, D] as pooled ReLUs have them, a class about each of a few places, and their classes [n]."""
    rng = np.random.default_rng(0)
    centres, wobble = np.abs(rng.normal(size=(classes, dimensions))), rng.normal(size=(12, dimensions))
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return np.abs(centres[labels] + 0.3 * rng.normal(size=(n, 12)) @ wobble), labels


def index_of(embedding: np.ndarray, labels: np.ndarray) -> Index:
    return similar_index.fit(embedding, labels, [f"{row:064x}" for row in range(len(labels))], None)


def unit(embedding: np.ndarray) -> np.ndarray:
    return np.asarray(embedding / np.linalg.norm(embedding, axis=-1, keepdims=True))


def test_nearly_the_nearest_are_found_in_few_directions() -> None:
    embedding, labels = clusters(400, seed=1)
    index = index_of(embedding, labels)
    assert index.directions.shape == (256, similar_index.COMPONENTS)
    shared = []
    for each in clusters(50, seed=2)[0]:
        true = np.linalg.norm(unit(embedding) - unit(each), axis=1)
        found = index.nearest(each)
        shared.append(len({row for row, _ in found} & set(np.argsort(true)[:5].tolist())))
        assert [distance for _, distance in found] == sorted(distance for _, distance in found)
        assert found[0][1] == pytest.approx(true[found[0][0]], rel=0.25)
    assert np.mean(shared) > 4


def test_an_indexed_image_is_nearest_to_itself() -> None:
    embedding, labels = clusters(100, seed=1)
    index = index_of(embedding, labels)
    for row, each in enumerate(embedding):
        assert index.nearest(each)[0][0] == row


def test_what_leaves_the_directions_is_near_to_none() -> None:
    embedding = np.zeros((40, 256))
    embedding[:, :8] = np.abs(np.random.default_rng(0).normal(size=(40, 8)))
    index = index_of(embedding, np.zeros(40, int))
    elsewhere = np.zeros(256)
    elsewhere[100] = 1
    assert index.nearest(elsewhere)[0][1] == pytest.approx(np.sqrt(2), abs=0.01)  # at a right angle to all of them


def test_length_does_not_matter() -> None:
    embedding, labels = clusters(60, seed=1)
    index = index_of(embedding, labels)
    short, long = index.nearest(embedding[3]), index.nearest(1000 * embedding[3])
    assert [row for row, _ in short] == [row for row, _ in long]


def test_a_large_training_split_gives_every_class_the_same_number() -> None:
    labels = np.repeat([0, 1, 2, 3], [2000, 50, 700, 700])
    chosen = similar_index.choose(labels, seed=1)
    assert len(chosen) == len(set(chosen.tolist())) == similar_index.MOST
    assert np.bincount(labels[chosen]).tolist() == [154, 50, 154, 154]
    assert (
        chosen.tolist()
        == similar_index.choose(labels, seed=1).tolist()
        != similar_index.choose(labels, seed=2).tolist()
    )


def test_a_small_one_is_in_it_whole() -> None:
    assert similar_index.choose(np.array([1, 0, 1]), seed=1).tolist() == [0, 1, 2]


def test_thumbnails_are_small_copies_and_only_where_pixels_are_given() -> None:
    embedding, labels = clusters(3, seed=1)
    pixels = np.full((3, 224, 224, 3), (180, 40, 120), np.uint8)
    made = similar_index.fit(embedding, labels, ["a" * 64] * 3, pixels).thumbnails
    assert made
    picture = Image.open(io.BytesIO(made[0])).convert("RGB")
    assert picture.size == (similar_index.SIDE, similar_index.SIDE)
    assert np.abs(np.asarray(picture).astype(int) - (180, 40, 120)).max() <= 8
    assert similar_index.fit(embedding, labels, ["a" * 64] * 3, None).thumbnails is None
