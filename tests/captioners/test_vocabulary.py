"""Log-probabilities out of the vocabulary projection against log-softmax and selection, and their memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_contrastive_caption.captioners.tries import PrefixTrie, prefix_trie
from hf_contrastive_caption.captioners.vocabulary import (
    edge_log_probs,
    edge_log_probs_instead_of_logits,
    log_probs_instead_of_logits,
    log_softmax_of,
    token_log_probs,
)

TOKENS, WIDTH, VOCABULARY = 23, 16, 50
ONE_PIECE = 4 * VOCABULARY * TOKENS
BUDGETS = (ONE_PIECE, ONE_PIECE - 1, 4 * VOCABULARY * 7, 1)


class FactoredHead(nn.Module):
    """A projection that is no ``nn.Linear``."""

    def __init__(self) -> None:
        super().__init__()
        self.out_features = VOCABULARY
        self.inner = nn.Linear(WIDTH, 8, bias=False)
        self.outer = nn.Linear(8, VOCABULARY)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(hidden)))


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max([self.numel, *made])
        return result


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)
    upstream = torch.randn(TOKENS, generator=generator, dtype=torch.float64)
    return hidden.requires_grad_(), targets, upstream


def linear(bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype)


def naive(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]


def value_and_gradients(log_probs: Tensor, hidden: Tensor, head: nn.Module, upstream: Tensor) -> list[Tensor]:
    wanted = [hidden, *(weight for weight in head.parameters() if weight.requires_grad)]
    return [log_probs, *torch.autograd.grad(log_probs, wanted, upstream.to(log_probs.dtype))]


def relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.detach().double(), theirs.detach().double()
    return float((ours - theirs).norm() / theirs.norm())


class TestTokenLogProbs:
    @pytest.mark.parametrize("budget", BUDGETS)
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
    def test_linear(self, budget: int, bias: bool, dtype: torch.dtype, tolerance: float) -> None:
        head, (hidden, targets, upstream) = linear(bias, dtype), problem(dtype)
        ours = value_and_gradients(token_log_probs(head, hidden, targets, budget), hidden, head, upstream)
        theirs = value_and_gradients(naive(head, hidden, targets), hidden, head, upstream)
        assert len(ours) == 3 + bias
        for one, other in zip(ours, theirs, strict=True):
            assert one.dtype == other.dtype
            assert relative(one, other) < tolerance

    @pytest.mark.parametrize("budget", [ONE_PIECE, 4 * VOCABULARY * 7])
    def test_finite_differences(self, budget: int) -> None:
        head, (hidden, targets, _) = linear(), problem()

        def score(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            head = nn.Linear(WIDTH, VOCABULARY, dtype=torch.float64)
            del head.weight, head.bias
            head.weight, head.bias = weight, bias  # type: ignore[assignment]
            return token_log_probs(head, hidden, targets, budget)

        weight, bias = (value.detach().requires_grad_() for value in (head.weight, head.bias))
        assert torch.autograd.gradcheck(score, (hidden, weight, bias))

    @pytest.mark.parametrize("budget", BUDGETS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, budget: int, dtype: torch.dtype) -> None:
        head, (hidden, targets, upstream) = linear(dtype=torch.float32), problem(torch.float32)
        with torch.autocast("cpu", dtype):
            ours = token_log_probs(head, hidden, targets, budget)
            theirs = naive(head, hidden, targets)
        assert ours.dtype == torch.float32
        assert relative(ours, theirs) < 1e-6  # the logits are the same half-precision numbers
        exact = naive(head, hidden, targets)
        assert relative(ours, exact) < (4e-3 if dtype == torch.bfloat16 else 5e-4)
        gradients = zip(
            value_and_gradients(ours, hidden, head, upstream)[1:],
            value_and_gradients(exact, hidden, head, upstream)[1:],
            strict=True,
        )
        for one, other in gradients:
            assert one.dtype == torch.float32
            assert relative(one, other) < (1e-2 if dtype == torch.bfloat16 else 1e-3)

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_half_precision_weights(self, budget: int) -> None:
        head, (hidden, targets, upstream) = linear(dtype=torch.bfloat16), problem(torch.bfloat16)
        ours = value_and_gradients(token_log_probs(head, hidden, targets, budget), hidden, head, upstream)
        theirs = value_and_gradients(naive(head, hidden, targets), hidden, head, upstream)
        assert [value.dtype for value in ours] == [torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16]
        assert relative(ours[0], theirs[0]) < 1e-6
        for one, other in zip(ours[1:], theirs[1:], strict=True):
            assert relative(one, other) < 2e-2

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_another_module(self, budget: int) -> None:
        torch.manual_seed(1)
        head, (hidden, targets, upstream) = FactoredHead().double(), problem()
        ours = value_and_gradients(token_log_probs(head, hidden, targets, budget), hidden, head, upstream)
        theirs = value_and_gradients(naive(head, hidden, targets), hidden, head, upstream)
        for one, other in zip(ours, theirs, strict=True):
            assert relative(one, other) < 1e-14

    @pytest.mark.parametrize("budget", BUDGETS)
    def test_a_linear_layer_with_an_adapter(self, budget: int) -> None:
        torch.manual_seed(1)
        wrapped = get_peft_model(
            nn.Sequential(linear()), LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        )
        head, (hidden, targets, upstream) = wrapped.base_model.model[0].double(), problem()
        assert type(head) is not nn.Linear
        ours = value_and_gradients(token_log_probs(head, hidden, targets, budget), hidden, head, upstream)
        theirs = value_and_gradients(naive(head, hidden, targets), hidden, head, upstream)
        assert len(ours) == 4  # the value, and the gradients of the hidden states and of the two factors
        assert relative(theirs[0], naive(head.base_layer, hidden, targets)) > 0.01
        for one, other in zip(ours, theirs, strict=True):
            assert relative(one, other) < 1e-14

    @pytest.mark.parametrize("frozen", ["weight", "bias", "hidden"])
    def test_no_gradient_where_none_is_wanted(self, frozen: str) -> None:
        head, (hidden, targets, upstream) = linear(), problem()
        inputs = {"weight": head.weight, "bias": head.bias, "hidden": hidden}
        inputs.pop(frozen).requires_grad_(False)
        ours = torch.autograd.grad(token_log_probs(head, hidden, targets, 1), list(inputs.values()), upstream)
        theirs = torch.autograd.grad(naive(head, hidden, targets), list(inputs.values()), upstream)
        for one, other in zip(ours, theirs, strict=True):
            assert relative(one, other) < 1e-14

    def test_a_second_backward_gives_the_same(self) -> None:
        head, (hidden, targets, upstream) = linear(), problem()
        log_probs = token_log_probs(head, hidden, targets, ONE_PIECE)
        (first,) = torch.autograd.grad(log_probs, hidden, upstream, retain_graph=True)
        (second,) = torch.autograd.grad(log_probs, hidden, upstream)
        torch.testing.assert_close(second, first, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("head", [linear(), FactoredHead().double()], ids=["linear", "other"])
    @pytest.mark.parametrize("rows", [1, 8, 24, 32])
    def test_no_tensor_is_larger_than_the_budget(self, head: nn.Module, rows: int) -> None:
        tokens = 64
        hidden = torch.randn(tokens, WIDTH, dtype=torch.float64, requires_grad=True)
        targets = torch.randint(0, VOCABULARY, (tokens,))
        with LargestTensor() as largest:
            token_log_probs(head, hidden, targets, 4 * VOCABULARY * rows).sum().backward()
        fixed = max(tokens * WIDTH, VOCABULARY * WIDTH)  # the hidden states and the weight, with their gradients
        assert largest.numel == max(rows * VOCABULARY, fixed)
        with LargestTensor() as largest:
            naive(head, hidden, targets).sum().backward()
        assert largest.numel == tokens * VOCABULARY

    def test_far_from_zero(self) -> None:
        logits = torch.tensor([[0.0, 1e4, -1e4]] * 3, dtype=torch.float32)
        assert log_softmax_of(logits, torch.arange(3)).tolist() == [-1e4, 0.0, -2e4]
        assert log_softmax_of(logits.half(), torch.arange(3)).dtype == torch.float32


class TestLogProbsInsteadOfLogits:
    def test_the_head_returns_log_probabilities(self) -> None:
        head, (_, targets, _) = linear(), problem()
        states = torch.randn(4, 9, WIDTH, dtype=torch.float64)
        source = torch.randperm(36)[:TOKENS]
        with log_probs_instead_of_logits(head, source, targets, 1):
            inside = head(states)
        assert inside.shape == (1, TOKENS, 1)
        expected = naive(head, states.flatten(0, 1)[source], targets)
        torch.testing.assert_close(inside.flatten(), expected, rtol=0, atol=1e-14)
        assert head(states).shape == (4, 9, VOCABULARY)

    def test_hooks_go_also_after_an_exception(self) -> None:
        head = linear()
        with pytest.raises(IndexError), log_probs_instead_of_logits(head, torch.tensor([99]), torch.tensor([0]), 1):
            head(torch.zeros(1, 2, WIDTH, dtype=torch.float64))  # there is no place 99
        assert not head._forward_hooks
        assert not head._forward_pre_hooks


class TestEdgeLogProbs:
    """What a trie asks of the head: several tokens after one node, and none after another."""

    captions = ((1, 2), (1, 3, 2), (1, 3, 4), (5,), (6, 2))

    def problem(self) -> tuple[PrefixTrie, Tensor]:
        trie = prefix_trie(self.captions, start_token_id=0)
        generator = torch.Generator().manual_seed(0)
        return trie, torch.randn(2, trie.num_nodes, WIDTH, generator=generator, dtype=torch.float64)

    @pytest.mark.parametrize("head", [linear(), FactoredHead().double()], ids=["linear", "other"])
    @pytest.mark.parametrize("nodes", [1, 2, 3, 99])
    def test_the_head_returns_them(self, head: nn.Module, nodes: int) -> None:
        trie, states = self.problem()
        with torch.no_grad():
            with edge_log_probs_instead_of_logits(head, trie, nodes * 2 * 4 * VOCABULARY):
                inside = head(states)
            log_probs = head(states).log_softmax(-1)
        edges = zip(trie.edge_nodes, trie.edge_tokens, strict=True)
        expected = torch.stack([log_probs[:, node, token] for node, token in edges], dim=1)
        assert inside.shape == (2, len(trie.edge_nodes), 1)
        torch.testing.assert_close(inside[..., 0], expected, rtol=0, atol=1e-13)
        assert head(states).shape == (2, trie.num_nodes, VOCABULARY)

    def test_are_taken_in_float32(self) -> None:
        trie, states = self.problem()
        logits = (states @ torch.ones(WIDTH, VOCABULARY, dtype=torch.float64)).bfloat16()
        values = edge_log_probs(logits, trie)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, torch.full_like(values, -math.log(VOCABULARY)), rtol=0, atol=1e-5)

    def test_of_some_nodes(self) -> None:
        trie, states = self.problem()
        logits = linear()(states)
        whole = edge_log_probs(logits.clone(), trie)  # it overwrites them
        parts = [edge_log_probs(logits[:, node : node + 1].clone(), trie, node) for node in range(trie.num_nodes)]
        assert [part.shape[1] for part in parts] == [trie.edge_nodes.eq(node).sum() for node in range(trie.num_nodes)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=0)

    def test_no_tensor_is_larger_than_the_budget(self) -> None:
        trie = prefix_trie([tuple(range(start, start + 20)) for start in range(20)], start_token_id=0)
        states, head = torch.randn(3, trie.num_nodes, 4), nn.Linear(4, VOCABULARY)
        with torch.no_grad(), LargestTensor() as largest, edge_log_probs_instead_of_logits(head, trie, 30_000):
            head(states)
        assert largest.numel * 4 <= 30_000
        assert 3 * trie.num_nodes * VOCABULARY * 4 > 200_000  # what all logits would be

    def test_hooks_go_also_after_an_exception(self) -> None:
        head, (trie, states) = linear(), self.problem()
        with pytest.raises(RuntimeError), edge_log_probs_instead_of_logits(head, trie, 1):
            head(states[..., 1:])
        assert not head._forward_hooks
        assert not head._forward_pre_hooks
