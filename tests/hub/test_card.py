"""The model card: what it says, what it does not say, and that values of users stay text."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import DatasetInfo
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from peft import LoraConfig
from PIL import Image

from hf_contrastive_caption import CaptionerReport, captioner_for, evaluate_captioner
from hf_contrastive_caption.hub import CardContent, CardExample
from hf_contrastive_caption.hub.card import card_metadata, render_card, write_card
from hf_contrastive_caption.hub.facts import Origin, TrainingFacts, adapter_kind, data_origin, usage_of
from hf_contrastive_caption.hub.markdown import Markdown, escape
from hf_contrastive_caption.report.comparison import names_of
from tests import tiny
from tests.families import FAMILIES, Family
from tests.hub.test_push import run_code
from tests.hub_server import Hub
from tests.training import trainer

NASTY = 'a <script>alert(1)</script> | "x": [y](http://z) `c` **b** $m$ ![p](q) \\| www.evil.com\n# heading\n---\nend'


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> TrainingFacts:
    """Of a trainer that was not trained."""
    return trainer(tmp_path_factory.mktemp("run")).training_facts()


@pytest.fixture(scope="module")
def reports() -> tuple[CaptionerReport, CaptionerReport]:
    """Two sets of captions of the same images."""
    data = tiny.caption_dataset(rows=6)
    captioner = captioner_for(tiny.captioner_model(), tiny.processing())
    sets = [[captions[number] for captions in data["captions"]] for number in (0, 1)]
    options: dict[str, Any] = {"metrics": ("cider_d",), "k": (1, 2), "resamples": 50, "progress": False}
    made = [
        evaluate_captioner(captioner, data, name=name, captions=captions, **options)
        for name, captions in zip(("old", "new"), sets, strict=True)
    ]
    return made[0], made[1]


def text_of(markdown: str) -> str:
    """The words that a reader of Markdown sees, in a paragraph behind a word."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(f"x {markdown}")
    (inline,) = [token for token in tokens if token.type == "inline"]
    assert [child.type for child in inline.children or []] == ["text"] * len(inline.children or [])
    return "".join(child.content for child in inline.children or [])[2:]


def card_of(facts: TrainingFacts, content: CardContent | None = None, **options: Any) -> str:
    return render_card(
        facts, content or CardContent(), [], **{"name": "n", "repository": "me/n", "curves": False, **options}
    )


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_text_is_shown_as_it_is(text: str) -> None:
    seen = " ".join(text.split())
    if seen and seen.isprintable():
        assert text_of(escape(text)) == seen


def test_text_with_every_trick_is_shown_as_it_is() -> None:
    assert text_of(escape(NASTY)) == " ".join(NASTY.split())
    assert not set("<>|`*[]$\\#&\n:") & set(re.sub(r"&#\d+;", "", escape(NASTY)))


