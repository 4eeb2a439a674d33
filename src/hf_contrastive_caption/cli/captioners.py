"""Captioners that a command line names."""

from __future__ import annotations

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.cli.errors import WrongUseError
from hf_contrastive_caption.console import no_other_progress_bars
from hf_contrastive_caption.loading import load_captioner


def load_named(
    name: str,
    *,
    prompt: str | None = None,
    otherwise: str | None = None,
    max_new_tokens: int | None = None,
    device: str | None = "auto",
) -> Captioner:
    """Load a captioner quietly, and check that captions can be as long as the command asks for.

    Args:
        name: Folder or repository.
        prompt: What a chat model is asked; the prompt that was saved with it if not given.
        otherwise: What it is asked if there is neither.
        max_new_tokens: Longest caption in tokens that will be asked for; ``None`` for what the captioner does.
        device: See :func:`load_captioner`.

    Raises:
        WrongUseError: If captions of the captioner are shorter than that.
    """
    with no_other_progress_bars():
        captioner = load_captioner(name, prompt=prompt, otherwise=otherwise, device=device)
    longest = captioner.processor.max_caption_tokens
    if max_new_tokens is not None and longest is not None and max_new_tokens > longest:
        raise WrongUseError(
            f"--max-new-tokens is {max_new_tokens}, but {name} holds captions of at most {longest} tokens"
        )
    return captioner
