"""The report of a captioner: made on a tiny model, compared, saved, shown."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.evaluation.bootstrap import Bootstrap
from hf_contrastive_caption.evaluation.evaluator import evaluate_captioner
from hf_contrastive_caption.evaluation.images import evaluation_images
from hf_contrastive_caption.evaluation.measures import Measure
from hf_contrastive_caption.evaluation.metrics.caption_metrics import caption_metrics
from hf_contrastive_caption.evaluation.metrics.diversity import cider_btw, distinct_captions, mbleu
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.invention import invented_words
from hf_contrastive_caption.evaluation.report import CaptionerReport, report_table
from hf_contrastive_caption.evaluation.retrieval.self_retrieval import self_retrieval
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from hf_contrastive_caption.writing import write_whole

pytestmark = pytest.mark.filterwarnings("ignore:the document frequencies of CIDEr:UserWarning")
METRICS = ("cider_d", "bleu", "rouge_l")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return scenes(4, 2, 12, image_size=32)["test"]


@pytest.fixture(scope="module")
def captioner(data):
    tokenizer = word_level_tokenizer(caption for captions in data["captions"] for caption in captions)
    model = small_captioner(
        tokenizer, image_size=32, patch_size=8, width=32, encoder_layers=1, decoder_layers=1, heads=2, mlp=64, seed=3
    )
    return captioner_for(model, (tokenizer, small_image_processor(32)))


@pytest.fixture(scope="module")
def given(data) -> list[str]:
    """Captions of people: those of the image, but for two images the next one's, and one empty."""
    captions = [texts[0] for texts in data["captions"]]
    return ["", captions[2], captions[1], *captions[3:]]


def make(captioner, data, **options) -> CaptionerReport:
    return evaluate_captioner(captioner, data, metrics=METRICS, resamples=200, progress=False, **options)


def test_numbers_are_those_of_the_parts(captioner, data, given):
    report = make(captioner, data, captions=given, name="people", training_captions=[given[3], "another"])
    references = [list(texts) for texts in data["captions"]]
    expected = caption_metrics(given, references, metrics=METRICS)
    for name, score in expected.items():
        assert report[name] == pytest.approx(score.corpus, abs=1e-12)
    retrieval = self_retrieval(captioner, data["image"], given, k=(1, 5, 10), resamples=200, progress=False)
    for name, measure in retrieval.measures.items():
        assert report[name] == measure.value and report.measures[name].interval == measure.interval
    invention = invented_words(given, references)
    assert report["invented"] == pytest.approx(invention.corpus)
    assert report.invented_words == tuple(map(tuple, invention.words))
    assert report["cider_btw"] == pytest.approx(cider_btw(given, references, k=5).corpus)
    assert report["distinct_captions"] == distinct_captions(given).number
    assert report["novel_share"] == pytest.approx(np.mean([text != given[3] for text in given]))
    assert report.decoding == "captions were given" and report.chance["recall_at_5"] == 5 / 12
    interval = Bootstrap(12, 200).mean(expected["cider_d"].per_image)
    assert report.measures["cider_d"].interval == interval


def test_captions_are_written_when_they_are_not_given(captioner, data):
    report = make(captioner, data, max_new_tokens=8, num_beams=1, samples_per_image=2)
    assert len(report.captions) == 12 and report.decoding == "captions generated greedily, max_new_tokens=8"
    again = make(captioner, data, max_new_tokens=8, num_beams=1, samples_per_image=2)
    assert again.captions == report.captions and again["mbleu_4"] == report["mbleu_4"]
    assert 0 <= report["mbleu_4"] <= 1
    assert mbleu([["a dog runs off", "a dog runs off"]] * 2) == pytest.approx(1)


def test_samples_beside_given_captions_take_the_arguments(captioner, data, given):
    written = make(captioner, data, k=(), max_new_tokens=3, samples_per_image=2)
    report = make(captioner, data, k=(), captions=given, max_new_tokens=3, samples_per_image=2)
    assert report["mbleu_4"] == written["mbleu_4"] and report.decoding == "captions were given"
    with pytest.raises(TypeError, match="so nothing is generated; leave out max_new_tokens"):
        make(captioner, data, k=(), captions=given, max_new_tokens=3)


def test_comparison_is_paired(captioner, data, given):
    ours = make(captioner, data, captions=[texts[0] for texts in data["captions"]], name="right")
    theirs = make(captioner, data, captions=given, name="wrong")
    found = ours.compare(theirs)
    difference = found.differences["cider_d"]
    assert difference.value == pytest.approx(ours["cider_d"] - theirs["cider_d"])
    per_image = [report.measures["cider_d"].per_image[0] for report in (ours, theirs)]
    naive = Bootstrap(12, 200).mean(per_image[0] - per_image[1])
    assert (difference.low, difference.high) == pytest.approx((naive.low, naive.high))
    assert set(found.differences) >= {"recall_at_1", "median_rank", "rouge_l", "invented"}
    assert "bleu_4" not in found.differences and "distinct_captions" not in found.differences
    assert ours.compare(ours).differences["cider_d"] == (0.0, 0.0, 0.0, 1.0)
    row = next(line for line in found.to_markdown().splitlines() if line.startswith("| CIDEr-D"))
    assert f"{difference.value:+.3f}" in row


