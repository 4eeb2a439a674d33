"""The demo, with sizes that take seconds."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

from hf_contrastive_caption.captioners import captioner_for
from hf_contrastive_caption.console import CommandConsole
from hf_contrastive_caption.data.scenes import scenes
from hf_contrastive_caption.demo.comparison import LEARNING, learning_rows, two_sides_rows
from hf_contrastive_caption.demo.run import DemoResult, loading_lines, run_demo
from hf_contrastive_caption.demo.settings import QUICK, DemoSettings
from hf_contrastive_caption.generation import caption_images

TABLE = (("model", "validation loss"), ("reference", "1.386"), ("contrastive", "1.100"))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoSettings, DemoResult, str]:
    settings = DemoSettings(**QUICK, output_dir=tmp_path_factory.mktemp("demo"), seed=1)
    printed = io.StringIO()
    result = run_demo(settings, CommandConsole(Console(file=printed, highlight=False)))
    return settings, result, printed.getvalue()


def test_the_reference_compared_with_itself_is_the_zero_of_the_table(quick):
    _, result, _ = quick
    reference, control, contrastive = result.rows
    assert [row.name for row in result.rows] == ["reference", "control", "contrastive"]
    assert reference.validation_loss == pytest.approx(1.386294, abs=1e-5)
    assert reference.margin == pytest.approx(0, abs=1e-4)
    assert reference.ranked_first == pytest.approx(1 / 6, abs=1e-6)
    assert abs(control.validation_loss - 1.386294) > 1e-4 and abs(contrastive.validation_loss - 1.386294) > 1e-4
    for row in result.rows:
        assert len(row.captions) == 16 and row.report["distinct_captions"] == len(set(row.captions))
        assert 0 <= row.ranked_first_by_log_prob <= 1
        assert row.report.num_images == row.report.num_referenced == 16
        assert row.report.chance["recall_at_1"] == 1 / 16


def test_piped_output_is_plain(quick):
    _, result, printed = quick
    assert "\x1b" not in printed and "\r" not in printed
    lines = printed.splitlines()
    headings = [number for number, line in enumerate(lines) if line.startswith("| -----")]
    tables = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[number - 1 : number + 4]]
        for number in headings
    ]
    assert tables[0][0] == list(LEARNING)
    assert [tuple(line) for line in tables[0][2:]] == [row.cells() for row in result.rows]
    both = ["", "R@1 (%)", "R@5 (%)", "R@10 (%)", "CIDEr-D", "invented (%)", "distinct (%)"]
    assert tables[1][0] == both
    assert [tables[1][0], *tables[1][2:]] == [list(row) for row in two_sides_rows(result.rows)]
    assert [tables[0][0], *tables[0][2:]] == [list(row) for row in learning_rows(result.rows)]
    recall = result.rows[2].report.measures["recall_at_1"]
    assert tables[1][4][1] == recall.text() and recall.interval.low <= recall.value <= recall.interval.high
    for stage in ("Drawing scenes", "Reference: MLE from scratch", "Control", "Contrastive tuning", "Comparing"):
        assert sum(line.startswith(stage) for line in lines) == 2  # when it starts, and how long it took


def test_results_are_recorded(quick):
    settings, result, _ = quick
    record = json.loads((settings.output_dir / "results.json").read_text())
    assert record["settings"]["steps"] == QUICK["steps"] and record["settings"]["seed"] == 1
    assert record["models"]["contrastive"] == json.loads(json.dumps(result.rows[2].numbers()))


def test_the_saved_model_is_the_tuned_one_and_the_printed_lines_load_it(quick, capsys):
    settings, result, printed = quick
    lines = loading_lines(result)
    assert lines in printed
    exec(lines, {})  # what a person copies
    test = scenes(0, 0, settings.test_images, seed=settings.seed)["test"]
    assert capsys.readouterr().out.splitlines()[-1] == str([result.rows[2].captions[0]])
    assert Image.open(result.picture).tobytes() == test[0]["image"].tobytes()
    page = result.page.read_text(encoding="utf-8")
    assert page.count("<article") == len(test)
    assert page.count("<svg") == 2  # recall and log-ratios; so short a training has no curve
    folder = result.model_dir
    model = VisionEncoderDecoderModel.from_pretrained(folder)
    processing = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
    processor = captioner_for(model, processing).processor
    assert tuple(caption_images(model, processor, test["image"])) == result.rows[2].captions


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(quick, tmp_path: Path):
    settings, result, _ = quick
    again = run_demo(
        DemoSettings(**QUICK, output_dir=tmp_path, seed=1),
        CommandConsole(Console(file=io.StringIO(), highlight=False)),
    )
    for first, second in zip(result.rows, again.rows, strict=True):
        assert second.captions == first.captions
        assert second.validation_loss == pytest.approx(first.validation_loss, abs=1e-5)


def test_a_terminal_gets_a_table_and_pictures_in_colour():
    file = io.StringIO()
    console = CommandConsole(
        Console(
            file=file, force_terminal=True, color_system="truecolor", width=120, highlight=False, legacy_windows=False
        )
    )
    console.table(TABLE, last_stands_out=True)
    console.picture(Image.new("RGB", (64, 64), (10, 20, 30)), [("reference", "two shapes")])
    with console.stage("Training", 4) as advance:
        advance(4, "loss 1.000")
    shown = file.getvalue()
    assert "╭" in shown and "1.100" in shown
    assert shown.count("▀") == 24 * 12 and "\x1b[38;2;10;20;30;48;2;10;20;30m" in shown
    assert "two shapes" in shown and "Training: 0 s, loss 1.000" in shown


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_images": 1}, "test_images is 1"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DemoSettings(**changes)
