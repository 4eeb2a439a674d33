"""Scores of dual encoders against plain cosine similarity, and what retrievers say about themselves."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.evaluation.retrieval.retrievers import CaptionerRetriever, DualEncoderRetriever
from tests import tiny

Kind = Literal["clip", "siglip"]
KINDS: tuple[Kind, ...] = ("clip", "siglip")
LONGEST = 12
END = tiny.WORDS[-1]  # not tiny.EOS: the id 2 makes CLIPTextModel look for the largest id in place of the end token
END_ID = tiny.VOCABULARY_SIZE - 1
TEXTS = ["a dog", "a red dog runs on the grass", "dog dog", "", "a dog", "the cat " * 20]


def tokenizer(kind: Kind) -> PreTrainedTokenizerFast:
    """Of one word a token; that of CLIP puts a start and an end token around a text, that of SigLIP an end token."""
    backend: Tokenizer = tiny.tokenizer().backend_tokenizer
    start = "<bos> " if kind == "clip" else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start}$A {END}", special_tokens=[("<bos>", tiny.BOS), (END, END_ID)]
    )
    names = ["input_ids", "attention_mask"] if kind == "clip" else ["input_ids"]  # SigLIP attends to its padding
    tokens = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": END, "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=names, **tokens)


def processor(kind: Kind) -> Any:
    size = {"height": 16, "width": 16}
    if kind == "clip":
        return CLIPProcessor(CLIPImageProcessor(size=size, do_center_crop=False), tokenizer(kind))
    return SiglipProcessor(SiglipImageProcessor(size=size), tokenizer(kind))


def model(kind: Kind, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layers, "vocab_size": tiny.VOCABULARY_SIZE, "max_position_embeddings": LONGEST}
    text |= {"bos_token_id": tiny.BOS, "eos_token_id": END_ID, "pad_token_id": tiny.PAD}
    vision = {**layers, "image_size": 16, "patch_size": 8}
    if kind == "clip":
        made: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    else:
        made = SiglipModel(SiglipConfig(text_config=text | {"projection_size": 16}, vision_config=vision))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    return made.train()


def plain_similarity(kind: Kind, dual_encoder: Any, images: list[Any], captions: list[str]) -> Tensor:
    """One image and one text at a time, through the model's own forward, (n_images, n_captions)."""
    both = processor(kind)
    dual_encoder.eval()
    table = torch.empty(len(images), len(captions))
    with torch.no_grad():
        for row, image in enumerate(images):
            for column, text in enumerate(captions):
                padding = {"padding": "max_length"} if kind == "siglip" else {}
                inputs = both(
                    text=[text], images=[image], return_tensors="pt", truncation=True, max_length=LONGEST, **padding
                )
                outputs = dual_encoder(**inputs)
                table[row, column] = torch.cosine_similarity(outputs.image_embeds, outputs.text_embeds)
    dual_encoder.train()
    return table


class TestDualEncoderRetriever:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("images_at_once", [1, 4, 64])
    def test_equals_plain_cosine_similarity(self, kind: Kind, images_at_once: int) -> None:
        dual_encoder, images = model(kind), tiny.images(3)
        scorer = DualEncoderRetriever(dual_encoder, processor(kind), images_at_once).scorer(TEXTS)
        scores = scorer.scores(images)
        expected = plain_similarity(kind, dual_encoder, images, TEXTS)
        assert (scores.dtype, scores.shape, scores.requires_grad) == (torch.float32, (3, 6), False)
        torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)
        assert scores.std(dim=0).min() > 0.005 and scores.std(dim=1).min() > 0.005  # both sides matter
        assert scorer.images_at_once == images_at_once
        torch.testing.assert_close(scores[:, 0], scores[:, 4], rtol=0, atol=1e-6)

    @pytest.mark.parametrize("kind", KINDS)
    def test_leaves_the_model_as_it_was(self, kind: Kind) -> None:
        dual_encoder = model(kind)
        dual_encoder.vision_model.eval()
        modes = [module.training for module in dual_encoder.modules()]
        assert 0 < sum(modes) < len(modes)
        DualEncoderRetriever(dual_encoder, processor(kind)).scorer(TEXTS).scores(tiny.images(1))
        assert [module.training for module in dual_encoder.modules()] == modes
        assert all(weight.grad is None for weight in dual_encoder.parameters())

    def test_half_precision_weights(self) -> None:
        images, exact = tiny.images(2), model("clip")
        expected = plain_similarity("clip", exact, images, TEXTS)
        scores = DualEncoderRetriever(exact.bfloat16(), processor("clip")).scorer(TEXTS).scores(images)
        assert scores.dtype == torch.float32
        assert (scores - expected).abs().max() < 0.05

    def test_the_name_and_the_description(self) -> None:
        retriever = DualEncoderRetriever(model("siglip"), processor("siglip"))
        assert retriever.name == "cosine similarity of SiglipModel"
        assert retriever.scorer(TEXTS).description == "6 captions, features of 16 numbers"

    def test_the_fingerprint_is_of_weights_and_settings(self) -> None:
        def fingerprint(dual_encoder: Any, both: Any) -> str:
            return DualEncoderRetriever(dual_encoder, both).fingerprint()

        first = fingerprint(model("clip"), processor("clip"))
        assert first == fingerprint(model("clip"), processor("clip"))
        other_pixels = processor("clip")
        other_pixels.image_processor.image_mean = [0.1, 0.2, 0.3]
        other = (
            fingerprint(model("clip", seed=1), processor("clip")),
            fingerprint(model("clip").bfloat16(), processor("clip")),
            fingerprint(model("clip"), other_pixels),
            fingerprint(model("siglip"), processor("siglip")),
        )
        assert len({first, *other}) == 5

    def test_a_model_that_is_no_dual_encoder(self) -> None:
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
        with pytest.raises(TypeError, match="Got a BertModel, which lacks get_image_features or get_text_features"):
            DualEncoderRetriever(BertModel(BertConfig(**sizes, vocab_size=10)), processor("clip"))
        with pytest.raises(TypeError, match="Got a Linear"):
            DualEncoderRetriever(torch.nn.Linear(1, 1), processor("clip"))  # type: ignore[arg-type]

    def test_a_processor_of_one_side_only(self) -> None:
        for part in (processor("clip").tokenizer, processor("clip").image_processor, tiny.processing()):
            with pytest.raises(TypeError, match=f"Got a {type(part).__name__} as the processor"):
                DualEncoderRetriever(model("clip"), part)