def test_reports_on_other_images_are_not_compared(captioner, data, given):
    ours = make(captioner, data, captions=given)
    with pytest.raises(ValueError, match="differ in images"):
        ours.compare(make(captioner, data.select(range(11)), captions=given[:11]))
    with pytest.raises(ValueError, match="differ in seed"):
        ours.compare(make(captioner, data, captions=given, seed=1))


def test_reports_with_other_references_or_tables_are_not_compared(captioner, data, given):
    ours = make(captioner, data, captions=given)
    others = data.remove_columns("captions").add_column("captions", [["another text"]] * 12)
    with pytest.raises(ValueError, match="differ in references"):
        ours.compare(make(captioner, others, captions=given))
    table = DocumentFrequencies.from_references(evaluation_images(others).prepared_references)
    with pytest.raises(ValueError, match="differ in document_frequencies"):
        ours.compare(make(captioner, data, captions=given, document_frequencies=table))


def test_reports_that_were_ranked_by_others_are_not_compared(captioner, data, given):
    judge, other = copy.copy(captioner), copy.deepcopy(captioner)
    other.model.name_or_path = "/there/judge"
    own, judged, by_other = (make(captioner, data, captions=given, retriever=one) for one in (None, judge, other))
    assert own.retriever == "ln p(caption | image) of the captioner itself"
    assert by_other.retriever == f"{judged.retriever} (judge)"
    for one, two in ((own, judged), (judged, own), (judged, by_other)):
        with pytest.raises(ValueError, match="so their recalls cannot be compared. Evaluate both with the same"):
            one.compare(two)
    assert own.compare(make(other, data, captions=given)).differences["recall_at_1"].value == 0
    assert judged.compare(judged).differences["recall_at_1"].value == 0
    assert own.compare(make(captioner, data, captions=given, k=())).differences["cider_d"].value == 0
    before = CaptionerReport.from_dict({k: v for k, v in judged.to_dict(per_image=True).items() if k[:6] != "ranked"})
    assert own.compare(before).differences["cider_d"].value == 0


def test_a_comparison_says_how_both_sides_were_made(captioner, data, given):
    ours = make(captioner, data, captions=given, name="people")
    theirs = make(captioner, data, max_new_tokens=6, num_beams=1, name="model")
    about = ours.compare(theirs).about()
    assert "people: 12 images" in about and "model: 12 images" in about and "generated greedily" in about
    chance = (
        "A guess would reach: R@1 (%) 8.3, R@5 (%) 41.7, R@10 (%) 83.3, median rank 6.5, mean reciprocal rank 0.259."
    )
    assert ours.compare(ours).about() == f"{ours.about()} {chance}" and about.endswith(chance)
    without = make(captioner, data, captions=given, k=())
    assert without.compare(without).about() == without.about()


