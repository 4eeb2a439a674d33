"""Whether the caption metrics equal those of ``pycocoevalcap``, and how long both take.

    python benchmarks/caption_metrics.py --data DIR

DIR holds ``expected.json``, case to corpus scores of ``pycocoevalcap``, and for each case CASE.jsonl, an image a line,
with the keys ``candidate``, ``references``, ``candidate_ptb``, ``references_ptb`` (words of the Java tokenizer, joined
by spaces) and the image's ``Bleu``, ``ROUGE_L`` and ``CIDEr``. Checked are

- scores on the stored words, within 1e-9, for the corpus and for each image;
- scores on the raw captions, within 1e-3, and the share of captions whose words differ from the stored ones.

Then the time of BLEU, ROUGE-L and CIDEr-D on the same words by ``pycocoevalcap`` and by this package, in turn: once
with everything counted anew, and once with references that are prepared. No caption is written to the results.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from common import out_argument, print_table, write_results
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from hf_contrastive_caption.evaluation.metrics.bleu import bleu
from hf_contrastive_caption.evaluation.metrics.caption_metrics import caption_metrics
from hf_contrastive_caption.evaluation.metrics.cider import cider_d
from hf_contrastive_caption.evaluation.metrics.invention import invented_words
from hf_contrastive_caption.evaluation.metrics.prepared import MetricScores, PreparedCaptions, PreparedReferences
from hf_contrastive_caption.evaluation.metrics.rouge import rouge_l
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize

NAMES = {f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)} | {"rouge_l": "ROUGE_L", "cider_d": "CIDEr"}
TOLERANCE_WORDS, TOLERANCE_RAW = 1e-9, 1e-3

Rows = list[dict[str, Any]]


def load(folder: Path) -> tuple[dict[str, Rows], dict[str, dict[str, float]]]:
    """Cases and their corpus scores."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    cases = {}
    for case in expected:
        with (folder / f"{case}.jsonl").open(encoding="utf-8") as file:
            cases[case] = [json.loads(line) for line in file]
    return cases, expected


def stored_scores(rows: Rows, name: str) -> np.ndarray:
    """Stored scores of each image, (n_images,)."""
    if name.startswith("bleu"):
        return np.array([row["Bleu"][int(name[-1]) - 1] for row in rows])
    return np.array([row[NAMES[name]] for row in rows])


def words_of(rows: Rows) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Stored words of captions and references."""
    captions = [row["candidate_ptb"].split() for row in rows]
    return captions, [[text.split() for text in row["references_ptb"]] for row in rows]


def score(captions: PreparedCaptions, references: PreparedReferences) -> dict[str, MetricScores]:
    """What is compared and timed."""
    scores = [*bleu(captions, references), rouge_l(captions, references), cider_d(captions, references)]
    return {of_metric.name: of_metric for of_metric in scores}


def differences(scores: dict[str, MetricScores], rows: Rows, expected: dict[str, float]) -> tuple[float, float]:
    """Greatest difference of a corpus score and of an image's score, over all metrics."""
    corpus = max(abs(scores[name].corpus - expected[theirs]) for name, theirs in NAMES.items())
    per_image = max(float(np.abs(scores[name].per_image - stored_scores(rows, name)).max()) for name in NAMES)
    return corpus, per_image


def differing_captions(rows: Rows) -> tuple[int, int]:
    """Captions and references whose words differ from the stored ones, and how many there are."""
    raw = [text for row in rows for text in (row["candidate"], *row["references"])]
    stored = [text for row in rows for text in (row["candidate_ptb"], *row["references_ptb"])]
    words = ptb_tokenize(raw)
    return sum(mine != theirs.split() for mine, theirs in zip(words, stored, strict=True)), len(raw)


def theirs(captions: dict[int, list[str]], references: dict[int, list[str]]) -> None:
    """The same metrics by ``pycocoevalcap``."""
    Bleu(4).compute_score(references, captions, verbose=0)
    Rouge().compute_score(references, captions)
    Cider().compute_score(references, captions)


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(rows: Rows, repeats: int) -> dict[str, float]:
    """Median seconds of both, in turn."""
    captions, references = words_of(rows)
    their_captions = {number: [row["candidate_ptb"]] for number, row in enumerate(rows)}
    their_references = {number: row["references_ptb"] for number, row in enumerate(rows)}
    prepared = PreparedReferences(references)
    score(PreparedCaptions(captions), prepared)
    ways: dict[str, Callable[[], object]] = {
        "pycocoevalcap_s": lambda: theirs(their_captions, their_references),
        "everything_s": lambda: score(PreparedCaptions(captions), PreparedReferences(references)),
        "prepared_references_s": lambda: score(PreparedCaptions(captions), prepared),
        "tokenizer_s": lambda: ptb_tokenize([text for row in rows for text in (row["candidate"], *row["references"])]),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, run in ways.items():
            times[way].append(seconds(run))
    return {way: statistics.median(values) for way, values in times.items()}


def check(case: str, rows: Rows, expected: dict[str, float]) -> dict[str, float]:
    """Differences of one case, each refused if it is too large."""
    captions, references = words_of(rows)
    on_words = differences(score(PreparedCaptions(captions), PreparedReferences(references)), rows, expected)
    raw = caption_metrics(
        [row["candidate"] for row in rows],
        [row["references"] for row in rows],
        metrics=("bleu", "rouge_l", "cider_d"),
    )
    on_raw = differences(raw, rows, expected)
    if max(on_words) > TOLERANCE_WORDS or max(on_raw) > TOLERANCE_RAW:
        raise SystemExit(f"{case}: scores differ by {on_words} on the stored words and by {on_raw} on raw captions")
    differing, n_texts = differing_captions(rows)
    return {
        "corpus_difference_on_words": on_words[0],
        "image_difference_on_words": on_words[1],
        "corpus_difference_on_raw_captions": on_raw[0],
        "image_difference_on_raw_captions": on_raw[1],
        "invented_share": invented_words(
            [row["candidate"] for row in rows], [row["references"] for row in rows]
        ).corpus,
        "texts": n_texts,
        "texts_with_other_words": differing,
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with expected.json and the cases")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each way (default: %(default)s)")
    out_argument(parser, __file__)
    arguments = parser.parse_args()
    warnings.simplefilter("error", UserWarning)  # the cases are large enough for their own document frequencies

    cases, expected = load(arguments.data)
    ratios: dict[str, float] = {}
    measurements: dict[str, Any] = {"pycocoevalcap": metadata.version("pycocoevalcap"), "repeats": arguments.repeats}
    for case, rows in cases.items():
        measured = check(case, rows, expected[case]) | measure(rows, arguments.repeats)
        reference_time = measured["pycocoevalcap_s"]
        ratios[f"{case}_pycocoevalcap_time_over_time"] = reference_time / measured["everything_s"]
        ratios[f"{case}_pycocoevalcap_time_over_time_with_prepared_references"] = (
            reference_time / measured["prepared_references_s"]
        )
        ratios[f"{case}_share_of_texts_with_other_words"] = measured["texts_with_other_words"] / measured["texts"]
        measurements |= {f"{case}_{name}": value for name, value in {"images": len(rows), **measured}.items()}
        print_table(case, [(name, f"{value:.3g}") for name, value in measured.items()])
    print_table("Ratios", [(name, f"{value:.3g}") for name, value in ratios.items()])
    write_results(__file__, ratios, measurements, arguments.out)


if __name__ == "__main__":
    main()
