r"""Where a target stands to a reference before any tuning: log-ratios of right captions by their length.

    python benchmarks/log_ratio_by_length.py runs/study/scenes/reference-adaptive-attention-seed1 \
        runs/study/scenes/reference-seed1

A right caption whose log-ratio is below 0 is one that the loss pulls up. ``--data DIR`` takes the captions of a folder
of photographs in place of drawn scenes, ``--split`` the split, the validation split if not given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
from common import out_argument, write_results
from datasets import Dataset
from numpy.typing import NDArray

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.data.files import load_splits
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.evaluation.images import evaluation_images
from hf_contrastive_caption.evaluation.measures import aligned_table
from hf_contrastive_caption.loading import load_captioner
from hf_contrastive_caption.report.words import score_captions

LENGTHS = {"1 to 3": (1, 3), "4 to 7": (4, 7), "8 to 11": (8, 11), "12 and more": (12, 10**6), "all": (0, 10**6)}
Ratios = NDArray[np.float64]
Words = NDArray[np.int64]
IMAGE_SIZE = 64


class OfLength(NamedTuple):
    """What holds of the captions of some lengths.

    Attributes:
        captions: How many.
        mean: Their mean log-ratio in nats.
        below_0: The share whose log-ratio is below 0.
    """

    captions: int
    mean: float
    below_0: float


def log_ratios(target: Captioner, reference: Captioner, rows: Dataset) -> tuple[Ratios, Words]:
    """Log-ratios of all captions with their own images, and their lengths in words, (n_captions,) each."""
    images = evaluation_images(rows)
    found = [score_captions(captioner, images.pool, images.references) for captioner in (target, reference)]
    ours, theirs = (np.array([score.log_prob for of_image in of_one for score in of_image]) for of_one in found)
    words = np.array([len(text.split()) for of_image in images.references for text in of_image])
    return ours - theirs, words


def by_length(ratios: Ratios, words: Words) -> dict[str, OfLength]:
    """What holds of the captions of each range of lengths that there are."""
    found = {}
    for name, (shortest, longest) in LENGTHS.items():
        chosen = ratios[(words >= shortest) & (words <= longest)]
        if len(chosen):
            found[name] = OfLength(len(chosen), float(chosen.mean()), float((chosen < 0).mean()))
    return found


def lengths_by_sign(ratios: Ratios, words: Words) -> dict[str, float]:
    """Mean number of words of the captions whose log-ratio is below 0, and above."""
    sides = {"below": ratios < 0, "above": ratios > 0}
    return {side: float(words[chosen].mean()) for side, chosen in sides.items() if chosen.any()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="folder of a captioner")
    parser.add_argument("reference", type=Path, help="folder of a captioner")
    parser.add_argument("--data", type=Path, help="folder with the splits of a data set; drawn scenes if not given")
    parser.add_argument("--split", default="validation", help="default: %(default)s")
    out_argument(parser, __file__)
    options = parser.parse_args(arguments)
    splits = scenes(image_size=IMAGE_SIZE) if options.data is None else load_splits(options.data)
    target, reference = load_captioner(options.target), load_captioner(options.reference)
    ratios, words = log_ratios(target, reference, splits[options.split])
    table, measured = [["words", "captions", "mean log-ratio", "below 0 (%)"]], {}
    for name, found in by_length(ratios, words).items():
        table.append([name, str(found.captions), f"{found.mean:+.2f}", f"{100 * found.below_0:.1f}"])
        measured[f"mean_{name.replace(' ', '_')}_nats"] = round(found.mean, 4)
        measured[f"below_0_{name.replace(' ', '_')}_percent"] = round(100 * found.below_0, 2)
    print(aligned_table(table))
    for side, length in lengths_by_sign(ratios, words).items():
        print(f"captions with a log-ratio {side} 0 have {length:.1f} words on the average")
        measured[f"length_where_{side}_0_words"] = round(length, 3)
    write_results(__file__, {}, measured, options.out)


if __name__ == "__main__":
    main()