def test_wrong_options_are_refused_before_anything_is_generated(captioner, data, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setattr(captioner.model, "generate", lambda **_: pytest.fail("captions were generated"))
    wrong = (
        {"metrics": ("spice",)},
        {"k": (0,)},
        {"k": 5},
        {"resamples": 0},
        {"max_memory_bytes": 0},
        {"training_captions": "one text"},
        {"document_frequencies": "table.json"},
        {"cache_dir": tmp_path / "file"},
        {"cache_dir": tmp_path / "file" / "cache"},
    )
    for options in wrong:
        with pytest.raises((ValueError, TypeError)):
            evaluate_captioner(captioner, data, **options)


def test_save_and_load(captioner, data, given, tmp_path):
    report = make(captioner, data, captions=given, name="people")
    report.save(tmp_path / "report.json")
    loaded = CaptionerReport.load(tmp_path / "report.json")
    assert loaded.to_dict(per_image=True) == report.to_dict(per_image=True)
    assert loaded.compare(report).differences == report.compare(report).differences
    assert "per_image" not in json.dumps(report.to_dict())
    (tmp_path / "other.json").write_text('{"measures": {}}')
    with pytest.raises(ValueError, match="other.json is not a report"):
        CaptionerReport.load(tmp_path / "other.json")


def test_tables(captioner, data, given):
    report = make(captioner, data, captions=given, name="people")
    lines = report.to_markdown().splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    recall = report.measures["recall_at_1"]
    ends = f"{100 * recall.interval.low:.1f} to {100 * recall.interval.high:.1f}"
    assert cells == ["R@1 (%)", f"{100 * recall.value:.1f}", ends, "8.3"]
    assert "12 images; ln p(caption | image)" in lines[-1] and "captions were given" in lines[-1]
    table = report_table([report, report], ["recall_at_1", "cider_d", "not_there"]).splitlines()
    assert len(table) == 4 and table[0].count("|") == 4 and recall.text() in table[2]


def test_images_without_references_are_left_out_of_the_metrics(captioner, data, given):
    some = [texts if number % 3 else [] for number, texts in enumerate(data["captions"])]
    report = make(captioner, data.remove_columns("captions").add_column("captions", some), captions=given)
    kept = [number for number in range(12) if number % 3]
    expected = caption_metrics([given[n] for n in kept], [some[n] for n in kept], metrics=["cider_d"])
    assert report["cider_d"] == pytest.approx(expected["cider_d"].corpus)
    assert (
        report.num_images == 12 and report.num_referenced == 8 and "8 of the images have references" in report.about()
    )
    assert len(report.measures["recall_at_1"].per_image[0]) == 12
    bare = make(captioner, data.remove_columns("captions"), captions=given)
    assert "cider_d" not in bare.measures and bare["recall_at_1"] == report["recall_at_1"]
    assert bare.left_out == {"caption metrics": "no image has references."}


@pytest.mark.parametrize("size", [1, 2])
def test_one_image_and_two(captioner, data, given, size):
    report = make(captioner, data.select(range(size)), captions=given[1 : 1 + size])
    assert report.num_images == size and report.chance["recall_at_1"] == 1 / size
    assert "cider_btw" not in report.measures and set(report.measures) >= {"recall_at_1", "cider_d", "invented"}
    if size == 1:
        assert report["recall_at_1"] == 1.0 and report["median_rank"] == 1.0


def test_rows_of_one_image_are_taken_together(data):
    """A row for each caption, as many data sets are laid out: by their ids, or by the bytes of the file."""
    rows = [
        {"image": row["image"], "image_id": row["image_id"], "caption": text}
        for row in data
        for text in row["captions"]
    ]
    features = data.features.copy()
    flat = Dataset.from_list(rows).cast_column("image", features["image"])
    for dataset in (flat, flat.remove_columns("image_id"), flat.with_format("torch"), flat.with_format("numpy")):
        images = evaluation_images(dataset)
        assert len(images) == 12 and images.rows == tuple(range(0, 60, 5))
        assert [list(texts) for texts in images.references] == [list(texts) for texts in data["captions"]]
        assert images.pool.digests == evaluation_images(data).pool.digests


def test_a_sample_is_seeded_and_keeps_images_with_their_references(data):
    images = evaluation_images(data)
    sample = images.sample(5, seed=1)
    assert sample.rows == images.sample(5, seed=1).rows != images.sample(5, seed=2).rows
    assert len(sample) == 5 and list(sample.rows) == sorted(sample.rows)
    for place, row in enumerate(sample.rows):
        assert sample.pool[place].tobytes() == data[row]["image"].tobytes()
        assert list(sample.references[place]) == list(data[row]["captions"])
    assert images.sample(99, seed=1) is images


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_image": 1}, "samples_per_image is 1"),
        ({"captions": ["one"]}, "Got 1 captions for 12 images"),
        ({"metrics": ("spice",)}, "metrics must be one or more of"),
    ],
)
def test_what_cannot_be_measured_is_refused(captioner, data, given, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_captioner(captioner, data, progress=False, **{"captions": given, **options})


def test_what_is_no_captioner_or_data_set_is_refused(captioner, data):
    with pytest.raises(TypeError, match="without its tokenizer and image processor"):
        evaluate_captioner(captioner.model, data)
    with pytest.raises(TypeError, match="IterableDataset to evaluate on"):
        evaluate_captioner(captioner, data.to_iterable_dataset())
    with pytest.raises(ValueError, match="no rows"):
        evaluate_captioner(captioner, data.select([]))


def test_a_measure_is_shown_on_its_scale():
    share = Measure("share", 0.1234, percent=True)
    assert share.text() == "12.3" and share.heading == "share (%)" and share.shown(-0.01, sign="+") == "-1.0"
    assert (
        Measure("count", 20.0, count=True).text() == "20"
        and Measure("one", 1.0).text() == "1.000"
        and Measure("value", 0.25).text() == "0.250"
    )
    ranks = Measure.of(Bootstrap(3, 10), "median rank", "median", [1.0, 2.0, 5.0], better="lower")
    assert ranks.value == 2.0 and ranks.text().startswith("2 (")


def test_a_report_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "report.json"
    write_whole(file, "old")

    def killed(self: Path, *args: Any, **kwargs: Any) -> None:
        with self.open("w") as half:
            half.write("ne")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            write_whole(file, "new")
    assert file.read_text() == "old"
    (tmp_path / "link.json").symlink_to(file)
    write_whole(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink() and file.read_text() == "new"
    longest = tmp_path / ("n" * 250 + ".json")
    write_whole(longest, "new")
    assert longest.read_text() == "new"
    write_whole(Path(os.devnull), "anything")
    assert not Path(os.devnull).is_file()
