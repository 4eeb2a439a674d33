"""The paper's captioners from scratch, as the example and the study make them."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hf_contrastive_caption.models import small_recurrent_captioner, word_level_tokenizer

TOKENIZER = word_level_tokenizer(["a small red circle .", "two shapes ."])


@pytest.mark.parametrize("kind", ["adaptive-attention", "show-and-tell"])
def test_the_seed_decides_the_weights_and_the_global_generator_stays(kind):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    models = [small_recurrent_captioner(kind, TOKENIZER, width=16, seed=seed) for seed in (0, 0, 1)]
    assert torch.rand(1) == expected
    first, again, other = (torch.cat([weight.flatten() for weight in model.parameters()]) for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)
    config = models[0].config
    assert (config.model_type, config.hidden_size, config.vocab_size) == (kind, 16, len(TOKENIZER))
    assert config.decoder_start_token_id == TOKENIZER.bos_token_id and models[0].training


def test_a_trained_vision_model_is_copied_and_frozen():
    vision = small_recurrent_captioner("adaptive-attention", TOKENIZER, width=16).vision.model
    model = small_recurrent_captioner("show-and-tell", TOKENIZER, vision, width=16, seed=5)
    ours, theirs = model.vision.model.state_dict(), vision.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(weight.requires_grad for weight in model.vision.model.parameters())
    assert all(weight.requires_grad for weight in vision.parameters())  # the given one is left as it was


def test_what_cannot_be_made_is_refused():
    with pytest.raises(ValueError, match="'neuraltalk'.*'adaptive-attention' and 'show-and-tell'"):
        small_recurrent_captioner("neuraltalk", TOKENIZER)
    no_start = PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="</s>", pad_token="<pad>"
    )
    with pytest.raises(ValueError, match="has no bos_token"):
        small_recurrent_captioner("show-and-tell", no_start)
