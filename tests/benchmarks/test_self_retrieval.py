"""benchmarks/self_retrieval.py: it runs at toy sizes, and its figures are those of what it measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from hf_contrastive_caption.captioners.pairs import PairScorer
from hf_contrastive_caption.data.images import open_image
from hf_contrastive_caption.models import small_captioner, small_image_processor, word_level_tokenizer
from tests import tiny
from tests.benchmarks.scripts import BENCHMARKS, run_here

NUMBERS = (6, 12, 24)
SIZES = ("base", "small")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("self_retrieval")


@pytest.fixture
def ways(script: ModuleType) -> ModuleType:
    return importlib.import_module("retrieval_ways")


@pytest.fixture
def report_of(script: ModuleType) -> ModuleType:
    return importlib.import_module("retrieval_report")


def write_images(file: Path, images: list[Image.Image]) -> None:
    rows = []
    for image in images:
        content = BytesIO()
        image.save(content, format="PNG")
        rows.append({"bytes": content.getvalue(), "path": None})
    column = pa.array(rows, type=pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": column}), file)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images in two splits, a saved captioner, and captions of which some are equal."""
    root = tmp_path_factory.mktemp("retrieval")
    images, texts = tiny.images(30), tiny.texts(16, longest=6)
    (root / "data").mkdir()
    write_images(root / "data" / "train-00000.parquet", images[20:])
    write_images(root / "data" / "test-00000.parquet", images[:20])
    tokenizer = word_level_tokenizer(texts)
    sizes = {"image_size": 32, "patch_size": 16, "width": 32, "encoder_layers": 1, "decoder_layers": 1}
    model = small_captioner(tokenizer, **sizes, heads=2, mlp=64)
    for part in (model, tokenizer, small_image_processor(32)):
        part.save_pretrained(root / "captioner")
    (root / "captions.json").write_text(json.dumps([*texts, *texts[:8]]))
    return root


def arguments(folder: Path, *more: str) -> list[str]:
    given = ["--data", str(folder / "data"), "--captioner", str(folder / "captioner"), "--quick", "--threads", "1"]
    return [*given, "--captions", str(folder / "captions.json"), "--numbers", *map(str, NUMBERS), *more]


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    out = folder / "self_retrieval.json"
    words = ("--images", "5", "--pairs", "9", "--skip-memory", "--out", str(out))
    printed = run_here("self_retrieval", *arguments(folder, *words))
    assert "goal: at least 5" in printed and "goal: at least 40" in printed
    assert "minutes from here" in printed
    return json.loads(out.read_text())


@pytest.mark.parametrize("size", SIZES)
def test_ratios_are_those_of_the_measurements(report: dict[str, Any], size: str):
    assert report["script"] == "self_retrieval.py" and report["machine"]["torch_threads"] == 1
    ratios, found = report["ratios"], report["measurements"]
    assert all(isinstance(value, float) for value in ratios.values())
    for number in NUMBERS:
        at = f"{size}_at_{number}_"
        table = found[f"{at}tries_build_s"] + number * found[f"{at}tries_image_s"]
        assert found[f"{at}tries_table_s"] == pytest.approx(table, rel=1e-12)
        repeated = number * found[f"{at}repeated_image_s"]
        assert ratios[f"{at}over_repeated"] == pytest.approx(repeated / table, rel=1e-12)
        more = found[f"{at}tokens"] / found[f"{at}distinct_tokens"]
        assert ratios[f"{at}over_repeated_with_duplicates"] == pytest.approx(more * repeated / table, rel=1e-12)
        single = number**2 * found[f"{size}_one_by_one_pair_s"]
        assert ratios[f"{at}over_one_by_one"] == pytest.approx(single / table, rel=1e-12)
        rate = found[f"{at}operations_per_image_g"] / found[f"{at}tries_image_s"]
        share = rate / found[f"{size}_large_product_gflop_per_s"]
        assert ratios[f"{at}share_of_large_product_rate"] == pytest.approx(share, rel=1e-12)
    assert found["reference"] == 24  # no 1,000 among the numbers
    for name in ("over_repeated", "over_one_by_one", "share_of_large_product_rate"):
        assert ratios[f"{size}_{name}"] == ratios[f"{size}_at_24_{name}"]


@pytest.mark.parametrize("size", SIZES)
def test_all_ways_agree(report: dict[str, Any], size: str):
    assert 0 <= report["measurements"][f"{size}_largest_difference_nats"] <= 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_sizes_of_the_sets_are_those_of_the_captions(report: dict[str, Any], size: str):
    found, texts = report["measurements"], tiny.texts(16, longest=6)
    captions = [text.split() for text in (*texts, *texts[:8])]
    for number in NUMBERS:
        first, at = captions[:number], f"{size}_at_{number}_"
        distinct = {tuple(words) for words in first}
        assert found[f"{at}distinct_captions"] == len(distinct)
        assert found[f"{at}tokens"] == sum(len(words) + 1 for words in first)  # and the end token
        assert found[f"{at}distinct_tokens"] == sum(len(words) + 1 for words in distinct)
        beginnings = {words[:length] for words in distinct for length in range(len(words) + 1)}
        assert len(beginnings) <= found[f"{at}trie_positions"] <= found[f"{at}distinct_tokens"]
        if len(beginnings) <= found[f"{at}chunk_positions"]:
            assert found[f"{at}trie_positions"] == len(beginnings)
    assert found["base_vocabulary"] == 300


