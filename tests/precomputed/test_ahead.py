"""What is computed ahead is exact, kept, never taken for something else, and refused where it cannot be right."""

from __future__ import annotations

import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from datasets import Image as ImageFeature
from PIL import Image
from transformers import TrainerCallback

from hf_contrastive_caption.data import BadImageError, ContrastiveCaptionDataset, examples
from hf_contrastive_caption.precomputed import training_epochs
from hf_contrastive_caption.precomputed.shards import ABOUT, ShardStore, fill_shards
from hf_contrastive_caption.reference import FrozenReference
from tests import tiny
from tests.families.chat import PROMPT, llava_model, llava_processing
from tests.training import arguments, logged, trainer

AHEAD = {"precompute_reference": True}
STATES = {"freeze_vision_encoder": True, "cache_vision_states": True}


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {"precomputed_dir": str(folder / "ahead"), **more}


def shards(folder: Path) -> dict[str, float]:
    """The files of what was computed ahead, and when they were written."""
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}


# Scores --------------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_the_naive_loop(tmp_path: Path) -> None:
    data = tiny.caption_dataset(10)
    run = trainer(tmp_path, data=data, options=options(tmp_path, **AHEAD, captions_per_image=2, max_steps=5))
    reference = FrozenReference(trainer(tmp_path / "other", data=data).captioner)
    run.train()
    drawn = run.train_dataset
    assert isinstance(drawn, ContrastiveCaptionDataset)
    assert drawn.reference_scores is not None
    end = tiny.EOS
    encode = tiny.tokenizer()
    for epoch in (0, 1):
        captions, _ = drawn.draw(np.arange(10), epoch)  # (20, 1 + K)
        read = drawn.reference_scores.read(range(10), epoch)
        assert all(scores.opened for scores in read)
        found = torch.cat([scores.log_probs for scores in read]).view(captions.shape)
        for row in (0, 7):
            images = run.captioner.processor.process_images([data[row]["image"]])
            for place in (2 * row, 2 * row + 1):
                for number, text in enumerate(drawn.caption_texts(captions[place])):
                    ids = torch.tensor([*encode(text)["input_ids"], end])
                    one = {
                        "input_ids": ids, "lengths": torch.tensor([len(ids)]), "image_index": torch.tensor([0])
                    }  # fmt: skip
                    plain = reference.captioner.reference_log_probs(images, one).sum()  # type: ignore[arg-type]
                    assert found[place, number] == pytest.approx(float(plain), abs=2e-4)
    with pytest.raises(ValueError, match=r"epochs \[0, 1\], and epoch 2"):
        drawn.reference_scores.read([0], 2)


def test_scores_serve_other_runs_and_only_what_fits(tmp_path: Path) -> None:
    folder = tmp_path / "ahead"
    base = options(tmp_path, **AHEAD)

    def run(**more: Any) -> dict[str, float]:
        extra = {name: more.pop(name) for name in ("data", "model", "reference_model") if name in more}
        trainer(tmp_path / "run", options={**base, **more}, **extra).train()
        return shards(folder)

    first = run()
    assert len(first) == 1
    assert run(learning_rate=1e-2, beta=0.5, output_dir=str(tmp_path / "sweep")) == first  # nothing is computed anew
    grown = run(max_steps=6)
    assert len(grown) == 2 and grown.items() > first.items()  # the second epoch, beside the first
    seen = grown
    for more in (
        {"seed": 1},
        {"num_negatives": 2},
        {"captions_per_image": 2},
        {"bf16": True},
        {"data": tiny.caption_dataset(seed=5)},
        {"model": tiny.captioner_model(seed=1)},
        {"reference_model": tiny.captioner_model(seed=2)},
        {"max_caption_tokens": 4},
    ):
        now = run(**more)
        assert len(now) == len(seen) + 1 and now.items() > seen.items(), more
        seen = now
    about = [json.loads(file.read_text()) for file in folder.rglob(ABOUT)]
    assert {entry["num_negatives"] for entry in about} == {2, 3}


