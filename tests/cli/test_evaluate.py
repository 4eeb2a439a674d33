"""``contrastive-caption evaluate``: two saved captioners on a few drawn scenes."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import pytest
from datasets import Dataset, Image
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import BlipForImageTextRetrieval, BlipImageProcessor, BlipProcessor

from hf_contrastive_caption.captioners import Captioner, captioner_for
from hf_contrastive_caption.cli import evaluate as command
from hf_contrastive_caption.cli.evaluate import load_retriever
from hf_contrastive_caption.cli.main import main
from hf_contrastive_caption.console import CommandConsole
from hf_contrastive_caption.data.files import load_splits
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.evaluation import captioning
from hf_contrastive_caption.evaluation.evaluator import evaluate_captioner, prompt_of
from hf_contrastive_caption.evaluation.report import CaptionerReport
from hf_contrastive_caption.loading import is_captioner, load_parts
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from hf_contrastive_caption.report import compare_captioners
from tests import tiny
from tests.families.blip import blip_model
from tests.families.chat import PROMPT, llava_model, llava_processing

pytestmark = pytest.mark.filterwarnings("ignore:the document frequencies of CIDEr:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    data = scenes(4, 2, 10, image_size=32)
    (folder / "data").mkdir()
    for split, rows in data.items():
        rows.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    tokenizer = word_level_tokenizer(caption for captions in data["test"]["captions"] for caption in captions)
    for name, seed in (("reference", 1), ("tuned", 2)):
        model = small_captioner(
            tokenizer, image_size=32, patch_size=8, width=32, encoder_layers=1, decoder_layers=1, heads=2, mlp=64,
            seed=seed,
        )  # fmt: skip
        model.save_pretrained(folder / name)
        captioner_for(model, (tokenizer, small_image_processor(32))).processor.save_pretrained(folder / name)
    return folder


def run(*words: object, command: str = "evaluate") -> int:
    with pytest.raises(SystemExit) as end:
        main([command, *map(str, words)])
    return int(end.value.code or 0)


QUICK = ("--metrics", "cider_d,rouge_l", "--max-new-tokens", 8, "--num-beams", 1)


def test_one_captioner(folder, capsys):
    assert run(folder / "tuned", "--data", folder / "data", *QUICK, "--k", "1,3") == 0
    shown = capsys.readouterr().out
    data = load_splits(folder / "data")["test"]
    options = {"metrics": ("cider_d", "rouge_l"), "max_new_tokens": 8, "num_beams": 1, "progress": False}
    report = evaluate_captioner(folder / "tuned", data, k=(1, 3), name="tuned", **options)
    table, _, about = report.to_markdown().partition("\n\n")
    assert table in shown and about in shown
    assert "10 of 10 images of the split 'test'" in shown


def test_what_is_said_beside_the_table(folder, capsys):
    """One line for a warning, and no progress bars where there is no terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        assert run(folder / "tuned", "--data", folder / "data", *QUICK, "--k", "1") == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "document frequencies" in line] == [line for line in lines if "warning" in line]
    assert len([line for line in lines if line.startswith("warning: the document frequencies of CIDEr")]) == 1
    assert not [line for line in lines if "%|" in line or ".py:" in line]


def test_two_captioners_and_a_report(folder, tmp_path, capsys):
    out = tmp_path / "report.json"
    words = ["--reference", folder / "reference", "--out", out, "--cache-dir", tmp_path / "cache", "--images", 8]
    assert run(folder / "tuned", "--data", folder / "data", *QUICK, *words) == 0
    first = capsys.readouterr().out
    content = json.loads(out.read_text())
    report = CaptionerReport.load(out)
    reference = CaptionerReport.from_dict(content["reference"])
    assert (report.name, reference.name) == ("tuned", "reference") and report.num_images == 8
    assert report.compare(reference).to_dict() == content["comparison"]
    assert report.compare(reference).to_markdown().partition("\n\n")[0] in first
    assert run(folder / "tuned", "--data", folder / "data", *QUICK, *words) == 0  # from what was kept
    assert json.loads(out.read_text()) == content