class TestNumbers:
    def test_before_and_after_with_intervals_stand_in_the_metadata(
        self, facts: TrainingFacts, reports: tuple[CaptionerReport, CaptionerReport]
    ) -> None:
        before, after = reports
        content = CardContent(before, after, evaluation_data="My test set")
        data = yaml.safe_load(card_metadata(facts, content, name="n").to_yaml())
        (result,) = data["model-index"][0]["results"]
        assert result["dataset"] == {"name": "My test set", "type": "My-test-set"}
        metrics = {metric["type"]: metric for metric in result["metrics"]}
        assert set(metrics) == set(after.measures)
        for name in ("recall_at_1", "cider_d"):
            old, new = before.measures[name], after.measures[name]
            assert metrics[name]["value"] == new.value != old.value
            args = metrics[name]["args"]
            assert args["interval_95"] == list(new.interval[1:])  # type: ignore[index]
            assert args["before"] == old.value and args["before_interval_95"] == list(old.interval[1:])  # type: ignore[index]
            assert args["images"] == 6
        assert metrics["recall_at_1"]["args"]["chance"] == pytest.approx(1 / 6)
        (parsed, *_) = ModelCard(f"---\n{card_metadata(facts, content, name='n').to_yaml()}\n---\n").data.eval_results
        assert parsed.metric_type in metrics

    def test_the_table_is_the_comparison(
        self, facts: TrainingFacts, reports: tuple[CaptionerReport, CaptionerReport]
    ) -> None:
        before, after = reports
        card = card_of(facts, CardContent(before, after))
        lines = card.splitlines()
        for row in after.compare(before).rows(intervals=True)[1:]:
            found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
            assert [escape(cell) for cell in row] in found
        assert "those of differences are paired" in card and "Nothing was measured" not in card
        alone = card_of(facts, CardContent(after=after))
        assert escape("R@1 (%)") in alone and "paired" not in alone and "| old" not in alone

    def test_what_was_not_measured_is_said_and_not_in_the_metadata(self, facts: TrainingFacts) -> None:
        card = card_of(facts)
        assert "Nothing was measured for this card." in card and "Captions before and after" not in card
        assert "model-index" not in card_metadata(facts, CardContent(), name="n").to_dict()
        assert "The training data was not named." in card
        assert "licence of the data was not stated" in card
        assert "![Training curves]" not in card

    def test_reports_that_do_not_belong_together_are_refused(
        self, reports: tuple[CaptionerReport, CaptionerReport]
    ) -> None:
        with pytest.raises(ValueError, match=r"report of the reference \(before\) and none of the tuned"):
            CardContent(before=reports[0])
        with pytest.raises(ValueError, match="example 1 of the model card: .*typo.png.* does not open"):
            CardContent(examples=[CardExample(tiny.images(1)[0], "a", "b"), CardExample("typo.png", "a", "b")])
        with pytest.raises(ValueError, match="differ in images"):
            CardContent(before=replace(reports[0], images="others"), after=reports[1])


