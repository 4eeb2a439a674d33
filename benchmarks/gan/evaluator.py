"""Who says whether a caption is one that people would give an image: the evaluator, and its loss.

Dai, Fidler, Urtasun and Lin, "Towards Diverse and Natural Image Descriptions via a Conditional GAN", ICCV 2017,
arXiv 1703.06029: r(I, S) = σ(<f(I), h(S)>), where f makes a vector of the image and h one of the sentence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from hf_contrastive_caption.captioners import CaptionBatch, Images


class Evaluator(nn.Module):
    """Scores pairs of an image and a caption.

    The image side is a linear layer on what a frozen vision encoder makes of an image; the caption side reads the
    generator's tokens with word vectors and a GRU of its own, all from scratch.

    Args:
        state_width: Width of the vectors that images are given as.
        vocabulary_size: Number of tokens.
        width: Width of both sides.
        seed: Seed of the weights. The state of torch's global generator is left as it was.
    """

    def __init__(self, state_width: int, vocabulary_size: int, width: int, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.image = nn.Sequential(nn.LayerNorm(state_width), nn.Linear(state_width, width))
            self.words = nn.Embedding(vocabulary_size, width)
            self.text = nn.GRU(width, width, batch_first=True)
            self.sentence = nn.Linear(width, width)

    def forward(self, images: Tensor, captions: CaptionBatch) -> Tensor:
        """The logit of r for each caption and its image.

        Args:
            images: A vector of each image, (n_images, state_width), see :func:`pooled`.
            captions: Captions in the generator's tokens.

        Returns:
            <f(I), h(S)>, (n_captions,).
        """
        pieces = captions["input_ids"].split(captions["lengths"].tolist())
        words = self.words(pad_sequence(list(pieces), batch_first=True))  # (n_captions, longest, width)
        read, _ = self.text(words)
        last = read[torch.arange(len(pieces), device=read.device), captions["lengths"] - 1]  # (n_captions, width)
        seen = self.image(images).index_select(0, captions["image_index"])  # (n_captions, width)
        scores: Tensor = (seen * self.sentence(last)).sum(-1)
        return scores


def pooled(states: Images) -> Tensor:
    """One vector for each image, in float32: the mean of a vision encoder's states.

    Args:
        states: What :meth:`Captioner.encode` gives: one floating tensor, (n_images, ..., state_width), and maybe
            integers beside it.

    Raises:
        ValueError: If there are several floating tensors.
    """
    floating = {name: value for name, value in states.items() if value.is_floating_point()}
    if len(floating) != 1:
        raise ValueError(
            f"the vision encoder gives {', '.join(floating) or 'no states'}, and the evaluator reads one tensor of "
            "states; use a captioner whose encode() gives one, such as a VisionEncoderDecoderModel"
        )
    (value,) = floating.values()
    return value.float().flatten(1, -2).mean(1) if value.dim() > 2 else value.float()


def evaluator_loss(real: Tensor, generated: Tensor, mismatched: Tensor, alpha: float, beta: float) -> Tensor:
    """The evaluator's loss: -E[ln r(real)] - α E[ln(1 - r(generated))] - β E[ln(1 - r(mismatched))].

    Args:
        real: Logits of r for images with captions of their own, (n_real,).
        generated: For images with captions of the generator, (n_generated,).
        mismatched: For images with captions of other images, (n_mismatched,).
        alpha: Weight of generated captions.
        beta: Weight of mismatched captions.
    """
    wrong = alpha * logsigmoid(-generated).mean() + beta * logsigmoid(-mismatched).mean()
    return -logsigmoid(real).mean() - wrong
