"""Scores of captioners with a recurrent decoder: flat, padded, by trie and one by one are the same numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from hf_contrastive_caption.captioners import CaptionBatch, Captioner, caption_batch, captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.captioners.recurrent import RecurrentCaptioner
from hf_contrastive_caption.generation import caption_images
from hf_contrastive_caption.models import small_image_processor, small_recurrent_captioner, word_level_tokenizer
from tests import recurrent, tiny
from tests.captioners import naive
from tests.captioners.scorer import scorer
from tests.training import logged, trainer

IMAGE_INDEX = (0, 2, 1, 0, 0, 2, 3, 0)  # image 4 of the five has no caption
LINEAR = ["word_gates", "recurrent_gates", "image", "vocabulary"]
TWO_LN_TWO = 1.3862944


@pytest.fixture
def images() -> dict[str, Tensor]:
    return tiny.pixel_values(5)


@pytest.fixture
def captions() -> CaptionBatch:
    return tiny.captions(IMAGE_INDEX)


@pytest.mark.parametrize("kind", recurrent.KINDS)
def test_captions_in_one_line(kind: str, tmp_path: Path) -> None:
    words = word_level_tokenizer([" ".join(tiny.WORDS)])
    captioner = captioner_for(small_recurrent_captioner(kind, words), (words, small_image_processor(32)))
    captioner.base_model.save_pretrained(tmp_path)
    captioner.processor.save_pretrained(tmp_path)
    loaded = Captioner.from_pretrained(tmp_path)
    expected = caption_images(captioner.model, captioner.processor, tiny.images(3), max_new_tokens=5)
    assert loaded.caption(tiny.images(3), max_new_tokens=5) == expected
    assert [one.caption for one in loaded.stream(tiny.images(3), max_new_tokens=5)] == expected


@pytest.mark.parametrize("kind", recurrent.KINDS)
class TestScores:
    @pytest.mark.parametrize("packing", ["auto", "repeated"])
    @pytest.mark.parametrize("vision", recurrent.VISION)
    def test_equal_one_by_one(
        self, kind: str, packing: Any, vision: str, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = recurrent.captioner_model(kind, vision)
        captioner = scorer(model, packing=packing)
        assert isinstance(captioner, RecurrentCaptioner)
        assert (captioner.layout, captioner.head) == ("packed" if packing == "auto" else "repeated", "fused")
        model.eval()  # batch norms of the naive twin
        with torch.no_grad():
            expected = naive.log_probs_of(model, images, captions)
            scores = captioner.log_probs(model, images, captions)
            states = captioner.encode(images)
            from_states = captioner.log_probs(model, states, captions)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(from_states, expected, rtol=0, atol=1e-4)
        assert scores.std() > 5
        assert captioner.encode(states) is states

    def test_gradients_equal_those_of_one_by_one(
        self, kind: str, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = recurrent.captioner_model(kind).double().eval()
        wide = {"pixel_values": images["pixel_values"].double()}
        expected = naive.gradients(model, naive.log_probs_of(model, wide, captions))
        for packing in ("packed", "repeated"):
            captioner = scorer(model, packing=packing, max_logits_bytes=3 * 4 * tiny.VOCABULARY_SIZE)
            ours = naive.gradients(model, captioner.log_probs(model, wide, captions))
            assert naive.relative_difference(ours, expected) < 1e-9

    def test_equal_the_models_own_loss(self, kind: str, images: dict[str, Tensor], captions: CaptionBatch) -> None:
        model = recurrent.captioner_model(kind).eval()
        captioner = scorer(model)
        sentences = captions["input_ids"].split(captions["lengths"].tolist())
        labels = nn.utils.rnn.pad_sequence(list(sentences), batch_first=True, padding_value=-100)
        with torch.no_grad():
            scores = captioner.log_probs(model, images, captions)
            padded = model(**images, labels=labels, image_index=captions["image_index"]).loss
            flat = model(
                **images,
                labels=captions["input_ids"],
                lengths=captions["lengths"],
                image_index=captions["image_index"],
            ).loss
        for loss in (padded, flat):
            assert -scores.sum().item() == pytest.approx(loss.item() * len(captions["input_ids"]), rel=1e-5)

    def test_without_padding_and_each_image_once(
        self, kind: str, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = recurrent.captioner_model(kind)
        captioner = scorer(model)
        seen: dict[str, list[int]] = {"images": [], "words": []}
        hooks = [
            model.vision.model.register_forward_pre_hook(lambda module, args: seen["images"].append(args[0].shape[0])),
            model.decoder.embedding.register_forward_pre_hook(
                lambda module, args: seen["words"].append(args[0].numel())
            ),
        ]
        captioner.log_probs(model, images, captions)
        for hook in hooks:
            hook.remove()
        assert seen == {"images": [5], "words": [len(captions["input_ids"])]}

    def test_depend_on_earlier_tokens_of_the_same_caption_only(self, kind: str, images: dict[str, Tensor]) -> None:
        model = recurrent.captioner_model(kind)
        captioner = scorer(model)
        sentences = [[7, 8, 9, 10, 11, tiny.EOS], [20, 21, 22, tiny.EOS], [30, 31, 32, 33, 34, tiny.EOS]]
        first = len(sentences[0])
        with torch.no_grad():
            before = captioner.token_log_probs(model, images, caption_batch(sentences, [1, 1, 1]))
            for place in range(len(sentences[1])):
                changed = [list(sentence) for sentence in sentences]
                changed[1][place] = 40
                after = captioner.token_log_probs(model, images, caption_batch(changed, [1, 1, 1]))
                moved = (after - before).abs()
                here, end = first + place, first + len(sentences[1])
                assert moved[:here].max() <= 1e-6
                assert moved[end:].max() <= 1e-6
                assert moved[here:end].min() > 1e-5

    def test_the_model_is_left_as_it_was(self, kind: str, images: dict[str, Tensor], captions: CaptionBatch) -> None:
        model = recurrent.captioner_model(kind)
        captioner = scorer(model)
        captioner.log_probs(model, images, captions).sum().backward()
        with pytest.raises(ValueError, match="channel dimension"):
            captioner.log_probs(model, {"pixel_values": images["pixel_values"][:, :1]}, captions)
        assert not [name for name, module in model.named_modules() if module._forward_hooks]
        assert not [name for name, module in model.named_modules() if module._forward_pre_hooks]

    def test_bfloat16_autocast(self, kind: str, images: dict[str, Tensor], captions: CaptionBatch) -> None:
        model = recurrent.captioner_model(kind)
        captioner = scorer(model)
        exact = captioner.log_probs(model, images, captions).detach()
        with torch.autocast("cpu", torch.bfloat16):
            rough = captioner.log_probs(model, images, captions)
        assert rough.dtype == torch.float32
        assert ((rough - exact).abs() <= 0.06 * captions["lengths"]).all()
        rough.sum().backward()
        assert all(torch.isfinite(weight.grad).all() for weight in model.decoder.parameters())


@pytest.mark.parametrize("kind", recurrent.KINDS)
class TestNoise:
    def test_statistics_of_batch_norms_stay_and_dropout_is_off(
        self, kind: str, images: dict[str, Tensor], captions: CaptionBatch
    ) -> None:
        model = recurrent.captioner_model(kind, dropout=0.4)
        captioner = captioner_for(model, tiny.processing())
        rates = captioner.make_deterministic()
        assert rates == {"decoder.dropout.p": 0.4}
        before = {name: value.clone() for name, value in model.named_buffers()}
        assert len(before) == 18
        model.train()
        first, again = (captioner.log_probs(model, images, captions) for _ in range(2))
        assert torch.equal(first, again)
        first.sum().backward()
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
        model.eval()
        with torch.no_grad():
            torch.testing.assert_close(first, naive.log_probs_of(model, images, captions), rtol=0, atol=1e-4)

    def test_weights_that_no_caption_reaches_are_frozen(self, kind: str) -> None:
        frozen = captioner_for(recurrent.captioner_model(kind, "vit"), tiny.processing()).freeze_unused()
        assert frozen == ["vision.model.pooler.dense.weight", "vision.model.pooler.dense.bias"]
        assert captioner_for(recurrent.captioner_model(kind), tiny.processing()).freeze_unused() == []


@pytest.mark.parametrize("kind", recurrent.KINDS)
class TestRetrieval:
    @pytest.mark.parametrize("max_memory_bytes", [2**30, 30_000])
    def test_tries_equal_one_by_one(self, kind: str, max_memory_bytes: int, images: dict[str, Tensor]) -> None:
        model = recurrent.captioner_model(kind)
        captioner = scorer(model)
        sentences = captioner.processor.tokenize(
            ["the dog", "the dog runs", "the dog runs", "the red cat", "a bird", "the", "a bird sits on the tree"]
        ).input_ids
        pairs = PairScorer(captioner, sentences, max_memory_bytes)
        assert pairs.plan.method == "prefix tries"
        assert pairs.plan.num_positions < pairs.plan.num_tokens
        scores = pairs.scores(images)
        model.eval()
        with torch.no_grad():
            for image in range(5):
                batch = caption_batch(sentences, [image] * len(sentences))
                expected = naive.log_probs_of(model, images, batch)
                torch.testing.assert_close(scores[image], expected, rtol=0, atol=1e-4)

    def test_tries_are_as_large_as_reading_them_depth_by_depth_wants(self, kind: str) -> None:
        """Calls for each depth, and nodes that do not attend to each other: large tries. A row wants smaller ones."""

        class OneRow(RecurrentCaptioner):
            nodes_attend = True

            def layer_calls(self, longest: int) -> int:
                return Captioner.layer_calls(self, longest)

        captioner = scorer(recurrent.captioner_model(kind))
        other = OneRow(captioner.model, captioner.processor)
        other.verify()
        assert (captioner.layer_calls(9), other.layer_calls(9)) == (9, 1)
        sentences = [[4 + i % 13, 4 + i % 7, 4 + i, *range(4, 4 + i % 9), tiny.EOS] for i in range(60)]
        own, row = (PairScorer(one, sentences) for one in (captioner, other))
        assert own.plan.chunk_size > row.plan.chunk_size
        assert own.plan.num_positions < row.plan.num_positions
        images = tiny.pixel_values(2)
        torch.testing.assert_close(own.scores(images), row.scores(images), rtol=0, atol=1e-4)

    def test_two_layers(self, kind: str, images: dict[str, Tensor]) -> None:
        if kind != "show-and-tell":
            with pytest.raises(ValueError, match="num_hidden_layers is 2"):
                recurrent.captioner_model(kind, num_hidden_layers=2)
            return
        model = recurrent.captioner_model(kind, num_hidden_layers=2)
        captioner = scorer(model)
        assert captioner.tries and captioner.decoder_size() == (2, 12)


@pytest.mark.parametrize("kind", recurrent.KINDS)
class TestTraining:
    def test_likelihood_falls_and_the_margin_grows(self, kind: str, tmp_path: Path) -> None:
        model, data = recurrent.captioner_model(kind), tiny.caption_dataset(rows=8)
        options = {"objective": "mle", "max_steps": 60, "learning_rate": 2e-2, "per_device_train_batch_size": 8}
        run = trainer(tmp_path / "mle", model, data, options)
        run.train()
        losses = logged(run, "loss")
        assert losses[-1] < losses[0] - 1
        options = {"max_steps": 40, "learning_rate": 2e-3, "per_device_train_batch_size": 8}
        run = trainer(tmp_path / "contrastive", model, data, options)
        before = {name: value.clone() for name, value in model.named_buffers()}
        # Eight images in a step: the loss of single steps goes up and down, that of fixed negatives does not.
        assert run.evaluate(data)["eval_loss"] == pytest.approx(TWO_LN_TWO, abs=1e-5)
        run.train()
        assert logged(run, "loss")[0] == pytest.approx(TWO_LN_TWO, abs=1e-5)
        after = run.evaluate(data)
        assert after["eval_loss"] < TWO_LN_TWO - 0.04
        assert after["eval_margin"] > 0.1
        assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
        run.save_model()
        again = trainer(tmp_path / "again", str(tmp_path / "contrastive"), data, options, processing_class=None)
        pictures = tiny.images(3)
        processor = run.captioner.processor
        assert caption_images(again.model, again.captioner.processor, pictures) == caption_images(
            run.model, processor, pictures
        )

    @pytest.mark.parametrize("other", [*recurrent.KINDS, "vision-encoder-decoder"])
    def test_against_references_of_other_kinds(self, kind: str, other: str, tmp_path: Path) -> None:
        """The log-ratio is that of two captioners scored one by one, each with its own tokens and pixels."""
        data = tiny.caption_dataset(rows=4)
        tokenizer = word_level_tokenizer(text for row in data["captions"] for text in row)
        size = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        target = recurrent.captioner_model(kind, seed=1, **size)
        processing = (tokenizer, tiny.image_processor())
        if other == "vision-encoder-decoder":
            reference: Any = tiny.captioner_model()
            options = {"reference_processing_class": tiny.processing()}
        else:
            reference = recurrent.captioner_model(other, vision="swin", seed=2)
            options = {"reference_processing_class": tiny.processing()}
        run = trainer(
            tmp_path, target, data, {"max_steps": 1}, reference_model=reference, processing_class=processing, **options
        )
        batch = next(iter(run.get_train_dataloader()))
        target.eval(), reference.eval()
        scores = run.captioner.log_probs(target, batch["images"], batch["captions"])
        of_reference = run.reference.score(batch, batch["images"])
        with torch.no_grad():
            plain = naive.log_probs_of(target, batch["images"], batch["captions"])
            other_plain = naive.log_probs_of(reference, batch["images"], batch["reference_captions"])
        torch.testing.assert_close(scores, plain, rtol=0, atol=1e-4)
        torch.testing.assert_close(of_reference, other_plain, rtol=0, atol=1e-4)
        run.train()
        ratio = (plain - other_plain).view(4, -1)
        loss = torch.nn.functional.softplus(-ratio[:, 0]) + torch.nn.functional.softplus(ratio[:, 1:]).mean(1)
        assert logged(run, "loss")[0] == pytest.approx(loss.mean().item(), rel=1e-4)

    def test_a_vision_encoder_decoder_against_it(self, kind: str, tmp_path: Path) -> None:
        run = trainer(tmp_path, reference_model=recurrent.captioner_model(kind))
        run.train()
        assert all(value > 0 for value in logged(run, "loss"))

    def test_a_shared_frozen_vision_model(self, kind: str, tmp_path: Path) -> None:
        model = recurrent.captioner_model(kind)
        run = trainer(tmp_path, model, options={"freeze_vision_encoder": True})
        assert run.reference.captioner.vision is model.vision
        run.train()
        assert logged(run, "loss")[0] == pytest.approx(TWO_LN_TWO, abs=1e-5)

    @pytest.mark.parametrize("other", recurrent.KINDS)
    def test_a_reference_shares_the_vision_model_where_it_reads_the_same_features(
        self, kind: str, other: str, tmp_path: Path
    ) -> None:
        model, reference = recurrent.captioner_model(kind), recurrent.captioner_model(other, dropout=0.1)
        reference.vision.load_state_dict(model.vision.state_dict())
        options = {"freeze_vision_encoder": True, "max_steps": 1}
        run = trainer(tmp_path, model, options=options, reference_model=reference)
        assert (run.reference.captioner.vision is model.vision) == (kind == other)
        run.train()
        assert len(logged(run, "loss")) == 1

    def test_states_from_disk(self, kind: str, tmp_path: Path) -> None:
        losses = []
        for cache in (False, True):
            options = {"freeze_vision_encoder": True, "cache_vision_states": cache, "max_steps": 3}
            if cache:
                options["precomputed_dir"] = str(tmp_path / "states")
            run = trainer(tmp_path / str(cache), recurrent.captioner_model(kind), options=options)
            run.train()
            losses.append(logged(run, "loss"))
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)

    def test_adapters_off_are_the_reference(self, kind: str, tmp_path: Path) -> None:
        model = recurrent.captioner_model(kind)
        targets = [name for name in LINEAR if any(part.endswith(name) for part, _ in model.named_modules())]
        adapter = LoraConfig(r=2, target_modules=[rf"decoder.{name}" for name in targets])
        run = trainer(tmp_path, model, options={"max_steps": 8, "learning_rate": 3e-2}, peft_config=adapter)
        run.train()
        losses = logged(run, "loss")
        assert losses[0] == pytest.approx(TWO_LN_TWO, abs=1e-5)
        assert logged(run, "margin")[-1] != pytest.approx(0, abs=1e-3)
        batch = next(iter(run.get_train_dataloader()))
        plain = recurrent.captioner_model(kind).eval()
        expected = naive.log_probs_of(plain, batch["images"], batch["captions"])
        scores = run.reference.score(batch, batch["images"])
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)


def test_an_adapter_of_the_lstm_itself_is_refused_by_peft() -> None:
    with pytest.raises(ValueError, match="LSTM"):
        get_peft_model(recurrent.captioner_model("show-and-tell"), LoraConfig(target_modules=["decoder.lstm"]))


@pytest.mark.parametrize("kind", recurrent.KINDS)
class TestTokens:
    def test_the_end_token_is_where_the_model_stops(self, kind: str) -> None:
        model = recurrent.captioner_model(kind)
        assert captioner_for(model, tiny.processing()).processor.end_token_id == tiny.EOS
        model.generation_config.eos_token_id = [9, tiny.EOS]
        assert captioner_for(model, tiny.processing()).processor.end_token_id == 9
        model.generation_config.eos_token_id = None
        processing = (tiny.tokenizer(eos_token=None, sep_token="<unk>"), tiny.image_processor())
        assert captioner_for(model, processing).processor.end_token_id == tiny.UNK
        assert captioner_for(model, processing).processor.max_caption_tokens is None

    def test_what_does_not_fit_is_refused(self, kind: str) -> None:
        model = recurrent.captioner_model(kind)
        with pytest.raises(ValueError, match="neither eos_token nor sep_token"):
            captioner_for(model, (tiny.tokenizer(eos_token=None), tiny.image_processor()))
        with pytest.raises(ValueError, match="65 tokens, but the .* knows 40"):
            captioner_for(recurrent.captioner_model(kind, vocab_size=40), tiny.processing())
        model.generation_config.eos_token_id = 900
        with pytest.raises(ValueError, match="end token of captions is 900"):
            captioner_for(model, tiny.processing())
        model = recurrent.captioner_model(kind, decoder_start_token_id=None)
        with pytest.raises(ValueError, match="set model.config.decoder_start_token_id"):
            captioner_for(model, tiny.processing())
        with pytest.raises(ValueError, match="set config.decoder_start_token_id"):
            model(**tiny.pixel_values(1), labels=torch.tensor([[7, 2]]))

    def test_says_what_it_is_and_is_quiet(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            captioner = scorer(recurrent.captioner_model(kind))
        name = {"show-and-tell": "ShowAndTell", "adaptive-attention": "AdaptiveAttention"}[kind]
        assert captioner.name == f"{name} of ResNetModel"
        assert not [entry for entry in caplog.records if entry.name.startswith("hf_contrastive_caption")]
