"""The example for people's own photographs, on a few drawn scenes."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoTokenizer, TrainerCallback, VisionEncoderDecoderModel

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.evaluation.report import CaptionerReport
from hf_contrastive_caption.generation import caption_images
from tests import tiny

SCRIPT = Path(__file__).parents[2] / "examples" / "train_captioner.py"
TINY = (
    "--cpu --image-size 32 --patch-size 8 --width 32 --encoder-layers 1 --decoder-layers 1 --heads 2 --mlp 64 "
    "--min-frequency 1 --reference-steps 3 --reference-batch-size 8 --steps 2 --batch-size 8 --eval-batch-size 8"
).split()


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_captioner", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_captioner"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parquet")
    for split, rows in scenes(24, 8, 8, image_size=32).items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture(scope="module")
def finished(example, parquet, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    rows = example.main(["--data", str(parquet), "--output", str(output), *TINY])
    return output, rows


def test_from_scratch_on_parquet(finished, parquet):
    output, rows = finished
    assert [row.name for row in rows] == ["reference", "control", "contrastive"]
    assert rows[0].validation_loss == pytest.approx(1.386294, abs=1e-5)
    assert rows[0].ranked_first == pytest.approx(1 / 6, abs=1e-6)
    results = json.loads((output / "results.json").read_text())
    assert results["rows"] == {"train": 24, "validation": 8, "test": 8}
    assert results["models"] == {row.name: row.numbers() for row in rows}
    assert set(results["models"]["control"]) >= {
        "validation_loss", "margin", "ranked_first", "ranked_first_by_log_prob", "distinct_captions", "recall_at_1",
        "cider_d", "invented",
    }  # fmt: skip
    model = VisionEncoderDecoderModel.from_pretrained(output / "contrastive")
    processing = (
        AutoTokenizer.from_pretrained(output / "contrastive"),
        AutoImageProcessor.from_pretrained(output / "contrastive"),
    )
    processor = captioner_for(model, processing).processor
    test = Dataset.from_parquet(str(parquet / "test-00000-of-00001.parquet"))
    captions = caption_images(model, processor, test["image"], max_new_tokens=40)  # as --max-caption-tokens says
    report = CaptionerReport.load(output / "contrastive.json")
    assert captions == list(report.captions) == list(rows[2].captions)
    assert report["recall_at_1"] == rows[2].report["recall_at_1"] == results["models"]["contrastive"]["recall_at_1"][0]


def test_a_second_run_reuses_what_is_finished(example, parquet, finished, capsys):
    output, rows = finished
    before = (output / "reference" / "model.safetensors").stat().st_mtime_ns
    stage = output / "contrastive" / example.STAGE
    made_with = json.loads(stage.read_text())
    assert made_with["finished"] and not list((output / "contrastive").glob("checkpoint-*"))
    stage.write_text(json.dumps({**made_with, "finished": False}))  # as if it had been stopped in the last stage
    again = example.main(["--data", str(parquet), "--output", str(output), *TINY])
    shown = capsys.readouterr().out
    assert "reference: reused" in shown and "control: reused" in shown and "contrastive: reused" not in shown
    assert (output / "reference" / "model.safetensors").stat().st_mtime_ns == before
    assert [row.captions for row in again] == [row.captions for row in rows]
    assert again[2].validation_loss == pytest.approx(rows[2].validation_loss, abs=1e-5)


def test_a_stage_that_was_stopped_goes_on_at_its_checkpoint(example, parquet, finished, tmp_path, monkeypatch):
    """Stopped after two of three steps, then resumed: the very weights of a run that was not stopped."""
    whole, _ = finished

    class Stopped(Exception):
        pass

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise Stopped

    words = ["--data", str(parquet), "--output", str(tmp_path), *TINY, "--save-steps", "2"]
    trainer = example.ContrastiveCaptionTrainer
    with monkeypatch.context() as patch:
        patch.setattr(example, "ContrastiveCaptionTrainer", lambda **given: trainer(**given, callbacks=[Stop()]))
        with pytest.raises(Stopped):
            example.main(words)
    assert (tmp_path / "reference" / "checkpoint-2").is_dir()
    example.main(words)
    first, second = (load_file(folder / "reference" / "model.safetensors") for folder in (whole, tmp_path))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_other_options_do_not_reuse_silently(example, parquet, finished):
    output, _ = finished
    with pytest.raises(SystemExit, match="made with reference_steps 3"):
        example.main(["--data", str(parquet), "--output", str(output), *TINY, "--reference-steps", "4"])


def test_a_pretrained_captioner_and_an_imagefolder(example, finished, tmp_path):
    """One caption column, no splits: validation and test are cut off."""
    folder, output = tmp_path / "images", tmp_path / "output"
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w") as file:
        for row in scenes(30, 0, 0, image_size=32)["train"]:
            row["image"].save(folder / f"{row['image_id']}.png")
            file.write(
                json.dumps({"file_name": f"{row['image_id']}.png", "text": max(row["captions"], key=len)}) + "\n"
            )
    pretrained = finished[0] / "reference"
    rows = example.main(["--data", str(folder), "--output", str(output), "--model", str(pretrained), *TINY])
    results = json.loads((output / "results.json").read_text())
    assert results["rows"] == {"train": 24, "validation": 3, "test": 3}
    assert results["options"]["learning_rate"] == 1e-5
    assert rows[0].validation_loss == pytest.approx(1.386294, abs=1e-5)
    assert not (output / "reference").exists() and (output / "contrastive" / "model.safetensors").exists()


def test_folders_of_images_become_splits(example, tmp_path):
    for split, rows in scenes(6, 3, 2, image_size=16).items():
        (tmp_path / split).mkdir()
        lines = ["file_name,caption"]
        for row in rows:
            row["image"].save(tmp_path / split / f"{row['image_id']}.png")
            lines.append(f'{row["image_id"]}.png,"{row["captions"][0]}"')
        (tmp_path / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    data = example.three_splits(tmp_path, 0.1, 0)
    assert data.num_rows == {"train": 6, "validation": 3, "test": 2}
    assert set(data["test"].column_names) == {"image", "caption"}


def test_no_image_is_in_two_splits(example):
    ids = [f"image-{number // 5}" for number in range(100)]  # five rows an image
    data = scenes(100, 0, 0, image_size=16)["train"].remove_columns("image_id").add_column("image_id", ids)
    rest, off = example.cut(data, 0.1, seed=3)
    assert len(off) == 10 and len(rest) == 90
    assert set(off["image_id"]) & set(rest["image_id"]) == set()


def test_rows_with_the_same_file_are_not_in_two_splits(example):
    names = [number for number in range(8) for _ in range(5)]
    pictures = tiny.images(8)
    columns = {"image": [pictures[number] for number in names], "caption": [f"a {number}" for number in names]}
    rest, off = example.cut(Dataset.from_dict(columns).cast_column("image", Image()), 0.25, seed=0)
    assert len(rest) == 30 and len(off) == 10
    assert not set(rest["caption"]) & set(off["caption"])


@pytest.mark.parametrize("content", [None, "nothing"])
def test_data_that_is_not_there_is_named(example, tmp_path, content):
    source = tmp_path if content else tmp_path / "missing"
    with pytest.raises(SystemExit, match="neither parquet files" if content else "does not exist"):
        example.three_splits(source, 0.1, 0)
