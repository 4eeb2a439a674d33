"""A GAN captioner, one of the ways to distinctive captions that the contrastive loss is compared with.

    python benchmarks/gan_captioner.py --model MODEL --data scenes --out runs/gan --steps 300

Source: Bo Dai, Sanja Fidler, Raquel Urtasun and Dahua Lin, "Towards Diverse and Natural Image Descriptions via a
Conditional GAN", ICCV 2017, arXiv 1703.06029. Written from the paper's formulas.

The *generator* is a captioner that was trained by maximum likelihood. The *evaluator* says how much a caption S looks
like one that people gave image I, r(I, S) = σ(<f(I), h(S)>). It learns from captions of the image, captions of the
generator and captions of other images, whose weights are 1, α and β; the generator learns by policy gradient to write
what the evaluator takes for real. The evaluator begins alone, then both take turns.

What is simpler here than in the paper:

* The reward is that of the whole caption. The paper estimates one for each word, from captions that are sampled to
  their end at each word (Monte-Carlo rollouts). Here the reward of the greedy caption is subtracted instead: the
  self-critical baseline of Rennie et al., "Self-Critical Sequence Training for Image Captioning", CVPR 2017, arXiv
  1612.00563. (Dognin et al., CVPR 2019, arXiv 1805.00063, train a GAN captioner in this way too.)
* The generator has no random input beside the image: captions differ by sampling alone.
* The evaluator has no vision encoder of its own. It reads the mean of the states that the generator's had at the
  start, and reads captions with a small GRU from scratch. The generator's vision encoder is frozen unless
  ``--train-vision-encoder`` is given.

DIR of ``--data`` is what ``examples/train_captioner.py`` takes; its split ``train`` is used. A run that was stopped
goes on where it was. The result is a captioner as any other: ``contrastive-caption evaluate OUT --data DIR``.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from datasets import Dataset
from gan.settings import GanSettings
from gan.training import read_log, train_gan

from hf_contrastive_caption.data.files import load_splits
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.loading import load_captioner

__all__ = ["GanSettings", "train_gan"]

SCENES = "scenes"


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        settings = settings_of(options)
        train_gan(load_captioner(options.model), training_split(options.data), settings, options.out)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    written = [entry for entry in read_log(options.out) if entry["phase"] == "generator"]
    tenth = -(-len(written) // 10)
    for name in ("reward", "greedy_reward", "generated_accuracy", "mismatched_accuracy", "distinct"):
        first, last = (sum(entry[name] for entry in part) / tenth for part in (written[:tenth], written[-tenth:]))
        print(f"{name}: {first:.3f} in the first tenth of the generator's steps, {last:.3f} in the last")
    print(f"The captioner is in {options.out}")


def training_split(source: str) -> Dataset:
    if source == SCENES:
        return scenes()["train"]
    splits = load_splits(Path(source))
    if "train" not in splits:
        raise SystemExit(f"--data {source} has the splits {', '.join(map(str, splits))}, but none called train")
    return splits["train"]


def settings_of(options: argparse.Namespace) -> GanSettings:
    given = {name: value for name, value in vars(options).items() if name in GanSettings.__dataclass_fields__}
    return GanSettings(**given, freeze_vision_encoder=not options.train_vision_encoder)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="captioner to start from: folder or repository")
    parser.add_argument("--data", required=True, help=f"folder with a training split, or {SCENES!r}: drawn scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder for the captioner, which must not be there")
    defaults = GanSettings()

    def add(name: str, help_text: str) -> None:
        default = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help=f"{help_text} (default: {default})")

    add("steps", "steps of the generator")
    add("seed", "seed of everything random")
    add("evaluator_steps", "steps of the evaluator alone, before")
    add("batch_size", "images in a step")
    add("samples_per_image", "captions sampled of each image in a step")
    add("learning_rate", "highest, of the generator")
    add("evaluator_learning_rate", "of the evaluator")
    add("evaluator_width", "width of the evaluator's vectors")
    add("alpha", "weight of generated captions in the evaluator's loss")
    add("beta", "weight of captions of other images")
    add("max_new_tokens", "longest caption in tokens")
    add("save_steps", "steps between states from which a stopped run goes on")
    parser.add_argument("--train-vision-encoder", action="store_true", help="train the generator's vision encoder too")
    parser.add_argument("--precomputed-dir", help="folder for states of the vision encoder")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
