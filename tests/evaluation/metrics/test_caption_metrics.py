"""The front door: names, what is refused, odd inputs, and references that are prepared once."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.evaluation import captioning
from hf_contrastive_caption.evaluation.evaluator import caption_quality, evaluate_captioner
from hf_contrastive_caption.evaluation.images import evaluation_images
from hf_contrastive_caption.evaluation.metrics import caption_metrics as module
from hf_contrastive_caption.evaluation.metrics.bleu import bleu
from hf_contrastive_caption.evaluation.metrics.caption_metrics import METRICS, caption_metrics, prepare_references
from hf_contrastive_caption.evaluation.metrics.cider import cider_d
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.rouge import rouge_l
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize
from tests import tiny

pytestmark = pytest.mark.filterwarnings("ignore:the document frequencies of CIDEr:UserWarning")

CAPTIONS = ["A dog runs on grass.", "Two cats sleep.", "", "猫が 座っている"]
REFERENCES = [
    ["A dog runs.", "The dog (brown) is running on grass!"],
    ["Cats sleep on a bed.", "two cats", "."],
    ["A red bus."],
    ["猫が 座っている", "قطة تجلس"],
]
WITHOUT_JAVA = ("bleu", "rouge_l", "cider_d", "cider")


def split(captions: list[str]) -> list[list[str]]:
    return [caption.split() for caption in captions]


def test_scores_are_those_of_the_scorers_on_the_tokens() -> None:
    scores = caption_metrics(CAPTIONS, REFERENCES, metrics=WITHOUT_JAVA)
    words, references = ptb_tokenize(CAPTIONS), [ptb_tokenize(of_image) for of_image in REFERENCES]
    assert list(scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "cider"]
    for expected in (*bleu(words, references), rouge_l(words, references), cider_d(words, references)):
        assert scores[expected.name].corpus == expected.corpus
        np.testing.assert_array_equal(scores[expected.name].per_image, expected.per_image)
    for name, score in scores.items():
        assert score.name == name
        assert score.per_image.shape == (4,) and score.per_image.dtype == np.float64
        assert score.per_image[2] == 0 and np.isfinite(score.per_image).all()
    assert scores["rouge_l"].per_image[3] == pytest.approx(1, abs=1e-12)


def test_only_what_is_asked_for_in_that_order() -> None:
    assert list(caption_metrics(CAPTIONS, REFERENCES, metrics=["rouge_l", "bleu_2", "rouge_l"])) == [
        "rouge_l",
        "bleu_2",
    ]


@pytest.mark.parametrize("n_images", [1, 2])
def test_few_images_and_identical_captions(n_images: int) -> None:
    captions = ["a b c d"] * n_images
    scores = caption_metrics(captions, [["a b c d"]] * n_images, metrics=WITHOUT_JAVA)
    for name in ("bleu_4", "rouge_l"):
        assert scores[name].per_image == pytest.approx(np.ones(n_images), abs=1e-8)
    assert scores["cider_d"].corpus == 0  # no n-gram tells the images apart


def test_prepared_references_give_the_same_scores() -> None:
    prepared = prepare_references(REFERENCES)
    caption_metrics(CAPTIONS, prepared, metrics=WITHOUT_JAVA)
    for references in (prepared, pickle.loads(pickle.dumps(prepared))):
        for captions in (CAPTIONS, CAPTIONS[::-1]):
            mine = caption_metrics(captions, references, metrics=WITHOUT_JAVA)
            plain = caption_metrics(captions, REFERENCES, metrics=WITHOUT_JAVA)
            for name in plain:
                np.testing.assert_array_equal(mine[name].per_image, plain[name].per_image)


def test_table_and_tokenizer_are_used() -> None:
    table = DocumentFrequencies.from_references(prepare_references([["a dog"], ["a cat"], ["the bus"]], split))
    captions, references = ["a dog", "a Cat"], [["a dog"], ["a cat"]]
    scores = caption_metrics(captions, references, metrics=["cider_d"], document_frequencies=table, tokenize=split)[
        "cider_d"
    ]
    expected = cider_d(split(captions), [split(of_image) for of_image in references], table)
    np.testing.assert_array_equal(scores.per_image, expected.per_image)
    assert scores.per_image[1] < scores.per_image[0]


def test_another_tokenizer_than_that_of_the_references_is_refused() -> None:
    prepared = prepare_references(REFERENCES, split)
    assert caption_metrics(["A"] * 4, prepared, metrics=["bleu_1"])["bleu_1"].per_image[0] > 0  # "A", not "a"
    with pytest.raises(ValueError, match="tokenized with .*split.*, and tokenize=.*ptb_tokenize"):
        caption_metrics(CAPTIONS, prepared, metrics=["bleu_1"], tokenize=ptb_tokenize)


def test_missing_meteor_is_left_out_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "meteor_available", lambda: "METEOR needs Java (get it)")
    for _ in range(2):
        assert list(caption_metrics(["a"], [["a"]], metrics=["meteor", "bleu_1"])) == ["bleu_1"]
    assert [record.getMessage() for record in caplog.records] == ["METEOR is left out: METEOR needs Java (get it)"]


def test_a_missing_meteor_is_said_before_captions_are_written(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "meteor_available", lambda: "java does not start here")
    captioner = captioner_for(tiny.captioner_model(), tiny.processing())
    said: list[str] = []
    monkeypatch.setattr(captioning, "_written", lambda *_: said.append(caplog.text) or ["a dog"] * 3)
    report = evaluate_captioner(captioner, tiny.caption_dataset(3), k=(), metrics=("meteor", "rouge_l"))
    assert "METEOR is left out: java does not start here" in said[0]
    assert report.left_out == {"METEOR": "java does not start here"}


def test_a_meteor_that_ends_costs_no_other_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(captions: object, references: object) -> None:
        raise RuntimeError("the Java process of METEOR ended")

    monkeypatch.setattr(module, "meteor_available", lambda: None)
    monkeypatch.setattr(module, "meteor", ended)
    dataset = tiny.caption_dataset(3)
    captions = [texts[0] for texts in dataset["captions"]]
    quality = caption_quality(captions, evaluation_images(dataset), ("meteor", "rouge_l"))
    assert quality.measures["rouge_l"].value == pytest.approx(1) and "meteor" not in quality.measures
    assert quality.left_out == {"METEOR": "the Java process of METEOR ended"}


@pytest.mark.parametrize(
    ("captions", "references", "error", "message"),
    [
        (["a"], [["a"], ["b"]], ValueError, "1 captions and references for 2 images"),
        (["a"] * 4, [["a"], [], ["b"], []], ValueError, r"2 of 4 images have no references \(numbers 1, 3\).*leave"),
        ([], [], ValueError, "nothing to score"),
        ("a dog", [["a"]], TypeError, "captions must be a list of strings, but is the string 'a dog'"),
        (["a"], ["a"], TypeError, "item 0 is the string 'a'; put it into a list"),
        (["a"], "a", TypeError, "references must be a list of lists"),
        ([None], [["a"]], TypeError, "item 0 is of type NoneType"),
        (["a"], [[1]], TypeError, r"references\[0\] must be a list of strings"),
    ],
)
def test_what_is_refused(captions: object, references: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        caption_metrics(captions, references, metrics=["bleu_1"])  # type: ignore[arg-type]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be one or more of bleu, .*, but are \['spice'\]"):
        caption_metrics(["a"], [["a"]], metrics=["spice"])
    with pytest.raises(ValueError, match="but are \\[\\]"):
        caption_metrics(["a"], [["a"]], metrics=[])
    with pytest.raises(TypeError, match="is the string 'bleu'"):
        caption_metrics(["a"], [["a"]], metrics="bleu")
    assert {"bleu_1", "bleu_4", "rouge_l", "cider", "cider_d", "meteor", "bleu"} <= set(METRICS)
