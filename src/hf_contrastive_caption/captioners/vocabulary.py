"""From hidden states to the log-probabilities of given tokens, without keeping all logits.

The vocabulary projection is the largest matrix of a small captioner, and its output the largest tensor. Here it runs
on real tokens only, in pieces of a stated number of bytes, and the log-softmax is taken in float32.

It also has to run *inside* the wrapped model's own call, with its result among the model's outputs: only then do DDP
and FSDP2 see the whole graph. So for the length of one call a pair of forward hooks, PyTorch's public means for it,
lets the output embedding return log-probabilities of the wanted tokens in place of logits.

FSDP2 and ZeRO-3 gather weights and let go of them in hooks of their own. The pair works between these: the one before
the projection runs last and the one after it first, while the weights are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hf_contrastive_caption.captioners.tries import PrefixTrie

DEFAULT_MAX_LOGITS_BYTES = 512 * 2**20
"""Bytes of logits that are held at one time. Beyond them the logits are made in pieces and made again for backward."""


@contextmanager
def log_probs_instead_of_logits(
    head: nn.Module, source: Tensor, targets: Tensor, max_logits_bytes: int, width: int | None = None
) -> Iterator[None]:
    """While open, ``head`` returns log-probabilities of ``targets``, (1, n_tokens, 1), instead of logits.

    Args:
        head: The model's output embedding.
        source: Places in the flattened hidden states, (rows * width), that predict the targets, (n_tokens,).
        targets: Token ids, (n_tokens,).
        max_logits_bytes: Largest size of the logits that are held at one time.
        width: Positions at the end of each row that ``source`` counts; all if not given.
    """
    hidden: list[Tensor] = []

    def take_hidden(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        states = args[0] if width is None else args[0][:, -width:]
        hidden.append(states.flatten(0, -2).index_select(0, source))  # (n_tokens, hidden_size)
        return (args[0][:0],)  # the projection itself has nothing left to do

    def put_log_probs(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        log_probs = token_log_probs(module, hidden.pop(), targets, max_logits_bytes)
        return log_probs[None, :, None].clone()  # FSDP warns of a view

    with _hooks(head, take_hidden, put_log_probs):
        yield


@contextmanager
def edge_log_probs_instead_of_logits(head: nn.Module, trie: PrefixTrie, max_logits_bytes: int) -> Iterator[None]:
    """While open, ``head`` returns log-probabilities of a trie's edges, (n_images, n_edges, 1), instead of logits.

    Without gradients. A node with several children is projected once.

    Args:
        head: The model's output embedding.
        trie: The captions; the head is given (n_images, n_nodes, hidden_size).
        max_logits_bytes: Largest size of the logits that are held at one time.
    """
    hidden: list[Tensor] = []

    def take_hidden(module: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor]:
        hidden.append(args[0])
        return (args[0][:, :0],)  # the projection itself has nothing left to do

    def put_log_probs(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        states = hidden.pop()
        rows = max(1, max_logits_bytes // (4 * _vocabulary_size(head) * states.shape[0]))
        pieces = []
        for first in range(0, states.shape[1], rows):
            logits = head.forward(states[:, first : first + rows])  # not head(states): its hooks are ours
            pieces.append(edge_log_probs(logits, trie, first))
        return torch.cat(pieces, dim=1)[..., None]

    with _hooks(head, take_hidden, put_log_probs):
        yield


@contextmanager
def _hooks(head: nn.Module, before: Callable[..., Any], after: Callable[..., Any]) -> Iterator[None]:
    """Have hooks around the projection, inside of those of FSDP2 and ZeRO-3."""
    hooks = [head.register_forward_pre_hook(before), head.register_forward_hook(after, prepend=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def edge_log_probs(logits: Tensor, trie: PrefixTrie, first: int = 0) -> Tensor:
    """Log-probabilities of the edges that leave some neighbouring nodes, taken in at least float32.

    Args:
        logits: Of the nodes from ``first`` on, (n_images, some nodes, vocabulary); they are overwritten.
        trie: The captions.
        first: Number of the first of these nodes.

    Returns:
        (n_images, edges that leave these nodes).
    """
    bounds = torch.tensor([first, first + logits.shape[1]], device=trie.edge_nodes.device)
    begin, end = torch.searchsorted(trie.edge_nodes, bounds).tolist()
    nodes, tokens = trie.edge_nodes[begin:end] - first, trie.edge_tokens[begin:end]
    logits = _upcast(logits)
    highest = logits.amax(dim=2, keepdim=True)
    chosen = logits[:, nodes, tokens] - highest[:, nodes, 0]  # (n_images, edges)
    # logsumexp would need a second tensor of this size.
    normalizers = logits.sub_(highest).exp_().sum(dim=2).log_()  # (n_images, some nodes)
    return chosen - normalizers[:, nodes]


def token_log_probs(head: nn.Module, hidden: Tensor, targets: Tensor, max_logits_bytes: int) -> Tensor:
    """Log-probabilities of the target tokens.

    Equal to ``head(hidden).float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]``.

    Args:
        head: The output embedding. A plain ``nn.Linear`` takes the fast path; any other module (one with an adapter,
            say) is called piece by piece under checkpointing.
        hidden: Hidden states, (n_tokens, hidden_size).
        targets: Token ids, (n_tokens,).
        max_logits_bytes: Largest size of the logits that are held at one time.

    Returns:
        Log-probabilities in nats, float32 (float64 for a float64 model), (n_tokens,).
    """
    vocabulary = _vocabulary_size(head)
    rows = max(1, max_logits_bytes // (4 * vocabulary))
    if type(head) is nn.Linear:
        keep = torch.is_grad_enabled() and hidden.shape[0] <= rows
        log_probs: Tensor = _LinearLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden, head.weight, head.bias, targets, rows, keep
        )
        return log_probs

    def piece(states: Tensor, wanted: Tensor) -> Tensor:
        logits = head.forward(states)  # not head(states): its hooks are ours
        return log_softmax_of(logits, wanted)

    if hidden.shape[0] <= rows:
        return piece(hidden, targets)
    pieces = [
        checkpoint(piece, states, wanted, use_reentrant=False)
        for states, wanted in zip(hidden.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(pieces)


def log_softmax_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities of the targets, (n,), from logits, (n, vocabulary), taken in at least float32."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(logits, targets, reduction="none")


def _vocabulary_size(head: nn.Module) -> int:
    size = head.out_features
    assert isinstance(size, int)
    return size


class _LinearLogProbs(torch.autograd.Function):
    """Linear layer, float32 log-softmax and selection in one, with one buffer of logits.

    The gradient of ``log_softmax(z)[target]`` is ``onehot(target) - softmax(z)``: the softmax is either kept (written
    over the logits) or made again in backward, piece by piece.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, rows: int, keep: bool
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            states, matrix = hidden.to(dtype), weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            log_probs, normalizers, probs = [], [], None
            for piece, wanted in zip(states.split(rows), targets.split(rows), strict=True):
                logits = _upcast(F.linear(piece, matrix, offset))  # (rows, vocabulary)
                normalizer = logits.logsumexp(dim=1)  # (rows,)
                log_probs.append(logits.gather(1, wanted[:, None])[:, 0] - normalizer)
                normalizers.append(normalizer)
                if keep:
                    probs = logits.sub_(normalizer[:, None]).exp_()
        ctx.save_for_backward(states, weight, bias, targets, torch.cat(normalizers))
        ctx.probs = probs
        ctx.rows, ctx.dtype, ctx.hidden_dtype = rows, dtype, hidden.dtype
        return torch.cat(log_probs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad.device.type, enabled=False):  # a backward inside an autocast context must not cast
            return _LinearLogProbs._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, targets, normalizers = ctx.saved_tensors
        kept, ctx.probs = ctx.probs, None  # written over below; a second backward makes it again
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        matrix = weight.to(ctx.dtype)
        offset = None if bias is None else bias.to(ctx.dtype)
        grad_hidden = torch.empty_like(states) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for first in range(0, states.shape[0], ctx.rows):
            part = slice(first, first + ctx.rows)
            if kept is None:
                logits = _upcast(F.linear(states[part], matrix, offset))
                probs = logits.sub_(normalizers[part, None]).exp_()
            else:
                probs = kept  # kept only when there is one piece
            scale = grad[part, None].to(probs.dtype)  # (rows, 1)
            slope = probs.mul_(-scale)
            slope.scatter_add_(1, targets[part, None], scale)
            slope = slope.to(ctx.dtype)
            if grad_hidden is not None:
                torch.mm(slope, matrix, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += slope.t() @ states[part]
            if grad_bias is not None:
                grad_bias += slope.sum(0)
        return (
            None if grad_hidden is None else grad_hidden.to(ctx.hidden_dtype),
            grad_weight,
            grad_bias,
            None,
            None,
            None,
        )


def _upcast(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
