"""Uploads of a training: a card with each of them, one after the other, and nothing lost when the Hub refuses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.trainer_utils import HubStrategy

from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.checkpoints import AtomicCheckpoints
from hf_contrastive_caption.config import ContrastiveCaptionConfig
from hf_contrastive_caption.data import ContrastiveCaptionDataset, ContrastiveCaptionStream
from hf_contrastive_caption.hub.card import write_card
from hf_contrastive_caption.hub.content import CardContent
from hf_contrastive_caption.hub.facts import (
    Origin,
    TrainingFacts,
    adapter_kind,
    base_origin,
    data_origin,
    library_versions,
    loss_in_words,
    loss_settings,
    model_origin,
    training_settings,
    usage_of,
)
from hf_contrastive_caption.prompting import PromptProcessor
from hf_contrastive_caption.reference import Reference
from hf_contrastive_caption.reference.versions import ReferenceVersions

logger = logging.getLogger(__name__)


class HubRefusedError(RuntimeError):
    """The Hub did not take what was sent. The message says why, and where the model lies."""


class HubPublishing(AtomicCheckpoints):
    """What a trainer uploads, and when.

    ``Trainer`` writes no card for uploads while it trains, starts the last one while an earlier one still reads the
    files that it rewrites, and says nothing of uploads that failed.

    Attributes:
        card_content: What the model card says beyond what the trainer knows: measurements, examples, licences. Set it
            before ``push_to_hub`` or ``save_model``.
    """

    args: ContrastiveCaptionConfig
    captioner: Captioner
    reference: Reference | None
    _versions: ReferenceVersions | None
    card_content: CardContent = CardContent()
    _tuned: Origin
    _base: Origin
    _referred: Origin
    _card_title: str | None = None
    _card_tags: Sequence[str] = ()
    _uploading: str | None = None
    """The checkpoint that the upload in progress reads."""

    def _note_origins(self, model: Any, reference_model: Any) -> None:
        """Remember where the models came from, as they may leave memory."""
        self._tuned = self._referred = model_origin(self.captioner, model, self.args.model_init_kwargs)
        self._base = base_origin(self.captioner, self._tuned)
        if reference_model is not None and self.reference is not None:
            self._referred = model_origin(self.reference.captioner, reference_model)

    def training_facts(self) -> TrainingFacts:
        """What is known of the model and its training, as the model card says it."""
        data: Any = self.train_dataset
        made = isinstance(data, (ContrastiveCaptionDataset, ContrastiveCaptionStream))
        origin, data_license = data_origin(data.source if made else data)
        processor, reference = self.captioner.processor, self.reference
        return TrainingFacts(
            captioner=self.captioner.name,
            adapter=adapter_kind(self.captioner),
            tuned=self._tuned,
            base=self._base,
            reference=None if reference is None else self._referred,
            reference_description=None if reference is None else reference.description,
            reference_digest=None if self._versions is None else self._versions.initial,
            reference_replaced=reference is not None and reference.version > 0,
            objective=self.args.objective,
            loss_type=self.args.loss_type,
            loss_in_words=loss_in_words(self.args),
            loss=loss_settings(self.args),
            settings=training_settings(self.args, self.state.epoch),
            steps=self.state.global_step,
            data=origin,
            data_license=data_license,
            prompt=processor.prompt if isinstance(processor, PromptProcessor) else None,
            usage=usage_of(self.captioner),
            log_history=tuple(self.state.log_history),
            versions=library_versions(),
        )

    def create_model_card(  # type: ignore[override]  # tasks and arguments of data sets are known here
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        dataset: str | None = None,
        content: CardContent | None = None,
    ) -> None:
        """Write the model card and its pictures into the output folder.

        What is given here is remembered for the cards of later uploads.

        Args:
            language: Language of the captions.
            license: Licence of the model.
            tags: Further tags.
            model_name: The title; the name of the repository or the folder if not given.
            finetuned_from: The repository of what was tuned; found for a model that came from the Hub.
            dataset: What the training data is called.
            content: Everything that the card says beyond what the trainer knows, in place of :attr:`card_content`.
        """
        if not self.is_world_process_zero():
            return
        given: dict[str, Any] = {"language": language, "license": license, "data_name": dataset}
        self.card_content = replace(
            self.card_content if content is None else content,
            **{name: value for name, value in given.items() if value is not None},
        )
        if model_name:
            self._card_title = model_name
        if tags is not None:
            self._card_tags = [tags] if isinstance(tags, str) else tags
        if finetuned_from is not None:
            self._tuned = self._base = Origin(finetuned_from, finetuned_from)
        folder = Path(str(self.args.output_dir))
        write_card(
            folder,
            self.training_facts(),
            self.card_content,
            name=self._card_title or (self.hub_model_id or folder.absolute().name).split("/")[-1],
            repository=self.hub_model_id,
            tags=self._card_tags,
        )

    # Uploads ---------------------------------------------------------------------------------------------------------

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """See ``Trainer``.

        Raises:
            HubRefusedError: If there is no token, or it may not create the repository.
        """
        try:
            super().init_hf_repo(token=token, private=private)
        except Exception as error:  # of the client, of what it is built on, of the connection
            name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
            raise HubRefusedError(
                f"the repository {name!r} cannot be written to: {_words(error)} Log in with `hf auth login`, or give "
                "hub_token, a token that may write; hub_model_id='user/model' says whose repository it is"
            ) from error

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """See ``Trainer``; uploads weights, processing, generation config and the model card with its pictures.

        Args:
            commit_message: The commit's message.
            blocking: Whether to wait until everything is there.
            token: A token that may write, in place of ``hub_token``.
            revision: The branch; the main one if not given.
            private: Whether a repository that is created is private, in place of ``hub_private_repo``.
            **kwargs: For :meth:`create_model_card`.

        Returns:
            What was committed, or a future of it.

        Raises:
            HubRefusedError: If the Hub refuses. The model is saved in the output folder all the same.
        """
        self._finish_current_push()  # it reads the files that are written next
        folder = self.args.output_dir
        if self.hub_model_id is None:
            try:
                self.init_hf_repo(token=token, private=private)
            except HubRefusedError as error:
                self.save_model(_internal_call=True)
                raise HubRefusedError(f"{error}. The model is saved in {folder}") from error
        if self._card_title is not None:
            kwargs = {"model_name": self._card_title, **kwargs}  # Trainer gives the name of the repository otherwise
        try:
            return super().push_to_hub(commit_message, blocking, token, revision, private, **kwargs)
        except Exception as error:
            raise HubRefusedError(
                f"the upload to {self.hub_model_id} failed: {_words(error)} The model is saved in {folder}; call "
                "push_to_hub() again, with token= if it is the token that was refused"
            ) from error

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        ready = self._staging is None and self.hub_model_id is not None  # which other processes do not have
        if not ready or self.args.hub_strategy == HubStrategy.END:
            return super()._push_from_checkpoint(checkpoint_folder)
        if self._is_uploading() and not self.args.hub_always_push:
            return None
        self._finish_current_push()  # with hub_always_push an upload may still read what is written next
        try:
            self.create_model_card()
        except Exception as error:  # whatever it is, of files, pictures or values: the training is worth more
            logger.warning("the model card could not be written, and the upload goes without it: %s", _words(error))
        super()._push_from_checkpoint(checkpoint_folder)
        self._uploading = checkpoint_folder
        return None

    def checkpoints_in_use(self) -> list[str]:
        """See :class:`AtomicCheckpoints`; the one that is being uploaded."""
        return [self._uploading] if self._uploading is not None and self._is_uploading() else []

    def _is_uploading(self) -> bool:
        return self.push_in_progress is not None and not self.push_in_progress.is_done()

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        if self.hub_model_id is None or self.push_in_progress is None:
            return
        for job in self.push_in_progress.jobs:
            error = job.exception()
            if error is not None:
                logger.warning(
                    "an upload to %s failed: %s Nothing is lost: the next upload has the files of %s",
                    self.hub_model_id,
                    _words(error),
                    self.args.output_dir,
                )
        self.push_in_progress = None


def _words(error: BaseException) -> str:
    """What an error says, on one line that ends with a full stop."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if said.endswith(".") else f"{said}."
