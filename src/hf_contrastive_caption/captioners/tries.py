"""Prefix tries: many captions as one tree, in which what they have in common is computed once.

A causal decoder's state depends on the tokens before it and on nothing else, so captions with the same beginning share
its states. A trie of all captions, laid out in one decoder row with the depth as position and a mask through which a
node sees its ancestors, scores every caption exactly, with as many decoder positions as there are distinct beginnings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hf_contrastive_caption.precision import widest


class PrefixTrie(NamedTuple):
    """Captions as a tree: nodes are inputs of the decoder, edges are the tokens that are scored.

    Attributes:
        input_ids: Token of each node, the start token at the root, parents before their children, (n_nodes,).
        depth: Number of caption tokens before and at the node; its position, (n_nodes,).
        parents: The node before each node; the root stands before itself, (n_nodes,).
        mask: Whether a node sees another: its ancestors and itself, boolean, (n_nodes, n_nodes).
        edge_nodes: The node whose output predicts an edge's token, ascending, (n_edges,).
        edge_tokens: The token of each edge, (n_edges,).
        paths: For each caption token, the captions one after the other, its edge, (n_tokens,).
        lengths: Number of tokens of each caption, (n_captions,).
    """

    input_ids: Tensor
    depth: Tensor
    parents: Tensor
    mask: Tensor
    edge_nodes: Tensor
    edge_tokens: Tensor
    paths: Tensor
    lengths: Tensor

    @property
    def num_nodes(self) -> int:
        """Decoder positions that the captions take."""
        return self.input_ids.shape[0]

    def to(self, device: torch.device) -> PrefixTrie:
        """The trie with its tensors on a device."""
        return PrefixTrie(*(value.to(device) for value in self))

    def sum_paths(self, edge_values: Tensor) -> Tensor:
        """Sum values of edges along every caption: (n_images, n_edges) to (n_images, n_captions), widened first."""
        values = edge_values.to(widest(edge_values.device)).index_select(1, self.paths)  # (n_images, n_tokens)
        caption = torch.repeat_interleave(
            torch.arange(self.lengths.shape[0], device=values.device), self.lengths, output_size=values.shape[1]
        )
        sums = values.new_zeros(values.shape[0], self.lengths.shape[0])
        return sums.index_add_(1, caption, values)


def prefix_trie(captions: Sequence[Sequence[int]], start_token_id: int) -> PrefixTrie:
    """Build the trie of captions.

    Equal to scoring each caption in a row of its own; ``tests/captioners/test_tries.py`` does that.

    Args:
        captions: Token ids of each caption, end token included, in sorted order and at least one.
        start_token_id: The token from which the first token of a caption is predicted.
    """
    tokens, depth, parents = [start_token_id], [0], [0]
    edge_nodes: list[int] = []
    edge_tokens: list[int] = []
    paths: list[int] = []
    nodes = [0]  # those of the caption before: nodes[i] is its first i tokens
    edges: list[int] = []  # and its edges, one for each token
    previous: Sequence[int] = ()
    for caption in captions:
        common = _common(previous, caption)
        del nodes[common + 1 :], edges[common:]
        for place in range(common, len(caption)):
            while len(nodes) <= place:  # a caption that continues another one's last token needs a node for it
                tokens.append(caption[len(nodes) - 1])
                depth.append(len(nodes))
                parents.append(nodes[-1])
                nodes.append(len(tokens) - 1)
            edges.append(len(edge_nodes))
            edge_nodes.append(nodes[place])
            edge_tokens.append(caption[place])
        paths += edges
        previous = caption
    order = np.argsort(np.asarray(edge_nodes), kind="stable")
    renumbered = np.empty_like(order)
    renumbered[order] = np.arange(len(order))
    return PrefixTrie(
        input_ids=torch.tensor(tokens),
        depth=torch.tensor(depth),
        parents=torch.tensor(parents),
        mask=_ancestors(parents),
        edge_nodes=torch.from_numpy(np.asarray(edge_nodes)[order]),
        edge_tokens=torch.from_numpy(np.asarray(edge_tokens)[order]),
        paths=torch.from_numpy(renumbered[np.asarray(paths)]),
        lengths=torch.tensor([len(caption) for caption in captions]),
    )


def chunks(captions: Sequence[Sequence[int]], max_nodes: int) -> Iterator[tuple[slice, int]]:
    """Cut sorted captions into runs whose tries have at most ``max_nodes`` nodes each.

    A caption that is longer than that alone is a run of its own.

    Args:
        captions: Token ids, sorted.
        max_nodes: Largest number of nodes of a trie.

    Yields:
        A run of captions and the number of nodes of its trie.
    """
    first, count = 0, 0
    for number, caption in enumerate(captions):
        new = len(caption)
        if number > first:
            previous = captions[number - 1]
            shared = min(_common(previous, caption), len(previous) - 1, len(caption) - 1)
            new = len(caption) - 1 - shared
        if number > first and count + new > max_nodes:
            yield slice(first, number), count
            first, count, new = number, 0, len(caption)
        count += new
    if captions:
        yield slice(first, len(captions)), count


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as attention adds it, 0 where a node sees another, (1, 1, n_nodes, n_nodes)."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)[
        None, None
    ]


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    shorter = min(len(first), len(second))
    return next((place for place in range(shorter) if first[place] != second[place]), shorter)


def _ancestors(parents: Sequence[int]) -> Tensor:
    mask = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents[1:], start=1):
        mask[node] |= mask[parent]
    return torch.from_numpy(mask)
