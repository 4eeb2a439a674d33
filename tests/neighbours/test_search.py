"""The nearest by blocks are those of the whole table of similarities."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from hf_contrastive_caption.neighbours.search import DenseFeatures, FaissIndex, Features, SparseFeatures, nearest


def naive(vectors: torch.Tensor, usable: torch.Tensor, k: int) -> list[list[int]]:
    """All pairs at once, sorted one by one."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    similarity = (unit @ unit.T * 2**20).round()
    others = [[j for j in range(len(vectors)) if j != i and usable[i] and usable[j]] for i in range(len(vectors))]
    return [sorted(others[i], key=lambda j, i=i: (-similarity[i, j], j))[:k] for i in range(len(vectors))]


def found(features: Features, k: int, per_block: int) -> list[list[int]]:
    n = len(features)
    table = nearest(features, 0, n, k, block_bytes=4 * n * per_block)
    assert table.shape == (n, min(k, n - 1))
    return [[one for one in row if one >= 0] for row in table.tolist()]


@pytest.mark.parametrize("per_block", [1, 7, 60])
@pytest.mark.parametrize("k", [1, 12, 100])
def test_neighbours_are_those_of_all_pairs(per_block: int, k: int) -> None:
    vectors = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    assert found(DenseFeatures(vectors), k, per_block) == naive(vectors, torch.ones(60), k)
    centred = DenseFeatures(vectors + 100, centred=True)
    assert found(centred, k, per_block) == naive(vectors - vectors.mean(0), torch.ones(60), k)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_equal_ones_are_in_the_order_of_numbers(k: int) -> None:
    """Four different vectors among 40: whoever is taken, ties decide."""
    vectors = torch.eye(4)[torch.randint(0, 4, (40,), generator=torch.Generator().manual_seed(0))]
    assert found(DenseFeatures(vectors), k, 9) == naive(vectors, torch.ones(40), k)


def test_a_part_is_that_part_of_the_whole() -> None:
    features = DenseFeatures(torch.randn(30, 5, generator=torch.Generator().manual_seed(0)))
    np.testing.assert_array_equal(nearest(features, 11, 19, 4), nearest(features, 0, 30, 4)[11:19])


def test_what_cannot_be_used_has_and_is_no_neighbour() -> None:
    vectors = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    usable = torch.arange(12) % 3 != 1
    by_flag = found(DenseFeatures(vectors, usable), 10, 5)
    assert by_flag == naive(vectors, usable, 10)
    assert by_flag[1] == [] and len(by_flag[0]) == 7
    zero = vectors * usable[:, None]
    assert found(DenseFeatures(zero), 10, 5) == by_flag


def test_a_single_image_has_no_neighbour() -> None:
    assert nearest(DenseFeatures(torch.ones(1, 3)), 0, 1, 5).shape == (1, 0)


def test_sparse_vectors_are_like_dense_ones() -> None:
    generator = np.random.default_rng(0)
    table = generator.random((50, 30)) * (generator.random((50, 30)) < 0.15)
    table[4] = 0
    image, column = np.nonzero(table)
    sparse = SparseFeatures(image, column, table[image, column], table.shape)
    dense = torch.from_numpy(table).float()
    assert not sparse.usable[4]
    similarities = DenseFeatures(dense).similarities(3, 9)
    expected = similarities.masked_fill(similarities == 0, -torch.inf)
    torch.testing.assert_close(sparse.similarities(3, 9), expected, atol=1e-6, rtol=0)
    # Images without a word in common are no neighbours, however few have one.
    overlap = (table > 0).astype(int) @ (table > 0).T
    everything = naive(torch.from_numpy(table), sparse.usable, 49)
    wanted = [[other for other in row if overlap[image, other]] for image, row in enumerate(everything)]
    assert found(sparse, 8, 11) == [row[:8] for row in wanted]
    assert found(sparse, 49, 11) == wanted and min(map(len, wanted[:4])) < 49


def test_an_index_that_searches_all_its_lists_finds_the_nearest() -> None:
    """Below 33 ** 2 images all lists are searched."""
    pytest.importorskip("faiss")
    vectors = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    usable = torch.arange(200) % 7 != 3
    features = DenseFeatures(vectors, usable, centred=True)
    index = FaissIndex(features)
    for k in (1, 20, 500):
        np.testing.assert_array_equal(index.nearest(30, 90, k), nearest(features, 30, 90, k))


def test_an_index_finds_most_of_the_nearest_among_many() -> None:
    pytest.importorskip("faiss")
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(100, 16, generator=generator)
    vectors = centres.repeat(40, 1) + 0.5 * torch.randn(4000, 16, generator=generator)
    features = DenseFeatures(vectors)
    exact, found = nearest(features, 0, 500, 20), FaissIndex(features).nearest(0, 500, 20)
    shared = [len(set(one) & set(other)) / 20 for one, other in zip(exact.tolist(), found.tolist(), strict=True)]
    assert 0.95 < np.mean(shared)
    np.testing.assert_array_equal(found, FaissIndex(features).nearest(0, 500, 20))


def test_without_faiss_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'hf-contrastive-caption\[neighbours\]', or leave"):
        FaissIndex(DenseFeatures(torch.randn(4, 3)))
