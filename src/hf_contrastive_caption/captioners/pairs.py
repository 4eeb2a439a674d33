"""All captions against all images: the table of scores that self-retrieval ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hf_contrastive_caption.captioners.base import Captioner
from hf_contrastive_caption.captioners.batch import Images, caption_batch
from hf_contrastive_caption.captioners.determinism import evaluation_mode
from hf_contrastive_caption.captioners.tries import PrefixTrie, chunks, prefix_trie
from hf_contrastive_caption.captioners.verification import probe
from hf_contrastive_caption.precision import widest

DEFAULT_MAX_MEMORY_BYTES = 2 * 2**30
"""Working memory of :class:`PairScorer` unless told otherwise, beside the model and the table of scores."""

_ATTENTION_SLOWDOWN = 2.0
"""How much slower masked attention runs than large matrix products, per operation."""

_OPERATIONS_PER_LAYER_CALL = {"cpu": 4e7}
_OPERATIONS_PER_LAYER_CALL_ELSEWHERE = 4e9
"""What calling a decoder layer costs beside its work, in operations of large matrix products. The figure for
processors was measured; that for GPUs follows from some twenty kernels of 5 microseconds each, and was not."""

_CHUNK_SIZES = tuple(2**power for power in range(5, 13))
_MOST_IMAGES_AT_ONCE = 64
"""More fill no processor better, and progress would come in large steps."""


@dataclass(frozen=True)
class PairPlan:
    """How captions are scored against images.

    Attributes:
        method: ``"prefix tries"`` or ``"rows"``, one decoder row for each pair.
        num_captions: Captions, repeated ones included.
        num_distinct: Distinct captions: only these are scored.
        num_tokens: Tokens of the distinct captions.
        num_positions: Decoder positions that are computed for each image, start tokens included.
        chunk_size: Largest number of positions of a trie, or of all rows together.
        images_at_once: Images that are scored together.
    """

    method: str
    num_captions: int
    num_distinct: int
    num_tokens: int
    num_positions: int
    chunk_size: int
    images_at_once: int


class PairScorer:
    """Scores every one of many captions against every one of many images: ln p(caption | image).

    Distinct captions are scored once. Where that is exact for the model, they go through the decoder as prefix tries
    and what depends on the image alone is computed once; else each has a row of its own, sorted by length.

    Equal to ``captioner.log_probs`` of one pair after the other.

    Args:
        captioner: Scores the captions; in evaluation mode during the calls.
        input_ids: Token ids of the captions, end token included.
        max_memory_bytes: Working memory, from which follow the sizes of the tries and how many images go at once. An
            estimate; the smallest possible sizes are used where it does not suffice.

    Attributes:
        plan: How the captions are scored.

    Raises:
        ValueError: If there is no caption, or one has no token or more than the decoder has positions for.
    """

    def __init__(
        self,
        captioner: Captioner,
        input_ids: Sequence[Sequence[int]],
        max_memory_bytes: int = DEFAULT_MAX_MEMORY_BYTES,
    ) -> None:
        _check_captions(captioner, input_ids)
        if max_memory_bytes < 1:
            raise ValueError(f"max_memory_bytes must be at least 1, but is {max_memory_bytes}")
        self.captioner = captioner
        self.max_memory_bytes = max_memory_bytes
        distinct = sorted({tuple(ids) for ids in input_ids})
        number = {ids: place for place, ids in enumerate(distinct)}
        self._distinct: list[tuple[int, ...]] = distinct
        self._place = torch.tensor([number[tuple(ids)] for ids in input_ids])  # (n_captions,)
        tries = captioner.tries
        with evaluation_mode(captioner.model):
            self._sizes = _Sizes(captioner)
        self._tries: list[PrefixTrie] = []
        self.plan = self._plan_tries() if tries else self._plan_rows()

    def scores(self, images: Images) -> Tensor:
        """Score all captions against some images.

        Args:
            images: What the image processor gives, on any device; ``plan.images_at_once`` of them are within the
                memory budget.

        Returns:
            Log-probabilities in nats, float32 on the CPU, (n_images, n_captions).
        """
        captioner = self.captioner
        with evaluation_mode(captioner.model), torch.no_grad():
            states = captioner.encode({name: value.to(captioner.device) for name, value in images.items()})
            scores = self._by_tries(states) if self._tries else self._by_rows(states)
        return scores.float().cpu()[:, self._place]

    def _by_tries(self, states: Images) -> Tensor:
        score = self.captioner.trie_scorer(states, self._logits_bytes())
        assert score is not None
        return torch.cat([trie.sum_paths(score(trie)) for trie in self._tries], dim=1)

    def _by_rows(self, states: Images) -> Tensor:
        captioner = self.captioner
        num_images = next(iter(states.values())).shape[0]
        # The longest first: all rows of a piece are as wide as its first one.
        by_length = sorted(range(len(self._distinct)), key=lambda number: -len(self._distinct[number]))
        scores = torch.empty(num_images, len(self._distinct), dtype=widest(captioner.device), device=captioner.device)
        for image in range(num_images):
            one = {name: value[image : image + 1] for name, value in states.items()}
            first = 0
            while first < len(by_length):
                rows = max(1, self.plan.chunk_size // len(self._distinct[by_length[first]]))
                numbers = by_length[first : first + rows]
                captions = caption_batch([self._distinct[n] for n in numbers], [0] * len(numbers), captioner.device)
                scores[image, numbers] = captioner.log_probs(captioner.model, one, captions).to(scores.dtype)
                first += len(numbers)
        return scores

    def _plan_tries(self) -> PairPlan:
        sizes, budget = self._sizes, self.max_memory_bytes - self._logits_bytes()
        runs: dict[int, list[tuple[slice, int]]] = {}
        for size in _CHUNK_SIZES:
            if not runs or size * sizes.position_bytes + sizes.image_bytes <= budget:
                runs[size] = list(chunks(self._distinct, size))
        longest = {size: [max(map(len, self._distinct[run])) for run, _ in tries] for size, tries in runs.items()}
        size = min(runs, key=lambda size: sizes.operations([count for _, count in runs[size]], longest[size], budget))
        for run, _ in runs[size]:
            trie = prefix_trie(self._distinct[run], self.captioner.start_token_id)
            self._tries.append(trie.to(self.captioner.device))
        counts = [count for _, count in runs[size]]
        return self._plan("prefix tries", sum(counts), size, sizes.images_at_once(counts, budget))

    def _plan_rows(self) -> PairPlan:
        sizes, shortest = self._sizes, min(map(len, self._distinct))
        per_token = sizes.position_bytes + sizes.image_bytes // shortest  # a row has the states of its image to itself
        size = (self.max_memory_bytes - self._logits_bytes()) // per_token
        if self.captioner.layout == "packed":
            size = min(size, self.captioner.processor.max_caption_tokens or size)
        at_once = self.max_memory_bytes // (4 * sizes.image_bytes)
        return self._plan("rows", sum(map(len, self._distinct)), size, at_once)

    def _plan(self, method: str, num_positions: int, chunk_size: int, images_at_once: int) -> PairPlan:
        return PairPlan(
            method=method,
            num_captions=len(self._place),
            num_distinct=len(self._distinct),
            num_tokens=sum(map(len, self._distinct)),
            num_positions=num_positions,
            chunk_size=max(1, chunk_size),
            images_at_once=_some_images(images_at_once),
        )

    def _logits_bytes(self) -> int:
        """Bytes of logits that are held at one time."""
        return max(1, min(self.captioner.max_logits_bytes, self.max_memory_bytes // 4))


class _Sizes:
    """What a decoder position costs, estimated from the decoder's weights.

    Attributes:
        position_bytes: Working memory of a position of one image: keys and values of all layers, and what is alive
            within a layer.
        image_bytes: What is kept of an image: the encoder's states, and keys and values of them in all layers.
    """

    def __init__(self, captioner: Captioner) -> None:
        layers, width = captioner.decoder_size()
        tables = {id(module.weight) for module in captioner.decoder.modules() if isinstance(module, nn.Embedding)}
        head = captioner.base_model.get_output_embeddings() or captioner.decoder.get_output_embeddings()
        projection = {id(weight): weight for weight in head.parameters() if weight.ndim == 2}
        matrices = [weight for weight in captioner.decoder.parameters() if weight.ndim == 2]
        products = [weight for weight in matrices if id(weight) not in tables | projection.keys()]
        broadest = max((max(weight.shape) for weight in products), default=width)
        images, _ = probe(captioner)
        states = next(iter(captioner.encode({name: value[:1] for name, value in images.items()}).values()))
        itemsize = states.element_size()
        # Activations that are written out in Python hold several copies of the widest layer. With these two factors
        # the peak that benchmarks/self_retrieval.py measures stays within the budget.
        self.position_bytes = itemsize * ((2 * layers + 4) * width + 13 * broadest)
        self.image_bytes = states.numel() * itemsize * (2 * layers + 9)
        self._per_position: int = 2 * sum(weight.numel() for weight in (*products, *projection.values()))
        self._per_pair: float = 4 * layers * width * _ATTENTION_SLOWDOWN if captioner.nodes_attend else 0
        self._layer_calls = captioner.layer_calls
        self._per_layer_call: float = _OPERATIONS_PER_LAYER_CALL.get(
            captioner.device.type, _OPERATIONS_PER_LAYER_CALL_ELSEWHERE
        )

    def images_at_once(self, num_positions: Sequence[int], budget: int) -> int:
        """How many images fit a budget of bytes with tries of so many positions."""
        return _some_images(budget // (self.image_bytes + max(num_positions) * self.position_bytes))

    def operations(self, num_positions: Sequence[int], longest: Sequence[int], budget: int) -> float:
        """What tries cost for an image, in operations of large matrix products.

        Args:
            num_positions: Positions of each trie.
            longest: Tokens of the longest caption of each trie.
            budget: Working memory in bytes, from which follows how many images share a call.
        """
        calls = sum(map(self._layer_calls, longest)) * self._per_layer_call
        positions = sum(n * (self._per_position + self._per_pair * n) for n in num_positions)
        return calls / self.images_at_once(num_positions, budget) + positions


def _some_images(number: int) -> int:
    return min(max(1, number), _MOST_IMAGES_AT_ONCE)


def _check_captions(captioner: Captioner, input_ids: Sequence[Sequence[int]]) -> None:
    if not input_ids:
        raise ValueError("there are no captions to score")
    limit = captioner.processor.max_caption_tokens
    for number, ids in enumerate(input_ids):
        if not ids:
            raise ValueError(f"caption {number} has no tokens; a caption has at least its end token")
        if limit is not None and len(ids) > limit:
            raise ValueError(
                f"caption {number} has {len(ids)} tokens, but {captioner.name} scores at most {limit}; make the token "
                "ids with processor.tokenize, which cuts them"
            )