def test_the_reference_as_judge(folder, tmp_path, capsys):
    out = tmp_path / "report.json"
    words = ["--retriever", folder / "reference", "--out", out, "--k", "1"]
    assert run(folder / "tuned", "--data", folder / "data", *QUICK, *words) == 0
    own = ["--out", tmp_path / "own.json", "--k", "1"]
    assert run(folder / "tuned", "--data", folder / "data", *QUICK, *own) == 0
    judged, by_itself = CaptionerReport.load(out), CaptionerReport.load(tmp_path / "own.json")
    assert judged.captions == by_itself.captions and judged["cider_d"] == by_itself["cider_d"]
    assert judged["mean_reciprocal_rank"] != by_itself["mean_reciprocal_rank"]


def test_in_a_terminal_the_table_is_drawn(folder, monkeypatch):
    from hf_contrastive_caption.cli import evaluate as command
    from hf_contrastive_caption.console import CommandConsole

    file = io.StringIO()
    console = CommandConsole(Console(file=file, force_terminal=True, width=120, highlight=False))
    monkeypatch.setattr(command, "CommandConsole", lambda: console)
    assert run(folder / "tuned", "--data", folder / "data", *QUICK, "--k", "1") == 0
    assert "╭" in file.getvalue() and "CIDEr-D" in file.getvalue()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--data", "missing"], 1, "missing does not exist"),
        (["--data", "data", "--split", "dev"], 1, "there is no split 'dev'"),
        (["--data", "data", "--k", "1,x"], 2, "no list of whole numbers"),
        (["--data", "data", "--k", "", "--retriever", "reference"], 1, "a retriever was given, and no k"),
        (["--data", "data", "--metrics", "spice"], 2, "metrics must be one or more of"),
        (["--data", "data", "--out", "nowhere/report.json"], 2, "the folder of 'nowhere/report.json' does not exist"),
        (["--data", "data", "--reference-prompt", "Say it."], 2, "of --reference is asked, and there is none"),
        (["--data", "data", "--samples-per-image", "1"], 2, "take 2 or more, or 0"),
        (["--data", "data", "--document-frequencies", "data"], 2, "is a directory"),
        (["--data", "data", "--max-new-tokens", "1000"], 2, "tuned holds captions of at most 128 tokens"),
        ([], 2, "Missing option"),
    ],
)
def test_wrong_use(folder, monkeypatch, capsys, words, code, message):
    monkeypatch.chdir(folder)
    assert run("tuned", "--max-new-tokens", 4, "--num-beams", 1, *words) == code
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split()) and "Traceback" not in shown


class TestCompare:
    def test_table_and_page(self, folder, capsys, tmp_path: Path):
        words = (folder / "reference", folder / "tuned", "--data", folder / "data", *QUICK, "--k", "1,3", "--shown", 6)
        assert run(*words, "--out", tmp_path / "page", command="compare") == 0
        shown = capsys.readouterr().out
        options = {"metrics": ("cider_d", "rouge_l"), "max_new_tokens": 8, "num_beams": 1, "progress": False}
        data = load_splits(folder / "data")["test"]
        expected = compare_captioners(folder / "reference", folder / "tuned", data, k=(1, 3), **options)
        assert expected.to_markdown().partition("\n\n")[0] in shown
        assert str(tmp_path / "page" / "index.html") in shown
        assert (tmp_path / "page" / "index.html").read_text(encoding="utf-8").count("<article") == 6
        stored = json.loads((tmp_path / "page" / "comparison.json").read_text(encoding="utf-8"))
        assert stored["target"]["captions"] == list(expected.target.captions)
        assert len(stored["images"]) == 6

    def test_a_file_in_the_place_of_the_folder(self, folder, capsys, tmp_path: Path):
        (tmp_path / "page").write_text("mine")
        words = (folder / "reference", folder / "tuned", "--data", folder / "data", "--out", tmp_path / "page")
        assert run(*words, command="compare") == 2  # said by the option itself, before anything is loaded
        assert "is a file" in capsys.readouterr().err
        assert (tmp_path / "page").read_text() == "mine"
        assert run(*words[:-1], tmp_path / "page" / "below", command="compare") == 2
        assert "leads through a file" in capsys.readouterr().err


def test_an_image_that_does_not_open_is_told_first_or_left_out(folder, tmp_path, monkeypatch, capsys):
    split = load_splits(folder / "data")["test"].cast_column("image", Image(decode=False))
    rows = split.to_list()
    rows[-1]["image"]["bytes"] = rows[-1]["image"]["bytes"][:60]
    (tmp_path / "data").mkdir()
    Dataset.from_list(rows, features=split.features).to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    words = (folder / "tuned", "--data", tmp_path / "data", *QUICK, "--k", "1")
    with monkeypatch.context() as patch:
        patch.setattr(captioning, "_written", lambda *_: pytest.fail("captions were written"))
        assert run(*words) == 1
    assert "does not open" in capsys.readouterr().err
    assert run(*words, "--skip-bad", "--out", tmp_path / "report.json") == 0
    assert CaptionerReport.load(tmp_path / "report.json").num_images == 9


