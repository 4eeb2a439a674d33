"""Lists of captions of near images against a naive twin, and what is never in them."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets import Image as ImageFeature
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.data import ContrastiveCaptionDataset
from hf_contrastive_caption.data.identity import text_key
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.evaluation.metrics.cider import cider_d
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize
from hf_contrastive_caption.neighbours import lists as module
from hf_contrastive_caption.neighbours.features import mean_state, word_features
from hf_contrastive_caption.neighbours.images import ImageSet
from hf_contrastive_caption.neighbours.lists import CAPTIONS, REFUSED, SEEN, ListMaker, StoredLists
from hf_contrastive_caption.neighbours.search import DenseFeatures, nearest
from hf_contrastive_caption.precomputed.shards import ShardStore
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:the document frequencies of CIDEr")


def data_of(dataset: Dataset, **options: Any) -> ContrastiveCaptionDataset:
    processor = captioner_for(tiny.captioner_model(), tiny.processing()).processor
    return ContrastiveCaptionDataset(dataset, [processor], **options)


def made(images: ImageSet, vectors: torch.Tensor, pool: int, threshold: float) -> dict[str, np.ndarray]:
    maker = ListMaker(images, partial(nearest, DenseFeatures(vectors)), pool, threshold)
    return {name: value.numpy() for name, value in maker.lists(list(range(len(images)))).items()}


def naive(
    dataset: Dataset, image_of_row: list[int], vectors: torch.Tensor, pool: int, threshold: float
) -> tuple[list[list[int]], list[int]]:
    """From texts and all pairs of images, one caption after the other: the lists, and how many were looked at."""
    n_images = max(image_of_row) + 1
    captions = [
        (image, text) for image, texts in zip(image_of_row, dataset["captions"], strict=True) for text in texts
    ]
    references = [[text for image, text in captions if image == wanted] for wanted in range(n_images)]
    words = [ptb_tokenize(texts) for texts in references]
    frequencies = DocumentFrequencies.from_references(words)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    similarity = ((unit @ unit.T) * 2**20).round()
    looked_at = int(np.ceil(module.LOOKED_AT * pool / (len(captions) / n_images)))
    found, seen = [], []
    for image in range(n_images):
        near = sorted((j for j in range(n_images) if j != image), key=lambda j: (-similarity[image, j], j))[:looked_at]
        own = {text_key(text) for text in references[image]}
        taken, n_seen = [], 0
        for other in near:
            for number, (whose, text) in enumerate(captions):
                if whose != other or len(taken) == pool:
                    continue
                n_seen += 1
                score = cider_d(ptb_tokenize([text]), [words[image]], frequencies).corpus
                if text_key(text) not in own and score <= threshold:
                    taken.append(number)
        found.append(taken)
        seen.append(n_seen)
    return found, seen


def test_lists_of_scenes_are_those_of_the_naive_loop() -> None:
    dataset = scenes(60, 0, 0, image_size=16)["train"]
    images = ImageSet.of(data_of(dataset))
    vectors = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    for pool, threshold in ((7, 1.0), (20, 0.2)):
        expected, seen = naive(dataset, list(range(60)), vectors, pool, threshold)
        lists = made(images, vectors, pool, threshold)
        assert [[one for one in row if one >= 0] for row in lists[CAPTIONS].tolist()] == expected
        assert lists[SEEN].tolist() == seen
        assert lists[REFUSED].tolist() == [n - len(taken) for n, taken in zip(seen, expected, strict=True)]
        assert lists[REFUSED].sum() > 0


@st.composite
def small_data(draw: st.DrawFn) -> tuple[Dataset, list[int]]:
    """Few pictures, ids and texts over some rows, so that clashes are everywhere; and the image of each row."""
    n_rows = draw(st.integers(3, 8))
    pictures = draw(st.lists(st.integers(0, 4), min_size=n_rows, max_size=n_rows))
    words = st.lists(st.sampled_from(("dog", "cat", "red", "grass")), min_size=1, max_size=3).map(" ".join)
    captions = draw(st.lists(st.lists(words, min_size=1, max_size=3), min_size=n_rows, max_size=n_rows))
    columns = {"image": [tiny.images(5)[one] for one in pictures], "captions": captions}
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    return Dataset.from_dict(columns, features=features), pictures


@given(small_data(), st.integers(1, 6), st.sampled_from([0.0, 0.5, 10.0]))
@settings(max_examples=25, deadline=None)
def test_nothing_in_a_list_is_of_the_image_or_says_the_same(
    given_data: tuple[Dataset, list[int]], pool: int, threshold: float
) -> None:
    dataset, pictures = given_data
    try:
        data = data_of(dataset, num_negatives=2)
    except ValueError as error:  # no negatives at all
        assert "No negatives can be drawn" in str(error)
        return
    images = ImageSet.of(data)
    number_of = {picture: number for number, picture in enumerate(dict.fromkeys(pictures))}
    assert images.image_of_row.tolist() == [number_of[picture] for picture in pictures]
    vectors = torch.randn(len(images), 4, generator=torch.Generator().manual_seed(0))
    lists = made(images, vectors, pool, threshold)
    expected, seen = naive(dataset, images.image_of_row.tolist(), vectors, pool, threshold)
    assert [[one for one in row if one >= 0] for row in lists[CAPTIONS].tolist()] == expected
    texts, of_row = dataset["captions"], np.repeat(np.arange(len(dataset)), [len(own) for own in dataset["captions"]])
    flat = [text for own in texts for text in own]
    for image, numbers in enumerate(expected):
        own = {text for row, own in enumerate(texts) if images.image_of_row[row] == image for text in own}
        assert all(images.image_of_row[of_row[number]] != image and flat[number] not in own for number in numbers)
    assert seen == lists[SEEN].tolist()


def test_pictures_with_other_ids_and_the_same_bytes_are_one_image() -> None:
    base = tiny.caption_dataset(4, captions_per_image=1)
    both = concatenate_datasets([base, tiny.caption_dataset(8, captions_per_image=1).select(range(3))])
    data = data_of(both.add_column("number", [0, 1, 2, 3, 4, 5, 3]), image_id_column="number", num_negatives=1)
    image_of_row, first_row = data.same_images()
    # Rows 4, 5 and 6 show the pictures of rows 0, 1 and 2, and row 6 has the id of row 3 besides.
    assert tiny.caption_dataset(8, 1)["image"][2].tobytes() == base["image"][2].tobytes()
    assert image_of_row.tolist() == [0, 1, 2, 2, 0, 1, 2] and first_row.tolist() == [0, 1, 2]


def test_words_that_images_share_make_them_near() -> None:
    """Cosines of counts times ln(n_images / images with the word), by hand."""
    columns = {
        "image": tiny.images(3),
        "captions": [["a dog", "a dog runs"], ["a cat runs"], ["a bird sleeps"]],
    }
    features = Features({"image": ImageFeature(), "captions": List(Value("string"))})
    images = ImageSet.of(data_of(Dataset.from_dict(columns, features=features), num_negatives=1))
    rare, common = np.log(3), np.log(3 / 2)  # and ln 1 = 0 for "a"
    first, second = np.hypot(2 * rare, common), np.hypot(rare, common)
    cosine, none = common**2 / (first * second), -np.inf
    expected = np.asarray([[1, cosine, none], [cosine, 1, none], [none, none, 1]])
    np.testing.assert_allclose(word_features(images.words).similarities(0, 3).numpy(), expected, atol=1e-6)


def test_padding_does_not_count_in_a_mean_state() -> None:
    states = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    states[1, 1:] = 0
    expected = torch.stack([states[0].flatten(0, 1).mean(0), states[1, 0].mean(0)])
    torch.testing.assert_close(mean_state(states), expected)
    torch.testing.assert_close(mean_state(states[:, 0, 0]), states[:, 0, 0])


def test_stored_lists_are_read_across_shards_and_travel_as_files(tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "lists", "key", np.asarray([0, 3, 5]))
    table = torch.arange(10, dtype=torch.int32).view(5, 2)
    table[4, 1] = -1
    for shard, rows in enumerate((slice(0, 3), slice(3, 5))):
        counts = torch.full((len(table[rows]),), 4)
        store.write(shard, {CAPTIONS: table[rows], SEEN: counts, REFUSED: counts // 4})
    lists = StoredLists(store, np.asarray([4, 0, 0]))
    assert lists.refused == 0.25 and lists.lengths.tolist() == [2, 2, 2, 2, 1]
    for one in (lists, pickle.loads(pickle.dumps(lists))):
        assert one.read(np.asarray([4, 0, 3, 0])).tolist() == [[8, -1], [0, 1], [6, 7], [0, 1]]
        assert one.digest() == lists.digest()
    assert len(pickle.dumps(lists)) < 2000
