"""Adapters by PEFT's other methods, and with PEFT's own choice of modules."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig, VeraConfig
from torch import nn

from tests.families.blip2 import blip2_model, blip2_processing
from tests.families.chat import PROMPT
from tests.training import logged, trainer


def test_a_method_that_excludes_no_modules_has_its_dead_adapters_frozen(tmp_path: Path) -> None:
    config = VeraConfig(r=4, target_modules=["q_proj", "dense"])  # the pooler of the ViT is a "dense"
    run = trainer(tmp_path, peft_config=config)
    trains = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert trains and all("vera_lambda" in name and "pooler" not in name for name in trains)
    assert any("pooler" in name and "vera_lambda" in name for name, _ in run.model.named_parameters())
    run.train()
    assert logged(run, "loss")[0] == pytest.approx(1.3862944, abs=1e-6)
    with pytest.raises(ValueError, match="the vision encoder of the model has adapters"):
        trainer(tmp_path, peft_config=config, options={"freeze_vision_encoder": True})


def test_peft_chooses_the_modules_where_the_config_names_none(tmp_path: Path) -> None:
    config = LoraConfig(r=2)
    options = {"prompt": PROMPT, "max_steps": 1}
    model = blip2_model()
    model.unused = nn.ModuleDict({"q_proj": nn.Linear(4, 4)})
    run = trainer(tmp_path, model, peft_config=config, options=options, processing_class=blip2_processing())
    adapters = {name for name, _ in run.model.named_parameters() if "lora_" in name}
    assert {name for name, weight in run.model.named_parameters() if weight.requires_grad} == adapters
    assert any("language_model" in name and "q_proj" in name for name in adapters)
    assert not any("unused" in name for name in adapters)
    assert config.target_modules is None and config.exclude_modules is None  # the user's are not changed
    run.train()
    assert logged(run, "loss") == pytest.approx([1.3862944], abs=1e-5)