def test_a_cache_under_another_name_is_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        trainer(tmp_path, options=options(tmp_path, **AHEAD, seed=seed)).train()
    first, second = sorted((tmp_path / "ahead").iterdir())
    name = "epoch-0/00000.safetensors"
    (second / name).write_bytes((first / name).read_bytes())
    (first / name).unlink()
    with pytest.raises(ValueError, match="computed from other data, draws or weights"):
        for seed in (0, 1):
            trainer(tmp_path, options=options(tmp_path, **AHEAD, seed=seed)).train()


def test_evaluations_have_scores_of_their_own(tmp_path: Path) -> None:
    held_out = tiny.caption_dataset(6, seed=3)
    expected = trainer(tmp_path / "copy", eval_dataset=held_out)
    run = trainer(tmp_path, eval_dataset=held_out, options=options(tmp_path, **AHEAD))
    before = run.evaluate()
    assert before["eval_loss"] == pytest.approx(2 * np.log(2), abs=1e-5)
    for one in (expected, run):
        one.train()
    found, wanted = run.evaluate(), expected.evaluate()
    for name in ("eval_loss", "eval_margin", "eval_positive_log_ratio"):
        assert found[name] == pytest.approx(wanted[name], abs=1e-4)
    assert abs(found["eval_loss"] - before["eval_loss"]) > 1e-3
    assert len(list((tmp_path / "ahead").rglob("evaluation/00000.safetensors"))) == 1
    with pytest.raises(ValueError, match="the reference has left memory"):
        run.evaluate(tiny.caption_dataset(6, seed=4))
    assert run.evaluate(held_out)["eval_loss"] == pytest.approx(found["eval_loss"], abs=1e-6)  # still on disk


def test_a_reference_with_another_tokenizer_scores_ahead(tmp_path: Path) -> None:
    """The loss against a BERT captioner that reads other images and tokens, ahead and not."""
    reference, processing = tiny.captioner_model("bert", size=48), tiny.processing(48)
    kwargs = {"reference_model": reference, "reference_processing_class": processing}
    expected = trainer(tmp_path / "live", **kwargs)
    run = trainer(tmp_path, options=options(tmp_path, **AHEAD), **kwargs)
    assert run.data_collator.processors == (run.captioner.processor,)  # type: ignore[attr-defined]
    for one in (expected, run):
        one.train()
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=2e-5)


# States --------------------------------------------------------------------------------------------------------------


def test_states_are_read_in_place_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.captioner_model()
    run = trainer(tmp_path, model, options=options(tmp_path, **STATES, **AHEAD, max_steps=8))
    run.prepare_start(None)
    calls: list[Any] = []
    model.encoder.register_forward_hook(lambda *given: calls.append(given))
    opened: list[Any] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *given, **more: opened.append(given) or real(*given, **more))
    run.train()
    assert len(logged(run, "loss")) == 8
    assert not opened
    assert len(calls) <= 1  # to find out how large states are


def test_states_of_images_that_are_there_several_times_are_kept_once(tmp_path: Path) -> None:
    base = tiny.caption_dataset(6, captions_per_image=1)
    data = concatenate_datasets([base, tiny.caption_dataset(6, captions_per_image=1).map(_other_words)])
    run = trainer(tmp_path, data=data, options=options(tmp_path, **STATES))
    expected = trainer(tmp_path / "pixels", data=data, options={"freeze_vision_encoder": True})
    for one in (run, expected):
        one.train()
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)
    store = run.train_dataset.vision_states._store  # type: ignore[union-attr]
    assert store.bounds[-1] == 6


def _other_words(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "captions": ["a " + text for text in row["captions"]]}


@pytest.mark.parametrize("bf16", [False, True])
def test_states_of_disk_are_those_of_memory(tmp_path: Path, bf16: bool) -> None:
    more = {"bf16": bf16, "max_steps": 4}
    memory = trainer(tmp_path / "memory", options={"freeze_vision_encoder": True, **more})
    disk = trainer(tmp_path / "disk", options=options(tmp_path, **STATES, **more))
    for one in (memory, disk):
        one.train()
    assert logged(disk, "loss") == pytest.approx(logged(memory, "loss"), abs=2e-2 if bf16 else 1e-5)
    size = sum(file.stat().st_size for file in (tmp_path / "ahead").rglob("*.safetensors"))
    assert 16 * 17 * 32 * (2 if bf16 else 4) < size < 16 * 17 * 32 * (2 if bf16 else 4) + 1000


