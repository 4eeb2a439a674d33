"""Captions at every evaluation of a training: what is logged, what chooses the best model, what is refused."""

from __future__ import annotations

import logging

import pytest
from datasets import Dataset

from hf_contrastive_caption import (
    ContrastiveCaptionConfig,
    ContrastiveCaptionDataset,
    ContrastiveCaptionTrainer,
    scenes,
)
from hf_contrastive_caption.evaluation.evaluator import evaluate_captioner
from hf_contrastive_caption.evaluation.images import evaluation_images
from hf_contrastive_caption.evaluation.in_training import warn_of_collapse
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer


@pytest.fixture(scope="module")
def data() -> dict[str, Dataset]:
    return scenes(32, 20, 2, image_size=32)


def make_trainer(data, folder, **options) -> ContrastiveCaptionTrainer:
    tokenizer = word_level_tokenizer(caption for captions in data["train"]["captions"] for caption in captions)
    model = small_captioner(
        tokenizer, image_size=32, patch_size=8, width=32, encoder_layers=1, decoder_layers=1, heads=2, mlp=64
    )
    arguments = {
        "output_dir": str(folder),
        "max_steps": 4,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "generation_num_beams": 1,
        "generation_max_length": 8,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return ContrastiveCaptionTrainer(
        model=model,
        args=ContrastiveCaptionConfig(**{**arguments, **options}),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        processing_class=(tokenizer, small_image_processor(32)),
    )


def test_the_numbers_are_those_of_a_report_on_the_same_images(data, tmp_path):
    trainer = make_trainer(
        data, tmp_path, eval_captions=12, eval_retrieval_pool=7, eval_score="cider_d + 2 * recall@1 - 0.5 * invented"
    )
    logged = trainer.evaluate()
    everything = evaluation_images(data["validation"])
    images = everything.sample(12, trainer.args.draw_seed)
    options = {"num_beams": 1, "max_new_tokens": 8, "progress": False, "metrics": ("cider_d", "rouge_l")}
    table = DocumentFrequencies.from_references(everything.prepared_references)
    report = evaluate_captioner(trainer.captioner, images, k=(), document_frequencies=table, **options)
    for name in ("cider_d", "rouge_l", "invented", "distinct_share", "mean_length"):
        assert logged[f"eval_{name}"] == pytest.approx(report[name], abs=1e-9)
    pool = evaluate_captioner(trainer.captioner, images.sample(7, trainer.args.draw_seed), k=(1, 5), **options)
    for name in ("recall_at_1", "recall_at_5", "median_rank", "mean_reciprocal_rank"):
        assert logged[f"eval_{name}"] == pytest.approx(pool[name], abs=1e-9)
    expected = report["cider_d"] + 2 * pool["recall_at_1"] - 0.5 * report["invented"]
    assert logged["eval_score"] == pytest.approx(expected, abs=1e-9)
    assert logged["eval_captions_runtime"] > 0


def test_the_score_chooses_the_best_model(data, tmp_path):
    trainer = make_trainer(
        data,
        tmp_path,
        eval_captions=8,
        eval_score="recall_at_1 - mean_length",
        metric_for_best_model="score",
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    trainer.train()
    scores = [log["eval_score"] for log in trainer.state.log_history if "eval_score" in log]
    assert len(scores) == 4 and trainer.state.best_metric == max(scores)
    assert trainer.state.best_global_step == 1 + scores.index(max(scores))


def test_evaluation_leaves_the_training_as_it_is(data, tmp_path):
    """The same losses with and without captions in between: generation draws from no random state of the training."""
    losses = []
    for number in (0, 8):
        options = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 1, "eval_captions": number}
        if not number:
            options |= {"generation_num_beams": None, "generation_max_length": None}
        trainer = make_trainer(data, tmp_path / str(number), **options)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert len(losses[0]) == 4 and losses[0] == losses[1]


def test_captions_are_shown_in_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(
        data, tmp_path, eval_captions=4, report_to="tensorboard", eval_strategy="steps", eval_steps=4
    )
    trainer.train()
    folder = next(path.parent for path in tmp_path.rglob("events.out.tfevents.*"))
    events = EventAccumulator(str(folder)).Reload()
    assert [name for name in events.Tags()["images"] if name.startswith("eval/captions")] == [
        f"eval/captions/{number}" for number in range(4)
    ]
    shown = events.Tensors("eval/captions/text_summary")[0]
    text = shown.tensor_proto.string_val[0].decode()
    assert shown.step == 4 and text.count("\n") == 5 and data["validation"]["captions"][0][0] in text
    assert {"eval/recall_at_1", "eval/cider_d", "eval/distinct_share"} <= set(events.Tags()["scalars"])


def test_a_collapse_of_the_captions_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_collapse(0.3, [])
        warn_of_collapse(0.3, [0.2, 0.5])
        assert not caplog.messages
        warn_of_collapse(0.1, [0.2, 0.5])
    assert len(caplog.messages) == 1 and "collapse: 10.0 % of them are distinct, after 50.0 %" in caplog.messages[0]


def test_data_without_references_gives_what_it_can(data, tmp_path):
    trainer = make_trainer(data, tmp_path, eval_captions=4, eval_score="recall_at_1")
    blank = [[text for text in texts[:1]] for texts in data["validation"]["captions"]]
    rows = data["validation"].remove_columns("captions").add_column("captions", blank)
    assert trainer.evaluate(rows)["eval_score"] in (0.0, 0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_retrieval_pool": 5}, "eval_retrieval_pool=5 images, but only eval_captions=0"),
        ({"metric_for_best_model": "cider_d"}, "metric_for_best_model takes cider_d, which needs eval_captions"),
        ({"metric_for_best_model": "score"}, "needs eval_score"),
        ({"metric_for_best_model": "cider_d + recall@1", "eval_captions": 9}, "give the sum as eval_score="),
        ({"eval_score": "cider + 1", "eval_captions": 9}, "no measure 'cider'"),
        ({"eval_score": "recall_at_10", "eval_captions": 10}, "eval_retrieval_pool=10: it must be above"),
        ({"eval_score": "recall_at_1", "eval_captions": 9, "eval_retrieval_pool": 0}, "eval_retrieval_pool=0"),
        ({"eval_captions": 1}, "one image is always found"),
        ({"generation_num_beams": 4}, "say how captions are generated at an evaluation"),
        ({"metric_for_best_model": "cider_d - invented", "eval_captions": 9}, "give the sum as eval_score="),
        ({"metric_for_best_model": "eval_birds_invented"}, "metric_for_best_model takes invented, which needs"),
        ({"eval_captions": -1}, "eval_captions must be a whole number of at least 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveCaptionConfig(output_dir="unused", use_cpu=True, **options)


def test_lower_is_better_where_it_is():
    lower = ("invented", "eval_median_rank", "eval_birds_median_rank")
    for name, greater in (*((name, False) for name in lower), ("recall_at_1", True), ("eval_birds_cider_d", True)):
        args = ContrastiveCaptionConfig(output_dir="unused", use_cpu=True, eval_captions=9, metric_for_best_model=name)
        assert args.greater_is_better is greater


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_captions": 500, "eval_score": "recall_at_20"}, "self-retrieval has only 20 images"),
        ({"eval_captions": 9, "generation_max_length": 1000}, "generation_max_length is 1000, but captions have 1 to"),
    ],
)
def test_what_the_data_cannot_give_is_refused_before_the_training(data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(data, tmp_path, **options)


def test_streams_and_single_images_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match="a stream has no end"):
        make_trainer({**data, "validation": data["validation"].to_iterable_dataset()}, tmp_path, eval_captions=4)
    trainer = make_trainer(data, tmp_path, eval_captions=4)
    same = data["validation"].select([0, 0, 1]).remove_columns("image_id")
    assert trainer.evaluate(same)["eval_recall_at_1"] in (0.0, 0.5, 1.0)  # two images


def test_recall_of_all_images_is_not_logged(data, tmp_path):
    logged = make_trainer(data, tmp_path, eval_captions=500, eval_retrieval_pool=8).evaluate()
    assert "eval_recall_at_5" in logged and "eval_recall_at_10" not in logged


def test_data_sets_of_one_source_and_other_captions_have_pools_of_their_own(data, tmp_path):
    trainer = make_trainer(data, tmp_path, eval_captions=6)
    texts = [[f"picture {number}", f"scene {number}"] for number in range(20)]  # words that no caption here has
    rows = data["validation"].add_column("others", texts)
    scores = [
        trainer.evaluate(ContrastiveCaptionDataset(rows, [trainer.captioner.processor], caption_columns=column))
        for column in ("captions", "others", "captions")
    ]
    invented = [score["eval_invented"] for score in scores]
    assert invented[0] == invented[2] < invented[1] == 1.0


def test_tries_are_found_exact_also_where_training_casts(data, tmp_path, caplog):
    trainer = make_trainer(data, tmp_path, eval_captions=4, bf16=True)
    logged = trainer.evaluate()
    assert trainer.captioner.tries and "eval_recall_at_1" in logged
    assert not [message for message in caplog.messages if "without prefix tries" in message]
