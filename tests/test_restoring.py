"""What comes back from a checkpoint: every weight bit for bit, and the adapter that was trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import TrainerCallback

from hf_contrastive_caption import Captioner, ContrastiveCaptionTrainer
from hf_contrastive_caption.adapter_files import restore_adapter
from hf_contrastive_caption.checkpoint_folders import damage
from hf_contrastive_caption.loading import load_model, restore_weights
from tests import tiny
from tests.training import logged, trainer


def test_weights_wider_than_the_first_one_are_not_rounded(tmp_path: Path) -> None:
    """``model.dtype`` is that of the frozen vision encoder."""
    model = tiny.captioner_model()
    model.encoder.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    saved = {name: value.clone() for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    restore_weights(model, str(tmp_path))
    restored = model.state_dict()
    assert {value.dtype for value in restored.values()} == {torch.bfloat16, torch.float32}
    assert all(restored[name].dtype == value.dtype for name, value in saved.items())
    assert all(torch.equal(restored[name], value) for name, value in saved.items())


CHECKPOINTS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def base(folder: Path) -> Any:
    """A captioner that knows the folder it lies in, with its processing."""
    tiny.captioner_model().save_pretrained(folder)
    for part in tiny.processing():
        part.save_pretrained(folder)
    return load_model(str(folder))


def adapted(model: Any, kind: str) -> PeftModel:
    """With an adapter of its own name, or with two that act, of which the second is active."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=kind == "named")  # poolers too
    if kind == "named":
        return get_peft_model(model, config, adapter_name="captions")
    made = get_peft_model(model, config)
    made.add_adapter("second", config)
    made.set_adapter("second")
    return made


def trained(model: PeftModel) -> dict[str, Tensor]:
    (name,) = model.active_adapters
    return {key: weight.detach().clone() for key, weight in model.named_parameters() if f".{name}." in key}


class Weights(TrainerCallback):
    """The adapter after each step."""

    def __init__(self) -> None:
        self.after: dict[int, dict[str, Tensor]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.after[state.global_step] = trained(model)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Worse(TrainerCallback):
    """A metric that is the step, so that the first checkpoint is the best."""

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        metrics["eval_step_of_test"] = float(state.global_step)


@pytest.fixture(params=["named", "second"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> ContrastiveCaptionTrainer:
    """A training whose best model, by a metric that is the step, is that of step 2."""
    weights = Weights()
    made = trainer(
        tmp_path / "run",
        adapted(base(tmp_path / "base"), request.param),
        options={
            **CHECKPOINTS, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True,
            "metric_for_best_model": "step_of_test", "greater_is_better": False, "learning_rate": 1e-2,
        },
        eval_dataset=tiny.caption_dataset(4, seed=3),
        callbacks=[weights, Worse()],
    )  # fmt: skip
    made.kind, made.weights = request.param, weights
    return made


def test_the_adapter_that_trains_is_saved_found_and_brought_back(run: Any, tmp_path: Path) -> None:
    run.train()
    assert run.state.best_global_step == 2
    assert equal(trained(run.model), run.weights.after[2]) and not equal(run.weights.after[2], run.weights.after[4])
    run.save_model()
    assert {path.name for path in (tmp_path / "run").glob("adapter_*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    assert not (tmp_path / "run" / "captions").exists() and not (tmp_path / "run" / "second").exists()
    loaded = Captioner.from_pretrained(tmp_path / "run")
    images, captions = tiny.pixel_values(2), tiny.captions([0, 1])
    run.model.eval()
    with torch.no_grad():
        expected = run.captioner.log_probs(run.model, images, captions)
        assert torch.allclose(loaded.log_probs(loaded.model, images, captions), expected, atol=1e-5, rtol=0)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.safetensors").is_file()


def test_an_adapter_with_dead_parts_is_resumed_bit_for_bit(run: Any, tmp_path: Path) -> None:
    run.train()
    fresh = adapted(load_model(str(tmp_path / "base")), run.kind)
    again = trainer(tmp_path / "run", fresh, options={**CHECKPOINTS, "learning_rate": 1e-2})
    frozen = [name for name, weight in fresh.named_parameters() if "pooler" in name and not weight.requires_grad]
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    again.train(resume_from_checkpoint=True)
    assert logged(again, "loss") == logged(run, "loss")
    assert equal(trained(again.model), run.weights.after[4])
    assert any("lora_A" in name for name in frozen)
    assert not any(weight.requires_grad for name, weight in fresh.named_parameters() if name in frozen)
    file = tmp_path / "run" / "checkpoint-2" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "adapter_model.safetensors" in str(damage(file.parent))


def test_an_adapter_of_another_shape_or_kind_is_refused(tmp_path: Path) -> None:
    def lora(**options: Any) -> PeftModel:
        return get_peft_model(tiny.captioner_model(), LoraConfig(**{"r": 2, "target_modules": ["c_attn"], **options}))

    with pytest.raises(ValueError, match=f"{tmp_path}' holds no adapter: adapter_model.safetensors"):
        restore_adapter(lora(), tmp_path)
    lora().save_pretrained(tmp_path)
    restore_adapter(lora(), tmp_path)
    for options, what in (
        ({"r": 3}, "8 weights are of another shape"),
        ({"target_modules": ["c_attn", "q_proj"]}, "weights are missing"),
        ({"target_modules": r".*h\.0\.attn\.c_attn"}, "6 weights are unknown"),
    ):
        with pytest.raises(ValueError, match=what):
            restore_adapter(lora(**options), tmp_path)


def test_folders_of_adapters_that_peft_wrote_are_named(tmp_path: Path) -> None:
    adapted(base(tmp_path / "base"), "named").save_pretrained(tmp_path / "adapters")
    folder = tmp_path / "adapters" / "captions"
    with pytest.raises(ValueError, match=rf"holds no model.*give the folder of one adapter .* \({folder}\)"):
        Captioner.from_pretrained(tmp_path / "adapters")
    assert list(Captioner.from_pretrained(folder).model.peft_config) == ["default"]
