"""Whether a processor writes as many image tokens as the model makes states of the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from hf_contrastive_caption.captioners.batch import Images


@contextmanager
def image_tokens_match(projection: nn.Module, images: Images, image_token_id: int, model: str) -> Iterator[None]:
    """A context for forwards of a model whose states of an image stand at image tokens of a prompt.

    A model that checks it says how many of either there are, some only that a tensor has another size, and some put
    the first states in place and drop the others.

    Args:
        projection: The module whose output, (..., hidden_size), has a state for each image token. The first forward
            within the context is of the first image alone.
        images: The images with their prompts' ``input_ids``, (n_images, prompt_length).
        image_token_id: The token in whose place a state is put.
        model: What the message calls the model.

    Raises:
        ValueError: If there are more image tokens than states, or fewer.
    """
    found: list[Tensor] = []

    def count(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        found.append(output)

    def check(cause: Exception | None) -> None:
        tokens = int((images["input_ids"][0] == image_token_id).sum())
        states = found[0].numel() // found[0].shape[-1] if found else tokens
        if states != tokens:
            raise ValueError(
                f"{model}: the processor writes {tokens} image tokens for an image of which the model makes {states} "
                "states, and every state takes the place of a token; give the processor that belongs to the model, "
                "or correct what its count follows from (patch_size, vision_feature_select_strategy and "
                "num_additional_image_tokens, or image_seq_length, image_seq_len or num_query_tokens)"
            ) from cause

    hook = projection.register_forward_hook(count)
    try:
        yield
    except (ValueError, RuntimeError, IndexError) as error:
        check(error)
        raise
    finally:
        hook.remove()
    check(None)