class TestCaptionerRetriever:
    def test_scores_by_log_probability(self) -> None:
        captioner = captioner_for(tiny.captioner_model().eval(), tiny.processing())
        images, texts = tiny.images(3), tiny.texts(4)
        scorer = CaptionerRetriever(captioner).scorer(texts)
        pairs = PairScorer(captioner, captioner.processor.tokenize(texts).input_ids)
        assert torch.equal(scorer.scores(images), pairs.scores(captioner.processor.process_images(images)))
        assert scorer.images_at_once == pairs.plan.images_at_once
        tokens = sum(len(text.split()) + 1 for text in texts)
        assert scorer.description.startswith(f"4 distinct captions with {tokens} tokens, scored by prefix tries in ")

    def test_says_once_how_many_captions_are_cut(self, caplog: pytest.LogCaptureFixture) -> None:
        captioner = captioner_for(tiny.captioner_model(n_positions=4).eval(), tiny.processing())
        retriever = CaptionerRetriever(captioner)
        scores = retriever.scorer(["a dog", "a red dog runs", "a red dog sits on grass"]).scores(tiny.images(2))
        (record,) = (record for record in caplog.records if "are cut" in record.getMessage())
        assert record.levelno == logging.WARNING
        assert "2 of 3 captions have more than the 4 tokens" in record.getMessage()
        assert torch.equal(scores[:, 1:2].expand(-1, 2), scores[:, 1:])  # both are cut to "a red dog"

    def test_the_name_is_that_of_the_model(self) -> None:
        captioner = captioner_for(tiny.captioner_model(), tiny.processing())
        expected = "ln p(caption | image) of VisionEncoderDecoderModel of ViTModel and GPT2LMHeadModel"
        assert CaptionerRetriever(captioner).name == expected

    def test_the_fingerprint_is_of_everything_that_scores_depend_on(self) -> None:
        def fingerprint(change: Any = None, processing: Any = None, **options: Any) -> str:
            made = tiny.captioner_model(**options)
            if change is not None:
                change(made)
            return CaptionerRetriever(captioner_for(made, processing or tiny.processing())).fingerprint()

        def nudge(made: Any) -> None:
            with torch.no_grad():
                weight = made.decoder.transformer.h[0].mlp.c_fc.weight
                weight[0, 0] = float(np.nextafter(np.float32(weight[0, 0].item()), np.float32(9)))

        def start(made: Any) -> None:
            made.config.decoder_start_token_id = tiny.UNK

        first = fingerprint()
        assert first == fingerprint() == fingerprint(lambda made: made.eval())
        others = {
            "weights": fingerprint(seed=1),
            "last bit of a weight": fingerprint(nudge),
            "dtype": fingerprint(lambda made: made.double()),
            "start token": fingerprint(start),
            "number of heads": fingerprint(n_head=4),
            "image processor": fingerprint(processing=(tiny.tokenizer(), tiny.image_processor(40))),
            "tokenizer": fingerprint(processing=(words_reversed(), tiny.image_processor())),
        }
        assert first not in others.values()
        assert len(set(others.values())) == len(others)

    @pytest.mark.filterwarnings("ignore:fan_in_fan_out")
    def test_the_fingerprint_knows_how_strong_an_adapter_is(self) -> None:
        """The scale of an adapter is none of its weights."""
        from peft import LoraConfig, get_peft_model

        found = set()
        for alpha in (1, 1, 8):
            base = tiny.captioner_model()
            torch.manual_seed(1)
            config = LoraConfig(lora_alpha=alpha, target_modules=["c_attn", "q_attn"], init_lora_weights=False)
            captioner = captioner_for(get_peft_model(base, config), tiny.processing())
            found.add(CaptionerRetriever(captioner).fingerprint())
        assert len(found) == 2


def words_reversed() -> PreTrainedTokenizerFast:
    """As tiny.tokenizer, but other words have the numbers."""
    names = (*tiny.SPECIAL_TOKENS, *reversed(tiny.WORDS))
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