def test_states_of_another_layer_are_encoded_again(tmp_path: Path) -> None:
    """LLaVA says in the model's config, not in the vision encoder's, which layer's states are read."""
    losses = {}
    for layer in (-2, -1):
        for cached in (False, True):
            model = llava_model()
            model.config.vision_feature_layer = layer
            more = options(tmp_path, **STATES) if cached else {"freeze_vision_encoder": True}
            more |= {"prompt": PROMPT, "objective": "mle", "max_steps": 1}
            run = trainer(tmp_path, model, tiny.caption_dataset(4, 1), more, processing_class=llava_processing())
            run.train()
            losses[layer, cached] = logged(run, "loss")
        assert losses[layer, True] == pytest.approx(losses[layer, False], abs=1e-5)
    assert abs(losses[-1, True][0] - losses[-2, True][0]) > 0.01
    assert len(shards(tmp_path / "ahead")) == 2


def test_images_that_do_not_open_are_skipped_from_disk_too(tmp_path: Path) -> None:
    data = broken(tiny.caption_dataset(8), 3)
    run = trainer(tmp_path, data=data, options=options(tmp_path, **STATES, **AHEAD, on_bad_image="skip"))
    expected = trainer(tmp_path / "pixels", data=data, options={"freeze_vision_encoder": True, "on_bad_image": "skip"})
    for one in (run, expected):
        one.train()
    assert logged(run, "skipped_images")[-1] == 1
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)
    strict = trainer(tmp_path, data=data, options=options(tmp_path, **STATES))
    with pytest.raises(Exception, match="Row 3: the image did not open when the states"):
        strict.train()


def test_scores_of_an_image_that_did_not_open_when_they_were_made_train_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny.caption_dataset(8)
    closed = data.cast_column("image", ImageFeature(decode=False))[3]["image"]["bytes"]
    opening = examples.open_image
    at_first = {"closed": True}

    def sometimes(value: Any) -> Image.Image:
        if at_first["closed"] and value["bytes"] == closed:
            raise BadImageError("timed out")
        return opening(value)

    class Opens(TrainerCallback):
        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            at_first["closed"] = False

    expected = trainer(tmp_path / "pixels", data=broken(data, 3), options={"on_bad_image": "skip"})
    expected.train()
    monkeypatch.setattr(examples, "open_image", sometimes)
    run = trainer(tmp_path, data=data, options=options(tmp_path, **AHEAD, on_bad_image="skip"), callbacks=[Opens()])
    run.train()
    assert at_first == {"closed": False} and logged(run, "skipped_images")[-1] == 1
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)
    strict = trainer(tmp_path, data=data, options=options(tmp_path, **AHEAD))
    with pytest.raises(BadImageError, match="Row 3: the image did not open when the reference scored its captions"):
        strict.train()


def broken(data: Dataset, row: int) -> Dataset:
    plain = data.cast_column("image", ImageFeature(decode=False))
    return plain.map(
        lambda one, number: {**one, "image": {"bytes": b"no image", "path": None}} if number == row else one,
        with_indices=True,
    ).cast_column("image", ImageFeature())


def test_maximum_likelihood_reads_states_as_well(tmp_path: Path) -> None:
    mle = {"objective": "mle"}
    expected = trainer(tmp_path / "pixels", options={**mle, "freeze_vision_encoder": True})
    run = trainer(tmp_path, options=options(tmp_path, **STATES, **mle))
    for one in (expected, run):
        one.train()
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)


def test_workers_read_from_disk(tmp_path: Path) -> None:
    both = options(tmp_path, **STATES, **AHEAD, max_steps=5)
    alone = trainer(tmp_path, options=both)
    with_workers = trainer(tmp_path, options={**both, "dataloader_num_workers": 2})
    for one in (alone, with_workers):
        one.train()
    assert logged(with_workers, "loss") == logged(alone, "loss")


