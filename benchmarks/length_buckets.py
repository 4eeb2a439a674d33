"""What batches of rows of about equal length (``train_sampling_strategy="group_by_length"``) save.

    python benchmarks/length_buckets.py

800 drawn images, each with one caption of mixed length: seven in ten have 8 to 16 tokens, the others 30 to 70. Steps
of 16 images, in the order of ``"random"`` and of ``"group_by_length"``, for

- ``contrastive_packed``: K = 5 negatives, the captions of an image behind each other in one row of the decoder;
- ``contrastive_repeated``: the same with a row for each caption;
- ``mle``: no negatives, so one caption for each image, and no reference.

Counted are the tokens of the decoder's rows over a whole epoch, padding included, over those of the captions. Timed is
the forward and backward of the target and the forward of the reference, over every second step of the epoch, the two
orders in turns; the collator is not timed. A step is as long as its captions, so times are summed and not ranked.
"""

from __future__ import annotations

import argparse
import time
from typing import Literal

import numpy as np
import torch
from common import out_argument, print_table, write_results
from datasets import Dataset, Features, Image, Value

from hf_contrastive_caption.captioners import Captioner, captioner_for
from hf_contrastive_caption.captioners.packing import decoder_rows
from hf_contrastive_caption.data import CaptionCollator, ContrastiveCaptionDataset, EpochSampler
from hf_contrastive_caption.data.bucketing import LengthBucketSampler
from hf_contrastive_caption.data.scenes import draw_scene, sample_scene
from hf_contrastive_caption.losses import contrastive_caption_loss
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer

K, IMAGE_SIZE, VOCABULARY = 5, 96, 4_000
WAYS: dict[str, tuple[int, Literal["packed", "repeated"]]] = {
    "contrastive_packed": (K, "packed"),
    "contrastive_repeated": (K, "repeated"),
    "mle": (0, "packed"),
}
Batch = dict[str, dict[str, torch.Tensor]]


def make_dataset(n_rows: int) -> Dataset:
    """Drawn images with captions of random words."""
    rng = np.random.default_rng(0)
    lengths = np.where(rng.random(n_rows) < 0.7, rng.integers(7, 16, n_rows), rng.integers(29, 70, n_rows))
    captions = [" ".join(f"w{word}" for word in rng.integers(0, VOCABULARY - 4, length)) for length in lengths]
    images = [draw_scene(sample_scene(0, "buckets", row)[0], IMAGE_SIZE) for row in range(n_rows)]
    return Dataset.from_dict(
        {"image": images, "caption": captions}, features=Features({"image": Image(), "caption": Value("string")})
    )


def epoch_of(data: ContrastiveCaptionDataset, sampler: EpochSampler, batch_size: int) -> list[Batch]:
    """The batches of an epoch."""
    collator, keys = CaptionCollator(data.processors, data.num_negatives), list(sampler)
    return [collator(data.__getitems__(keys[start : start + batch_size])) for start in range(0, len(keys), batch_size)]


def width_over_tokens(batches: list[Batch], packed: bool) -> float:
    """Tokens of the decoder's rows, padding included, over tokens of captions."""
    laid_out, tokens = 0, 0
    for batch in batches:
        n_images = batch["images"]["pixel_values"].shape[0]
        rows = decoder_rows(batch["captions"], n_images, 1, 0, packed=packed)  # type: ignore[arg-type]
        laid_out += rows.input_ids.numel()
        tokens += batch["captions"]["input_ids"].numel()
    return laid_out / tokens


def step(target: Captioner, reference: Captioner, batch: Batch, n_negatives: int) -> float:
    """Forward and backward of one step; its time in seconds."""
    start = time.perf_counter()
    inputs = batch["images"], batch["captions"]
    scores = target.log_probs(target.model, *inputs)  # type: ignore[arg-type]
    if n_negatives:
        with torch.no_grad():
            reference_scores = reference.log_probs(reference.model, *inputs)  # type: ignore[arg-type]
        log_ratio = (scores - reference_scores).view(-1, 1 + n_negatives)
        contrastive_caption_loss(log_ratio[:, 0], log_ratio[:, 1:]).backward()
    else:
        (-scores.sum() / batch["captions"]["lengths"].sum()).backward()
    target.model.zero_grad()
    return time.perf_counter() - start


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=800, help="rows of the data set (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images in a step (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    out_argument(parser, __file__)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    tokenizer = word_level_tokenizer(f"w{number}" for number in range(VOCABULARY - 4))
    sizes = {"image_size": IMAGE_SIZE, "width": 192, "encoder_layers": 6, "decoder_layers": 4, "heads": 3, "mlp": 768}
    source = make_dataset(arguments.rows)
    models = [small_captioner(tokenizer, num_positions=512, seed=seed, **sizes) for seed in (0, 1)]
    ratios, measurements = {}, {"rows": arguments.rows, "batch": arguments.batch, "num_negatives": K}
    for way, (n_negatives, layout) in WAYS.items():
        pair = [captioner_for(one, (tokenizer, small_image_processor(IMAGE_SIZE)), packing=layout) for one in models]
        for captioner in pair:
            captioner.verify()
        data = ContrastiveCaptionDataset(source, [pair[0].processor], n_negatives)
        packed = layout == "packed"
        samplers = {
            "random": EpochSampler(data),
            "grouped": LengthBucketSampler(data, step_size=arguments.batch, packed=packed),
        }
        epochs = {name: epoch_of(data, sampler, arguments.batch) for name, sampler in samplers.items()}
        seconds = dict.fromkeys(epochs, 0.0)
        step(*pair, epochs["random"][0], n_negatives)  # the first one is slow
        for number in range(0, len(epochs["random"]), 2):
            for name, batches in epochs.items():
                seconds[name] += step(*pair, batches[number], n_negatives)
        n_steps = len(range(0, len(epochs["random"]), 2))
        for name, batches in epochs.items():
            measurements[f"{way}_{name}_rows_over_tokens"] = width_over_tokens(batches, packed)
            measurements[f"{way}_{name}_step_s"] = seconds[name] / n_steps
        ratios[f"{way}_random_time_over_grouped_time"] = seconds["random"] / seconds["grouped"]
        print_table(
            way.replace("_", " "),
            [
                (f"{name}, {what}", f"{measurements[f'{way}_{name}_{key}']:.3f}")
                for what, key in (("decoder positions per token", "rows_over_tokens"), ("a step in s", "step_s"))
                for name in epochs
            ],
        )
    write_results(__file__, ratios, measurements, arguments.out)


if __name__ == "__main__":
    main()
