"""Generator and evaluator in turns."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import get_linear_schedule_with_warmup

from gan.data import GanBatch, GanData
from gan.evaluator import Evaluator, evaluator_loss
from gan.sampling import Written, check_samples, join, policy_loss, write_captions
from gan.settings import GanSettings
from hf_contrastive_caption.captioners import Captioner
from hf_contrastive_caption.data.keyed import derive_key
from hf_contrastive_caption.fingerprints import model_digest
from hf_contrastive_caption.reference.selection import freeze_vision

LOG, STATE, RECORD = "gan.jsonl", "gan_state.pt", "gan.json"
MAX_GRAD_NORM = 1.0  # what Trainer's other objectives have
WARMUP_SHARE = 0.1
SAID_EVERY = 50

logger = logging.getLogger(__name__)


def train_gan(captioner: Captioner, dataset: datasets.Dataset, settings: GanSettings, folder: str | Path) -> None:
    """Train a captioner as the generator of a GAN, and save it.

    The folder appears when it is complete; until then everything stands in ``_unfinished-NAME`` beside it, from which
    a training that was stopped goes on to the same weights. A folder that is there with the same settings, data and
    captioner is left as it is, and the captioner not trained.

    Args:
        captioner: The generator, a captioner that was trained by maximum likelihood. Trained in place.
        dataset: The training split, with an image column and captions.
        settings: How it is trained.
        folder: What is made: the captioner with its processing, for ``load_captioner``; ``gan.jsonl``, one line with
            rewards and accuracies for each step; ``gan.json``, what it was made with.

    Raises:
        ValueError: If the folder holds something else, or captioner or data do not fit.
    """
    folder = Path(folder)
    captioner.model.eval()  # without dropout: captions are scored by the distribution that they were drawn from
    data = GanData(captioner, dataset, settings)
    made_with = json.loads(json.dumps(asdict(settings)))
    for name in ("save_steps", "precomputed_dir"):  # these change no number
        del made_with[name]
    made_with |= {"captioner": model_digest(captioner.model), "data": data.fingerprint()}
    if not _is_finished(folder, made_with):
        work = folder.with_name(f"_unfinished-{folder.name}")
        work.mkdir(parents=True, exist_ok=True)
        GanTraining(captioner, data, settings, work, made_with).run()
        captioner.save_pretrained(work)
        (work / RECORD).write_text(json.dumps(made_with, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()  # an empty one
        os.rename(work, folder)
    (folder / STATE).unlink(missing_ok=True)


def _is_finished(folder: Path, made_with: dict[str, Any]) -> bool:
    """Whether the folder is what would be made.

    Raises:
        ValueError: If it is something else.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return False
    record = folder / RECORD
    if not record.is_file():
        raise ValueError(f"{folder} holds something else than a GAN captioner; choose another folder")
    _check_same(folder, json.loads(record.read_text(encoding="utf-8")), made_with)
    return True


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    other = [f"{name} {found.get(name)!r}" for name in wanted if found.get(name) != wanted[name]]
    if other:
        raise ValueError(f"{folder} was made with {', '.join(other)}; delete it or choose another folder")


