"""The lines in ``docs/models.md`` run for every checkpoint of its table, a tiny model of its class in its place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    OPTConfig,
    PreTrainedModel,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from hf_contrastive_caption.captioners import captioner_for
from tests import tiny
from tests.families import FAMILIES
from tests.pages import python_blocks

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
LINES = {"all weights": "nlpconnect/vit-gpt2-image-captioning", "LoRA": "llava-hf/llava-1.5-7b-hf"}
"""The checkpoint that stands in the lines."""


class Row(NamedTuple):
    checkpoint: str
    model_class: str
    lines: str
    prompt: str
    target_modules: str
    weights: str
    memory: str

    def __str__(self) -> str:
        return self.checkpoint.partition("/")[2]

    @property
    def number(self) -> float:
        value, unit = self.weights.split()
        return float(value) * {"M": 1e6, "B": 1e9}[unit]


def table() -> list[Row]:
    text = PAGE.read_text(encoding="utf-8").partition("\n| checkpoint |")[2].partition("\n\n")[0]
    lines = text.splitlines()[2:]
    return [Row(*(cell.strip().strip("`") for cell in line.strip("|").split("|"))) for line in lines]


ROWS = table()
every_row = pytest.mark.parametrize("row", ROWS, ids=str)


def lines_of(row: Row, folder: Path) -> str:
    """The block of the page with what the row says in the place of what stands there."""
    checkpoint = LINES[row.lines]
    block = next(block for block in python_blocks("docs/models.md") if f'model="{checkpoint}"' in block)
    other = next(other for other in ROWS if other.checkpoint == checkpoint)
    changes = {checkpoint: str(folder), f"prompt={other.prompt}": f"prompt={row.prompt}"}
    if row.target_modules:
        changes[f"target_modules={other.target_modules}"] = f"target_modules={row.target_modules}"
    for old, new in changes.items():
        assert block.count(old) == 1
        block = block.replace(old, new)
    return block


@every_row
def test_the_lines_run(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = next(one for one in FAMILIES if type(one.model(0.0)).__name__ == row.model_class)
    folder = tmp_path / "checkpoint"
    model = family.model(0.0)
    model.save_pretrained(folder)
    captioner_for(model, family.processing(), **dict(family.options)).processor.save_pretrained(folder)
    tiny.caption_dataset(8).to_parquet(tmp_path / "train.parquet")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(lines_of(row, folder), str(PAGE), "exec"), names)
    trainer = names["trainer"]
    assert type(trainer.captioner.base_model).__name__ == row.model_class
    losses = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    assert losses[0] == pytest.approx(1.386, abs=0.05)  # one step, at which target and reference are equal
    if row.lines == "LoRA":
        weights = load_file(tmp_path / "adapted" / "adapter_model.safetensors")
        assert trainer.captioner.dtype == torch.bfloat16
        layers = {name for name, _ in model.named_modules() if re.fullmatch(row.target_modules[2:-1], name)}
        assert len(weights) == 2 * len(layers) == 8  # A and B of two projections in two layers
        assert not any("vision" in name for name in weights)
        assert max(value.abs().max() for name, value in weights.items() if "lora_B" in name) > 0
    else:
        moved = load_file(tmp_path / "tuned" / "model.safetensors")
        before = load_file(folder / "model.safetensors")
        assert moved.keys() == before.keys()
        assert any(not torch.equal(moved[name], before[name]) for name in before)


@every_row
def test_memory_follows_from_the_weights(row: Row) -> None:
    bytes_each = {"all weights": 20, "LoRA": 2}[row.lines]
    assert float(row.memory.removesuffix(" GB")) == pytest.approx(bytes_each * row.number / 1e9, abs=0.06)
    named = re.search(r"(\d+)([MmBb])(-|$)", row.checkpoint.replace("opt-2.7b", ""))
    if named is not None:
        assert row.number == float(named[1]) * {"m": 1e6, "b": 1e9}[named[2].lower()]


def default_models() -> dict[str, PreTrainedModel]:
    """Models without weights, of the sizes of the checkpoints."""
    opt = {"hidden_size": 2560, "num_hidden_layers": 32, "ffn_dim": 10240, "num_attention_heads": 32}
    text = OPTConfig(**opt, word_embed_proj_dim=2560, vocab_size=50304)
    with torch.device("meta"):
        return {
            "nlpconnect/vit-gpt2-image-captioning": VisionEncoderDecoderModel(
                encoder=ViTModel(ViTConfig()), decoder=GPT2LMHeadModel(GPT2Config(add_cross_attention=True))
            ),
            "Salesforce/blip-image-captioning-base": BlipForConditionalGeneration(BlipConfig()),
            "microsoft/git-base-coco": GitForCausalLM(GitConfig()),
            "Salesforce/blip2-opt-2.7b": Blip2ForConditionalGeneration(Blip2Config(text_config=text.to_dict())),
        }


def test_weights_are_those_of_the_default_configs() -> None:
    models = default_models()
    counted = {row.checkpoint: row.number for row in ROWS if row.checkpoint in models}
    assert counted.keys() == models.keys()
    for checkpoint, number in counted.items():
        assert number == pytest.approx(models[checkpoint].num_parameters(), rel=0.015)


def test_every_family_that_is_registered_has_a_checkpoint() -> None:
    classes = {row.model_class for row in ROWS}
    assert classes == {type(family.model(0.0)).__name__ for family in FAMILIES}
