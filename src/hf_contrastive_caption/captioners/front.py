"""What people do with a captioner that is there already: load it by name, caption images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

if TYPE_CHECKING:
    from hf_contrastive_caption.captioners.base import Captioner
    from hf_contrastive_caption.generation import CaptionedImage


class FrontDoor:
    """The methods of every :class:`Captioner` that are built of rooms which know captioners.

    These rooms, ``loading`` and ``generation`` among them, are imported when a method is called, and so is PEFT.
    """

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        *,
        prompt: str | None = None,
        dtype: torch.dtype | str = torch.float32,
        device: torch.device | str | None = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        **model_init_kwargs: Any,
    ) -> Self:
        """Load a captioner of any known family with its tokenizer and image processor.

        Args:
            name: A folder, or a repository on the Hub. An adapter (a folder with an ``adapter_config.json``) is put
                on the base model that it names, and has the base's processing if there is none beside it.
            prompt: What a chat model is asked; the prompt that was saved with it if not given.
            dtype: Of the weights; ``"auto"`` for the one that they were saved in.
            device: Where the model is put; ``"auto"`` for a GPU if there is one, ``None`` to leave it where
                ``from_pretrained`` puts it.
            revision: Branch, tag or commit of the repository.
            token: Token of the Hub; the one that is logged in if not given, ``False`` for none.
            **model_init_kwargs: Further arguments of the model's ``from_pretrained``.

        Raises:
            ValueError: If there is no such folder, or no model in it.
            OSError: If there is no such repository, or it may not be read.
            TypeError: If it is no captioner of a known family, or not of this one.
        """
        from hf_contrastive_caption.loading import load_captioner

        where: dict[str, Any] = {"revision": revision, "token": token}
        given = {key: value for key, value in where.items() if value is not None}
        captioner = load_captioner(name, prompt=prompt, device=device, dtype=dtype, **given, **model_init_kwargs)
        if not isinstance(captioner, cls):
            raise TypeError(
                f"{os.fspath(name)} is served by {type(captioner).__name__}, not by {cls.__name__}; call "
                "Captioner.from_pretrained"
            )
        return captioner

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Save the model with its tokenizer, image processor and prompt, for :meth:`from_pretrained`.

        Of a model with adapters the active one is saved, in the folder itself.

        Args:
            folder: A folder; made if it is not there. A whole model takes the place of an adapter in it.
        """
        from hf_contrastive_caption.adapter_files import arrange_adapter

        captioner = self._captioner()
        captioner.model.save_pretrained(folder)  # type: ignore[operator]
        arrange_adapter(captioner.model, folder)
        captioner.processor.save_pretrained(os.fspath(folder))

    def caption(
        self,
        images: Any,
        *,
        batch_size: int = 32,
        progress: bool = False,
        return_log_probs: bool = False,
        **generate_kwargs: Any,
    ) -> Any:
        """Caption one image or several.

        Args:
            images: One image or any number of them, see :func:`caption_images`.
            batch_size: Images that are captioned at once.
            progress: Whether to show a progress bar.
            return_log_probs: Whether to give the likelihood of each caption under this captioner too. It is that of
                the caption's text as training and self-retrieval score it, not the score of a beam.
            **generate_kwargs: Arguments of ``generate``, see :func:`caption_images`: beams, sampling, lengths.

        Returns:
            A caption for one image, a list of captions for several; with ``return_log_probs`` a
            :class:`ScoredCaption` in place of each, with ``caption`` and ``log_prob`` (in nats, the end token
            included, not normalised by length).

        Raises:
            ValueError: If an image does not open, or an argument is out of its range.
            TypeError: If ``images`` is not what is accepted.
        """
        from hf_contrastive_caption.generation import caption_with

        options: dict[str, Any] = {"batch_size": batch_size, "progress": progress, **generate_kwargs}
        return caption_with(self._captioner(), images, return_log_probs=return_log_probs, **options)

    def stream(
        self,
        images: Any,
        *,
        batch_size: int = 32,
        progress: bool = False,
        return_log_probs: bool = False,
        on_bad_image: Literal["raise", "skip"] = "raise",
        **generate_kwargs: Any,
    ) -> Iterator[CaptionedImage]:
        """Caption images one batch after the other, and hold no more than one: a folder of any size.

        Args:
            images: A folder, of which all image files are captioned, those in folders inside it too, in the order of
                their names; or what :meth:`caption` takes, an iterator for one.
            batch_size: Images that are captioned at once.
            progress: Whether to show a progress bar.
            return_log_probs: See :meth:`caption`.
            on_bad_image: ``"raise"`` stops at an image that does not open, ``"skip"`` names it in the log, leaves it
                out and goes on.
            **generate_kwargs: See :meth:`caption`.

        Returns:
            An iterator of :class:`CaptionedImage`: ``image`` as it was given, which for a folder is the path of the
            file, ``caption`` and ``log_prob``.

        Raises:
            ValueError: If an argument is out of its range; while iterating, if an image does not open.
            TypeError: If ``images`` is not what is accepted.
        """
        from hf_contrastive_caption.generation import stream_captions

        return stream_captions(
            self._captioner(),
            images,
            batch_size=batch_size,
            progress=progress,
            return_log_probs=return_log_probs,
            on_bad_image=on_bad_image,
            **generate_kwargs,
        )

    def _captioner(self) -> Captioner:
        from hf_contrastive_caption.captioners.base import Captioner

        assert isinstance(self, Captioner)  # which alone inherits this
        return self
