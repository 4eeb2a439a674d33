"""Two real processes on gloo against one: the same negatives, losses and gradients.

``torchrun`` and not ``accelerate launch --cpu``, which silently runs one process; every worker asserts a world of two.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer
from hf_contrastive_caption.neighbours import prepare
from hf_contrastive_caption.precomputed import reference_scores, vision_states
from tests import tiny
from tests.processes import torchrun

STEPS = 4


class Recorder(TrainerCallback):
    """Keeps the gradient of every optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.gradients.append(
            torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])
        )


def run(
    folder: Path,
    batch_size: int,
    accumulation: int,
    *,
    checkpointing: bool,
    lora: bool,
    ahead: bool,
    introspective: bool,
    hard: bool,
    decoder: str,
) -> None:
    """Train for four steps over ten rows (the third step is the ragged end of an epoch) and write what was seen."""
    model: Any = tiny.captioner_model(decoder)  # type: ignore[arg-type]
    reference: Any = tiny.captioner_model(decoder, seed=1)  # type: ignore[arg-type]
    if lora:  # the reference is the model with its adapters off
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(int(os.environ["RANK"]))  # as in a script without a seed: the first process's adapter counts
        targets = r".*(q_proj|query|c_attn|q_attn)"  # the names differ between releases
        model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=0.5, fan_in_fan_out=False))
        reference = None
    if introspective:
        reference = None
    if ahead:  # several shards, for several processes
        reference_scores.ROWS_PER_SHARD, vision_states.SHARD_BYTES = 3, 3 * 17 * 32 * 4
    if hard:
        prepare.IMAGES_PER_SHARD = 3
    recorder = Recorder()
    args = ContrastiveCaptionConfig(
        output_dir=str(folder),
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        logging_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        learning_rate=1e-3,
        num_negatives=3,
        captions_per_image=2,
        disable_tqdm=True,
        gradient_checkpointing=True if checkpointing else None,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        reference_refresh=2 if lora else None,
        reference_mixup=0.5 if lora else 1.0,
        freeze_vision_encoder=ahead,
        cache_vision_states=ahead,
        precompute_reference=ahead,
        objective="introspective" if introspective else "contrastive",
        mle_weight=0.5 if introspective else 0.0,
        precomputed_dir=str(folder / "ahead") if ahead or hard else None,
        negatives="mixed" if hard else "shuffled",
        hard_negative_schedule="linear" if hard else "constant",
    )
    trainer = ContrastiveCaptionTrainer(
        model=model,
        reference_model=reference,
        args=args,
        train_dataset=tiny.caption_dataset(10),
        eval_dataset=tiny.caption_dataset(7, seed=3),
        processing_class=tiny.processing(),
        callbacks=[recorder],
    )
    margin = "image_margin" if introspective else "margin"
    calls = count_calls(trainer.captioner.base_model)
    trainer.train()
    metrics = trainer.evaluate()
    seen = {
        "world": args.world_size,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "margins": [entry[margin] for entry in trainer.state.log_history if margin in entry],
        "eval": {name: value for name, value in metrics.items() if "runtime" not in name and "second" not in name},
        "layer_calls": calls["layer"] / calls["model"],
        "gradients": [gradient.tolist() for gradient in recorder.gradients],
    }
    (folder / f"rank{args.process_index}.json").write_text(json.dumps(seen))


def count_calls(model: Any) -> dict[str, int]:
    """Count forwards of a module inside the first encoder layer and of the model: checkpointing computes it again.

    The layer itself will not do: transformers keeps its hooks outside the checkpoint.
    """
    calls = {"layer": 0, "model": 0}

    def count(name: str) -> Any:
        def hook(module: Any, args: Any) -> None:
            calls[name] += module.training and torch.is_grad_enabled()  # not the reference

        return hook

    layer = next(module for module in model.encoder.modules() if type(module).__name__ == "ViTLayer")
    next(module for module in layer.modules() if isinstance(module, torch.nn.LayerNorm)).register_forward_pre_hook(
        count("layer")
    )
    model.register_forward_pre_hook(count("model"))
    return calls


def launch(folder: Path, processes: int, batch_size: int, accumulation: int, *flags: str) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    words = (folder, batch_size, accumulation, *flags)
    torchrun("tests.test_distributed", *words, processes=processes, timeout=400)
    seen = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    assert [one["world"] for one in seen] == [processes] * processes
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--checkpointing",),
        ("--decoder=trocr",),
        ("--lora", "--checkpointing"),
        ("--ahead",),
        ("--introspective",),
        ("--hard",),
    ],
)
def test_two_processes_train_as_one_does(tmp_path: Path, flags: tuple[str, ...]) -> None:
    one = launch(tmp_path / "one", 1, 4, 1, *flags)[0]
    two = launch(tmp_path / "two", 2, 2, 1, *flags)
    accumulated = launch(tmp_path / "accumulated", 2, 1, 2, *flags)
    for several in (two, accumulated):
        for rank in several:
            assert rank["losses"] == pytest.approx(one["losses"], abs=1e-5)
            assert rank["margins"] == pytest.approx(one["margins"], abs=1e-4)
            assert len(one["margins"]) == STEPS
            compared = (
                ("image_margin", "own_image_first") if "--introspective" in flags else ("margin", "ranked_first")
            )
            for name in ("eval_loss", "eval_positive_log_prob", *(f"eval_{part}" for part in compared)):
                assert rank["eval"][name] == pytest.approx(one["eval"][name], abs=1e-4)
        for step in range(STEPS):
            ranks = [torch.tensor(rank["gradients"][step], dtype=torch.float64) for rank in several]
            assert torch.equal(ranks[0], ranks[1])
            expected = torch.tensor(one["gradients"][step], dtype=torch.float64)
            assert expected.norm() > 0.1
            assert (ranks[0] - expected).norm() / expected.norm() < 1e-4
    if "--ahead" in flags:  # two processes share the work of one; every image and score is there once
        files = [
            sorted(path.name for path in (tmp_path / name / "ahead").rglob("*.safetensors")) for name in ("one", "two")
        ]
        assert files[0] == files[1] and len(files[0]) == 4 + 3 + 2 * 4 + 3
        return
    if "--hard" in flags:
        files = [list((tmp_path / name / "ahead").rglob("*.safetensors")) for name in ("one", "two")]
        assert len(files[0]) == len(files[1]) == 2 * 4
    checkpointing = "--checkpointing" in flags
    for rank in (one, *two):
        assert (rank["layer_calls"] > 1.5) == checkpointing  # computed again in backward, or not


if __name__ == "__main__":
    torch.set_num_threads(1)
    options = sys.argv[4:]
    decoders = [option.split("=")[1] for option in options if option.startswith("--decoder=")]
    run(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        int(sys.argv[3]),
        checkpointing="--checkpointing" in options,
        lora="--lora" in options,
        ahead="--ahead" in options,
        introspective="--introspective" in options,
        hard="--hard" in options,
        decoder=decoders[0] if decoders else "gpt2",
    )
