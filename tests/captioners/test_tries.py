"""Tries of captions against sets of prefixes and a walk along every caption."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_contrastive_caption.captioners.tries import PrefixTrie, additive, chunks, prefix_trie

START = 99
Caption = tuple[int, ...]

# Three tokens, so that captions share beginnings, repeat and are prefixes of each other.
caption = st.lists(st.integers(0, 2), min_size=1, max_size=6).map(tuple)
caption_sets = st.lists(caption, min_size=1, max_size=12).map(sorted)


def proper_prefixes(captions: list[Caption]) -> set[Caption]:
    """What a decoder has read before it predicts a token: these are the nodes."""
    return {ids[:end] for ids in captions for end in range(len(ids))}


def prefixes_of_nodes(trie: PrefixTrie) -> list[Caption]:
    """The caption tokens that each node has read, by its mask alone: its ancestors, in their order."""
    return [tuple(trie.input_ids[seen].tolist()[1:]) for seen in trie.mask]


def walks(trie: PrefixTrie) -> list[list[int]]:
    """The edges of each caption."""
    return [path.tolist() for path in trie.paths.split(trie.lengths.tolist())]


class TestPrefixTrie:
    @settings(max_examples=100, deadline=None)
    @given(caption_sets)
    def test_nodes_are_the_distinct_proper_prefixes(self, captions: list[Caption]) -> None:
        trie = prefix_trie(captions, START)
        prefixes = prefixes_of_nodes(trie)
        assert trie.num_nodes == len(prefixes) == len(set(prefixes))
        assert set(prefixes) == proper_prefixes(captions)
        assert trie.depth.tolist() == list(map(len, prefixes))
        assert trie.input_ids.tolist() == [prefix[-1] if prefix else START for prefix in prefixes]
        assert prefixes[0] == ()

    @settings(max_examples=100, deadline=None)
    @given(caption_sets)
    def test_the_mask_is_what_is_a_prefix_of_what(self, captions: list[Caption]) -> None:
        trie = prefix_trie(captions, START)
        prefixes = prefixes_of_nodes(trie)
        expected = [[here[: len(other)] == other for other in prefixes] for here in prefixes]
        assert trie.mask.tolist() == expected
        assert not trie.mask.triu(1).any()  # parents come before their children, so that a decoder's causal mask fits

    @settings(max_examples=100, deadline=None)
    @given(caption_sets)
    def test_parents_are_the_ancestors_one_level_up(self, captions: list[Caption]) -> None:
        trie = prefix_trie(captions, START)
        above = trie.mask & (trie.depth[:, None] - 1 == trie.depth)  # (n_nodes, n_nodes), at most one in a row
        assert above.sum(1).tolist() == (trie.depth > 0).long().tolist()
        assert trie.parents.tolist() == above.to(torch.uint8).argmax(dim=1).tolist()

    @settings(max_examples=100, deadline=None)
    @given(caption_sets)
    def test_edges_are_the_distinct_prefixes_that_end_with_their_token(self, captions: list[Caption]) -> None:
        trie = prefix_trie(captions, START)
        prefixes = prefixes_of_nodes(trie)
        edges = [
            (*prefixes[node], token)
            for node, token in zip(trie.edge_nodes.tolist(), trie.edge_tokens.tolist(), strict=True)
        ]
        assert len(edges) == len(set(edges))
        assert set(edges) == {ids[: end + 1] for ids in captions for end in range(len(ids))}
        assert trie.edge_nodes.tolist() == sorted(trie.edge_nodes.tolist())
        for ids, walk in zip(captions, walks(trie), strict=True):
            assert [edges[edge] for edge in walk] == [ids[: end + 1] for end in range(len(ids))]

    def test_one_caption_is_a_plain_row(self) -> None:
        trie = prefix_trie([(5, 6, 7, 2)], START)
        assert trie.input_ids.tolist() == [START, 5, 6, 7]
        assert trie.depth.tolist() == [0, 1, 2, 3]
        assert trie.parents.tolist() == [0, 0, 1, 2]
        assert trie.mask.tolist() == torch.ones(4, 4).tril().bool().tolist()
        assert trie.edge_nodes.tolist() == [0, 1, 2, 3]
        assert trie.edge_tokens.tolist() == [5, 6, 7, 2]
        assert walks(trie) == [[0, 1, 2, 3]]

    def test_captions_of_one_token_need_the_root_alone(self) -> None:
        trie = prefix_trie([(2,), (3,), (4,)], START)
        assert trie.input_ids.tolist() == [START]
        assert trie.edge_nodes.tolist() == [0, 0, 0]
        assert walks(trie) == [[0], [1], [2]]

    def test_a_repeated_caption_takes_no_room(self) -> None:
        once, twice = prefix_trie([(5, 2), (6, 2)], START), prefix_trie([(5, 2), (5, 2), (6, 2)], START)
        assert once.num_nodes == twice.num_nodes == 3
        assert walks(twice) == [walks(once)[0], *walks(once)]

    def test_a_caption_that_goes_on_where_another_ends(self) -> None:
        trie = prefix_trie([(5,), (5, 6), (5, 6, 7)], START)
        assert trie.input_ids.tolist() == [START, 5, 6]  # the last token of a caption is read by the longer one only
        assert walks(trie) == [[0], [0, 1], [0, 1, 2]]

    def test_moves_to_a_device_as_a_whole(self) -> None:
        trie = prefix_trie([(5, 2), (6, 2)], START).to(torch.device("meta"))
        assert {value.device.type for value in trie} == {"meta"}


class TestSumPaths:
    @settings(max_examples=60, deadline=None)
    @given(caption_sets, st.integers(1, 3), st.integers(0, 2**32 - 1))
    def test_equals_a_walk(self, captions: list[Caption], num_images: int, seed: int) -> None:
        trie = prefix_trie(captions, START)
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(num_images, len(trie.edge_nodes), generator=generator)
        sums = trie.sum_paths(values)
        expected = [
            [sum(values[image, edge].item() for edge in walk) for walk in walks(trie)] for image in range(num_images)
        ]
        assert sums.dtype == torch.float64
        torch.testing.assert_close(sums, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)

    def test_sums_in_float64(self) -> None:
        trie = prefix_trie([(1, 2)], START)
        assert trie.sum_paths(torch.tensor([[2.0**25, 1.0]])).tolist() == [[2.0**25 + 1]]  # float32 would lose the 1


class TestChunks:
    @settings(max_examples=200, deadline=None)
    @given(caption_sets, st.integers(1, 12))
    def test_are_runs_of_all_captions_as_large_as_the_limit_allows(self, captions: list[Caption], limit: int) -> None:
        runs = list(chunks(captions, limit))
        assert [number for run, _ in runs for number in range(len(captions))[run]] == list(range(len(captions)))
        for place, (run, count) in enumerate(runs):
            part = captions[run]
            assert part
            assert count == prefix_trie(part, START).num_nodes == len(proper_prefixes(part))
            assert count <= limit or len(part) == 1
            if place + 1 < len(runs):  # the next caption would not have fitted
                assert len(proper_prefixes([*part, captions[run.stop]])) > limit

    def test_a_caption_longer_than_the_limit_is_alone(self) -> None:
        captions = [(1, 2), (3,) * 9, (4, 2), (5, 2)]
        assert list(chunks(captions, 4)) == [(slice(0, 1), 2), (slice(1, 2), 9), (slice(2, 4), 3)]

    def test_of_nothing(self) -> None:
        assert list(chunks([], 4)) == []


def test_additive_mask_takes_away_everything_that_a_node_does_not_see() -> None:
    mask = prefix_trie([(5, 2), (6, 2)], START).mask
    for dtype in (torch.float32, torch.bfloat16):
        added = additive(mask, dtype)
        assert added.shape == (1, 1, 3, 3)
        weights = torch.softmax(torch.zeros(3, 3, dtype=dtype) + added, dim=-1)
        assert weights[0, 0].tolist() == [[1, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]]
