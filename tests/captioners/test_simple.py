"""Models of a user's own behind `SimpleCaptioner`, each against the few lines that score it one caption at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel, ViTModel
from transformers.modeling_outputs import CausalLMOutput

from hf_contrastive_caption import self_retrieval
from hf_contrastive_caption.captioners import (
    CaptionBatch,
    Captioner,
    SimpleCaptioner,
    caption_batch,
    captioner_for,
    register_captioner,
    registry,
)
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.reference import FrozenReference
from tests import tiny
from tests.captioners.naive import gradients, relative_difference
from tests.training import logged, trainer

IMAGE_INDEX = (0, 2, 1, 0, 0, 2, 3, 0)  # image 4 of the five has no caption


class OwnConfig(PreTrainedConfig):
    model_type = "tests-own"

    vocab_size: int = tiny.VOCABULARY_SIZE
    hidden_size: int = 24
    num_hidden_layers: int = 1
    eos_token_id: int = tiny.EOS
    bos_token_id: int = tiny.BOS
    pad_token_id: int = tiny.PAD
    scale: float = 1.0
    distort: float = 0.0


class Recurrent(PreTrainedModel):
    """Convolutions whose mean is the first state of a GRU; the words are called otherwise than usual."""

    config_class = OwnConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.picture = nn.Sequential(nn.Conv2d(3, width, 8, 8), nn.Tanh(), nn.Flatten(2))
        self.embed_tokens = nn.Embedding(config.vocab_size, width)
        self.words = nn.GRU(width, width, batch_first=True)
        self.lm_head = nn.Linear(width, config.vocab_size)
        self.post_init()

    def forward(self, pixel_values: Any = None, tokens: Any = None, grid: Any = None) -> CausalLMOutput:
        if grid is None:
            grid = self.picture(2 * pixel_values)  # (rows, width, positions)
        else:
            grid = grid + self.config.distort
        hidden, _ = self.words(self.embed_tokens(tokens), grid.mean(2)[None].contiguous())
        return CausalLMOutput(logits=self.config.scale * self.lm_head(hidden))


class Prefixed(PreTrainedModel):
    """The class token of a ViT stands, as four positions, before the words that GPT-2 reads."""

    config_class = OwnConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vit = ViTModel(tiny.encoder_config(), add_pooling_layer=False)
        self.bridge = nn.Linear(32, 4 * 32)
        self.text = GPT2LMHeadModel(tiny.decoder_config())
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.text.lm_head

    def forward(self, pixel_values: Any, input_ids: Any) -> Any:
        image = self.bridge(self.vit(pixel_values).last_hidden_state[:, 0]).unflatten(1, (4, 32))
        return self.text(inputs_embeds=torch.cat([image, self.text.transformer.wte(input_ids)], dim=1))


class PlainCaptioner(SimpleCaptioner):
    text_argument = "tokens"


class RepeatingCaptioner(SimpleCaptioner):
    text_argument = "tokens"
    vision_path = "picture"


class EncodingCaptioner(RepeatingCaptioner):
    states_argument = "grid"


class PrefixedCaptioner(SimpleCaptioner):
    vision_path = "vit"


class SlowPrefixedCaptioner(SimpleCaptioner):
    """As it is: the image is encoded for each caption."""


def recurrent(**settings: Any) -> Recurrent:
    torch.manual_seed(0)
    model = Recurrent(OwnConfig(**settings))
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.5)
    return model.train()


def prefixed() -> Prefixed:
    torch.manual_seed(0)
    return Prefixed(OwnConfig(hidden_size=32, num_hidden_layers=2)).train()


@dataclass(frozen=True)
class Own:
    model: Callable[[], PreTrainedModel]
    captioner: type[SimpleCaptioner]
    encoded: int
    """Rows that the vision module sees for eight captions of five images."""


OWN = {
    "plain": Own(recurrent, PlainCaptioner, 8),
    "repeating": Own(recurrent, RepeatingCaptioner, 5),
    "encoding": Own(recurrent, EncodingCaptioner, 5),
    "prefixed": Own(prefixed, PrefixedCaptioner, 5),
    "slow-prefixed": Own(prefixed, SlowPrefixedCaptioner, 8),
}
every_own = pytest.mark.parametrize("own", OWN.values(), ids=OWN.keys())


@pytest.fixture(autouse=True)
def restore(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_CAPTIONERS", dict(registry._CAPTIONERS))
    yield


def captioner_of(own: Own, model: PreTrainedModel | None = None, **options: Any) -> Captioner:
    register_captioner(OwnConfig, own.captioner)
    return captioner_for(own.model() if model is None else model, tiny.processing(), **options)


def naive(model: Any, images: dict[str, Tensor], captions: CaptionBatch) -> Tensor:
    """ln p(caption | image), (n_captions,), one forward for each."""
    scores = []
    sentences = captions["input_ids"].split(captions["lengths"].tolist())
    for ids, image in zip(sentences, captions["image_index"].tolist(), strict=True):
        inputs = torch.cat([torch.tensor([tiny.BOS]), ids[:-1]])[None]
        logits = model(images["pixel_values"][image : image + 1], inputs).logits[0, -len(ids) :]
        scores.append(logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum())
    return torch.stack(scores)


def vision_of(model: PreTrainedModel) -> nn.Module:
    return model.get_submodule("vit" if isinstance(model, Prefixed) else "picture")


@every_own
class TestScores:
    @pytest.mark.parametrize("max_logits_bytes", [2**20, 3 * 4 * tiny.VOCABULARY_SIZE])
    def test_scores_and_gradients_equal_one_by_one(
        self, own: Own, max_logits_bytes: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        captioner = captioner_of(own, max_logits_bytes=max_logits_bytes)
        model, images, captions = captioner.model, tiny.pixel_values(5), tiny.captions(IMAGE_INDEX)
        captioner.make_deterministic()
        scores = captioner.log_probs(model, images, captions)
        expected = naive(model, images, captions)
        assert (captioner.layout, captioner.head) == ("repeated", "fused")
        assert not caplog.records
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        assert expected.std() > 5  # far from uniform, so that errors show
        assert relative_difference(gradients(model, scores), gradients(model, expected)) < 1e-4
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())

    def test_the_image_is_encoded_as_seldom_as_the_class_says(self, own: Own) -> None:
        captioner = captioner_of(own)
        captioner.verify()
        rows: list[int] = []
        vision_of(captioner.base_model).register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        captioner.log_probs(captioner.model, tiny.pixel_values(5), tiny.captions(IMAGE_INDEX))
        assert rows == [own.encoded]

    def test_all_captions_against_all_images(self, own: Own) -> None:
        captioner = captioner_of(own)
        images, sentences = tiny.pixel_values(3), [[7, 8, tiny.EOS], [7, 9, 10, tiny.EOS], [tiny.EOS]]
        scorer = PairScorer(captioner, sentences)
        assert scorer.plan.method == "rows"
        pairs = caption_batch([ids for _ in range(3) for ids in sentences], [0, 0, 0, 1, 1, 1, 2, 2, 2])
        captioner.model.eval()
        with torch.no_grad():
            expected = naive(captioner.model, images, pairs).view(3, 3)
        torch.testing.assert_close(scorer.scores(images), expected, rtol=0, atol=1e-4)

    def test_the_loss_falls(self, own: Own, tmp_path: Path) -> None:
        captioner_of(own)
        options = {"max_steps": 12, "learning_rate": 5e-3}
        run = trainer(tmp_path, own.model(), tiny.caption_dataset(4, 1), options)
        run.train()
        losses = logged(run, "loss")
        assert losses[0] == pytest.approx(1.3862944, abs=1e-3)
        assert losses[-1] < 1.1

    def test_refuses_to_pack(self, own: Own) -> None:
        with pytest.raises(ValueError, match="packing='packed' was given, but .* gives each caption a row of its own"):
            captioner_of(own, packing="packed")


class TestVision:
    def test_states_are_what_the_models_own_forward_makes(self) -> None:
        captioner = captioner_of(OWN["encoding"])
        images, captions = tiny.pixel_values(5), tiny.captions(IMAGE_INDEX)
        states = captioner.encode(images)
        with torch.no_grad():
            grid = captioner.base_model.picture(2 * images["pixel_values"])  # twice, as the forward has it
            torch.testing.assert_close(states["vision_states"], grid, rtol=0, atol=1e-6)
            expected = naive(captioner.model, images, captions)
            scores = captioner.log_probs(captioner.model, states, captions)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-4)
        assert captioner.encode(states) is states

    @pytest.mark.parametrize("name", ["plain", "repeating", "prefixed"])
    def test_no_states_without_an_argument_for_them(self, name: str) -> None:
        captioner = captioner_of(OWN[name])
        images = tiny.pixel_values(2)
        assert captioner.vision is None
        assert captioner.encode(images) is images

    def test_states_that_the_forward_reads_otherwise_are_refused(self) -> None:
        captioner = captioner_of(OWN["encoding"], recurrent(distort=0.5))
        for _ in range(2):  # a second attempt is no way around it
            with pytest.raises(ValueError, match="otherwise from the states of an image than from the image"):
                captioner.log_probs(captioner.model, tiny.pixel_values(1), tiny.captions([0]))

    def test_a_shared_frozen_encoder_and_its_states_on_disk(self, tmp_path: Path) -> None:
        captioner_of(OWN["encoding"])
        losses = []
        frozen = {"freeze_vision_encoder": True}
        cached = {**frozen, "cache_vision_states": True, "precomputed_dir": str(tmp_path / "states")}
        ways: dict[str, dict[str, Any]] = {"separate": {}, "shared": frozen, "cached": cached}
        for name, options in ways.items():
            model = recurrent()
            model.picture.requires_grad_(False)
            run = trainer(tmp_path / name, model, tiny.caption_dataset(8), {"max_steps": 3, **options})
            run.train()
            losses.append(logged(run, "loss"))
            assert isinstance(run.reference, FrozenReference)
            assert run.reference.shares_vision == (name != "separate")
        assert losses[1] == pytest.approx(losses[0], abs=1e-5)
        assert losses[2] == pytest.approx(losses[0], abs=1e-5)
        assert list((tmp_path / "states").rglob("*.safetensors"))

    def test_an_equal_encoder_of_a_given_reference_is_shared(self, tmp_path: Path) -> None:
        captioner_of(OWN["encoding"])
        model, same, other = recurrent(), recurrent(), recurrent()
        with torch.no_grad():
            other.picture[0].weight.add_(0.1)
            for reference in (same, other):
                reference.lm_head.bias.add_(0.1)
        for reference, shared in ((same, True), (other, False)):
            options = {"freeze_vision_encoder": True}
            run = trainer(tmp_path, model, tiny.caption_dataset(4), options, reference_model=reference)
            assert run.reference.shares_vision == shared
            assert (reference.picture is model.picture) == shared


def test_captions_begin_behind_the_token_that_scores_begin_behind() -> None:
    captioner = captioner_of(OWN["plain"], recurrent(decoder_start_token_id=10))
    assert captioner.start_token_id == 10
    assert captioner.own_arguments({"num_beams": 1}) == {"bos_token_id": 10, "num_beams": 1}
    assert captioner_of(OWN["plain"]).own_arguments({}) == {"bos_token_id": tiny.BOS}


class TestSelfRetrieval:
    def test_scores_are_those_of_the_captions(self) -> None:
        captioner = captioner_of(OWN["encoding"])
        images = tiny.images(6)
        written = tiny.texts(6)
        result = self_retrieval(captioner, images, captions=written, k=(1,), resamples=10, progress=False)
        captions = caption_batch(captioner.processor.tokenize(written).input_ids, range(6))
        captioner.model.eval()
        with torch.no_grad():
            own = naive(captioner.model, tiny.pixel_values(6), captions)
        torch.testing.assert_close(torch.tensor(result.scores.diagonal()).float(), own, rtol=0, atol=1e-4)


def test_logits_that_are_changed_after_the_projection(caplog: pytest.LogCaptureFixture) -> None:
    captioner = captioner_of(OWN["encoding"], recurrent(scale=0.5))
    images, captions = tiny.pixel_values(5), tiny.captions(IMAGE_INDEX)
    with caplog.at_level(logging.WARNING):
        scores = captioner.log_probs(captioner.model, images, captions)
    assert captioner.head == "logits"
    assert len(caplog.records) == 1
    torch.testing.assert_close(scores, naive(captioner.model, images, captions), rtol=0, atol=1e-4)


class TestWhatIsRefused:
    def test_no_size_in_the_config(self) -> None:
        class SizelessConfig(PreTrainedConfig):
            model_type = "tests-sizeless"
            width: int = 24

        model = recurrent()
        model.config = SizelessConfig(vocab_size=tiny.VOCABULARY_SIZE)
        register_captioner(SizelessConfig, PlainCaptioner)
        message = "SizelessConfig does not say hidden_size, num_hidden_layers.*attribute_map"
        with pytest.raises(ValueError, match=message):
            captioner_for(model, tiny.processing())
        SizelessConfig.attribute_map = {"hidden_size": "width"}
        model.config.num_hidden_layers = 1
        assert captioner_for(model, tiny.processing()).decoder_size() == (1, 24)

    def test_no_projection_to_the_vocabulary(self) -> None:
        model = recurrent()
        model.projection = model.lm_head
        del model.lm_head
        with pytest.raises(ValueError, match=r"get_output_embeddings\(\) of Recurrent gives None"):
            captioner_of(OWN["plain"], model)

    def test_no_end_token(self) -> None:
        register_captioner(OwnConfig, PlainCaptioner)
        with pytest.raises(ValueError, match="neither eos_token nor sep_token"):
            captioner_for(recurrent(), (tiny.tokenizer(eos_token=None), tiny.image_processor()))

    def test_tokenizer_of_another_model(self) -> None:
        with pytest.raises(ValueError, match="the tokenizer has 65 tokens, but the tests-own decoder knows 40"):
            captioner_of(OWN["plain"], recurrent(vocab_size=40))

    @pytest.mark.parametrize(
        ("attributes", "message"),
        [
            ({"text_argument": "words"}, "text_argument is 'words'.* takes pixel_values, tokens, grid; name one"),
            ({"states_argument": "states"}, "states_argument is 'states', but the forward of Recurrent takes"),
            ({"vision_path": "eyes"}, "vision_path is 'eyes', but Recurrent has no such module; it has picture, "),
            ({"vision_path": None}, "has a states_argument and no vision_path"),
        ],
    )
    def test_names_that_the_model_does_not_have(self, attributes: dict[str, Any], message: str) -> None:
        wrong: type[SimpleCaptioner] = type("Wrong", (EncodingCaptioner,), attributes)
        with pytest.raises(ValueError, match=message):
            captioner_of(Own(recurrent, wrong, 0))

    def test_an_output_without_logits(self) -> None:
        class Bare(Recurrent):
            def forward(self, pixel_values: Any = None, tokens: Any = None, grid: Any = None) -> Any:
                return super().forward(pixel_values, tokens, grid).logits

        torch.manual_seed(0)
        with pytest.raises(TypeError, match=r"forward gave a Tensor.*CausalLMOutput\(logits=logits\)"):
            captioner_of(OWN["plain"], Bare(OwnConfig())).verify()

    def test_a_vision_module_that_gives_no_tensor(self) -> None:
        class Pair(nn.Sequential):
            def forward(self, pixels: Tensor) -> tuple[Tensor]:
                return (super().forward(pixels),)

        class Unpacking(nn.Module):
            def __init__(self, picture: nn.Sequential) -> None:
                super().__init__()
                self.pair = Pair(*picture)

            def forward(self, pixels: Tensor) -> Tensor:
                return self.pair(pixels)[0]

        class Listed(SimpleCaptioner):
            text_argument: ClassVar[str] = "tokens"
            vision_path: ClassVar[str | None] = "picture.pair"

        model = recurrent()
        model.picture = Unpacking(model.picture)
        message = "TypeError: the module at vision_path gave a tuple.*Leave vision_path out"
        with pytest.raises(ValueError, match=message):
            captioner_of(Own(recurrent, Listed, 0), model).verify()

    def test_a_forward_that_counts_images_before_it_encodes_them(self) -> None:
        class Counting(Recurrent):
            def forward(self, pixel_values: Any = None, tokens: Any = None, grid: Any = None) -> Any:
                assert grid is None
                if len(pixel_values) != len(tokens):
                    raise ValueError("not as many images as texts")
                return super().forward(pixel_values, tokens)

        torch.manual_seed(0)
        model = Counting(OwnConfig())
        with pytest.raises(ValueError, match="not as many images as texts.*Leave vision_path out"):
            captioner_of(OWN["repeating"], model).verify()
        captioner_of(OWN["plain"], model).verify()

    def test_a_decoder_that_sees_later_tokens(self) -> None:
        class Looking(Recurrent):
            def forward(self, pixel_values: Any = None, tokens: Any = None, grid: Any = None) -> Any:
                return super().forward(pixel_values, tokens.flip(1), grid)

        model = recurrent()
        looking = Looking(OwnConfig())
        looking.load_state_dict(model.state_dict())
        with pytest.raises(ValueError, match="sees later tokens"):
            captioner_of(OWN["plain"], looking).verify()
