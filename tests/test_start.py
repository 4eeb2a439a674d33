"""Captioners to begin with: trained once, kept, and not mistaken for others."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from hf_contrastive_caption import Captioner, ContrastiveCaptionConfig, ContrastiveCaptionTrainer, scenes
from hf_contrastive_caption.demo.start import start_captioner, train_to_start
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer

TINY = {"image_size": 32, "patch_size": 8, "width": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def train():
    return scenes(24, 2, 2, image_size=32)["train"]


def words(train):
    return word_level_tokenizer(caption for captions in train["captions"] for caption in captions)


def test_it_is_trained_by_maximum_likelihood(train, tmp_path):
    """The weights of the lines that it stands for."""
    processing = (words(train), small_image_processor(32))
    model = small_captioner(processing[0], **TINY, seed=3)
    args = ContrastiveCaptionConfig(
        output_dir=str(tmp_path / "lines"), objective="mle", max_steps=4, per_device_train_batch_size=8, seed=5,
        learning_rate=1e-3, lr_scheduler_type="cosine", warmup_steps=0, save_strategy="no", report_to="none",
    )  # fmt: skip
    ContrastiveCaptionTrainer(model=model, args=args, train_dataset=train, processing_class=processing).train()
    other = small_captioner(processing[0], **TINY, seed=3)
    options = {"steps": 4, "learning_rate": 1e-3, "batch_size": 8, "seed": 5}
    folder = train_to_start(tmp_path / "start", other, processing, train, **options)
    assert folder == str(tmp_path / "start")
    loaded = Captioner.from_pretrained(folder, device="cpu").model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight.cpu(), loaded[name])


def test_what_is_there_is_not_trained_again(train, tmp_path, capsys):
    folder = start_captioner(tmp_path / "start", train, steps=2, batch_size=4)
    first = load_file(tmp_path / "start" / "model.safetensors")
    time = (tmp_path / "start" / "model.safetensors").stat().st_mtime_ns
    assert start_captioner(tmp_path / "start", train, steps=2, batch_size=4) == folder
    assert (tmp_path / "start" / "model.safetensors").stat().st_mtime_ns == time
    start_captioner(tmp_path / "again", train, steps=2, batch_size=4)
    second = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="'steps': 2.*'steps': 3.*choose another"):
        start_captioner(tmp_path / "start", train, steps=3, batch_size=4)


def test_a_training_that_was_stopped_is_done_again(train, tmp_path):
    start_captioner(tmp_path / "start", train, steps=2, batch_size=4)
    (tmp_path / "start" / "made_with.json").unlink()
    (tmp_path / "start" / "model.safetensors").write_bytes(b"half")
    folder = start_captioner(tmp_path / "start", train, steps=2, batch_size=4)
    assert len(Captioner.from_pretrained(folder).caption(train["image"][:2], max_new_tokens=3)) == 2
