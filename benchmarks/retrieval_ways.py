"""The ways to score captions against images that ``self_retrieval.py`` compares, and the models that they run on."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from torch import Tensor
from training_step import timed
from training_ways import Size
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_contrastive_caption.captioners import Captioner, caption_batch, captioner_for
from hf_contrastive_caption.captioners.pairs import DEFAULT_MAX_MEMORY_BYTES, PairScorer
from hf_contrastive_caption.generation import caption_images
from hf_contrastive_caption.loading import load_model, load_processing
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer

SPLITS = ("test", "validation", "train")
ROWS_AT_ONCE = (8, 32, 128, 512)


# Data ----------------------------------------------------------------------------------------------------------------


def first_images(folder: Path, count: int) -> list[dict[str, Any]]:
    """The first images of the test, the validation, then the train split, as the files hold them.

    Raises:
        SystemExit: If there are not as many.
    """
    found = list(islice(_images(folder), count))
    if len(found) < count:
        raise SystemExit(f"{folder} has {len(found)} images in its parquet files, but {count} are needed")
    return found


def _images(folder: Path) -> Iterator[dict[str, Any]]:
    for split in SPLITS:
        for file in sorted(folder.glob(f"**/{split}*.parquet")):
            for batch in pq.ParquetFile(file).iter_batches(batch_size=100, columns=["image"]):
                yield from batch.column("image").to_pylist()


def load_captions(file: Path, captioner: Path, data: Path, count: int) -> list[str]:
    """The captions of the first images: from the file, or written by the captioner and kept in the file.

    Raises:
        SystemExit: If the file has too few.
    """
    if not file.exists():
        images = first_images(data, count)
        model, processing = load_model(str(captioner)), load_processing(str(captioner))
        written = caption_images(model, processing, images, progress=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(written, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    captions: list[str] = json.loads(file.read_text(encoding="utf-8"))
    if len(captions) < count:
        raise SystemExit(f"{file} has {len(captions)} captions, but {count} are needed; delete it to write them anew")
    return captions[:count]


# Models --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bench:
    """One model, and its captioners for prefix tries and for repeated states."""

    model: PreTrainedModel
    tries: Captioner
    repeated: Captioner


def bench_of(model: PreTrainedModel, processing: tuple[Any, Any]) -> Bench:
    """Both captioners of a model, verified.

    Raises:
        SystemExit: If tries are not exact for the model, so that there is nothing to compare.
    """
    model.eval()
    bench = Bench(model, captioner_for(model, processing), captioner_for(model, processing, packing="repeated"))
    bench.repeated.verify()
    if not bench.tries.tries:
        raise SystemExit(f"prefix tries are not exact for {bench.tries.name}")
    return bench


def trained_bench(folder: Path) -> Bench:
    """Of a captioner that was saved."""
    return bench_of(load_model(str(folder)), load_processing(str(folder)))


def random_bench(size: Size, captions: Sequence[str]) -> Bench:
    """Of a captioner with random weights; its vocabulary has the words of the captions and is filled up."""
    tokenizer = filled_tokenizer(captions, size.vocabulary)
    model = small_captioner(tokenizer, seed=0, **size.model)
    return bench_of(model, (tokenizer, small_image_processor(size.model["image_size"])))


def filled_tokenizer(captions: Sequence[str], vocabulary: int) -> PreTrainedTokenizerBase:
    """A word-level tokenizer with exactly so many tokens."""
    own = len(word_level_tokenizer(captions))
    if own > vocabulary:
        raise SystemExit(f"the captions have {own} different words, but the vocabulary is to have {vocabulary}")
    return word_level_tokenizer([*captions, *(f"filler{number}word" for number in range(vocabulary - own))])


# The ways ------------------------------------------------------------------------------------------------------------


class Repeated:
    """Encodes an image once, and gives each distinct caption a row of its own beside a copy of the image's states.

    Captions are sorted by length, so that there is hardly any padding.

    Args:
        captioner: With the repeated layout.
        input_ids: Token ids of the captions.
        rows_at_once: Captions that go through the decoder together.
    """

    def __init__(self, captioner: Captioner, input_ids: Sequence[Sequence[int]], rows_at_once: int) -> None:
        self.captioner, self.rows_at_once = captioner, rows_at_once
        self.distinct = sorted({tuple(ids) for ids in input_ids}, key=lambda ids: (len(ids), ids))
        place = {ids: number for number, ids in enumerate(self.distinct)}
        self._place = torch.tensor([place[tuple(ids)] for ids in input_ids])  # (n_captions,)

    def scores(self, images: dict[str, Tensor]) -> Tensor:
        """Log-probability of every caption for every image, (n_images, n_captions)."""
        with torch.no_grad():
            states = self.captioner.encode(images)
            return torch.stack([self._of_one(states, image) for image in range(images["pixel_values"].shape[0])])

    def _of_one(self, states: dict[str, Tensor], image: int) -> Tensor:
        pieces = []
        for first in range(0, len(self.distinct), self.rows_at_once):
            piece = self.distinct[first : first + self.rows_at_once]
            captions = caption_batch(piece, [image] * len(piece))
            pieces.append(self.captioner.log_probs(self.captioner.model, states, captions))
        return torch.cat(pieces)[self._place]


def one_by_one(captioner: Captioner, pixel_values: Tensor, input_ids: Sequence[int]) -> float:
    """A plain forward of encoder and decoder for one image, (1, channels, height, width), and one caption."""
    with torch.no_grad():
        scores = captioner.reference_log_probs({"pixel_values": pixel_values}, caption_batch([input_ids], [0]))
    return float(scores.double().sum())


def quickest_rows(captioner: Captioner, pixel_values: Tensor, input_ids: Sequence[Sequence[int]]) -> int:
    """How many rows at once are quickest by a trial, of those within the memory budget that prefix tries have.

    Args:
        captioner: With the repeated layout.
        pixel_values: One image, (1, channels, height, width).
        input_ids: Token ids of the captions.
    """
    images = {"pixel_values": pixel_values}
    with torch.no_grad():
        states = next(iter(captioner.encode(images).values()))
    per_row = 4 * states.numel() * states.element_size()  # states, keys and values of a layer, and one more
    distinct = Repeated(captioner, input_ids, 1).distinct
    found: dict[int, float] = {}
    for rows in ROWS_AT_ONCE:
        middle = distinct[max(0, len(distinct) - rows) // 2 :][:rows]
        if found and (rows * per_row > DEFAULT_MAX_MEMORY_BYTES or len(middle) < rows):
            break
        trial = functools.partial(Repeated(captioner, middle, rows).scores, images)
        found[rows] = min(timed(trial) for _ in range(2)) / len(middle)
    return min(found, key=lambda rows: found[rows])


@dataclass(frozen=True)
class CaptionSet:
    """The first captions, ready to be scored.

    Attributes:
        input_ids: Token ids of all of them, repeated ones included.
        tries: The package's way.
        build_s: Seconds that it took to plan and build the tries.
        repeated: The way to compare with; ``None`` where it is left out.
    """

    input_ids: list[list[int]]
    tries: PairScorer
    build_s: float
    repeated: Repeated | None


def caption_set(bench: Bench, input_ids: list[list[int]], rows: int | None) -> CaptionSet:
    """Make both scorers; no repeated one without ``rows``."""
    start = time.perf_counter()
    tries = PairScorer(bench.tries, input_ids)
    build_s = time.perf_counter() - start
    repeated = None if rows is None else Repeated(bench.repeated, input_ids, rows)
    return CaptionSet(input_ids, tries, build_s, repeated)