def test_nothing_travels_with_a_data_set_to_another_trainer(tmp_path: Path) -> None:
    held_out = tiny.caption_dataset(6, seed=3)
    both = options(tmp_path, **STATES, **AHEAD)
    first = trainer(tmp_path, eval_dataset=held_out, options=both)
    first.train()
    other = tiny.captioner_model(seed=1)
    taken = {"data": first.train_dataset, "eval_dataset": first.eval_dataset}
    run = trainer(tmp_path, other, **taken)  # type: ignore[arg-type]
    expected = trainer(tmp_path, tiny.captioner_model(seed=1), eval_dataset=held_out)
    for one in (run, expected):
        one.train()
    assert logged(run, "loss") == logged(expected, "loss")
    assert run.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], abs=1e-6)


def test_a_model_that_changes_between_evaluation_and_training_poisons_nothing(tmp_path: Path) -> None:
    held_out = tiny.caption_dataset(6, seed=3)
    both = options(tmp_path, **AHEAD)
    model = tiny.captioner_model()
    run = trainer(tmp_path, model, eval_dataset=held_out, options=both)
    run.evaluate()
    model.load_state_dict(tiny.captioner_model(seed=1).state_dict())
    run.train()
    expected = trainer(tmp_path / "copy", tiny.captioner_model(seed=1), eval_dataset=held_out)
    expected.train()
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)
    assert run.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], abs=1e-4)
    clean = trainer(tmp_path, options=both)
    clean.train()
    assert logged(clean, "start_log_ratio")[0] < 1e-4


@pytest.mark.parametrize("more", [{"image_id_column": "number"}, {"objective": "mle"}])
def test_image_files_that_changed_are_encoded_again(tmp_path: Path, more: dict[str, Any]) -> None:
    paths = [str(tmp_path / f"{number}.png") for number in range(8)]

    def data(seed: int) -> Dataset:
        for path, image in zip(paths, tiny.images(8, seed), strict=True):
            image.save(path)
        columns = {"image": paths, "captions": tiny.caption_dataset(8)["captions"][:], "number": list(range(8))}
        return Dataset.from_dict(columns).cast_column("image", ImageFeature())

    both = options(tmp_path, **STATES, **more)
    trainer(tmp_path, data=data(0), options=both).train()
    first = shards(tmp_path / "ahead")
    trainer(tmp_path, data=data(0), options=both)
    run = trainer(tmp_path, data=data(1), options=both)
    run.train()
    assert len(shards(tmp_path / "ahead")) == len(first) + 1
    expected = trainer(tmp_path / "pixels", data=data(1), options={"freeze_vision_encoder": True, **more})
    expected.train()
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)


def test_a_shared_encoder_serves_a_reference_with_another_tokenizer(tmp_path: Path) -> None:
    model, reference = tiny.captioner_model(), tiny.captioner_model(seed=1)
    reference.encoder.load_state_dict(model.encoder.state_dict())
    other = tiny.tokenizer(unk_token="<bos>"), tiny.image_processor()
    kwargs = {"reference_model": reference, "reference_processing_class": other}
    run = trainer(tmp_path, model, options=options(tmp_path, **STATES), **kwargs)
    assert len(run.data_collator.processors) == 2  # type: ignore[attr-defined]
    expected = trainer(tmp_path / "pixels", options={"freeze_vision_encoder": True}, **kwargs)
    for one in (run, expected):
        one.train()
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)


def test_workers_are_given_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    fill = fill_shards

    def watched(shards: Any, bounds: Any, make_batch: Any, *given: Any, **more: Any) -> None:
        sizes.append(len(pickle.dumps(make_batch)))
        fill(shards, bounds, make_batch, *given, **more)

    monkeypatch.setattr("hf_contrastive_caption.precomputed.sharing.fill_shards", watched)
    model = tiny.captioner_model()
    model.register_forward_hook(lambda *given: None)  # which does not pickle
    trainer(tmp_path, model, data=tiny.caption_dataset(2), options=options(tmp_path, **STATES, **AHEAD)).train()
    assert len(sizes) == 2 and max(sizes) < 120_000 < 4 * model.num_parameters()