def test_a_reference_is_looked_at_first_and_costs_no_report(folder, tmp_path, monkeypatch, capsys):
    evaluated = []

    def evaluated_once(*arguments, **options):
        if evaluated:
            raise KeyboardInterrupt
        evaluated.append(options["name"])
        return evaluate_captioner(*arguments, **options)

    monkeypatch.setattr(command, "evaluate_captioner", evaluated_once)
    words = (folder / "tuned", "--data", folder / "data", *QUICK, "--k", "1", "--out", tmp_path / "report.json")
    (tmp_path / "empty").mkdir()
    for wrong in ((tmp_path / "empty",), (folder / "reference", "--reference-prompt", "hello")):
        assert run(*words, "--reference", *wrong) != 0
        assert evaluated == []
    assert run(*words, "--reference", folder / "reference") == 130
    assert CaptionerReport.load(tmp_path / "report.json").name == "tuned"


def test_a_retriever_is_asked_what_the_captioner_is_asked(tmp_path: Path):
    captioner = captioner_for(llava_model(), llava_processing(), prompt=PROMPT)
    captioner.model.save_pretrained(tmp_path / "judge")
    llava_processing().save_pretrained(tmp_path / "judge")
    judge = load_retriever(str(tmp_path / "judge"), PROMPT)
    assert isinstance(judge, Captioner)
    assert prompt_of(judge) == PROMPT
    adapter = get_peft_model(llava_model(), LoraConfig(target_modules=r".*q_proj"))
    adapter.peft_config["default"].base_model_name_or_path = str(tmp_path / "judge")
    adapter.save_pretrained(tmp_path / "adapter")
    assert isinstance(load_retriever(str(tmp_path / "adapter")), Captioner)
    with pytest.raises(ValueError, match="no_such"):
        load_retriever("./no_such")


def test_recall_at_more_than_there_are_images_is_left_out_and_said(folder, capsys):
    words = ("--images", 3, "--k", 5, "--metrics", "rouge_l", "--max-new-tokens", 4, "--num-beams", 1)
    assert run(folder / "tuned", "--data", folder / "data", *words) == 0
    shown = capsys.readouterr().out
    assert "Left out: recall: of 3 or more among 3 images" in " ".join(shown.split())


def test_a_matching_model_is_no_captioner(tmp_path):
    """It has the config of one, and no decoder: the captioner's would be new and random."""
    config = blip_model().config
    BlipForImageTextRetrieval(config).save_pretrained(tmp_path)
    with pytest.raises(
        TypeError,
        match="holds a BlipForImageTextRetrieval; of models with a BlipConfig",
    ):
        load_parts(tmp_path)
    assert not is_captioner(tmp_path)
    BlipProcessor(BlipImageProcessor(), tiny.tokenizer()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"has not all weights of a BlipModel, .*missing keys: .*text_model\."):
        load_retriever(str(tmp_path))  # it would rank by random projections
    blip_model().save_pretrained(tmp_path / "captioner")
    assert load_parts(tmp_path / "captioner", processing_class=(1, 2))[1] == (1, 2)


def test_what_was_measured_is_saved_before_it_is_printed(folder, tmp_path, monkeypatch):
    def unprintable(*_):
        raise UnicodeEncodeError("latin-1", "≤", 0, 1, "ordinal not in range(256)")

    monkeypatch.setattr(CommandConsole, "table", unprintable)
    words = (folder / "tuned", "--data", folder / "data", *QUICK, "--k", "1", "--reference", folder / "reference")
    assert run(*words, "--out", tmp_path / "report.json") == 1
    assert CaptionerReport.load(tmp_path / "report.json").name == "tuned"
    assert "comparison" in json.loads((tmp_path / "report.json").read_text())
    pair = (folder / "reference", folder / "tuned", "--data", folder / "data", *QUICK, "--k", "1")
    assert run(*pair, "--out", tmp_path / "page", command="compare") == 1
    assert (tmp_path / "page" / "index.html").is_file()
