"""Whether a processor writes as many image tokens as the model makes states of the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin

from hf_contrastive_caption.captioners.batch import Images


def check_settings(processor: ProcessorMixin, **wanted: Any) -> None:
    """Whether a processor counts image tokens by the settings of the model.

    Args:
        processor: The model's processor.
        **wanted: The settings by name, as the model's config has them; ``None`` where it says nothing.

    Raises:
        ValueError: If one of them is another, with the line that sets it.
    """
    for name, value in wanted.items():
        given = getattr(processor, name)
        if value is not None and given != value:
            raise ValueError(
                f"{name} of the {type(processor).__name__} is {given!r}, and that of the model is {value!r}, so it "
                f"writes another number of image tokens than the model has states of an image; set "
                f"processor.{name} = {value!r}"
            )


def check_query_tokens(model: PreTrainedModel, processor: ProcessorMixin, ids: Tensor) -> None:
    """Whether BLIP-2's processor writes a token for each query; without them the model sees no image, in silence.

    Args:
        model: A BLIP-2 model.
        processor: Its processor. Those saved by early releases of transformers know no image tokens.
        ids: Image and prompt as it writes them, (prompt_length,).

    Raises:
        ValueError: If it does not.
    """
    config, tokenizer = model.config, processor.tokenizer
    number: int = tokenizer.convert_tokens_to_ids(str(processor.image_token))  # type: ignore[attr-defined]
    if config.image_token_id != number:
        raise ValueError(
            f"the image token of the {type(processor).__name__} is {number}, and that of {type(model).__name__} is "
            f"{config.image_token_id}; set model.config.image_token_index = {number} (and call "
            "model.resize_token_embeddings(len(processor.tokenizer)) if it has fewer)"
        )
    written = int((ids == number).sum())
    if written != config.num_query_tokens:
        raise ValueError(
            f"the {type(processor).__name__} writes {written} image tokens, and {type(model).__name__} makes "
            f"{config.num_query_tokens} states of an image, which take their places; set processor.num_query_tokens "
            f"= {config.num_query_tokens}"
        )


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
