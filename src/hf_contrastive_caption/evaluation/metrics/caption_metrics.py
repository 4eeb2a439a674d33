"""The caption metrics of COCO's evaluation in one call: BLEU, METEOR, ROUGE-L, CIDEr-D, and CIDEr.

Captions and references are tokenized once and their n-grams are counted once, whatever metrics are asked for. Scores
are those of ``pycocoevalcap`` on the same words, on its scale: 0 to 1, and 0 to 10 for CIDEr.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

from hf_contrastive_caption.evaluation.metrics.bleu import bleu
from hf_contrastive_caption.evaluation.metrics.cider import cider, cider_d
from hf_contrastive_caption.evaluation.metrics.document_frequencies import DocumentFrequencies
from hf_contrastive_caption.evaluation.metrics.meteor import meteor, meteor_available
from hf_contrastive_caption.evaluation.metrics.ngrams import MAX_N
from hf_contrastive_caption.evaluation.metrics.prepared import (
    MetricScores,
    PreparedCaptions,
    PreparedReferences,
    Tokenize,
    check_same_number,
    check_strings,
)
from hf_contrastive_caption.evaluation.metrics.rouge import rouge_l
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize

logger = logging.getLogger(__name__)

_BLEU = tuple(f"bleu_{n}" for n in range(1, MAX_N + 1))
#: What ``metrics`` may hold; ``"bleu"`` stands for all four.
METRICS = ("bleu", *_BLEU, "meteor", "rouge_l", "cider_d", "cider")


def caption_metrics(
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | PreparedReferences,
    *,
    metrics: Sequence[str] = ("bleu", "meteor", "rouge_l", "cider_d"),
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: Tokenize | None = None,
) -> dict[str, MetricScores]:
    """Score one caption for each image against the image's references.

    Args:
        captions: The caption of each image, (n_images,) strings. An empty caption is allowed and scores 0.
        references: For each image its references, one or more strings; or what :func:`prepare_references` made of
            them, which saves its work when several models are scored on the same images.
        metrics: Names from :data:`METRICS`. COCO's evaluation prints ``cider_d`` under the name of CIDEr. METEOR is
            left out, and one line is logged, where its jar or Java are missing or fail.
        document_frequencies: For CIDEr-D and CIDEr: a table of a larger set of references, made with the same
            tokenizer. With ``None`` the scored references are counted, as COCO's evaluation does; scores then depend
            on the set of images, and are too high for few.
        tokenize: From captions to the words of each; :func:`ptb_tokenize` if ``None``, or what the prepared
            references were made with.

    Returns:
        The scores by name, in the order asked for.

    Raises:
        TypeError: If there is a string where a list is expected.
        ValueError: If the numbers of captions and images differ, an image has no references, a name is not known, or
            ``tokenize`` is not what made the prepared references.
    """
    return scores_and_left_out(captions, references, metrics, document_frequencies, tokenize)[0]


def scores_and_left_out(
    captions: Sequence[str],
    references: Sequence[Sequence[str]] | PreparedReferences,
    metrics: Sequence[str],
    document_frequencies: DocumentFrequencies | None = None,
    tokenize: Tokenize | None = None,
) -> tuple[dict[str, MetricScores], str | None]:
    """What :func:`caption_metrics` gives, and why METEOR is not among it although it was asked for.

    Args:
        captions: See there, and for the errors.
        references: See there.
        metrics: See there.
        document_frequencies: See there.
        tokenize: See there.

    Returns:
        The scores by name, and the reason; ``None`` if METEOR was not asked for or is there.
    """
    names = expand_metrics(metrics)
    check_strings(captions, "captions")
    references = _prepared(references, tokenize)
    check_same_number(len(captions), len(references))
    words = PreparedCaptions((references.tokenize or tokenize or ptb_tokenize)(captions))
    scores: dict[str, MetricScores] = {}
    if any(name in _BLEU for name in names):
        scores |= {score.name: score for score in bleu(words, references)}
    if "rouge_l" in names:
        scores["rouge_l"] = rouge_l(words, references)
    for name, scorer in (("cider_d", cider_d), ("cider", cider)):
        if name in names:
            scores[name] = scorer(words, references, document_frequencies)
    missing = without_meteor(names)
    if "meteor" in names and missing is None:
        try:
            scores["meteor"] = meteor(words, references)
        except RuntimeError as error:  # of its process, which shall not cost the other metrics
            missing = str(error)
            _log_once(missing)
    return {name: scores[name] for name in names if name in scores}, missing


def prepare_references(references: Sequence[Sequence[str]], tokenize: Tokenize = ptb_tokenize) -> PreparedReferences:
    """Tokenize references once for the captions of any number of models; what is counted in them is kept too.

    Args:
        references: For each image its references, one or more strings.
        tokenize: From captions to the words of each.

    Returns:
        The references, which can be pickled if ``tokenize`` can.

    Raises:
        TypeError: If there is a string where a list is expected.
        ValueError: If there is no image, or an image without references.
    """
    return PreparedReferences.from_strings(references, tokenize)


def _prepared(
    references: Sequence[Sequence[str]] | PreparedReferences, tokenize: Tokenize | None
) -> PreparedReferences:
    if not isinstance(references, PreparedReferences):
        return prepare_references(references, tokenize or ptb_tokenize)
    if tokenize is not None and references.tokenize is not None and tokenize is not references.tokenize:
        raise ValueError(
            f"the references were tokenized with {references.tokenize!r}, and tokenize={tokenize!r} was given for the "
            "captions; leave tokenize out, or prepare the references with it"
        )
    return references


def expand_metrics(metrics: Sequence[str]) -> list[str]:
    """The names of single metrics, ``"bleu"`` taken apart.

    Raises:
        TypeError: If there is a string where a list is expected.
        ValueError: If a name is not known, or there is none.
    """
    if isinstance(metrics, str):
        raise TypeError(f"metrics must be a list of names, but is the string {metrics!r}; use ({metrics!r},)")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown or not metrics:
        raise ValueError(f"metrics must be one or more of {', '.join(METRICS)}, but are {list(metrics)}")
    names = [part for name in metrics for part in (_BLEU if name == "bleu" else (name,))]
    return list(dict.fromkeys(names))


def without_meteor(names: Sequence[str]) -> str | None:
    """Why METEOR will be left out, of which one line is logged; ``None`` if it is there, or not among the names."""
    missing = meteor_available() if "meteor" in names else None
    if missing is not None:
        _log_once(missing)
    return missing


@cache
def _log_once(line: str) -> None:
    logger.warning("METEOR is left out: %s", line)
