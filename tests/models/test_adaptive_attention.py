"""Adaptive attention is its equations, word by word, with one softmax over the image and the sentinel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_contrastive_caption.models import AdaptiveAttention, AdaptiveAttentionConfig
from tests import recurrent, tiny

CAPTIONS = ([tiny.BOS, 7, 8, 9], [tiny.BOS], [tiny.BOS, 20, 21], [tiny.BOS, 7, 30, 31, 32])
IMAGE_INDEX = torch.tensor([1, 0, 1, 2])


def plain(model: AdaptiveAttention, features: Tensor, ids: list[int]) -> dict[str, Tensor]:
    """Section 2 of the paper for one caption, one word after the other, as its equations are written there.

    ``features`` are A, (k, width); returns the logits and, for each word, alpha, beta and alpha-hat.
    """
    d, size = model.decoder, model.config.hidden_size
    V = torch.relu(features @ d.image.weight.T + d.image.bias)  # v_i = ReLU(W_a a_i)
    v_g = torch.relu(d.image_mean.weight @ features.mean(0) + d.image_mean.bias)  # v^g = ReLU(W_b a^g)
    W_x = torch.cat([d.word_gates.weight, d.image_gates.weight], dim=1)
    W_v, W_g, W_s = d.attend_image.weight, d.attend_hidden.weight, d.attend_sentinel.weight
    w_h = d.attend.weight[0]
    h, m = (torch.zeros(size, dtype=features.dtype) for _ in range(2))
    found: dict[str, list[Tensor]] = {"logits": [], "alpha": [], "beta": [], "alpha_hat": []}
    for token in ids:
        x = torch.cat([d.embedding.weight[token], v_g])  # x_t = [w_t; v^g]
        gates = W_x @ x + d.word_gates.bias + d.recurrent_gates.weight @ h
        enter, forget, content, leave, look = gates.view(5, size)
        m = forget.sigmoid() * m + enter.sigmoid() * content.tanh()
        h = leave.sigmoid() * m.tanh()
        s = look.sigmoid() * m.tanh()  # equations 9 and 10
        z = torch.stack([w_h @ torch.tanh(W_v @ v + W_g @ h) for v in V])  # equation 6
        alpha = z.softmax(0)  # equation 7
        c = sum(weight * v for weight, v in zip(alpha, V, strict=True))  # equation 8
        alpha_hat = torch.cat([z, (w_h @ torch.tanh(W_s @ s + W_g @ h))[None]]).softmax(0)  # equation 12
        beta = alpha_hat[-1]
        c_hat = beta * s + (1 - beta) * c  # equation 11
        found["logits"].append(d.vocabulary.weight @ (c_hat + h) + d.vocabulary.bias)  # equation 13
        for name, value in (("alpha", alpha), ("beta", beta), ("alpha_hat", alpha_hat)):
            found[name].append(value)
    return {name: torch.stack(values) for name, values in found.items()}


def flat(**more: Any) -> dict[str, Any]:
    tokens = torch.tensor([token for ids in CAPTIONS for token in ids])
    lengths = torch.tensor([len(ids) for ids in CAPTIONS])
    return {"decoder_input_ids": tokens, "lengths": lengths, "image_index": IMAGE_INDEX, **more}


def test_equals_the_equations_and_so_do_its_gradients() -> None:
    model = recurrent.captioner_model("adaptive-attention", attention_size=5).double()
    features = torch.randn(4, 6, recurrent.VISION_WIDTH, dtype=torch.float64, requires_grad=True)
    output = model(encoder_outputs=(features,), **flat(output_attentions=True))
    expected = [plain(model, features[i], ids) for i, ids in zip(IMAGE_INDEX.tolist(), CAPTIONS, strict=True)]
    logits = torch.cat([one["logits"] for one in expected])
    torch.testing.assert_close(output.logits, logits, rtol=0, atol=1e-12)
    assert output.logits.std() > 0.5
    beta, alpha_hat = (torch.cat([one[name] for one in expected]) for name in ("beta", "alpha_hat"))
    torch.testing.assert_close(output.sentinel_gate, beta, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.cross_attentions[0], alpha_hat, rtol=0, atol=1e-12)
    assert 0.01 < output.sentinel_gate.std()
    inputs = [features, *model.decoder.parameters()]
    direction = torch.randn_like(logits)
    ours = torch.autograd.grad((output.logits * direction).sum(), inputs)
    theirs = torch.autograd.grad((logits * direction).sum(), inputs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_weights_sum_to_one_with_the_sentinel_and_tell_the_spatial_ones() -> None:
    model = recurrent.captioner_model("adaptive-attention").double().eval()
    images = tiny.pixel_values(3, dtype=torch.float64)
    ids = torch.tensor([[tiny.BOS, 7, 8, 9], [tiny.BOS, 20, 21, 22], [tiny.BOS, 7, 30, 31]])
    with torch.no_grad():
        output = model(**images, decoder_input_ids=ids, output_attentions=True)
        features = model.vision(**images)[0]
    weights, gate = output.cross_attentions[0], output.sentinel_gate
    assert weights.shape == (3, 1, 4, 17) and gate.shape == (3, 4)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(3, 1, 4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(weights[:, 0, :, -1], gate)
    spatial = weights[:, 0, :, :-1] / (1 - gate)[..., None]
    for image in range(3):
        expected = plain(model, features[image], ids[image].tolist())["alpha"]
        torch.testing.assert_close(spatial[image], expected, rtol=0, atol=1e-12)
    assert model(**images, decoder_input_ids=ids).cross_attentions is None


def test_positions_of_the_feature_map_come_row_by_row() -> None:
    model = recurrent.captioner_model("adaptive-attention").eval()
    pixels = tiny.pixel_values(2)["pixel_values"]
    with torch.no_grad():
        cnn = model.vision.model(pixels).last_hidden_state
        seen = model.vision(pixels)[0]
    assert cnn.shape == (2, 16, 4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(seen[:, 4 * row + column], cnn[:, :, row, column])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_generated_captions_come_with_their_attention(num_beams: int) -> None:
    model = recurrent.captioner_model("adaptive-attention").eval()
    images = tiny.pixel_values(2)
    found = model.generate(
        **images,
        num_beams=num_beams,
        max_new_tokens=4,
        min_new_tokens=4,
        return_dict_in_generate=True,
        output_attentions=True,
    )
    assert len(found.cross_attentions) == 4
    with torch.no_grad():
        whole = model(**images, decoder_input_ids=found.sequences[:, :-1], output_attentions=True)
    for step, (weights,) in enumerate(found.cross_attentions):
        assert weights.shape == (2 * num_beams, 1, 1, 17)
        continued = torch.arange(2) if num_beams == 1 else found.beam_indices[:, step]
        expected = whole.cross_attentions[0][:, :, step]
        torch.testing.assert_close(weights[continued, :, 0], expected, rtol=0, atol=1e-5)


def test_sizes_that_make_no_model_are_refused() -> None:
    with pytest.raises(ValueError, match="attention_size is 0"):
        AdaptiveAttentionConfig(attention_size=0)
    with pytest.raises(ValueError, match="num_hidden_layers is 2"):
        AdaptiveAttentionConfig(num_hidden_layers=2)
