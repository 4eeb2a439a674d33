"""benchmarks/gan: the evaluator judges, the policy gradient is that of the expected reward, and trainings repeat."""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer, captioner_for
from hf_contrastive_caption.captioners import CaptionBatch, Captioner, caption_batch
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.fingerprints import weights_digest
from hf_contrastive_caption.loading import load_captioner
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from tests import recurrent, tiny
from tests.families.blip import blip_model
from tests.families.chat import PROMPT, llava_model, llava_processing
from tests.families.git import git_model

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def gan() -> Any:
    """The modules of the package, by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        names = ("data", "evaluator", "sampling", "settings", "training")
        found = {name: importlib.import_module(f"gan.{name}") for name in names}
        yield SimpleNamespace(**found, script=importlib.import_module("gan_captioner"))


def captioner(model: Any = None) -> Captioner:
    made = captioner_for(tiny.captioner_model() if model is None else model, tiny.processing())
    made.model.eval()
    return made


def settings(gan: Any, folder: Path, **others: Any) -> Any:
    small = {"steps": 4, "evaluator_steps": 2, "batch_size": 4, "evaluator_width": 8, "max_new_tokens": 6}
    return gan.settings.GanSettings(**{**small, "precomputed_dir": str(folder / "ahead"), **others})


# Policy gradient -----------------------------------------------------------------------------------------------------

WORDS = ("a", "b", "c")
LONGEST = 3


@pytest.fixture(scope="module")
def toy() -> Captioner:
    """A captioner of seven tokens, far from uniform."""
    tokenizer = word_level_tokenizer([" ".join(WORDS)])
    made = captioner_for(tiny.captioner_model(vocab_size=len(tokenizer)), (tokenizer, tiny.image_processor()))
    made.model.eval()
    return made


def all_sequences(captioner: Captioner) -> list[list[int]]:
    """All that can be written in at most three tokens: with an end token, or unfinished."""
    end, tokens = captioner.processor.end_token_id, range(len(captioner.processor.tokenizer))
    others = [token for token in tokens if token != end]
    ended = [[*begun, end] for length in range(LONGEST) for begun in itertools.product(others, repeat=length)]
    return [*ended, *map(list, itertools.product(others, repeat=LONGEST))]


def tokens_of(captions: CaptionBatch) -> list[tuple[int, ...]]:
    return [tuple(piece.tolist()) for piece in captions["input_ids"].split(captions["lengths"].tolist())]


def reward_of(captions: CaptionBatch) -> torch.Tensor:
    """Some reward between 0 and 1 for each caption, another one for each, (n_captions,)."""
    return torch.tensor([abs(math.sin(1 + sum(7.0**place * token for place, token in enumerate(ids))))
                         for ids in tokens_of(captions)])  # fmt: skip


def weights_of(captioner: Captioner) -> list[torch.Tensor]:
    return [weight for weight in captioner.base_model.decoder.parameters() if weight.requires_grad]


def flat(gradients: Any) -> torch.Tensor:
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])


def test_samples_have_the_probabilities_of_the_model(gan: Any, toy: Captioner) -> None:
    images = tiny.pixel_values(1)
    every = caption_batch(all_sequences(toy), [0] * 259)
    probabilities = toy.log_probs(toy.model, images, every).exp().detach()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    states = toy.encode(images)
    random = torch.Generator().manual_seed(0)
    written = gan.sampling.write_captions(toy, states, 20_000, LONGEST, random)
    found = tokens_of(written.samples)
    counts = torch.tensor([float(found.count(ids)) for ids in map(tuple, all_sequences(toy))])
    assert counts.sum() == 20_000
    expected = 20_000 * probabilities
    often = expected > 20
    distance = ((counts - expected)[often] / expected[often].sqrt()).square().sum() / often.sum()  # 1 on the average
    assert often.sum() > 25 and distance < 1.6
    scores = toy.log_probs(toy.model, states, written.samples)
    assert torch.allclose(written.log_probs, scores, atol=1e-4)
    best = toy.generate(images, num_beams=1, do_sample=False, max_new_tokens=LONGEST)[0, 1:].tolist()
    assert list(tokens_of(written.greedy)[0]) == best[: len(tokens_of(written.greedy)[0])]


def test_mean_of_many_samples_is_the_gradient_of_the_expected_reward(gan: Any, toy: Captioner) -> None:
    images = toy.encode(tiny.pixel_values(2))
    sequences = all_sequences(toy)
    weights = weights_of(toy)

    def expected_reward() -> torch.Tensor:
        """Of both images: the sum over all that can be written."""
        every = caption_batch(sequences * 2, [0] * 259 + [1] * 259)
        return (toy.log_probs(toy.model, images, every).exp() * reward_of(every)).sum() / 2

    exact = flat(torch.autograd.grad(expected_reward(), weights, allow_unused=True))
    for weight, place in ((weights[0], (2, 3)), (weights[-1], (5,))):
        values = []
        for change in (0.01, -0.01):
            with torch.no_grad():
                weight[place] += change
                values.append(expected_reward().item())
                weight[place] -= change
        (one,) = torch.autograd.grad(expected_reward(), [weight])
        assert one[place].item() == pytest.approx((values[0] - values[1]) / 0.02, abs=2e-4)

    written = gan.sampling.write_captions(toy, images, 4_000, LONGEST, torch.Generator().manual_seed(1))
    rewards = reward_of(written.samples)
    for baselines in (reward_of(written.greedy)[written.samples["image_index"]], torch.zeros_like(rewards)):
        log_probs = toy.log_probs(toy.model, images, written.samples)
        loss = gan.sampling.policy_loss(log_probs, rewards, baselines)
        estimate = -flat(torch.autograd.grad(loss, weights, allow_unused=True))
        assert (estimate - exact).norm() < 0.2 * exact.norm()
    wrong = gan.sampling.policy_loss(toy.log_probs(toy.model, images, written.samples), -rewards, 0 * rewards)
    assert (-flat(torch.autograd.grad(wrong, weights, allow_unused=True)) - exact).norm() > exact.norm()


def test_gradient_of_given_samples_is_that_of_the_naive_sum(gan: Any) -> None:
    model = captioner()
    images = tiny.pixel_values(3)
    written = gan.sampling.write_captions(model, images, 2, 6, torch.Generator().manual_seed(0))
    rewards, greedy = torch.rand(6), torch.rand(3)
    weights = weights_of(model)
    log_probs = model.log_probs(model.model, images, written.samples)
    loss = gan.sampling.policy_loss(log_probs, rewards, greedy[written.samples["image_index"]])
    found = flat(torch.autograd.grad(loss, weights, allow_unused=True))
    total = torch.zeros(())
    for number, ids in enumerate(tokens_of(written.samples)):
        one = {name: value[number // 2 : number // 2 + 1] for name, value in images.items()}
        score = model.reference_log_probs(one, caption_batch([list(ids)], [0])).sum()
        total = total - (rewards[number] - greedy[number // 2]) * score / 6
    assert torch.allclose(found, flat(torch.autograd.grad(total, weights, allow_unused=True)), atol=1e-5)


def test_a_generator_that_writes_by_other_probabilities_is_refused(gan: Any, tmp_path: Path) -> None:
    model = captioner()
    model.base_model.generation_config.repetition_penalty = 1.5
    with pytest.raises(ValueError, match="nats per token apart.*repetition_penalty"):
        gan.training.train_gan(model, tiny.caption_dataset(), settings(gan, tmp_path), tmp_path / "out")
    model.base_model.generation_config.repetition_penalty = None
    model.base_model.generation_config.update(do_sample=True, top_k=1)  # of sampling by generate itself
    gan.training.train_gan(model, tiny.caption_dataset(), settings(gan, tmp_path), tmp_path / "other")


# Evaluator -----------------------------------------------------------------------------------------------------------


def test_evaluator_reads_each_caption_to_its_end_and_its_loss_is_the_formula(gan: Any) -> None:
    evaluator = gan.evaluator.Evaluator(10, tiny.VOCABULARY_SIZE, 8, seed=3)
    vectors, captions = torch.randn(4, 10), tiny.captions([0, 3, 1, 1, 2])
    found = evaluator(vectors, captions)
    for number, (ids, image) in enumerate(zip(tokens_of(captions), [0, 3, 1, 1, 2], strict=True)):
        _, last = evaluator.text(evaluator.words(torch.tensor([ids])))
        one = evaluator.image(vectors[image]) @ evaluator.sentence(last[0, 0])
        assert found[number].item() == pytest.approx(one.item(), abs=1e-5)
    real, generated, mismatched = found[:2], found[2:4], found[4:]
    r = [values.sigmoid() for values in (real, generated, mismatched)]
    naive = -r[0].log().mean() - 0.3 * (1 - r[1]).log().mean() - 0.7 * (1 - r[2]).log().mean()
    loss = gan.evaluator.evaluator_loss(real, generated, mismatched, 0.3, 0.7)
    assert loss.item() == pytest.approx(naive.item(), abs=1e-6)
    far = gan.evaluator.evaluator_loss(torch.tensor([-200.0]), torch.tensor([200.0]), torch.tensor([0.0]), 1, 0)
    assert far.item() == pytest.approx(400)


def test_batches_are_captions_of_the_image_and_of_others(gan: Any, tmp_path: Path) -> None:
    model, data = captioner(), tiny.caption_dataset(10)
    made = gan.data.GanData(model, data, settings(gan, tmp_path))
    own = [[tuple(ids[:6]) for ids in model.processor.tokenize(texts).input_ids] for texts in data["captions"]]
    own = [[(*ids[:5], tiny.EOS) if ids[-1] != tiny.EOS else ids for ids in of_row] for of_row in own]
    pixels = model.processor.process_images(list(data["image"]))
    with torch.no_grad():
        vectors = model.base_model.encoder(**pixels).last_hidden_state.mean(1)
    seen = []
    for step in range(4):  # two of an epoch
        batch = made.batch(step)
        rows = [int((vectors - vector).norm(dim=1).argmin()) for vector in batch.vectors]
        assert torch.allclose(vectors[rows], batch.vectors, atol=1e-5)
        assert batch.real["image_index"].tolist() == batch.mismatched["image_index"].tolist() == [0, 1, 2, 3]
        for row, real, wrong in zip(rows, tokens_of(batch.real), tokens_of(batch.mismatched), strict=True):
            assert real in own[row] and wrong not in own[row] and wrong in sum(own, [])
        seen.append(rows)
    assert len(set(seen[0] + seen[1])) == len(set(seen[2] + seen[3])) == 8 and seen[:2] != seen[2:]
    again = gan.data.GanData(model, data, settings(gan, tmp_path)).batch(3)
    assert torch.equal(again.vectors, batch.vectors) and tokens_of(again.real) == tokens_of(batch.real)
    with pytest.raises(ValueError, match="10 rows and a batch 32"):
        gan.data.GanData(model, data, settings(gan, tmp_path, batch_size=32))


def seeing(data: Any) -> Captioner:
    """A captioner with random weights; those of its ViT are large, so that its states of two pictures differ."""
    tokenizer = word_level_tokenizer(caption for captions in data["captions"] for caption in captions)
    model = small_captioner(tokenizer, 32, 4, width=64, encoder_layers=1, decoder_layers=1, heads=2, mlp=128)
    with torch.no_grad():
        for name, weight in model.encoder.named_parameters():
            if weight.dim() > 1 and "position" not in name:
                weight.mul_(10)
    return captioner_for(model.eval(), (tokenizer, small_image_processor(32)))


@pytest.mark.slow
def test_evaluator_tells_held_out_captions_of_scenes_from_those_of_others(gan: Any, tmp_path: Path) -> None:
    data = scenes(2000, 300, 0, image_size=32)
    model = seeing(data["train"])
    chosen = settings(gan, tmp_path, batch_size=50, max_new_tokens=30)
    train, held_out = (gan.data.GanData(model, data[split], chosen) for split in ("train", "validation"))
    evaluator = gan.evaluator.Evaluator(64, len(model.processor.tokenizer), 64)
    optimizer = torch.optim.AdamW(evaluator.parameters(), 3e-3)
    for batch in map(train.batch, range(240)):
        real, mismatched = evaluator(batch.vectors, batch.real), evaluator(batch.vectors, batch.mismatched)
        optimizer.zero_grad()
        gan.evaluator.evaluator_loss(real, mismatched, mismatched, 0.5, 0.5).backward()
        optimizer.step()
    right: list[bool] = []
    with torch.no_grad():
        for batch in map(held_out.batch, range(6)):
            right += (evaluator(batch.vectors, batch.real) > evaluator(batch.vectors, batch.mismatched)).tolist()
    assert np.mean(right) > 0.68  # 0.5 by chance; many captions ("two shapes") are right for other scenes as well


@pytest.mark.slow
def test_reward_rises_on_scenes(gan: Any, tmp_path: Path) -> None:
    data = scenes(1500, 0, 0, image_size=32)["train"]
    model = seeing(data)
    options = {"per_device_train_batch_size": 32, "learning_rate": 2e-3, "max_steps": 150, "warmup_steps": 20}
    silent = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    args = ContrastiveCaptionConfig(
        output_dir=str(tmp_path / "mle"), objective="mle", freeze_vision_encoder=True, **options, **silent
    )
    ContrastiveCaptionTrainer(
        model=model.model, args=args, train_dataset=data, processing_class=model.processor.processing_class
    ).train()
    sizes = {"batch_size": 32, "evaluator_width": 64, "max_new_tokens": 20, "samples_per_image": 4}
    rates = {"evaluator_learning_rate": 3e-3, "learning_rate": 1e-3}
    chosen = settings(gan, tmp_path, evaluator_steps=100, steps=60, **sizes, **rates)
    model.model.eval()
    training = gan.training.GanTraining(model, gan.data.GanData(model, data, chosen), chosen, tmp_path, {})
    for _ in range(100):
        training.step()
    training.evaluator_optimizer.param_groups[0]["lr"] = 0.0  # from here on the reward is one and the same
    rewards = [training.step()["reward"] for _ in range(60)]
    assert np.mean(rewards[-15:]) > np.mean(rewards[:15]) + 0.05


# Trainings -----------------------------------------------------------------------------------------------------------


def trained(gan: Any, folder: Path, name: str, model: Any = None, **others: Any) -> tuple[str, list[dict[str, Any]]]:
    """The weights of the captioner that was saved, and the log without its times."""
    gan.training.train_gan(captioner(model), tiny.caption_dataset(), settings(gan, folder, **others), folder / name)
    log = list(gan.training.read_log(folder / name))
    for entry in log:
        assert entry.pop("seconds") > 0
    return weights_digest(load_captioner(folder / name, device="cpu").model), log


def test_seeds_reproduce_and_a_stopped_training_goes_on(
    gan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, log = trained(gan, tmp_path, "whole")
    assert [entry["phase"] for entry in log] == ["evaluator"] * 2 + ["generator"] * 4
    assert [entry["step"] for entry in log] == [1, 2, 3, 4, 5, 6]
    assert trained(gan, tmp_path, "again") == (weights, log)
    assert trained(gan, tmp_path, "other", seed=1)[0] != weights

    whole = gan.training.GanTraining.step
    for stop in (2, 5):  # the second time behind the state that was saved

        def step(self: Any, stop: int = stop) -> dict[str, Any]:
            if self.done == stop:
                raise KeyboardInterrupt
            return whole(self)

        monkeypatch.setattr(gan.training.GanTraining, "step", step)
        with pytest.raises(KeyboardInterrupt):
            trained(gan, tmp_path, "stopped", save_steps=2)
        assert not (tmp_path / "stopped").exists()
        log_file = tmp_path / "_unfinished-stopped" / "gan.jsonl"
        assert len(log_file.read_text().splitlines()) == stop
    monkeypatch.setattr(gan.training.GanTraining, "step", whole)
    with pytest.raises(ValueError, match=r"made with alpha 0\.5; delete it"):
        trained(gan, tmp_path, "stopped", alpha=0.4)
    assert trained(gan, tmp_path, "stopped", save_steps=100) == (weights, log)
    assert sorted(path.name for path in tmp_path.glob("_*")) == []
    assert not (tmp_path / "stopped" / "gan_state.pt").exists()


def test_what_is_finished_is_not_trained_again_and_nothing_else_is_replaced(gan: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    weights, _ = trained(gan, tmp_path, "out")
    before = (tmp_path / "out" / "gan.jsonl").stat().st_mtime_ns
    model = captioner()
    untouched = weights_digest(model.model)
    gan.training.train_gan(model, tiny.caption_dataset(), settings(gan, tmp_path), tmp_path / "out")
    assert weights_digest(model.model) == untouched != weights
    assert (tmp_path / "out" / "gan.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="made with steps 4, seed 0; delete"):
        trained(gan, tmp_path, "out", seed=1, steps=5)
    with pytest.raises(ValueError, match="made with captioner"):
        trained(gan, tmp_path, "out", tiny.captioner_model(seed=1))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="something else than a GAN captioner"):
        trained(gan, tmp_path, "notes")


def test_frozen_vision_encoder_stays_and_an_unfrozen_one_learns(gan: Any, tmp_path: Path) -> None:
    start = tiny.captioner_model()
    for name, frozen in (("frozen", True), ("trained", False)):
        trained(gan, tmp_path, name, copy.deepcopy(start), freeze_vision_encoder=frozen, learning_rate=1e-3)
        made = load_captioner(tmp_path / name, device="cpu").model
        moved = [
            (one - other).abs().max().item()
            for one, other in zip(made.encoder.parameters(), start.encoder.parameters(), strict=True)
        ]
        assert (max(moved) == 0) if frozen else (max(moved) > 1e-4)
        assert weights_digest(made.decoder) != weights_digest(start.decoder)


@pytest.mark.parametrize(
    "model",
    [blip_model, git_model, lambda: recurrent.captioner_model("adaptive-attention")],
    ids=["blip", "git", "aa"],
)
def test_other_families(gan: Any, tmp_path: Path, model: Any) -> None:
    weights, log = trained(gan, tmp_path, "out", model(), steps=2, evaluator_steps=1)
    assert weights != weights_digest(model())
    assert all(np.isfinite(entry["gradient_norm"]) and entry["gradient_norm"] > 0 for entry in log[1:])


def test_states_of_no_fixed_size_are_refused(gan: Any, tmp_path: Path) -> None:
    chat = captioner_for(llava_model(), llava_processing(), prompt=PROMPT)
    with pytest.raises(ValueError, match="sizes that depend on image and prompt"):
        gan.training.train_gan(chat, tiny.caption_dataset(), settings(gan, tmp_path), tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"evaluator_steps": -1}, "evaluator_steps is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"beta": -0.1}, "beta is -0.1"),
    ],
)
def test_settings_out_of_range_are_refused(gan: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gan.settings.GanSettings(**wrong)


def test_command(gan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = captioner()
    model.model.save_pretrained(tmp_path / "model")
    model.processor.save_pretrained(tmp_path / "model")
    tiny.caption_dataset().to_parquet(tmp_path / "train.parquet")
    words = f"--steps 3 --evaluator-steps 1 --batch-size 4 --max-new-tokens 6 --seed 2 --precomputed-dir {tmp_path}/a"
    folders = ["--model", str(tmp_path / "model"), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    gan.script.main([*folders, *words.split(), "--train-vision-encoder"])
    assert "reward: 0." in capsys.readouterr().out
    made_with = json.loads((tmp_path / "out" / "gan.json").read_text())
    assert (made_with["steps"], made_with["seed"], made_with["freeze_vision_encoder"]) == (3, 2, False)
    assert isinstance(load_captioner(tmp_path / "out", device="cpu").caption(tiny.images(1)[0]), str)
