"""Show and Tell is its equations, word by word and caption by caption."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hf_contrastive_caption.models import ShowAndTell
from tests import recurrent, tiny


def plain_logits(model: ShowAndTell, features: Tensor, ids: list[int]) -> Tensor:
    """Equations 10 to 12 of the paper and the gates of the LSTM, one word after the other, (length, vocabulary)."""
    decoder, layers, size = model.decoder, model.config.num_hidden_layers, model.config.hidden_size
    memory = [torch.zeros(size, dtype=features.dtype) for _ in range(layers)]
    output = [torch.zeros(size, dtype=features.dtype) for _ in range(layers)]
    logits = []
    if model.config.normalize_image:
        features = (features - features.mean()) / (features.var(correction=0) + 1e-5).sqrt()
    image = decoder.image.weight @ features + decoder.image.bias
    for x in [image, *decoder.embedding.weight[ids]]:
        for layer in range(layers):
            weights = {name: getattr(decoder.lstm, f"{name}_l{layer}") for name in ("weight_ih", "weight_hh")}
            offset = getattr(decoder.lstm, f"bias_ih_l{layer}") + getattr(decoder.lstm, f"bias_hh_l{layer}")
            gates = weights["weight_ih"] @ x + weights["weight_hh"] @ output[layer] + offset
            enter, forget, content, leave = gates.view(4, size)
            memory[layer] = forget.sigmoid() * memory[layer] + enter.sigmoid() * content.tanh()
            output[layer] = leave.sigmoid() * memory[layer].tanh()
            x = output[layer]
        logits.append(decoder.vocabulary.weight @ x + decoder.vocabulary.bias)
    return torch.stack(logits[1:])  # the image predicts no word


@pytest.mark.parametrize(("layers", "normalize"), [(1, False), (2, False), (1, True)])
def test_equals_the_equations_and_so_do_its_gradients(layers: int, normalize: bool) -> None:
    settings = {"num_hidden_layers": layers, "normalize_image": normalize}
    model = recurrent.captioner_model("show-and-tell", **settings).double()
    captions = [[tiny.BOS, 7, 8, 9], [tiny.BOS], [tiny.BOS, 20, 21], [tiny.BOS, 7, 30, 31, 32]]
    image_index = torch.tensor([1, 0, 1, 2])
    features = 2 + torch.randn(3, 1, recurrent.VISION_WIDTH, dtype=torch.float64)  # like means behind a ReLU
    output = model(
        encoder_outputs=(features,),
        decoder_input_ids=torch.tensor([token for ids in captions for token in ids]),
        lengths=torch.tensor([len(ids) for ids in captions]),
        image_index=image_index,
    )
    plain = [plain_logits(model, features[i, 0], ids) for i, ids in zip(image_index.tolist(), captions, strict=True)]
    torch.testing.assert_close(output.logits, torch.cat(plain), rtol=0, atol=1e-12)
    assert output.logits.std() > 0.5
    weights = [weight for weight in model.decoder.parameters()]
    direction = torch.randn_like(output.logits)
    ours = torch.autograd.grad((output.logits * direction).sum(), weights)
    theirs = torch.autograd.grad((torch.cat(plain) * direction).sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_image_is_the_mean_over_the_feature_map() -> None:
    model = recurrent.captioner_model("show-and-tell").eval()
    pixels = tiny.pixel_values(3)["pixel_values"]
    with torch.no_grad():
        cnn = model.vision.model(pixels)
        assert cnn.last_hidden_state.shape == (3, 16, 4, 4)
        torch.testing.assert_close(model.vision(pixels)[0][:, 0], cnn.pooler_output.flatten(1), rtol=0, atol=1e-6)


def test_what_all_channels_share_does_not_reach_a_normalized_image() -> None:
    model = recurrent.captioner_model("show-and-tell", normalize_image=True).double().eval()
    features = torch.randn(3, 1, recurrent.VISION_WIDTH, dtype=torch.float64)
    inputs = {"decoder_input_ids": torch.tensor([[tiny.BOS, 7, 8]] * 3)}
    given, moved = (model(encoder_outputs=(value,), **inputs).logits for value in (features, 50 + 3 * features))
    torch.testing.assert_close(moved, given, rtol=0, atol=1e-3)  # but for the 1e-5 under the root
    model.decoder.normalize_image = False
    off = [model(encoder_outputs=(value,), **inputs).logits for value in (features, 50 + 3 * features)]
    assert (off[0] - off[1]).abs().max() > 0.1


def test_there_is_no_attention_to_show() -> None:
    model = recurrent.captioner_model("show-and-tell").eval()
    output = model(**tiny.pixel_values(2), labels=torch.tensor([[7, 2], [8, 2]]), output_attentions=True)
    assert output.cross_attentions is None and output.sentinel_gate is None
