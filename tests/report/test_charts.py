"""Charts: the numbers that are drawn, and colours that follow the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_contrastive_caption.evaluation.retrieval.ranking import Ranks
from hf_contrastive_caption.report.charts import log_ratio_chart, recall_chart, to_png, to_svg, training_chart


def test_recall_at_every_k():
    reference, target = Ranks.of([0, 3, 9], [0, 0, 0], 10), Ranks.of([0, 0, 1], [0, 1, 0], 10)
    first, second, chance = recall_chart(reference, target, ("old", "new")).axes[0].lines
    k = list(first.get_xdata())
    assert [k[0], k[-1]] == [1, 10]
    assert first.get_ydata()[[0, k.index(4), -1]] == pytest.approx([100 / 3, 200 / 3, 100])
    assert second.get_ydata()[:2] == pytest.approx([50, 100])  # a tie is worth a half
    assert chance.get_ydata()[0] == pytest.approx(10)
    assert first.get_label() == "old"


def test_histograms_sum_to_all_captions():
    random = np.random.default_rng(0)
    axes = log_ratio_chart(random.normal(2, 1, 50), random.normal(-2, 1, 400)).axes[0]
    for bars in axes.containers:
        assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
    log_ratio_chart(np.zeros(3), np.zeros(3))  # equal models: one bar and no error


def test_curves_of_a_training():
    log = [
        {"step": 2, "loss": 1.0, "margin": 0.1},
        {"step": 4, "loss": 0.5, "margin": 0.4},
        {"step": 4, "eval_loss": 0.7},
    ]
    log += [{"step": 4, "loss": 0.6}, {"train_runtime": 3.0, "step": 4}]  # a step logged again after a resume
    figure = training_chart(log)
    assert figure is not None
    assert [axes.get_title("left") for axes in figure.axes][0] == "Loss"
    assert len(figure.axes) == 2
    assert list(figure.axes[0].lines[0].get_ydata()) == [1.0, 0.6]
    assert training_chart([{"step": 1, "loss": 1.0}]) is None
    assert training_chart([]) is None


def test_svg_has_no_fixed_colours_and_png_is_a_picture(tmp_path: Path):
    ranks = Ranks.of([0, 1], [0, 0], 2)
    figure = recall_chart(ranks, ranks, ("<b>", "new"))
    svg = to_svg(figure, "Does it & find?")
    assert svg.startswith('<svg role="img"')
    assert "var(--reference, #b35900)" in svg
    assert not re.search(r"(?:fill|stroke): #(?!ffffff)", svg)
    assert "&lt;b&gt;" in svg
    assert "<b>" not in svg
    assert to_svg(recall_chart(ranks, ranks, ("<b>", "new")), "Does it & find?") == svg  # equal charts are equal files
    to_png(figure, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as picture:
        assert picture.width > 500


def test_names_are_shown_as_they_are():
    ranks = Ranks.of([0, 0], [0, 0], 2)
    figure = recall_chart(ranks, ranks, ("_m1$x_", "run$\\q$"))
    assert [text.get_text().strip() for text in figure.axes[0].get_legend().get_texts()] == [
        "_m1$x_",
        "run$\\q$",
        "chance",
    ]
    shown = to_svg(figure, "names")
    assert "_m1$x_" in shown and "run$\\q$" in shown