class TestFacts:
    def test_the_loss_and_the_settings(self, tmp_path: Path) -> None:
        options = {"noise_ratio": 2.0, "beta": 0.5, "num_negatives": 4, "gradient_accumulation_steps": 2}
        run = trainer(tmp_path, options={**options, "learning_rate": 3e-5})
        run.train()
        card = card_of(run.training_facts())
        assert run.reference is not None
        for line in (
            "| negatives for each caption, K | 4 |",
            "| noise ratio, ν | 2.0 |",
            "| scale of the log-ratio, β | 0.5 |",
            "| images in a step | 8 (4 × 2 accumulation steps × 1 processes) |",
            "| learning rate | 3e-05, linear |",
            "| steps | 2 |",
            f"| hash of the reference's weights and settings | {run.reference.digest()} |",
            "| reference | a model that was made in memory: a frozen copy of the model |",
        ):
            assert line in card.splitlines()

    def test_maximum_likelihood_has_no_reference(self, tmp_path: Path) -> None:
        card = card_of(trainer(tmp_path, options={"objective": "mle"}).training_facts())
        assert "trained by maximum likelihood" in card
        assert "| reference |" not in card and "log-ratio" not in card

    def test_a_relative_of_the_loss_and_a_likelihood_beside_it(self, tmp_path: Path) -> None:
        card = card_of(trainer(tmp_path, options={"loss_type": "nca", "mle_weight": 0.5}).training_facts())
        assert "trained with a relative of the contrastive caption loss of Dai and Lin" in card
        assert "plus the mean of −ln σ(−βG)" in card and "To it is added, weighted, the negative" in card
        assert "| weight of the likelihood of captions | 0.5 |" in card.splitlines()
        assert "ν" not in card and "terms of the loss" not in card

    def test_a_reference_that_was_replaced_is_not_called_frozen(
        self, tmp_path: Path, reports: tuple[CaptionerReport, CaptionerReport]
    ) -> None:
        options = {"reference_refresh": 20, "reference_mixup": 0.25, "negatives": "mixed", "hard_negative_share": 0.3}
        run = trainer(tmp_path, options=options)
        assert run.reference is not None and not run.training_facts().reference_replaced
        run.reference.version = 3
        facts = run.training_facts()
        example = [(Markdown("card/example-01.webp"), "one", "two")]
        before, after = reports
        card = render_card(facts, CardContent(before, after), example, name="n", repository="me/n", curves=False)
        assert "against a reference that was replaced while it trained" in card and "frozen reference" not in card
        assert "| hash of the reference's weights and settings at the start |" in card
        assert (
            "| reference replaced every | 20 steps, by 0.25 of the model and the rest of itself |" in card.splitlines()
        )
        assert "| negatives of images that are near | 30 % |" in card.splitlines()
        assert "| image | old | new |" in card.splitlines()  # the old one may be the last reference

    def test_introspective_learning_has_no_reference(self, tmp_path: Path) -> None:
        card = card_of(trainer(tmp_path, options={"objective": "introspective"}).training_facts())
        assert "trained by introspective learning" in card and "The loss is the mean of −ln σ(βD)" in card
        assert "| other images for each caption, K | 3 |" in card.splitlines()
        assert "| reference |" not in card and "log-ratio" not in card and "likelihood" not in card

    def test_folders_are_named_by_their_last_part_alone(self, tmp_path: Path) -> None:
        folder = tmp_path / "secret project" / "mle"
        model = tiny.captioner_model()
        model.save_pretrained(folder)
        captioner_for(model, tiny.processing()).processor.save_pretrained(folder)
        facts = trainer(tmp_path / "run", model=str(folder), processing_class=None).training_facts()
        assert facts.tuned == Origin("mle")
        card = card_of(facts)
        assert '| tuned model | "mle", which is not on the Hub |' in card and "secret" not in card
        assert "base_model" not in card_metadata(facts, CardContent(), name="n").to_dict()

    def test_an_adapter_that_went_on_names_its_base(self, hub: Hub, tmp_path: Path) -> None:
        lora = LoraConfig(r=2, target_modules=["c_attn"])
        trainer(tmp_path / "base", options={"push_to_hub": True, "hub_model_id": "me/base"}).push_to_hub()
        by_name: dict[str, Any] = {"processing_class": None, "options": {}}
        options = {"push_to_hub": True, "hub_model_id": "me/adapter"}
        first = trainer(tmp_path / "one", model="me/base", peft_config=lora, **{**by_name, "options": options})
        first.push_to_hub()
        second = trainer(tmp_path / "two", model="me/adapter", **by_name).training_facts()
        revision = hub["me/adapter"].commits[-1][0]
        assert second.tuned == Origin("me/adapter", "me/adapter", revision)
        for facts in (first.training_facts(), second):
            assert facts.base.repository == "me/base"
            assert "\nbase = 'me/base'\n" in card_of(facts)
            assert card_metadata(facts, CardContent(), name="n").base_model == "me/base"
        folder = trainer(tmp_path / "three", model=str(tmp_path / "one"), **by_name).training_facts()
        assert folder.tuned == Origin("one") and folder.base.repository == "me/base"

    def test_captioners_that_were_measured_are_named_by_their_last_part_alone(
        self, facts: TrainingFacts, reports: tuple[CaptionerReport, CaptionerReport], tmp_path: Path
    ) -> None:
        for names, expected in (
            (("secret/a/mle", "secret/b/tuned"), "mle | tuned |"),
            (("secret/a/last", "secret/b/last"), "reference | tuned |"),
        ):
            for name in names:
                (tmp_path / name).mkdir(parents=True)
            before, after = (replace(one, name=str(tmp_path / n)) for one, n in zip(reports, names, strict=True))
            card = card_of(facts, CardContent(before, after))
            assert expected in " ".join(card.split()) and "secret" not in card
            assert "secret" not in card_of(facts, CardContent(after=after))

    def test_data_of_the_hub_and_their_licence(self) -> None:
        class Data:
            info = DatasetInfo(
                license="cc-by-4.0", download_checksums={"hf://datasets/me/photos@0a1b2c/data/train.parquet": {}}
            )

        assert data_origin(Data()) == (Origin("me/photos", "me/photos", "0a1b2c"), "cc-by-4.0")
        assert data_origin(tiny.caption_dataset(2)) == (Origin(None), None)
        assert data_origin(None) == (Origin(None), None)

    def test_data_are_named(self, facts: TrainingFacts) -> None:
        known = replace(facts, data=Origin("me/photos", "me/photos", "0a1b2c"), data_license="cc-by-4.0")
        card = card_of(known)
        assert "Trained on me/photos at revision 0a1b2c." in card and "Licence of the data: cc-by-4.0." in card
        assert card_metadata(known, CardContent(), name="n").datasets == ["me/photos"]
        own = card_of(known, CardContent(data_name="Ours", data_license="for research only"))
        assert "Trained on Ours." in own and "Licence of the data: for research only." in own

    @pytest.mark.parametrize(
        ("license", "expected"),
        [
            (None, {}),
            ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
            ("My own: licence", {"license": "other", "license_name": "My own: licence"}),
        ],
    )
    def test_licence_of_the_model(self, facts: TrainingFacts, license: str | None, expected: dict[str, str]) -> None:
        metadata = yaml.safe_load(card_metadata(facts, CardContent(license=license), name="n").to_yaml())
        assert {key: value for key, value in metadata.items() if "license" in key} == expected


