"""FSDP2 on two real processes (gloo) against one: the same losses and weights, and saved models that are whole.

Accelerate never chooses FSDP without a GPU. Here transformers shards at loading, which ``Trainer`` knows, and
Accelerate's own sharding is called by hand, with the plugin that its config makes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import VisionEncoderDecoderModel

from hf_contrastive_caption import ContrastiveCaptionConfig, ContrastiveCaptionTrainer
from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.fingerprints import weights_digest
from hf_contrastive_caption.sharding import adapt_fsdp_plugin, full_tensor, is_sharded, resharded, whole_copy
from tests import tiny
from tests.processes import torchrun

STEPS = 4
EVEN = 66
"""A vocabulary that two processes can share evenly."""


def train(folder: Path, source: str, batch_size: int, accumulation: int, reference: str) -> dict[str, Any]:
    """Train a model for four steps over ten rows (the third step is the ragged end of an epoch) and save it."""
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

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
        max_grad_norm=1.0,
        num_negatives=3,
        captions_per_image=2,
        disable_tqdm=True,
    )
    options: dict[str, Any] = {}
    if args.world_size > 1:
        from transformers.distributed import DistributedConfig

        options["distributed_config"] = DistributedConfig(fsdp_size=args.world_size)
    model = VisionEncoderDecoderModel.from_pretrained(source, **options)
    trainer = ContrastiveCaptionTrainer(
        model=model,
        reference_model=None if reference == "copy" else tiny.captioner_model(seed=1, vocab_size=EVEN),
        args=args,
        train_dataset=tiny.caption_dataset(10),
        eval_dataset=tiny.caption_dataset(7, seed=3),
        processing_class=tiny.processing(),
    )
    sharded = isinstance(model, FSDPModule) and all(isinstance(weight, DTensor) for weight in model.parameters())
    assert sharded == (args.world_size > 1)
    assert trainer.reference is not None and not is_sharded(trainer.reference.captioner.model)
    digest = weights_digest(trainer.reference.captioner.model)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(str(folder / "model"))
    assert weights_digest(trainer.reference.captioner.model) == digest
    with resharded(model):
        after = weights_digest(model)  # gathered from all processes
    return {
        "world": args.world_size,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "norms": [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry],
        "eval": [metrics[f"eval_{name}"] for name in ("loss", "margin", "positive_log_prob")],
        "reference": digest,
        "weights": after,
    }


def prepare(decoder: str, mixed_precision: str) -> dict[str, Any]:
    """Shard a model as Accelerate does and compare scores and gradients with a whole one for some steps."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model
    from torch.distributed.fsdp import FSDPModule

    from hf_contrastive_caption.launch import accelerate_config

    torch.distributed.init_process_group("gloo")
    for name, value in load_config_from_file(str(accelerate_config("fsdp2"))).fsdp_config.items():
        os.environ[name.upper()] = str(value)
    plugin = FullyShardedDataParallelPlugin()
    if mixed_precision != "no":
        plugin.set_mixed_precision(mixed_precision)  # as AcceleratorState does
    model, whole = (tiny.captioner_model(decoder) for _ in range(2))  # type: ignore[arg-type]
    captioner, expected = (captioner_for(one, tiny.processing()) for one in (model, whole))
    for one in (captioner, expected):
        one.verify()
        one.freeze_unused()
    adapt_fsdp_plugin(plugin, model)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision=mixed_precision, device=torch.device("cpu")
    )
    accelerator.is_main_process = True
    fsdp2_prepare_model(accelerator, model)
    images, captions = tiny.pixel_values(4), tiny.captions([0, 0, 1, 2, 3, 3])
    seen: dict[str, Any] = {"world": torch.distributed.get_world_size(), "scores": [], "gradients": []}
    seen["units"] = sorted({type(one).__name__ for one in model.modules() if isinstance(one, FSDPModule)})
    optimizers = [torch.optim.SGD([w for w in one.parameters() if w.requires_grad], 0.01) for one in (model, whole)]
    for step in range(3):
        if step == 2:  # the projection in pieces, which are made again for backward
            captioner.max_logits_bytes = expected.max_logits_bytes = 4 * tiny.VOCABULARY_SIZE * 5
        scores = captioner.log_probs(model, images, captions)
        wanted = expected.log_probs(whole, images, captions)
        assert scores.dtype == torch.float32
        for one in (scores, wanted):
            (one.sum() / 6).backward()
        pairs = [(own.grad, other.grad) for own, other in zip(model.parameters(), whole.parameters(), strict=True)]
        off = [float((full_tensor(own) - other).abs().max()) for own, other in pairs if own is not None]
        seen["scores"].append(float((scores - wanted).abs().max()))
        seen["gradients"].append(max(off))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    copied = whole_copy(model)
    seen["copy"] = max(
        float((own - other).abs().max()) for own, other in zip(copied.parameters(), whole.parameters(), strict=True)
    )
    torch.distributed.destroy_process_group()
    return seen


