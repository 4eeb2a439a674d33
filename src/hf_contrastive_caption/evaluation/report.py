"""Both sides of a captioner in one object: does a caption find its image, and is it still a good caption?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from os import PathLike
from pathlib import Path
from typing import Any

from hf_contrastive_caption.evaluation.bootstrap import Bootstrap, Difference
from hf_contrastive_caption.evaluation.measures import Measure, aligned_table, measures_table
from hf_contrastive_caption.evaluation.retrieval.ranking import Ranks
from hf_contrastive_caption.writing import write_whole

MAIN_MEASURES = ("recall_at_1", "recall_at_5", "recall_at_10", "cider_d", "rouge_l", "invented", "distinct_share")
"""What a table of several captioners shows unless told otherwise."""

_PER_IMAGE = ("captions", "invented_words", "ranks", "rivals")


@dataclass(frozen=True)
class CaptionerReport:
    """What is known of a captioner on some images.

    Attributes:
        name: What tables call the captioner.
        measures: All numbers by name, such as ``recall_at_1``, ``median_rank``, ``cider_d``, ``bleu_4``, ``invented``
            and ``distinct_share``.
        captions: Its captions, (n_images,).
        invented_words: For each image with references the content words of its caption that are in none of them.
        images: A hash of the images, in their order.
        num_images: Number of images: the pool that each caption is compared with.
        num_referenced: How many of them have reference captions.
        chance: Recall of a guess by name, ``recall_at_1`` and so on.
        retriever: What scored the captions for self-retrieval.
        decoding: How the captions were generated.
        left_out: What could not be measured, and why.
        references: A hash of the reference captions.
        document_frequencies: Where those of CIDEr come from: the references, or a hash of the table that was given.
        resamples: Bootstrap resamples behind the intervals.
        seed: Their seed.
        ranks: Rank and ties of each caption's own image; ``None`` without self-retrieval.
        rivals: For each image a few others that its caption fits better than its own, the best first; empty without
            self-retrieval.
        ranked_by_itself: Whether the captioner itself scored the captions, and no other retriever; ``None`` without
            self-retrieval, and in reports that were saved before this was written down.
    """

    name: str
    measures: Mapping[str, Measure]
    captions: tuple[str, ...] = field(repr=False)
    invented_words: tuple[tuple[str, ...], ...] = field(repr=False)
    images: str
    num_images: int
    num_referenced: int
    chance: Mapping[str, float]
    retriever: str
    decoding: str
    left_out: Mapping[str, str]
    references: str
    document_frequencies: str
    resamples: int
    seed: int
    ranks: Ranks | None = field(default=None, repr=False)
    rivals: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    ranked_by_itself: bool | None = None

    def __getitem__(self, name: str) -> float:
        """The value of a measure by name."""
        if name not in self.measures:
            raise KeyError(f"There is no measure {name!r}; there are {', '.join(self.measures)}.")
        return self.measures[name].value

    def to_dict(self, *, per_image: bool = False) -> dict[str, Any]:
        """Everything as JSON takes it.

        Args:
            per_image: Whether to add what the numbers are made of for every image, which a later comparison needs.
        """
        others = {entry.name for entry in fields(self)} - {"name", "measures", "chance", "left_out", *_PER_IMAGE}
        ranks = None
        if self.ranks is not None:
            ranks = {"better": self.ranks.better.tolist(), "equal": self.ranks.equal.tolist()}
        return {
            "name": self.name,
            "measures": {name: measure.to_dict(per_image=per_image) for name, measure in self.measures.items()},
            **{name: getattr(self, name) for name in sorted(others)},
            "chance": dict(self.chance),
            "left_out": dict(self.left_out),
            "captions": list(self.captions),
            "invented_words": [list(words) for words in self.invented_words],
            "ranks": ranks,
            "rivals": [list(numbers) for numbers in self.rivals],
        }

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything to a JSON file, which :meth:`load` reads; whole or not at all."""
        write_whole(Path(path), json.dumps(self.to_dict(per_image=True), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> CaptionerReport:
        """Read a report that :meth:`save` wrote.

        Raises:
            ValueError: If the file is not such a report.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a report that CaptionerReport.save wrote ({error!r}).") from error

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CaptionerReport:
        """What :meth:`to_dict` made, per-image values included; other keys are passed over."""
        own = {entry.name for entry in fields(cls)} - {"measures", "ranked_by_itself", *_PER_IMAGE}
        ranks = content["ranks"]
        return cls(
            measures={name: Measure.from_dict(measure) for name, measure in content["measures"].items()},
            captions=tuple(content["captions"]),
            invented_words=tuple(map(tuple, content["invented_words"])),
            ranks=None if ranks is None else Ranks.of(ranks["better"], ranks["equal"], content["num_images"]),
            rivals=tuple(map(tuple, content["rivals"])),
            ranked_by_itself=content.get("ranked_by_itself"),
            **{name: content[name] for name in own},
        )

    def to_markdown(self) -> str:
        """A table of all numbers with their intervals, and what they were measured on."""
        return f"{measures_table(self.name, self.measures, self.chance)}\n\n{self.about()}"

    def about(self) -> str:
        """What the numbers were measured on and how, in a few sentences."""
        told = [f"{self.num_images} images; {self.retriever}; {self.decoding}."]
        if self.num_referenced < self.num_images:
            told.append(f"{self.num_referenced} of the images have references.")
        told += [f"Left out: {what}: {why}" for what, why in self.left_out.items()]
        return " ".join(told)

    def compare(self, other: CaptionerReport) -> ReportComparison:
        """Compare with another captioner's report on the same images: this one minus the other.

        Raises:
            ValueError: If the other report is on other images, was made with other resamples, or was ranked by
                another retriever; that each captioner ranked for itself is one way to rank.
        """
        for what in ("images", "references", "document_frequencies", "resamples", "seed"):
            if getattr(self, what) != getattr(other, what):
                raise ValueError(
                    f"The reports of {self.name} and {other.name} differ in {what} ({getattr(self, what)} and "
                    f"{getattr(other, what)}), so their captions cannot be compared image by image. Evaluate both on "
                    "the same images with the same options."
                )
        self._check_same_retriever(other)
        bootstraps: dict[int, Bootstrap] = {}
        differences = {}
        for name, measure in self.measures.items():
            if name in other.measures and measure.per_image:
                size = len(measure.per_image[0])
                if size not in bootstraps:
                    bootstraps[size] = Bootstrap(size, self.resamples, self.seed)
                difference = measure.minus(other.measures[name], bootstraps[size])
                if difference is not None:
                    differences[name] = difference
        return ReportComparison(self, other, differences)

    def _check_same_retriever(self, other: CaptionerReport) -> None:
        ways = [self.ranked_by_itself, other.ranked_by_itself]
        if None in ways or all(ways) or (not any(ways) and self.retriever == other.retriever):
            return
        raise ValueError(
            f"The captions of {self.name} were ranked by {self.retriever}, and those of {other.name} by "
            f"{other.retriever}, so their recalls cannot be compared. Evaluate both with the same retriever, or both "
            "without one."
        )


@dataclass(frozen=True)
class ReportComparison:
    """Two captioners on the same images.

    Attributes:
        ours: The report whose numbers the differences are counted from.
        theirs: The report that is subtracted.
        differences: By measure, with intervals and p-values of a paired bootstrap, for those that are made of one
            number per image.
    """

    ours: CaptionerReport
    theirs: CaptionerReport
    differences: Mapping[str, Difference]

    def to_dict(self) -> dict[str, Any]:
        """The differences as JSON takes them."""
        return {
            "ours": self.ours.name,
            "theirs": self.theirs.name,
            "differences": {
                name: {**difference._asdict(), "is_real": difference.is_real}
                for name, difference in self.differences.items()
            },
        }

    def to_markdown(self) -> str:
        """:meth:`rows` as a Markdown table, and what was measured."""
        return f"{aligned_table(self.rows())}\n\n{self.about()}"

    def about(self) -> str:
        """What the numbers were measured on and how, of both sides where they differ, and what a guess would reach."""
        ours, theirs = self.ours.about(), self.theirs.about()
        told = ours if ours == theirs else f"{self.ours.name}: {ours} {self.theirs.name}: {theirs}"
        measures = self.ours.measures
        guess = [
            f"{measures[name].heading} {measures[name].shown(value)}"
            for name, value in self.ours.chance.items()
            if name in measures
        ]
        return f"{told} A guess would reach: {', '.join(guess)}." if guess else told

    def rows(self, *, intervals: bool = False) -> list[Sequence[str]]:
        """Both captioners, the differences with intervals, and whether these leave zero out; the heading first.

        Args:
            intervals: Whether the numbers of each captioner have their intervals beside them.
        """
        ours, theirs = self.ours, self.theirs
        rows: list[Sequence[str]] = [["", theirs.name, ours.name, "difference (95 % interval)", "p", "verdict"]]
        for name, measure in ours.measures.items():
            if name not in theirs.measures:
                continue
            sides = [side.measures[name] for side in (theirs, ours)]
            numbers = [side.text() if intervals else side.shown(side.value) for side in sides]
            cells = ["", "", ""]
            if name in self.differences:
                difference = self.differences[name]
                least = 1 / ours.resamples
                p_value = f"{difference.p_value:.3f}" if difference.p_value > least else f"≤ {least:g}"
                cells = [measure.difference_text(difference), p_value, _verdict(measure, difference)]
            rows.append([measure.heading, *numbers, *cells])
        return rows


def report_table(reports: Sequence[CaptionerReport], names: Sequence[str] = MAIN_MEASURES) -> str:
    """:func:`report_rows` as a Markdown table."""
    return aligned_table(report_rows(reports, names))


def report_rows(reports: Sequence[CaptionerReport], names: Sequence[str] = MAIN_MEASURES) -> list[Sequence[str]]:
    """Several captioners side by side, a row each, the heading first; intervals in parentheses.

    Args:
        reports: The reports.
        names: The measures; one that no report has is left out.
    """
    shown = [name for name in names if any(name in report.measures for report in reports)]
    rows: list[Sequence[str]] = [
        ["", *(next(r.measures[name].heading for r in reports if name in r.measures) for name in shown)]
    ]
    for report in reports:
        cells = [report.measures[name].text() if name in report.measures else "" for name in shown]
        rows.append([report.name, *cells])
    return rows


def _verdict(measure: Measure, difference: Difference) -> str:
    if not difference.is_real:
        return "not told apart"
    if measure.better is None:
        return "higher" if difference.value > 0 else "lower"
    return "better" if (difference.value > 0) == (measure.better == "higher") else "worse"