class GanTraining:
    """A training from its start or from where it was stopped.

    Everything random is a function of (seed, step), so a state has no random numbers in it.

    Args:
        captioner: The generator as it was given, in evaluation mode.
        data: The batches.
        settings: How it is trained.
        work: Folder for the log and the state.
        made_with: What a state must have been made with to go on from it.

    Attributes:
        done: How many steps are done, those of the evaluator alone among them.
        evaluator: The evaluator.
        evaluator_optimizer: What trains it.
    """

    def __init__(
        self, captioner: Captioner, data: GanData, settings: GanSettings, work: Path, made_with: dict[str, Any]
    ) -> None:
        if settings.freeze_vision_encoder:
            freeze_vision(captioner)
        self.captioner = captioner
        self.data = data
        self.settings = settings
        self.work = work
        self.made_with = made_with
        self.done = 0
        state_width = data.batch(0).vectors.shape[1]
        vocabulary_size = captioner.vocabulary.weight.shape[0]
        self.evaluator = Evaluator(state_width, vocabulary_size, settings.evaluator_width, settings.seed)
        self.evaluator.to(captioner.device)
        self._weights = [weight for weight in captioner.model.parameters() if weight.requires_grad]
        self._optimizer = torch.optim.AdamW(self._weights, settings.learning_rate, weight_decay=0.0)
        self._scheduler = get_linear_schedule_with_warmup(
            self._optimizer, int(WARMUP_SHARE * settings.steps), settings.steps
        )
        self.evaluator_optimizer = torch.optim.AdamW(
            self.evaluator.parameters(), settings.evaluator_learning_rate, weight_decay=0.0
        )
        self._checked = False

    def run(self) -> None:
        """Go on to the end."""
        self._restore()
        total = self.settings.evaluator_steps + self.settings.steps
        with (self.work / LOG).open("a", encoding="utf-8", buffering=1) as log:
            while self.done < total:
                entry = self.step()
                log.write(json.dumps(entry) + "\n")
                if self.done % SAID_EVERY == 0 or self.done == total:
                    logger.info("%d of %d steps: %s", self.done, total, _shown(entry))
                if self.done % self.settings.save_steps == 0 and self.done < total:
                    self._save()

    def step(self) -> dict[str, Any]:
        """One step: captions are written, the generator learns from what the evaluator says, and then the evaluator.

        Returns:
            The line of the log.
        """
        start = perf_counter()
        batch = self.data.batch(self.done)
        seed = derive_key(self.settings.seed, "samples", self.done)
        random = torch.Generator(self.captioner.device).manual_seed(seed)
        sampling = self.settings.samples_per_image, self.settings.max_new_tokens
        written = write_captions(self.captioner, batch.images, *sampling, random)
        logits = self._judge(batch, written)
        alone = self.done < self.settings.evaluator_steps
        entry = {"step": self.done + 1, "phase": "evaluator" if alone else "generator"}
        entry |= _said(logits, written, self.captioner.processor.end_token_id)
        if not alone:
            entry |= self._learn_to_write(batch, written, logits["generated"].sigmoid(), logits["greedy"].sigmoid())
        entry["evaluator_loss"] = self._learn_to_judge(logits)
        entry["seconds"] = round(perf_counter() - start, 4)
        self.done += 1
        return entry

    def _judge(self, batch: GanBatch, written: Written) -> dict[str, Tensor]:
        """The evaluator's logits for the captions of each kind, with gradients."""
        kinds = {
            "real": batch.real,
            "generated": written.samples,
            "mismatched": batch.mismatched,
            "greedy": written.greedy,
        }
        logits = self.evaluator(batch.vectors, join(*kinds.values()))
        counts = [len(captions["lengths"]) for captions in kinds.values()]
        return dict(zip(kinds, logits.split(counts), strict=True))

    def _learn_to_write(
        self, batch: GanBatch, written: Written, rewards: Tensor, greedy_rewards: Tensor
    ) -> dict[str, float]:
        """A step of the generator."""
        log_probs = self.captioner.log_probs(self.captioner.model, batch.images, written.samples)
        if not self._checked:
            check_samples(self.captioner, written, log_probs.detach())
            self._checked = True
        baselines = greedy_rewards.index_select(0, written.samples["image_index"])
        self._optimizer.zero_grad()
        policy_loss(log_probs, rewards, baselines).backward()
        norm = clip_grad_norm_(self._weights, MAX_GRAD_NORM)
        rate = self._scheduler.get_last_lr()[0]
        self._optimizer.step()
        self._scheduler.step()
        return {
            "advantage": (rewards - baselines).mean().item(),
            "log_prob": log_probs.mean().item(),
            "gradient_norm": norm.item(),
            "learning_rate": rate,
        }

    def _learn_to_judge(self, logits: dict[str, Tensor]) -> float:
        """A step of the evaluator."""
        kinds = (logits[kind] for kind in ("real", "generated", "mismatched"))
        loss = evaluator_loss(*kinds, self.settings.alpha, self.settings.beta)
        self.evaluator_optimizer.zero_grad()
        loss.backward()
        self.evaluator_optimizer.step()
        return loss.item()

    # Stopping and going on ----------------------------------------------------------------------------------------

    def _parts(self) -> dict[str, Any]:
        return {
            "generator": self.captioner.model,
            "evaluator": self.evaluator,
            "optimizer": self._optimizer,
            "scheduler": self._scheduler,
            "evaluator_optimizer": self.evaluator_optimizer,
        }

    def _save(self) -> None:
        state = {name: part.state_dict() for name, part in self._parts().items()}
        scratch = self.work / f"_{STATE}"
        torch.save({**state, "done": self.done, "made_with": self.made_with}, scratch)
        scratch.replace(self.work / STATE)

    def _restore(self) -> None:
        """Go to where a stopped training saved its state, if it did; the log ends there too."""
        file, log = self.work / STATE, self.work / LOG
        if file.is_file():
            state = torch.load(file, map_location=self.captioner.device, weights_only=True)
            _check_same(self.work, state["made_with"], self.made_with)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.done = state["done"]
        lines = log.read_text(encoding="utf-8").splitlines()[: self.done] if log.is_file() else []
        log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_log(folder: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a log, one for each step.

    Args:
        folder: What :func:`train_gan` made.
    """
    for line in (Path(folder) / LOG).read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _said(logits: dict[str, Tensor], written: Written, end_token_id: int) -> dict[str, float]:
    """What the evaluator thinks of each kind of captions, how often it is right, and what the samples are like."""
    means = {kind: values.sigmoid().mean().item() for kind, values in logits.items()}
    ids = [tuple(piece.tolist()) for piece in written.samples["input_ids"].split(written.samples["lengths"].tolist())]
    return {
        "reward": means["generated"],
        "greedy_reward": means["greedy"],
        "real_reward": means["real"],
        "mismatched_reward": means["mismatched"],
        "real_accuracy": (logits["real"] > 0).float().mean().item(),
        "generated_accuracy": (logits["generated"] < 0).float().mean().item(),
        "mismatched_accuracy": (logits["mismatched"] < 0).float().mean().item(),
        "tokens": written.samples["lengths"].float().mean().item(),
        "unfinished": sum(tokens[-1] != end_token_id for tokens in ids) / len(ids),
        "distinct": len(set(ids)) / len(ids),
    }


def _shown(entry: dict[str, Any]) -> str:
    shown = ("reward", "greedy_reward", "real_reward", "mismatched_reward", "generated_accuracy", "distinct", "tokens")
    return ", ".join(f"{name} {entry[name]:.3f}" for name in shown)
