"""What the studies run: sizes of the data sets, rows of the tables, and units of work. Nothing here runs anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Split = Literal["validation", "test"]
MODELS = ("vit-gpt2", "adaptive-attention", "show-and-tell")
NUM_NEGATIVES = 5


@dataclass(frozen=True)
class Scale:
    """Sizes of the captioners of a data set, and how long they are trained; the same for all rows.

    Attributes:
        image_size: Width and height of the images in pixels.
        vit: Sizes of the ViT and GPT-2, as :func:`small_captioner` names them.
        min_frequency: Rarer words are unknown.
        reference_steps: Steps of maximum likelihood (MLE) from scratch.
        reference_batch_size: Images in such a step.
        reference_captions: Captions of each of them.
        reference_rates: Highest learning rate by model.
        bf16: Whether the reference is made under bfloat16 autocast, on processors that compute in it, and on GPUs.
        steps: Steps of every tuning, and of the control.
        batch_size: Images in such a step.
        rates: Highest learning rate by model.
        control_captions: Captions of each image in a step of the control.
        eval_batch_size: Images captioned at once.
        max_caption_tokens: Longer captions are cut.
        scenes: Scenes to train on, to validate and to test, where these are drawn.
    """

    image_size: int
    vit: dict[str, int]
    min_frequency: int
    reference_steps: int
    reference_batch_size: int
    reference_captions: int
    reference_rates: dict[str, float]
    bf16: bool
    steps: int
    batch_size: int
    rates: dict[str, float]
    control_captions: int = 3
    eval_batch_size: int = 50
    max_caption_tokens: int = 40
    scenes: tuple[int, int, int] = (6000, 500, 500)


_RATES = {"vit-gpt2": 2e-4, "adaptive-attention": 5e-4, "show-and-tell": 5e-4}
_RECURRENT = {"adaptive-attention": 3e-3, "show-and-tell": 3e-3}
_SMALL = {"patch_size": 16, "width": 128, "encoder_layers": 3, "decoder_layers": 2, "heads": 4, "mlp": 384}
_MIDDLE = {"patch_size": 12, "width": 192, "encoder_layers": 5, "decoder_layers": 3, "heads": 6, "mlp": 768}
_TINY = {"patch_size": 16, "width": 16, "encoder_layers": 1, "decoder_layers": 1, "heads": 2, "mlp": 16}

SCALES = {
    "scenes": Scale(64, _SMALL, 1, 1500, 64, 1, {"vit-gpt2": 2e-3, **_RECURRENT}, False, 400, 64, _RATES),
    "photographs": Scale(96, _MIDDLE, 5, 4000, 64, 2, {"vit-gpt2": 1e-3, **_RECURRENT}, True, 400, 64, _RATES),
    "tiny": Scale(32, _TINY, 1, 3, 8, 1, {"vit-gpt2": 2e-3, **_RECURRENT}, False, 2, 8, _RATES, scenes=(24, 8, 12)),
}
"""``tiny`` learns nothing: it shows in seconds whether everything works."""


@dataclass(frozen=True)
class Row:
    """A row of the tables: one way to make a captioner.

    Attributes:
        name: Its name in files and on the command line.
        label: What tables call it.
        objective: ``"reference"`` is MLE from scratch, ``"gan"`` is the baseline beside the package,
            ``"interpolated"`` trains nothing and has weights between the reference and a tuned row, everything else is
            an objective of the trainer.
        settings: What differs from the plain recipe, as the trainer's arguments name it; ``learning_rate_factor`` and
            ``reference_refresh_share`` are in terms of the scale.
        model: The captioner that is tuned.
        reference: The captioner that it is tuned against.
    """

    name: str
    label: str
    objective: str = "contrastive"
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "vit-gpt2"
    reference: str = "vit-gpt2"

    @property
    def is_tuning(self) -> bool:
        """Whether it is one of the ways that are compared, and neither a reference nor a control."""
        return self.objective not in ("reference", "mle")


def _of_models() -> Iterable[Row]:
    """Reference, control and every pair of target and reference; those of the ViT with plain names."""
    for model in MODELS:
        where = "" if model == "vit-gpt2" else f"-{model}"
        yield Row(f"reference{where}", "reference", "reference", {}, model, model)
        yield Row(f"control{where}", "control (MLE)", "mle", {}, model, model)
        yield Row(f"contrastive{where}", f"against {model}", "contrastive", {}, model, model)
        for reference in MODELS:
            if reference != model:
                yield Row(f"{model}-by-{reference}", f"against {reference}", "contrastive", {}, model, reference)


def _of_trade_off() -> Iterable[Row]:
    """What may hold the truth of captions where a comparison alone loses it."""
    for kind, label in (("dpo", "DPO"), ("infonce", "InfoNCE")):
        for beta in (0.1, 0.3):
            yield Row(f"{kind}-beta-{beta:g}", f"{label}, β = {beta:g}", settings={"loss_type": kind, "beta": beta})
        for weight in (1.0, 10.0):
            settings = {"loss_type": kind, "mle_weight": weight}
            yield Row(f"{kind}-mle-{weight:g}", f"{label}, MLE term × {weight:g}", settings=settings)
    yield Row("introspective-mle-10", "IL, MLE term × 10", "introspective", {"mle_weight": 10.0})
    for share in (0.1, 0.25, 0.5, 0.75):
        settings = {"tuned": "dpo", "share": share}
        yield Row(f"dpo-part-{share:g}", f"DPO, {100 * share:.0f} % of the way", "interpolated", settings)


def _rows() -> Iterable[Row]:
    for row in _of_models():
        yield replace(row, label="contrastive") if row.name == "contrastive" else row
    yield Row("positives", "positives only", settings={"loss_terms": "positives"})
    yield Row("negatives", "negatives only", settings={"loss_terms": "negatives"})
    yield Row("introspective", "introspective (IL)", "introspective")
    yield Row("gan", "GAN", "gan")
    yield Row("dpo", "DPO", settings={"loss_type": "dpo"})
    yield Row("infonce", "InfoNCE", settings={"loss_type": "infonce"})
    yield Row("nca", "NCA", settings={"loss_type": "nca"})
    yield Row("replaced-once", "replaced once", settings={"reference_refresh_share": 1 / 2})
    yield Row("replaced-twice", "replaced twice", settings={"reference_refresh_share": 1 / 3})
    yield Row(
        "moving-average", "moving average", settings={"reference_refresh_share": 1 / 20, "reference_mixup": 0.25}
    )
    for number in (1, 2, 10):
        yield Row(f"negatives-{number}", f"K = {number}", settings={"num_negatives": number})
    for ratio in (0.2, 5.0):
        yield Row(f"noise-ratio-{ratio:g}", f"ν = {ratio:g}", settings={"noise_ratio": ratio})
    for beta in (0.1, 0.3, 3.0):
        yield Row(f"beta-{beta:g}", f"β = {beta:g}", settings={"beta": beta})
    for factor in (0.25, 4.0):
        yield Row(f"rate-{factor:g}", f"learning rate × {factor:g}", settings={"learning_rate_factor": factor})
    for weight in (0.1, 1.0):
        yield Row(f"mle-{weight:g}", f"MLE term × {weight:g}", settings={"mle_weight": weight})
    for share in (0.25, 0.5, 1.0):
        settings = {"negatives": "mixed", "hard_negative_share": share}
        yield Row(f"hard-{share:g}", f"hard negatives {100 * share:.0f} %", settings=settings)
    yield from _of_trade_off()


ROWS = {row.name: row for row in _rows()}


def _names(*prefixes: str) -> tuple[str, ...]:
    return tuple(name for name in ROWS if name.startswith(prefixes))


STUDIES: dict[str, tuple[str, ...]] = {
    "main": ("reference", "control", "contrastive"),
    "ablation": ("control", "contrastive", "positives", "negatives"),
    "ways": ("control", "contrastive", "introspective", "gan", "dpo", "infonce", "nca"),
    "models": tuple(row.name for row in _of_models()),
    "replacement": ("contrastive", "replaced-once", "replaced-twice", "moving-average"),
    "knobs": ("contrastive", *_names("negatives-", "noise-ratio-", "beta-", "rate-", "mle-")),
    "hard": ("control", "contrastive", *_names("hard-")),
    "trade-off": ("control", "contrastive", "dpo", "infonce", *(row.name for row in _of_trade_off())),
}
"""The studies by name: their rows, in the order of their tables."""

OVERVIEW = (
    *("contrastive", "moving-average", "positives", "negatives", "hard-0.5"),
    *("introspective", "gan", "nca", "infonce-mle-10", "dpo-mle-1", "infonce", "dpo"),
)
"""The rows of the table that shows all ways of a data set at a glance, each with all of its seeds."""


def own_rows(study: str) -> set[str]:
    """The rows of a study that no earlier one has: it is there if any of them has a result."""
    earlier = list(STUDIES)[: list(STUDIES).index(study)]
    return set(STUDIES[study]).difference(*(STUDIES[name] for name in earlier))


ON_PHOTOGRAPHS = ("main", "ablation", "hard")
"""What is run on a folder of photographs unless ``--only`` says otherwise; drawn scenes get all studies."""


@dataclass(frozen=True)
class Unit:
    """One training and what is measured of it: it has its own files, and is run once.

    Attributes:
        data: Name of the data set.
        row: Which way.
        seed: Seed of weights, order and negatives.
        split: Which images are captioned: the test split, or the validation split while something is being chosen.
    """

    data: str
    row: Row
    seed: int
    split: Split = "test"

    @property
    def key(self) -> str:
        """Name of its result, without an ending."""
        return f"{self.row.name}-seed{self.seed}" + ("" if self.split == "test" else f"-{self.split}")

    def settings(self, scale: Scale) -> dict[str, Any]:
        """All that decides its numbers, as JSON takes it."""
        sizes = asdict(scale)
        return {**asdict(self.row), "label": None, "seed": self.seed, "split": self.split, "scale": sizes}

    def needs(self) -> tuple[Unit, ...]:
        """Those that it is made of, which must be there before it: references, and a tuned row."""
        if self.row.objective == "reference":
            # Show and Tell begins with the vision model that Adaptive Attention has trained.
            kinds: tuple[str, ...] = ("adaptive-attention",) if self.row.model == "show-and-tell" else ()
        else:
            kinds = tuple(dict.fromkeys((self.row.model, self.row.reference)))
        rows = [reference_row(kind) for kind in kinds]
        if self.row.objective == "interpolated":
            rows.append(ROWS[self.row.settings["tuned"]])
        return tuple(Unit(self.data, row, self.seed, self.split) for row in rows)


def reference_row(model: str) -> Row:
    """The row of a model's reference."""
    return next(row for row in ROWS.values() if row.objective == "reference" and row.model == model)


def control_row(model: str) -> Row:
    """The row of a model's control."""
    return next(row for row in ROWS.values() if row.objective == "mle" and row.model == model)


def units(data: str, only: Sequence[str], seeds: Iterable[int], split: Split = "test") -> list[Unit]:
    """The units of studies and rows, those that others need first, seed after seed.

    Args:
        data: Name of the data set.
        only: Names of studies and rows.
        seeds: The seeds.
        split: Which images are captioned.

    Raises:
        ValueError: If there is no such study or row.
    """
    unknown = [name for name in only if name not in STUDIES and name not in ROWS]
    if unknown:
        raise ValueError(
            f"there is no study or row {', '.join(map(repr, unknown))}. Studies: {', '.join(STUDIES)}. Rows: "
            f"{', '.join(ROWS)}"
        )
    names = dict.fromkeys(row for name in only for row in STUDIES.get(name, (name,)))
    found: dict[str, Unit] = {}

    def add(unit: Unit) -> None:
        for needed in unit.needs():
            add(needed)
        found.setdefault(unit.key, unit)

    for seed in seeds:
        for name in names:
            add(Unit(data, ROWS[name], seed, split))
    return list(found.values())