def test_an_evaluation_set_that_draws_anew_is_refused(tmp_path: Path) -> None:
    first = trainer(tmp_path)
    with pytest.raises(ValueError, match=r"make it with ContrastiveCaptionDataset\(..., evaluation=True\)"):
        trainer(tmp_path, eval_dataset=first.train_dataset, options=options(tmp_path, **AHEAD))


# Refusals, and what survives -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [AHEAD, STATES])
def test_augmentation_and_streams_are_refused(tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="augmentation, which changes an image in every epoch"):
        trainer(tmp_path, options=options(tmp_path, **option), augment=lambda image: image)
    with pytest.raises(ValueError, match="needs a data set with a length"):
        trainer(tmp_path, data=tiny.caption_dataset().to_iterable_dataset(), options=options(tmp_path, **option))


def test_states_need_a_reference_that_reads_them(tmp_path: Path) -> None:
    other = tiny.captioner_model(seed=1)
    with pytest.raises(ValueError, match="reads images with a vision encoder of its own"):
        trainer(tmp_path, reference_model=other, options=options(tmp_path, **STATES))
    run = trainer(tmp_path, reference_model=other, options=options(tmp_path, **STATES, **AHEAD))
    expected = trainer(tmp_path / "live", reference_model=other, options={"freeze_vision_encoder": True})
    for one in (expected, run):
        one.train()
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=2e-5)


def test_a_computation_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_contrastive_caption.precomputed.reference_scores.ROWS_PER_SHARD", 4)
    both = options(tmp_path, **AHEAD)
    write = ShardStore.write

    def killed(self: ShardStore, shard: int, tensors: Any) -> None:
        if shard == 2:
            raise KeyboardInterrupt
        write(self, shard, tensors)

    monkeypatch.setattr(ShardStore, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, options=both).train()
    half = shards(tmp_path / "ahead")
    assert len(half) == 2
    monkeypatch.setattr(ShardStore, "write", write)
    run = trainer(tmp_path, options=both)
    run.train()
    whole = shards(tmp_path / "ahead")
    assert len(whole) == 4 and whole.items() > half.items()
    expected = trainer(tmp_path / "copy")
    expected.train()
    assert logged(run, "loss") == pytest.approx(logged(expected, "loss"), abs=1e-5)


def test_too_little_room_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(OSError, match="choose another place with precomputed_dir"):
        trainer(tmp_path, options=options(tmp_path, **STATES)).train()


def test_the_start_check_names_edited_scores(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    both = options(tmp_path, **AHEAD)
    trainer(tmp_path, options=both).train()
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    file = next((tmp_path / "ahead").rglob("*.safetensors"))
    with safe_open(file, "pt") as stored:
        key = stored.metadata()
    save_file({name: value - 3 for name, value in load_file(file).items()}, file, key)
    with caplog.at_level(logging.WARNING):
        trainer(tmp_path, options=both).train()
    assert "The reference's scores were computed ahead" in caplog.text


def test_epochs_of_a_training(tmp_path: Path) -> None:
    data = trainer(tmp_path).train_dataset
    assert isinstance(data, ContrastiveCaptionDataset)  # 16 rows
    for given, expected in (
        ({"max_steps": 4}, 1),
        ({"max_steps": 5}, 2),
        ({"max_steps": 5, "gradient_accumulation_steps": 3}, 3),
        ({"max_steps": -1, "num_train_epochs": 2.5}, 3),
        ({"max_steps": -1, "num_train_epochs": 2}, 2),
    ):
        assert training_epochs(data, arguments(tmp_path, **given)) == list(range(expected))


def test_keys_are_the_same_in_another_process(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.training import trainer\n"
        "trainer(Path(sys.argv[1]), options={'precompute_reference': True, 'precomputed_dir': sys.argv[2]}).train()"
    )
    trainer(tmp_path / "here", options=options(tmp_path, **AHEAD)).train()
    first = shards(tmp_path / "ahead")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there"), str(tmp_path / "ahead")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert shards(tmp_path / "ahead") == first
