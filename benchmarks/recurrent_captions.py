"""What scoring ragged captions costs the paper's two captioners: flat, and padded to the longest caption.

    python benchmarks/recurrent_captions.py

Show and Tell and Adaptive Attention with random weights, of the sizes of their papers (width 512, 10,000 words, 49
positions of 2,048 channels), score 1 + K captions of some images, K = 5, from the features of the images: the forward
alone, as for a reference, and forward with backward, as for a target. *Flat* is what the package does; *padded* is
``packing="repeated"``, a row for each caption. Both project real words only to the vocabulary. Show and Tell is timed
a third way, its LSTM on PyTorch's packed sequences.

Lengths are drawn: ``coco`` like those of COCO's captions (mean 11, standard deviation 2.5), ``tails`` from a
distribution with a longer tail. All ways must give the same scores and the same gradient, or the script stops. They
are timed in turns, in seconds of the processor, which other work on the machine disturbs less than those of the clock;
medians are compared.

Then all captions of a set are scored against some images, as self-retrieval does, by prefix tries: with tries of the
size that the family's own costs choose, and of the size that would be right for a decoder that reads a trie as one row
of a transformer.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from common import out_argument, print_table, write_results
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence, unpack_sequence
from transformers import ResNetConfig

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, caption_batch, captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.captioners.recurrent import VISION_STATES, RecurrentCaptioner
from hf_contrastive_caption.models import (
    AdaptiveAttention,
    AdaptiveAttentionConfig,
    ShowAndTell,
    ShowAndTellConfig,
    small_image_processor,
    word_level_tokenizer,
)
from hf_contrastive_caption.models.recurrent import DecoderOutput, RecurrentCaptionerModel
from hf_contrastive_caption.models.show_and_tell import ShowAndTellDecoder
from hf_contrastive_caption.models.state import RecurrentState

SCORES, GRADIENT = 1e-3, 1e-3
"""Tolerances: of a caption's score in nats, and of the gradient, relative over all weights."""


class PackedSequencesDecoder(ShowAndTellDecoder):
    """Show and Tell with its LSTM on packed sequences."""

    def forward(
        self,
        seen: tuple[Tensor, ...],
        input_ids: Tensor,
        lengths: list[int],
        image_index: Tensor,
        state: RecurrentState,
    ) -> DecoderOutput:
        """See :meth:`RecurrentDecoder.forward`."""
        words = pack_sequence(self.embedding(input_ids).split(lengths), enforce_sorted=False)
        outputs, (hidden, cell) = self.lstm(words, (state.hidden, state.cell))
        return DecoderOutput(torch.cat(unpack_sequence(outputs)), RecurrentState(hidden, cell))


class PackedSequences(ShowAndTell):
    """The model of :class:`PackedSequencesDecoder`."""

    decoder_class = PackedSequencesDecoder


def caption_lengths(name: str, number: int) -> list[int]:
    """Numbers of tokens, end token included."""
    drawn = torch.Generator().manual_seed(0)
    lengths = torch.randn(number, generator=drawn) * 2.5 + 11
    if name == "tails":
        lengths = lengths * torch.exp(0.4 * torch.randn(number, generator=drawn))
    found: list[int] = lengths.round().clamp(4, 50).int().tolist()
    return found


def captioner(model: RecurrentCaptionerModel, packing: Any) -> Captioner:
    tokenizer = word_level_tokenizer(["two words"])
    made = captioner_for(model, (tokenizer, small_image_processor(64)), packing=packing)
    made.make_deterministic()
    made.verify()
    return made


def ways(kind: str, size: dict[str, int], positions_width: int) -> dict[str, Captioner]:
    """Captioners with the same weights, by the name of their way."""
    vision = ResNetConfig(embedding_size=8, hidden_sizes=[positions_width], depths=[1], layer_type="basic")
    torch.manual_seed(0)
    if kind == "adaptive_attention":
        model: RecurrentCaptionerModel = AdaptiveAttention(AdaptiveAttentionConfig(vision_config=vision, **size))
        return {"flat": captioner(model, "packed"), "padded": captioner(model, "repeated")}
    model = ShowAndTell(ShowAndTellConfig(vision_config=vision, **size))
    packed = PackedSequences(model.config)
    packed.load_state_dict(model.state_dict())
    return {
        "flat": captioner(model, "packed"),
        "padded": captioner(model, "repeated"),
        "packed_sequences": captioner(packed, "packed"),
    }


def step(way: Captioner, features: Tensor, captions: CaptionBatch, *, backward: bool) -> tuple[Tensor, Tensor]:
    """Scores, (n_captions,), and the gradient of all weights of the decoder."""
    images = {VISION_STATES: features}
    if not backward:
        with torch.no_grad():
            return way.log_probs(way.model, images, captions), torch.empty(0)
    scores = way.log_probs(way.model, images, captions)
    gradients = torch.autograd.grad(scores.sum(), list(way.decoder.parameters()))
    return scores, torch.cat([gradient.flatten() for gradient in gradients])


def check(made: dict[str, Captioner], features: Tensor, captions: CaptionBatch) -> None:
    """Stop if two ways differ.

    Raises:
        SystemExit: If so.
    """
    scores, gradient = step(made["flat"], features, captions, backward=True)
    for name, way in made.items():
        others, other = step(way, features, captions, backward=True)
        if (scores - others).abs().max() > SCORES or (gradient - other).norm() > GRADIENT * gradient.norm():
            raise SystemExit(f"flat and {name} do not give the same")