def launch(folder: Path, processes: int, *words: str) -> list[dict[str, Any]]:
    folder.mkdir(parents=True)
    torchrun("tests.test_fsdp", folder, *words, processes=processes)
    seen = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    assert [one["world"] for one in seen] == [processes] * processes
    return seen


def check_saved(folder: Path, digest: str) -> None:
    """A saved model is whole: it loads in one process and has the weights that were trained."""
    saved = VisionEncoderDecoderModel.from_pretrained(folder / "model")
    assert type(saved) is VisionEncoderDecoderModel and not is_sharded(saved)
    assert weights_digest(saved) == digest


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("given",), marks=pytest.mark.slow),
        pytest.param(("copy",), marks=pytest.mark.slow),
    ],
)
def test_two_processes_with_shards_train_as_one_does(tmp_path: Path, words: tuple[str, ...]) -> None:
    source = str(tmp_path / "source")
    tiny.captioner_model(vocab_size=EVEN).save_pretrained(source)
    one = train(tmp_path / "one", source, 4, 1, *words)  # in this process
    assert one["world"] == 1
    runs = {"two": ("2", "1"), "accumulated": ("1", "2")}
    for name, sizes in runs.items():
        if name == "accumulated" and "given" in words:
            continue  # in the slow test
        ranks = launch(tmp_path / name, 2, "train", source, *sizes, *words)
        assert ranks[0]["weights"] == ranks[1]["weights"]
        for rank in ranks:
            assert rank["losses"] == pytest.approx(one["losses"], abs=1e-5)
            assert rank["norms"] == pytest.approx(one["norms"], rel=1e-5)
            assert rank["eval"] == pytest.approx(one["eval"], abs=1e-4)
            assert rank["reference"] == one["reference"]
        check_saved(tmp_path / name, ranks[0]["weights"])
    check_saved(tmp_path / "one", one["weights"])


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["gpt2", "mbart"])  # Accelerate's own choice of blocks stops at MBart
def test_shards_of_accelerate_score_and_learn_as_the_whole_model(tmp_path: Path, decoder: str) -> None:
    for rank in launch(tmp_path / decoder, 2, "prepare", decoder, "no"):
        assert max(rank["scores"]) < 1e-4
        assert max(rank["gradients"]) < 1e-4
        assert rank["copy"] < 1e-6
        block = {"gpt2": "FSDPGPT2Block", "mbart": "FSDPMBartDecoderLayer"}[decoder]
        assert {block, "FSDPViTLayer", "FSDPVisionEncoderDecoderModel"} <= set(rank["units"])


@pytest.mark.slow
def test_shards_of_accelerate_in_bfloat16_give_scores_in_float32(tmp_path: Path) -> None:
    for rank in launch(tmp_path / "bf16", 2, "prepare", "gpt2", "bf16"):
        assert 1e-3 < rank["scores"][0] < 0.3  # the products are bfloat16, the sums of log-probabilities are not


if __name__ == "__main__":
    torch.set_num_threads(1)
    directory, what, *rest = sys.argv[1:]
    if what == "train":
        result = train(Path(directory), rest[0], int(rest[1]), int(rest[2]), rest[3])
    else:
        result = prepare(*rest)
    (Path(directory) / f"rank{os.environ['RANK']}.json").write_text(json.dumps(result))