class TestWritten:
    def test_examples_are_encoded_anew_and_at_most_twelve(self, facts: TrainingFacts, tmp_path: Path) -> None:
        image = Image.new("RGB", (900, 600), (200, 30, 30))
        exif = Image.Exif()
        exif[270] = "the garden of somebody"
        stored = io.BytesIO()
        image.save(stored, format="JPEG", exif=exif)
        examples = [CardExample(stored.getvalue(), f"old {number}", f"new {number}") for number in range(14)]
        card = write_card(tmp_path, facts, CardContent(examples=examples), name="n").read_text()
        files = sorted(path.name for path in (tmp_path / "card").iterdir())
        assert files == [f"example-{number:02d}.webp" for number in range(1, 13)]
        for number, name in enumerate(files):
            assert f"| ![](card/{name}) | old {number} | new {number} |" in card.splitlines()
        content = (tmp_path / "card" / files[0]).read_bytes()
        assert Image.open(io.BytesIO(content)).size == (512, 341)
        assert b"the garden" not in content and len(content) <= 60_000

    def test_pictures_of_an_earlier_card_do_not_stay(self, facts: TrainingFacts, tmp_path: Path) -> None:
        (tmp_path / "card").mkdir()
        (tmp_path / "card" / "of-the-user.txt").write_text("kept")
        image = tiny.images(1)[0]
        logged = replace(facts, log_history=[{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}])
        write_card(tmp_path, logged, CardContent(examples=[CardExample(image, "a", "b")] * 3), name="n")
        names = {"of-the-user.txt", "training_curves.png", "example-01.webp", "example-02.webp", "example-03.webp"}
        assert {path.name for path in (tmp_path / "card").iterdir()} == names
        card = write_card(tmp_path, facts, CardContent(), name="n").read_text()
        assert [path.name for path in (tmp_path / "card").iterdir()] == ["of-the-user.txt"]
        assert "card/" not in card

    def test_what_users_write_changes_nothing_around_it(
        self, facts: TrainingFacts, reports: tuple[CaptionerReport, CaptionerReport], tmp_path: Path
    ) -> None:
        nasty = {name: NASTY for name in ("data_name", "data_license", "evaluation_data", "license", "language")}
        before, after = (replace(report, name=NASTY, retriever=NASTY) for report in reports)
        examples = [CardExample(tiny.images(1)[0], NASTY, NASTY)]
        content = CardContent(before, after, examples, **nasty)
        named = replace(facts, prompt=NASTY, usage=replace(facts.usage, question=f"{NASTY}\n```\n# out"))
        plain = CardContent(replace(before, name="p"), replace(after, name="p"), examples, **dict.fromkeys(nasty, "p"))
        shapes = []
        for chosen, given_content, name in ((named, content, NASTY), (named, plain, "p")):
            text = write_card(tmp_path, chosen, given_content, name=name, tags=[name]).read_text()
            metadata, body = re.fullmatch(r"---\n(.*?)\n---\n\n(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
            tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(body)
            shapes.append([token.type for token in tokens])
            assert yaml.safe_load(metadata)["model-index"][0]["name"] == name
            inner = [child.type for token in tokens for child in token.children or []]
            assert "html_inline" not in inner and inner.count("link_open") == 1 and inner.count("image") == 1
            for block in re.findall(r"^```python\n(.*?)^```", body, re.DOTALL | re.MULTILINE):
                compile(block, "card", "exec")
        assert shapes[0] == shapes[1]

    def test_the_trainer_writes_it_and_remembers_what_was_said(self, tmp_path: Path) -> None:
        run = trainer(tmp_path)
        run.create_model_card(language="en", license="mit", tags="mine", model_name="My model", dataset="photographs")
        run.create_model_card(finetuned_from="me/base")  # what was given before is kept
        card = ModelCard.load(tmp_path / "README.md")
        assert (card.data.language, card.data.license, card.data.base_model) == ("en", "mit", "me/base")
        assert "Trained on photographs." in card.text and "# My model\n" in card.text
        assert card.data.tags == ["contrastive-caption", "image-captioning", "mine"]

    def test_the_working_directory_has_a_name(
        self, facts: TrainingFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "birds").mkdir()
        monkeypatch.chdir(tmp_path / "birds")
        card = write_card(Path("."), facts, CardContent(), name="n").read_text()
        assert "Captioner.from_pretrained('birds')" in card
        assert names_of("..", ".") == (tmp_path.name, "birds")

    def test_a_comparison_of_the_trainer_fills_it(self, tmp_path: Path) -> None:
        run = trainer(tmp_path, eval_dataset=tiny.caption_dataset(8, seed=5), options={"learning_rate": 0.01})
        run.train()
        comparison = run.compare_with_reference(metrics=("cider_d",), max_new_tokens=6, resamples=20, progress=False)
        run.create_model_card(content=CardContent.of(comparison, examples=3, license="mit"))
        card = ModelCard.load(tmp_path / "README.md")
        for image in comparison.images[:3]:
            assert f" | {escape(image.reference.text)} | {escape(image.target.text)} |" in card.text
        assert len(list((tmp_path / "card").glob("example-*.webp"))) == 3
        values = {result.metric_type: result.metric_value for result in card.data.eval_results}
        assert values["recall_at_1"] == comparison.target["recall_at_1"]
        assert CardContent.of(comparison, examples=0).examples == ()


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_code_of_the_card_captions_as_the_library_does(
    family: Family,
    facts: TrainingFacts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    captioner = captioner_for(family.model(0.0), family.processing(), **dict(family.options))
    captioner.base_model.save_pretrained(tmp_path / "model")
    captioner.processor.save_pretrained(tmp_path / "model")
    expected = captioner.caption(tiny.images(1)[0])
    prompt = dict(family.options).get("prompt")
    usage = usage_of(captioner)
    own = replace(facts, usage=usage, prompt=prompt, adapter=adapter_kind(captioner))
    card = card_of(own, repository=str(tmp_path / "model"))
    assert run_code(card, tmp_path, monkeypatch, capsys) == [expected, expected]