def processor_seconds(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(kind: str, lengths: list[int], arguments: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Medians and ratios of one model with captions of these lengths."""
    width, vocabulary = (16, 40) if arguments.quick else (512, 10_000)
    size = {"vocab_size": vocabulary, "embedding_size": width, "hidden_size": width}
    positions, channels = (1 if kind == "show_and_tell" else 49), (32 if arguments.quick else 2048)
    made = ways(kind, size, channels)
    features = torch.rand(arguments.images, positions, channels)
    tokens = torch.randint(4, vocabulary, (sum(lengths),))
    ids = [piece.tolist() for piece in tokens.split(lengths)]
    captions = caption_batch(ids, [number % arguments.images for number in range(len(ids))])
    check(made, features, captions)
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.repeats):
        for name, way in made.items():
            for what, backward in (("forward", False), ("forward_and_backward", True)):
                action = partial(step, way, features, captions, backward=backward)
                times[f"{name}_{what}"].append(processor_seconds(action))
    found = {name: statistics.median(series) for name, series in times.items()}
    ratios = {
        f"{name}_over_flat_{what}": found[f"{name}_{what}"] / found[f"flat_{what}"]
        for name in made
        if name != "flat"
        for what in ("forward", "forward_and_backward")
    }
    return {f"{name}_s": value for name, value in found.items()}, ratios


class OneRow(RecurrentCaptioner):
    """Says that a trie costs what it costs a transformer."""

    nodes_attend = True

    def layer_calls(self, longest: int) -> int:
        """See :meth:`Captioner.layer_calls`."""
        return Captioner.layer_calls(self, longest)


def measure_tries(kind: str, arguments: argparse.Namespace) -> tuple[dict[str, float], dict[str, float]]:
    """Medians and the ratio of two sizes of tries; captions of few words, so that they share beginnings."""
    width, vocabulary = (16, 40) if arguments.quick else (512, 10_000)
    size = {"vocab_size": vocabulary, "embedding_size": width, "hidden_size": width}
    positions, channels = (1 if kind == "show_and_tell" else 49), (32 if arguments.quick else 2048)
    own = ways(kind, size, channels)["flat"]
    other = OneRow(own.model, own.processor)
    lengths = caption_lengths("coco", 30 if arguments.quick else 500)
    drawn = torch.Generator().manual_seed(0)
    words = (torch.rand(sum(lengths), generator=drawn) ** 3 * 30).int() + 4
    ids = [piece.tolist() for piece in words.split(lengths)]
    scorers = {"own": PairScorer(own, ids), "one_row": PairScorer(other, ids)}
    images = {VISION_STATES: torch.rand(8, positions, channels)}
    scores = {name: scorer.scores(images) for name, scorer in scorers.items()}
    if (scores["own"] - scores["one_row"]).abs().max() > SCORES:
        raise SystemExit("the two sizes of tries do not give the same")
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(max(1, arguments.repeats // 2)):
        for name, scorer in scorers.items():
            times[name].append(processor_seconds(partial(scorer.scores, images)))
    found = {f"tries_{name}_costs_s": statistics.median(series) for name, series in times.items()}
    found |= {f"tries_{name}_chunk_size": scorer.plan.chunk_size for name, scorer in scorers.items()}
    ratio = found["tries_one_row_costs_s"] / found["tries_own_costs_s"]
    return found, {"tries_one_row_over_own_costs": ratio}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16, help="of 6 captions each (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs; nothing is stored")
    out_argument(parser, __file__)
    standard = parser.get_default("out")
    arguments = parser.parse_args(argv)
    if arguments.quick and arguments.out == standard:
        arguments.out = None
    return arguments


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run it; the ratios by name."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    ratios: dict[str, float] = {}
    measurements: dict[str, Any] = {"images": arguments.images, "captions": 6 * arguments.images}
    for distribution in ("coco", "tails"):
        lengths = caption_lengths(distribution, 6 * arguments.images)
        padding = 1 - sum(lengths) / (max(lengths) * len(lengths))
        measurements |= {f"{distribution}_tokens": sum(lengths), f"{distribution}_padding_share": padding}
        for kind in ("show_and_tell", "adaptive_attention"):
            found, own = measure(kind, lengths, arguments)
            rows = [(name, f"{value:.3f} s") for name, value in found.items()]
            rows += [(name, f"{value:.2f}") for name, value in own.items()]
            print_table(f"{kind}, {distribution}: {padding:.0%} of the padded batch is padding", rows)
            measurements |= {f"{distribution}_{kind}_{name}": value for name, value in found.items()}
            ratios |= {f"{distribution}_{kind}_{name}": value for name, value in own.items()}
    for kind in ("show_and_tell", "adaptive_attention"):
        found, own = measure_tries(kind, arguments)
        print_table(f"{kind}, tries", [(name, f"{value:.3f}") for name, value in (found | own).items()])
        measurements |= {f"{kind}_{name}": value for name, value in found.items()}
        ratios |= {f"{kind}_{name}": value for name, value in own.items()}
    if arguments.out is not None:
        write_results(__file__, ratios, measurements, arguments.out)
    return ratios


if __name__ == "__main__":
    main()
