"""What holds for every recurrent captioner: ragged and padded captions, generation, files, vision models."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageTextToText, Dinov2Config

from hf_contrastive_caption.loading import load_model
from hf_contrastive_caption.models.recurrent import RecurrentCaptionerModel
from tests import recurrent, tiny

CAPTIONS = ([7, 8, 9, 10, tiny.EOS], [tiny.EOS], [7, 8, 20, tiny.EOS], [30, 31, tiny.EOS])
IMAGE_INDEX = torch.tensor([0, 2, 2, 1])


def padded(captions: Any, fill: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(ids) for ids in captions], batch_first=True, padding_value=fill
    )


def flat(captions: Any) -> dict[str, Tensor]:
    tokens = torch.tensor([token for ids in captions for token in ids])
    return {"labels": tokens, "lengths": torch.tensor([len(ids) for ids in captions]), "image_index": IMAGE_INDEX}


def image_gradients(model: RecurrentCaptionerModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))


@pytest.mark.parametrize("kind", recurrent.KINDS)
class TestForward:
    def test_flat_captions_equal_padded_ones_and_captions_alone(self, kind: str) -> None:
        model = recurrent.captioner_model(kind).double().eval()
        images = tiny.pixel_values(3, dtype=torch.float64)
        ragged = model(**images, **flat(CAPTIONS))
        rows = model(**images, labels=padded(CAPTIONS, -100), image_index=IMAGE_INDEX)
        real = padded(CAPTIONS, -100) != -100
        torch.testing.assert_close(ragged.logits, rows.logits[real], rtol=0, atol=1e-12)
        torch.testing.assert_close(ragged.loss, rows.loss, rtol=0, atol=1e-12)
        total = torch.zeros((), dtype=torch.float64)
        for ids, image in zip(CAPTIONS, IMAGE_INDEX, strict=True):
            inputs = torch.tensor([[tiny.BOS, *ids[:-1]]])
            logits = model(images["pixel_values"][image][None], decoder_input_ids=inputs).logits[0]
            total = total - logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].sum()
        torch.testing.assert_close(ragged.loss, total / 13, rtol=0, atol=1e-12)
        for one, other in zip(image_gradients(model, ragged.loss), image_gradients(model, total / 13), strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-10)

    def test_gradients_equal_differences(self, kind: str) -> None:
        model = recurrent.captioner_model(kind, vocab_size=11, hidden_size=3, embedding_size=2).double()
        shape = (2, 1 if model.pooled else 3, 16)
        ids = torch.tensor([1, 5, 6, 1, 7, 1])
        lengths, image_index = [3, 2, 1], torch.tensor([1, 0, 1])
        names = [name for name, _ in model.decoder.named_parameters()]

        def scores(features: Tensor, *weights: Tensor) -> Tensor:
            class Whole(torch.nn.Module):
                def __init__(self) -> None:
                    super().__init__()
                    self.decoder = model.decoder

                def forward(self) -> Tensor:
                    seen = self.decoder.see(features)
                    start = self.decoder.start(seen).select(image_index)
                    read = self.decoder(seen, ids, lengths, image_index, start)
                    return self.decoder.vocabulary(read.hidden).log_softmax(-1)

            named = {f"decoder.{name}": weight for name, weight in zip(names, weights, strict=True)}
            return torch.func.functional_call(Whole(), named)

        features = torch.rand(shape, dtype=torch.float64, requires_grad=True)
        weights = [weight.detach().clone().requires_grad_() for weight in model.decoder.parameters()]
        assert torch.autograd.gradcheck(scores, (features, *weights), fast_mode=True)

    def test_a_state_continues_a_caption(self, kind: str) -> None:
        model = recurrent.captioner_model(kind).eval()
        images = tiny.pixel_values(2)
        ids = torch.tensor([[tiny.BOS, 7, 8, 9], [tiny.BOS, 20, 21, 22]])
        with torch.no_grad():
            whole = model(**images, decoder_input_ids=ids)
            assert whole.past_key_values is None
            first = model(**images, decoder_input_ids=ids[:, :2], use_cache=True)
            second = model(**images, decoder_input_ids=ids[:, 2:], past_key_values=first.past_key_values)
        torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole.logits, rtol=0, atol=1e-5)

    def test_dropout_is_only_in_training_mode(self, kind: str) -> None:
        model = recurrent.captioner_model(kind, dropout=0.5).eval()
        inputs = {**tiny.pixel_values(2), "labels": torch.tensor([[7, 8, 2], [9, 2, -100]])}
        plain = recurrent.captioner_model(kind).eval()
        assert torch.equal(model(**inputs).logits, plain(**inputs).logits)
        model.train()
        assert not torch.equal(model(**inputs).logits, model(**inputs).logits)

    def test_a_tuple_comes_back_where_it_is_asked_for(self, kind: str) -> None:
        model = recurrent.captioner_model(kind).eval()
        inputs = {**tiny.pixel_values(1), "labels": torch.tensor([[7, 8, 2]])}
        loss, logits, *_ = model(**inputs, return_dict=False)
        assert torch.equal(loss, model(**inputs).loss) and logits.shape == (1, 3, tiny.VOCABULARY_SIZE)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"decoder_input_ids": torch.ones(2, 3).long(), "pixel_values": None}, "pass pixel_values"),
            ({}, "there are no captions"),
            ({"decoder_input_ids": torch.ones(5).long()}, "without lengths"),
            ({"decoder_input_ids": torch.ones(2, 3).long(), "lengths": torch.tensor([3, 3])}, "with lengths"),
            ({"decoder_input_ids": torch.ones(5).long(), "lengths": torch.tensor([3, 3])}, "lengths sum to 6"),
            ({"decoder_input_ids": torch.ones(3).long(), "lengths": torch.tensor([3, 0])}, "shortest is 0"),
            ({"decoder_input_ids": torch.ones(5).long(), "lengths": torch.tensor([3, 2])}, "pass image_index"),
            ({"decoder_input_ids": torch.ones(3, 2).long()}, "which of 2 images"),
        ],
    )
    def test_captions_that_do_not_fit_are_refused(self, kind: str, arguments: dict[str, Any], message: str) -> None:
        model = recurrent.captioner_model(kind)
        with pytest.raises(ValueError, match=message):
            model(**{**tiny.pixel_values(2), **arguments})


@pytest.mark.parametrize("kind", recurrent.KINDS)
class TestGenerate:
    @pytest.mark.parametrize("use_cache", [True, False])
    def test_greedy_equals_an_argmax_loop(self, kind: str, use_cache: bool) -> None:
        model = recurrent.captioner_model(kind).eval()
        images = tiny.pixel_values(6)
        found = model.generate(**images, max_new_tokens=8, do_sample=False, use_cache=use_cache)
        expected = torch.full((6, 9), tiny.PAD)
        with torch.no_grad():
            for image in range(6):
                ids = [tiny.BOS]
                while len(ids) < 9 and ids[-1] != tiny.EOS:
                    inputs = torch.tensor([ids])
                    logits = model(images["pixel_values"][image][None], decoder_input_ids=inputs).logits
                    ids.append(int(logits[0, -1].argmax()))
                expected[image, : len(ids)] = torch.tensor(ids)
        assert torch.equal(found, expected[:, : found.shape[1]])
        assert len({tuple(row) for row in found.tolist()}) > 1

    def test_a_beam_as_wide_as_all_captions_finds_the_most_likely_one(self, kind: str) -> None:
        model = recurrent.captioner_model(kind, vocab_size=7, seed=3).eval()
        images = tiny.pixel_values(3)
        settings = {"max_new_tokens": 3, "length_penalty": 0.0, "do_sample": False}
        arguments: dict[str, Any] = {**settings, "return_dict_in_generate": True, "output_scores": True}
        beams = model.generate(**images, num_beams=49, early_stopping=False, **arguments)
        narrow = model.generate(**images, num_beams=2, **arguments)
        every = [ids for ids in itertools.product(range(7), repeat=3) if tiny.EOS not in ids[:-1]]
        every += [(*ids, tiny.EOS) for n in (0, 1) for ids in itertools.product((0, 1, 3, 4, 5, 6), repeat=n)]
        for image in range(3):
            pixels = images["pixel_values"][image][None]
            with torch.no_grad():
                scores = {ids: -float(model(pixels, labels=torch.tensor([ids])).loss) * len(ids) for ids in every}
            best = max(scores, key=scores.__getitem__)
            assert tuple(beams.sequences[image, 1 : 1 + len(best)].tolist()) == best
            assert float(beams.sequences_scores[image]) == pytest.approx(scores[best], abs=1e-4)
            assert float(narrow.sequences_scores[image]) <= scores[best] + 1e-4

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_the_score_of_a_beam_is_that_of_its_caption(self, kind: str, use_cache: bool) -> None:
        """The state follows its beam: a wrong order would give the scores of other captions."""
        model = recurrent.captioner_model(kind, seed=1).eval()
        images = tiny.pixel_values(4)
        found = model.generate(
            **images, use_cache=use_cache, num_beams=5, num_return_sequences=5, max_new_tokens=9, length_penalty=0.0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        for number, ids in enumerate(found.sequences[:, 1:].tolist()):
            ids = ids[: ids.index(tiny.EOS) + 1] if tiny.EOS in ids else ids
            with torch.no_grad():
                loss = model(images["pixel_values"][number // 5][None], labels=torch.tensor([ids])).loss
            assert float(found.sequences_scores[number]) == pytest.approx(-float(loss) * len(ids), abs=1e-4)

    def test_samples_come_as_often_as_they_are_likely(self, kind: str) -> None:
        model = recurrent.captioner_model(kind, vocab_size=5).eval()
        images = tiny.pixel_values(1)
        torch.manual_seed(0)
        found = model.generate(
            **images, do_sample=True, top_k=0, num_return_sequences=4000, max_new_tokens=2, eos_token_id=4
        )
        with torch.no_grad():
            first = model(**images, decoder_input_ids=torch.tensor([[tiny.BOS]])).logits[0, 0].softmax(-1)
            word = int(first[:4].argmax())
            second = model(**images, decoder_input_ids=torch.tensor([[tiny.BOS, word]])).logits[0, 1].softmax(-1)
        often = found[:, 1].bincount(minlength=5) / 4000
        torch.testing.assert_close(often, first, rtol=0, atol=0.03)
        after = found[found[:, 1] == word, 2]
        torch.testing.assert_close(after.bincount(minlength=5) / len(after), second, rtol=0, atol=0.06)

    def test_goes_on_from_given_words(self, kind: str) -> None:
        model = recurrent.captioner_model(kind).eval()
        images = tiny.pixel_values(2)
        whole = model.generate(**images, max_new_tokens=6, min_new_tokens=6)
        assert torch.equal(model.generate(**images, decoder_input_ids=whole[:, :4], max_new_tokens=3), whole)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"cache_implementation": "static"}, "StaticCache"),
            ({"cache_implementation": "offloaded"}, "leave cache_implementation"),
            ({"prompt_lookup_num_tokens": 2}, "stateful models"),
        ],
    )
    def test_what_a_state_cannot_do_is_refused(self, kind: str, arguments: dict[str, Any], message: str) -> None:
        model = recurrent.captioner_model(kind).eval()
        with pytest.raises(ValueError, match=message):
            model.generate(**tiny.pixel_values(1), max_new_tokens=4, **arguments)

    @pytest.mark.parametrize("num_beams", [1, 3])
    def test_the_image_is_looked_at_once_for_all_words(
        self, kind: str, num_beams: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = recurrent.captioner_model(kind).eval()
        looks: list[int] = []
        see = model.decoder.see

        def noted(features: Tensor) -> tuple[Tensor, ...]:
            looks.append(features.shape[0])
            return see(features)

        monkeypatch.setattr(model.decoder, "see", noted)
        model.generate(**tiny.pixel_values(2), num_beams=num_beams, max_new_tokens=5, min_new_tokens=5)
        assert looks == [2 * num_beams]

    def test_from_encoded_images(self, kind: str) -> None:
        model = recurrent.captioner_model(kind).eval()
        images = tiny.pixel_values(3)
        with torch.no_grad():
            states = model.get_encoder()(**images)
        expected = model.generate(**images, max_new_tokens=6, num_beams=3)
        assert torch.equal(model.generate(encoder_outputs=states, max_new_tokens=6, num_beams=3), expected)


class TestVision:
    @pytest.mark.parametrize("kind", recurrent.KINDS)
    @pytest.mark.parametrize("vision", recurrent.VISION)
    def test_everything_comes_back_from_disk(self, kind: str, vision: str, tmp_path: Path) -> None:
        model = recurrent.captioner_model(kind, vision).eval()
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.running_mean.normal_()
        model.save_pretrained(tmp_path)
        inputs = {**tiny.pixel_values(2), "labels": torch.tensor([[7, 8, 2], [9, 2, -100]])}
        config = AutoConfig.from_pretrained(tmp_path)
        assert type(config) is type(model.config) and type(config.vision_config) is type(model.config.vision_config)
        for again in (load_model(str(tmp_path)), AutoModelForImageTextToText.from_pretrained(tmp_path)):
            assert type(again) is type(model)
            saved = model.state_dict()
            assert again.state_dict().keys() == saved.keys()
            assert all(torch.equal(value, saved[name]) for name, value in again.state_dict().items())
            with torch.no_grad():
                logits = again.eval()(**inputs).logits
                torch.testing.assert_close(logits, model(**inputs).logits, rtol=0, atol=1e-4)
            generated = again.generate(pixel_values=inputs["pixel_values"], max_new_tokens=5)
            assert torch.equal(generated, model.generate(pixel_values=inputs["pixel_values"], max_new_tokens=5))

    @pytest.mark.parametrize("kind", recurrent.KINDS)
    @pytest.mark.parametrize("vision", ["resnet", "convnext", "swin"])
    def test_backbones(self, kind: str, vision: str, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = recurrent.vision_config(vision, out_features=["stage1"])
        trained = AutoBackbone.from_config(config).eval()
        trained.save_pretrained(tmp_path)
        _, model_class = recurrent.MODELS[kind]
        model = model_class.from_vision_pretrained(str(tmp_path), vision_backbone=True, vocab_size=20).eval()
        pixels = tiny.pixel_values(2)["pixel_values"]
        with torch.no_grad():
            maps = trained(pixels).feature_maps[-1].flatten(2).transpose(1, 2)
            expected = maps.mean(1, keepdim=True) if model.pooled else maps
            assert expected.shape[-1] == 8
            torch.testing.assert_close(model.vision(pixels)[0], expected, rtol=0, atol=1e-6)
            model.save_pretrained(tmp_path / "captioner")
            again = load_model(str(tmp_path / "captioner")).eval()
            torch.testing.assert_close(again.vision(pixels)[0], model.vision(pixels)[0], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", recurrent.KINDS)
    def test_a_trained_vision_model_stays_as_it_was(self, kind: str, tmp_path: Path) -> None:
        torch.manual_seed(7)
        trained = AutoModel.from_config(recurrent.vision_config()).eval()
        trained.save_pretrained(tmp_path)
        _, model_class = recurrent.MODELS[kind]
        model = model_class.from_vision_pretrained(str(tmp_path), vocab_size=20, freeze_vision=True)
        kept = model.vision.model.state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in trained.state_dict().items())
        assert model.config.vocab_size == 20 and model.config.vision_config.hidden_sizes == [8, 16]

    @pytest.mark.parametrize("kind", recurrent.KINDS)
    def test_a_frozen_one_neither_learns_nor_moves_its_statistics(self, kind: str, tmp_path: Path) -> None:
        _, model_class = recurrent.MODELS[kind]
        new = model_class(recurrent.captioner_model(kind, freeze_vision=True).config)
        assert not any(module.training for module in new.vision.modules())
        assert not any(weight.requires_grad for weight in new.vision.parameters())
        new.save_pretrained(tmp_path)
        model = load_model(str(tmp_path)).train()
        assert not any(weight.requires_grad for weight in model.vision.parameters())
        assert all(weight.requires_grad for weight in model.decoder.parameters())
        assert model.decoder.training and not any(module.training for module in model.vision.modules())
        before = {name: value.clone() for name, value in model.vision.state_dict().items()}
        model(**tiny.pixel_values(3), labels=torch.tensor([[7, 2]] * 3)).loss.backward()
        assert all(torch.equal(value, before[name]) for name, value in model.vision.state_dict().items())

    @pytest.mark.parametrize("kind", recurrent.KINDS)
    def test_one_that_was_frozen_by_hand_keeps_its_statistics(self, kind: str) -> None:
        model = recurrent.captioner_model(kind)
        model.vision.requires_grad_(False)
        model.train()
        assert model.decoder.training and not any(module.training for module in model.vision.modules())
        next(model.vision.parameters()).requires_grad_(True)
        model.train()
        assert all(module.training for module in model.modules())

    @pytest.mark.parametrize("kind", recurrent.KINDS)
    def test_layers_of_the_vision_model_can_be_checkpointed(self, kind: str) -> None:
        inputs = {**tiny.pixel_values(2), "labels": torch.tensor([[7, 8, 2], [9, 2, -100]])}
        gradients = []
        for checkpointed in (False, True):
            model = recurrent.captioner_model(kind, "vit")
            runs: list[int] = []
            model.vision.model.layers[0].mlp.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
            if checkpointed:
                model.gradient_checkpointing_enable()
            gradients.append(image_gradients(model, model(**inputs).loss))
            assert len(runs) == 1 + checkpointed
        for one, other in zip(*gradients, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        with pytest.raises(ValueError, match="does not support"):
            recurrent.captioner_model(kind, "resnet").gradient_checkpointing_enable()

    @pytest.mark.parametrize("kind", recurrent.KINDS)
    @pytest.mark.parametrize("backbone", [False, True])
    def test_dinov2(self, kind: str, backbone: bool) -> None:
        layers = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
        config = Dinov2Config(image_size=32, patch_size=8, out_features=["stage2"], **layers)
        model = recurrent.captioner_model(kind, vision_config=config, vision_backbone=backbone).eval()
        seen = model.vision(**tiny.pixel_values(2))[0]
        positions = 16 if backbone else 17  # as a backbone it gives a feature map without the class token
        assert seen.shape == (2, 1 if model.pooled else positions, 16)
        assert model.generate(**tiny.pixel_values(2), max_new_tokens=3).shape[0] == 2

    def test_a_vision_model_of_unknown_width_needs_it_told(self) -> None:
        from transformers import MobileNetV2Config

        config = MobileNetV2Config(depth_multiplier=0.25, image_size=32)
        with pytest.raises(ValueError, match="set vision_hidden_size"):
            recurrent.captioner_model("show-and-tell", vision_config=config)
        model = recurrent.captioner_model("show-and-tell", vision_config=config, vision_hidden_size=1280).eval()
        assert model.generate(**tiny.pixel_values(2), max_new_tokens=3).shape[0] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_settings_that_make_no_model_are_refused(settings: dict[str, Any], message: str) -> None:
    for config_class, _ in recurrent.MODELS.values():
        with pytest.raises(ValueError, match=message):
            config_class(**settings)


@pytest.mark.parametrize("kind", recurrent.KINDS)
def test_forget_gates_begin_open_and_files_keep_what_was_learned(kind: str, tmp_path: Path) -> None:
    config_class, model_class = recurrent.MODELS[kind]
    model = model_class(config_class(vision_config=recurrent.vision_config(), hidden_size=3, embedding_size=2))
    name = "lstm.bias_ih_l0" if kind == "show-and-tell" else "word_gates.bias"
    bias = model.decoder.get_parameter(name)
    assert bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * (len(bias) - 6)
    with torch.no_grad():
        bias.copy_(torch.arange(len(bias)))
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path).decoder.get_parameter(name)
    assert again.tolist() == list(range(len(bias)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", recurrent.KINDS)
def test_plain_transformers_loads_files_after_one_import(kind: str, tmp_path: Path) -> None:
    """In a fresh process, and without trust_remote_code."""
    recurrent.captioner_model(kind).save_pretrained(tmp_path)
    lines = (
        "import hf_contrastive_caption.models",
        "from transformers import AutoModelForImageTextToText",
        f"print(type(AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})).__name__)",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[-1] == recurrent.MODELS[kind][1].__name__, done.stderr[-2000:]


@pytest.mark.parametrize("kind", recurrent.KINDS)
def test_the_vocabulary_can_grow(kind: str) -> None:
    model = recurrent.captioner_model(kind).eval()
    inputs = {**tiny.pixel_values(1), "decoder_input_ids": torch.tensor([[tiny.BOS, 7]])}
    before = model(**inputs).logits
    model.resize_token_embeddings(tiny.VOCABULARY_SIZE + 3)
    assert model.config.vocab_size == tiny.VOCABULARY_SIZE + 3
    after = model(**inputs).logits
    assert after.shape[-1] == tiny.VOCABULARY_SIZE + 3
    torch.testing.assert_close(after[..., : tiny.VOCABULARY_SIZE], before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", recurrent.KINDS)
def test_learns_which_caption_is_whose(kind: str) -> None:
    """Twelve images with a caption each, from new weights: the image has to reach the words."""
    torch.manual_seed(0)
    config_class, model_class = recurrent.MODELS[kind]
    sizes = {"vocab_size": tiny.VOCABULARY_SIZE, "hidden_size": 64, "embedding_size": 64}
    tokens = {"decoder_start_token_id": tiny.BOS, "eos_token_id": tiny.EOS, "pad_token_id": tiny.PAD}
    model = model_class(config_class(vision_config=recurrent.vision_config(), **sizes, **tokens)).train()
    images, captions = tiny.pixel_values(12), tiny.captions(range(12))
    ragged = {"labels": captions["input_ids"], "lengths": captions["lengths"], "image_index": torch.arange(12)}
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(200):
        loss = model(**images, **ragged).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    found = model.eval().generate(**images, max_new_tokens=12)
    for row, ids in zip(found, captions["input_ids"].split(captions["lengths"].tolist()), strict=True):
        assert torch.equal(row[1 : 1 + len(ids)], ids)