@pytest.mark.parametrize("size", SIZES)
def test_what_is_extrapolated_follows_from_the_fits(report: dict[str, Any], size: str, report_of: ModuleType):
    found = report["measurements"]
    exponent, factor = report_of.power_law(NUMBERS, [found[f"{size}_at_{number}_tries_table_s"] for number in NUMBERS])
    assert report["ratios"][f"{size}_exponent"] == pytest.approx(exponent, rel=1e-9)
    assert found[f"{size}_at_5000_this_machine_hours"] == pytest.approx(factor * 5000**exponent / 3600, rel=1e-9)
    operations = [number * found[f"{size}_at_{number}_operations_per_image_g"] * 1e9 for number in NUMBERS]
    exponent, factor = report_of.power_law(NUMBERS, operations)
    assert found[f"{size}_at_5000_gpu_hours"] == pytest.approx(factor * 5000**exponent / 1e14 / 3600, rel=1e-9)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.slow
def test_peak_memory_is_measured(folder: Path):
    words = arguments(folder, "--images", "5", "--peak-of", "small")
    command = [sys.executable, str(BENCHMARKS / "self_retrieval.py"), *words]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert 0 <= float(finished.stdout.split()[-1]) < 2048


def test_peak_memory_is_compared_with_the_budget(report: dict[str, Any], report_of: ModuleType):
    found = {key.removeprefix("small_"): value for key, value in report["measurements"].items()}
    assert found["budget_mib"] == 2048
    ratios = report_of.ratios_of({**found, "tries_peak_mib": 512.0}, dict.fromkeys(NUMBERS))
    assert ratios["peak_over_budget"] == 0.25


def test_a_fit_recovers_the_exponent(report_of: ModuleType):
    numbers = (100, 300, 1000, 3000)
    exponent, factor = report_of.power_law(numbers, [0.25 * number**1.7 for number in numbers])
    assert exponent == pytest.approx(1.7, rel=1e-9) and factor == pytest.approx(0.25, rel=1e-9)


def test_operations_are_those_of_the_layers(script: ModuleType, ways: ModuleType):
    """Counted by hand: what depends on the image once, the rest once for each trie position."""
    size = script.QUICK_SIZES["base"]
    texts = tiny.texts(6, longest=5)  # few enough for one trie
    bench = ways.random_bench(size, texts)
    tries = PairScorer(bench.tries, bench.tries.processor.tokenize(texts).input_ids)
    nodes, states, width, mlp = tries.plan.num_positions, 5, 32, 64
    encoder = 4 * (3 * 16**2) * width + states * (4 * width**2 + 2 * width * mlp) + 2 * states**2 * width + width**2
    of_image = states * 2 * width**2  # keys and values of cross-attention
    seen = nodes**2 + nodes * states  # by self-attention and cross-attention
    layer = nodes * (6 * width**2 + 2 * width * mlp) + 2 * seen * width
    expected = 2 * (encoder + of_image + layer + nodes * width * size.vocabulary)
    assert nodes <= tries.plan.chunk_size
    assert script.counted_operations(tries, torch.zeros(1, 3, 32, 32)) == expected


def test_repeated_rows_score_as_plain_forwards(script: ModuleType, ways: ModuleType):
    texts = tiny.texts(7, longest=6)
    bench = ways.random_bench(script.QUICK_SIZES["base"], texts)
    input_ids = bench.tries.processor.tokenize([*texts, texts[2]]).input_ids
    images = tiny.pixel_values(2)
    scores = ways.Repeated(bench.repeated, input_ids, 3).scores(images)
    assert scores.shape == (2, 8)
    for image in range(2):
        one = images["pixel_values"][image : image + 1]
        plain = [ways.one_by_one(bench.tries, one, ids) for ids in input_ids]
        assert scores[image].tolist() == pytest.approx(plain, abs=1e-4)


def test_ways_that_disagree_stop_the_script(script: ModuleType):
    assert script.check(5e-4, "tries and repeated") == 5e-4
    for difference in (2e-3, float("inf"), float("nan")):
        with pytest.raises(SystemExit, match="tries and repeated do not agree"):
            script.check(difference, "tries and repeated")


def test_captions_are_written_once_in_the_order_of_the_splits(folder: Path, ways: ModuleType, tmp_path: Path):
    opened = [open_image(image) for image in ways.first_images(folder / "data", 22)]
    assert [image.tobytes() for image in opened] == [image.tobytes() for image in tiny.images(30)[:22]]
    file = tmp_path / "kept" / "captions.json"
    captions = ways.load_captions(file, folder / "captioner", folder / "data", 3)
    assert len(captions) == 3 and json.loads(file.read_text()) == captions
    assert ways.load_captions(file, Path("nowhere"), Path("nowhere"), 2) == captions[:2]
    with pytest.raises(SystemExit, match="has 3 captions, but 4 are needed"):
        ways.load_captions(file, Path("nowhere"), Path("nowhere"), 4)
    with pytest.raises(SystemExit, match="has 30 images in its parquet files, but 31 are needed"):
        ways.first_images(folder / "data", 31)


def test_quick_figures_do_not_replace_real_ones(script: ModuleType, folder: Path):
    assert script.parse(arguments(folder, "--images", "2")).out is None
    given = [option for option in arguments(folder, "--images", "2") if option != "--quick"]
    assert script.parse(given).out == BENCHMARKS / "results" / "self_retrieval.json"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--images", "7"), "--images must be from 1 to the smallest of --numbers, 6, but is 7"),
        (("--images", "2", "--pairs", "3"), "--pairs must be at least 4, but is 3"),
        (("--images", "2", "--repeated-up-to", "12"), "--repeated-up-to must be at least 24"),
        (("--numbers", "5"), "--numbers takes two different numbers or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    script: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
):
    with pytest.raises(SystemExit):
        script.parse(arguments(folder, *options))
    assert message in capsys.readouterr().err
