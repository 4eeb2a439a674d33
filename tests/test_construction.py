"""What the trainer is made of: options, models and data that fit together, and those that are refused."""

from __future__ import annotations

import copy
import math
import pickle
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Image
from peft import LoraConfig, PeftModel
from transformers import GenerationConfig, HfArgumentParser

from hf_contrastive_caption import (
    Captioner,
    ContrastiveCaptionConfig,
    ContrastiveCaptionDataset,
    ContrastiveCaptionStream,
    ContrastiveCaptionTrainer,
    captioner_for,
)
from hf_contrastive_caption.construction import make_data
from hf_contrastive_caption.fingerprints import weights_digest
from hf_contrastive_caption.loading import load_model
from tests import tiny
from tests.training import arguments, logged, trainer


def test_a_reference_with_its_own_vocabulary(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    words.add_tokens(["zebra"])
    other = tiny.captioner_model(seed=1, vocab_size=tiny.VOCABULARY_SIZE + 1)
    run = trainer(
        tmp_path, reference_model=other, reference_processing_class=(words, tiny.image_processor(32)), options={}
    )
    batch = next(iter(run.get_train_dataloader()))
    assert "reference_captions" in batch and "reference_images" not in batch
    run.train()
    assert logged(run, "loss")[0] > 1.5  # an unrelated reference does not cancel
    with pytest.raises(ValueError, match="vocabulary of 65|vocabulary of"):
        trainer(tmp_path, reference_model=tiny.captioner_model(vocab_size=tiny.VOCABULARY_SIZE + 1))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A folder with an adapter that does something, of a captioner in another folder."""
    tiny.captioner_model().save_pretrained(tmp_path / "base")
    first = trainer(
        tmp_path / "adapter",
        model=load_model(str(tmp_path / "base")),
        peft_config=LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False),
    )
    first.save_model()
    return tmp_path / "adapter"


def test_an_adapter_by_name_goes_on_training_and_is_its_own_reference(tmp_path: Path, adapter: Path) -> None:
    base = load_model(str(tmp_path / "base"))
    loaded = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    as_object = trainer(tmp_path / "object", model=loaded)
    by_name = trainer(tmp_path / "name", model=str(adapter), processing_class=None)  # what lies beside the adapter
    assert isinstance(by_name.model, PeftModel)
    assert by_name.reference.description == as_object.reference.description
    for run in (as_object, by_name):
        run.train()
    assert logged(by_name, "loss") == logged(as_object, "loss")
    assert logged(by_name, "loss")[0] == pytest.approx(math.log(4), abs=1e-5)  # equal models, also not the base's
    expected = as_object.model.state_dict()
    for name, weight in by_name.model.state_dict().items():
        assert torch.equal(weight, expected[name])
    moved = [name for name, weight in by_name.model.named_parameters() if weight.requires_grad]
    assert moved and all("lora_" in name for name in moved)


def test_an_adapter_knows_its_base_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.captioner_model().save_pretrained("base")
    run = trainer(tmp_path / "adapter", model="base", peft_config=LoraConfig(r=2, target_modules=["c_attn"]))
    run.save_model()
    monkeypatch.chdir("/")
    loaded = Captioner.from_pretrained(tmp_path / "adapter").model
    assert isinstance(loaded, PeftModel)
    assert loaded.active_peft_config.base_model_name_or_path == str(tmp_path / "base")


def test_an_adapter_by_name_as_the_reference(tmp_path: Path, adapter: Path) -> None:
    base = load_model(str(tmp_path / "base"))
    losses = []
    for reference in (str(adapter), PeftModel.from_pretrained(base, str(adapter))):
        run = trainer(tmp_path / "out", reference_model=reference)
        run.train()
        losses.append(logged(run, "loss"))
    assert losses[0] == losses[1]
    assert losses[0][0] != pytest.approx(math.log(4), abs=1e-5)  # and not the base


def test_what_is_saved_last_into_a_folder_is_what_is_loaded(tmp_path: Path, adapter: Path) -> None:
    (adapter / "notes.txt").write_text("mine")
    trained = (adapter / "adapter_model.safetensors").read_bytes()
    whole = trainer(adapter, model=tiny.captioner_model(seed=3))
    whole.save_model()
    loaded = Captioner.from_pretrained(adapter).model
    assert not isinstance(loaded, PeftModel) and (adapter / "notes.txt").read_text() == "mine"
    assert weights_digest(loaded) == weights_digest(whole.captioner.model)
    # Nothing of the adapter is lost.
    assert (adapter / "adapter_config.json.before").is_file()
    assert (adapter / "adapter_model.safetensors").read_bytes() == trained
    lora = LoraConfig(r=2, target_modules=["c_attn"])
    trainer(adapter, model=load_model(str(adapter)), peft_config=lora).save_model()  # its base is in the same folder
    assert isinstance(Captioner.from_pretrained(adapter).model, PeftModel)
    assert {"config.json", "model.safetensors"} <= {path.name for path in adapter.iterdir()}
    captioner_for(tiny.captioner_model(seed=3), tiny.processing()).save_pretrained(adapter)
    assert weights_digest(Captioner.from_pretrained(adapter).model) == weights_digest(loaded)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("predict_with_generate", True, "eval_captions"),
        ("auto_find_batch_size", True, "gradient_accumulation_steps"),
        ("generation_config", GenerationConfig(num_beams=1), "generation_num_beams and generation_max_length say"),
        ("neftune_noise_alpha", 5.0, "noise"),
        ("use_liger_kernel", True, "fused"),
        ("label_smoothing_factor", 0.1, "log-ratio"),
        ("torch_compile", True, "hooks"),
        ("dataloader_drop_last", True, "every image counts once in an epoch"),
        ("remove_unused_columns", True, "drops the others"),
        ("train_sampling_strategy", "batch_rebalance", "must be one of random, sequential, group_by_length"),
        ("length_column_name", "n_words", "no column of lengths"),
        ("include_num_input_tokens_seen", "all", "ragged"),
        ("num_negatives", 0, "num_negatives must be a whole number of at least 1, but is 0"),
        ("noise_ratio", 0.0, "noise_ratio must be above 0"),
        ("noise_ratio", "1", "noise_ratio must be a number, but is '1'"),
        ("hard_negative_share", "0.5", "hard_negative_share must be a number, but is '0.5'"),
        ("mle_weight", True, "mle_weight must be a number, but is True"),
        ("noise_ratio", math.nan, "noise_ratio must be above 0"),
        ("beta", -1.0, "beta must be above 0"),
        ("objective", "dpo", "must be one of contrastive, introspective, mle"),
        ("loss_type", "kto", "must be one of contrastive, dpo, infonce, nca"),
        ("mle_weight", -0.1, "mle_weight must be at least 0 and finite, but is -0.1"),
        ("mle_weight", math.nan, "mle_weight must be at least 0"),
        ("captions_per_image", "some", "whole number or 'all'"),
        ("captions_per_image", 0, "at least 1"),
        ("max_caption_tokens", 1, "at least 2"),
        ("accelerator_config", {"dispatch_batches": True}, "ragged"),
    ],
)
def test_options_that_cannot_work_are_refused_with_the_reason(
    tmp_path: Path, option: str, value: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **{option: value})


def test_a_copy_of_the_arguments_has_the_token_and_a_pickled_one_has_not(tmp_path: Path) -> None:
    args = arguments(tmp_path, hub_token="secret", eval_captions=3)
    for copied in (copy.copy(args), copy.deepcopy(args)):
        assert copied == args and copied is not args and copied.hub_token == "secret"
    assert copy.deepcopy(args).accelerator_config is not args.accelerator_config
    assert pickle.loads(pickle.dumps(args)).hub_token is None


def test_a_path_is_a_name(tmp_path: Path) -> None:
    captioner_for(tiny.captioner_model(), tiny.processing()).save_pretrained(tmp_path)
    run = trainer(tmp_path / "run", tmp_path, reference_model=tmp_path, processing_class=None)
    assert run.reference is not None and run.reference.captioner.model is not run.captioner.model


INTROSPECTIVE = {"objective": "introspective"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": "dpo", "noise_ratio": 2.0}, "noise_ratio=2.0 belongs to loss_type='contrastive' .*='dpo'"),
        ({"loss_type": "nca", "loss_terms": "positives"}, "loss_terms='positives' belongs to .* loss_type='nca'"),
        ({"objective": "mle", "loss_type": "nca"}, "loss_type='nca' is a loss of log-ratios .* objective='mle' has"),
        ({"objective": "mle", "mle_weight": 0.1}, "mle_weight=0.1 adds .* that likelihood already"),
        ({**INTROSPECTIVE, "loss_type": "infonce"}, "loss_type='infonce' is a loss of log-ratios to a reference"),
        ({**INTROSPECTIVE, "noise_ratio": 0.5}, "noise_ratio=0.5 belongs .* objective='introspective'"),
        ({**INTROSPECTIVE, "loss_terms": "negatives"}, "loss_terms='negatives' belongs .* objective='introspective'"),
        ({**INTROSPECTIVE, "precompute_reference": True}, "'introspective' has no reference, so precompute_reference"),
        ({**INTROSPECTIVE, "reference_refresh": 5}, "'introspective' has no reference, so reference_refresh"),
    ],
)
def test_settings_of_another_loss_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **options)


@pytest.mark.parametrize("argument", ["compute_metrics", "data_collator", "compute_loss_func", "model_init"])
def test_arguments_that_cannot_work_are_refused_with_the_reason(tmp_path: Path, argument: str) -> None:
    with pytest.raises(ValueError, match=f"{argument} cannot be used"):
        trainer(tmp_path, **{argument: print})


def test_other_wrong_uses(tmp_path: Path) -> None:
    model = tiny.captioner_model()
    with pytest.raises(ValueError, match="same object"):
        trainer(tmp_path, model, reference_model=model)
    with pytest.raises(ValueError, match="tokenizer and image processor must be given"):
        trainer(tmp_path, processing_class=None)
    for objective in ("mle", "introspective"):
        with pytest.raises(ValueError, match=f"objective='{objective}' has no reference"):
            trainer(tmp_path, reference_model=tiny.captioner_model(), options={"objective": objective})
    with pytest.raises(TypeError, match="unexpected argument 'teacher'"):
        trainer(tmp_path, teacher=1)
    with pytest.raises(NotImplementedError, match="metric_key_prefix"):
        trainer(tmp_path).predict(None)
    several = arguments(tmp_path)
    several._n_gpu = 2
    with pytest.raises(ValueError, match="DataParallel"):
        ContrastiveCaptionTrainer(model=model, args=several, processing_class=tiny.processing())


def test_shared_weights_are_refused(tmp_path: Path) -> None:
    model, other = tiny.captioner_model(), tiny.captioner_model(seed=1)
    other.encoder = model.encoder
    with pytest.raises(ValueError, match="share .* weights"):
        trainer(tmp_path, model, reference_model=other)
    with pytest.raises(ValueError, match="nothing to train"):
        trainer(tmp_path, tiny.captioner_model().requires_grad_(False))


def test_a_data_set_made_for_another_trainer_is_refused(tmp_path: Path) -> None:
    processor = captioner_for(tiny.captioner_model(), tiny.processing()).processor
    data: Any = ContrastiveCaptionDataset(tiny.caption_dataset(), [processor], num_negatives=5)
    run = trainer(tmp_path, data=data, options={"num_negatives": 5, "max_steps": 1})
    run.train()
    for options in ({"num_negatives": 2}, {"objective": "mle"}):
        with pytest.raises(ValueError, match="draws 5 negatives"):
            trainer(tmp_path, data=data, options=options)
    with pytest.raises(ValueError, match="another tokenizer, end token or longest caption"):
        trainer(tmp_path, data=data, options={"num_negatives": 5, "max_caption_tokens": 5})


def test_the_arguments_can_be_parsed(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--use_cpu", "--num_negatives", "3", "--captions_per_image", "2"]
    words += ["--model_init_kwargs", '{"revision": "x"}', "--report_to", "none"]
    (parsed,) = HfArgumentParser(ContrastiveCaptionConfig).parse_args_into_dataclasses(words)
    assert (parsed.num_negatives, parsed.captions_per_image) == (3, 2)
    assert parsed.model_init_kwargs == {"revision": "x"}


def test_options_that_a_ready_made_data_set_answers_otherwise_are_refused(tmp_path: Path) -> None:
    model = tiny.captioner_model()
    processor = captioner_for(model, tiny.processing()).processor
    made = ContrastiveCaptionDataset(tiny.caption_dataset(), [processor], 3, captions_per_image=2, seed=5)
    trainer(tmp_path, model, made)
    trainer(tmp_path, model, made, {"captions_per_image": 2, "data_seed": 5})
    for options, message in (
        ({"captions_per_image": "all"}, "captions_per_image is 'all', but the data set was made with 2"),
        ({"data_seed": 7}, "make the data set with seed=7"),
        ({"on_bad_image": "skip"}, "on_bad_image is 'skip', but the data set was made with 'raise'"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer(tmp_path, model, made, options)
    with pytest.raises(ValueError, match="make it with augment= instead"):
        trainer(tmp_path, model, made, augment=lambda image: image)


def test_images_that_a_ready_made_data_set_skips_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = tiny.caption_dataset().cast_column("image", Image(decode=False))
    content = rows.to_list()
    for number in range(8):
        content[number]["image"] = {"bytes": b"no image %d" % number, "path": None}
    model = tiny.captioner_model()
    processor = captioner_for(model, tiny.processing()).processor
    damaged = Dataset.from_list(content, features=rows.features)
    run = trainer(
        tmp_path, model, ContrastiveCaptionDataset(damaged, [processor], 3, on_bad_image="skip"), {"max_steps": 4}
    )
    run.train()
    assert logged(run, "skipped_images")[-1] == 8
    assert "images that do not open are skipped" in caplog.text
    lenient = ContrastiveCaptionDataset(damaged, [processor], 3, on_bad_image="skip", evaluation=True)
    options = {"eval_captions": 16, "eval_retrieval_pool": 0, "generation_max_length": 4}
    found = trainer(tmp_path, model, options=options, eval_dataset=lenient)
    assert found.evaluate()["eval_skipped_images"] == 8
    assert "8 of 16 images cannot be read and are left out" in caplog.text
    assert found.compare_with_reference(max_new_tokens=4, progress=False).target.num_images == 8


def test_a_data_set_made_for_evaluations_is_not_trained_on(tmp_path: Path) -> None:
    model = tiny.captioner_model()
    processor = captioner_for(model, tiny.processing()).processor
    made = ContrastiveCaptionDataset(tiny.caption_dataset(4), [processor], 3, evaluation=True)
    with pytest.raises(ValueError, match="same captions and negatives in every epoch; make it without"):
        trainer(tmp_path, model, made)
    assert trainer(tmp_path, model, eval_dataset=made).evaluate()["eval_loss"] == pytest.approx(math.log(4), abs=1e-5)


def test_an_evaluation_stream_of_several_processes_counts_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.captioner_model()
    processor = captioner_for(model, tiny.processing()).processor
    rows = tiny.caption_dataset(5).to_iterable_dataset()
    args = arguments(tmp_path, per_device_eval_batch_size=2)
    monkeypatch.setattr(type(args), "world_size", 2)
    for pad_to, fits in ((1, False), (6, False), (4, True), (8, True)):
        stream = ContrastiveCaptionStream(rows, [processor], 3, reservoir_size=8, evaluation=True, pad_to=pad_to)
        with nullcontext() if fits else pytest.raises(ValueError, match=f"made with pad_to={pad_to}.*with pad_to=4"):
            assert make_data(stream, [processor], 3, args, None, evaluation=True) is stream


def test_how_to_load_a_model_is_refused_beside_a_loaded_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="say how a model is loaded by name, but model is an object"):
        trainer(tmp_path, options={"model_init_kwargs": {"dtype": "bfloat16"}})
