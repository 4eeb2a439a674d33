"""Words of a caption that none of the image's references has: what a captioner may have invented.

Training for distinctive captions rewards words that tell images apart, whether they are true or not; this counts the
price. It is a lexical count and has limits. A synonym that no reference uses counts as invented, and so does a true
detail that the references leave out: human captions have a share well above zero, too. So compare two captioners on
the same images and references, and look at the words.

The relative for objects is CHAIR (Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018, arXiv
1809.02156), which needs annotated objects and lists of synonyms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import snowballstemmer

from hf_contrastive_caption.evaluation.metrics.ngrams import Integers
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedReferences, check_same_number, check_strings
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize

#: The closed classes of English, as the tokenizer writes them. Numbers are content words; "one" is a pronoun here.
FUNCTION_WORDS = frozenset(
    # articles, demonstratives, quantifiers, and other determiners
    "a an the this that these those some any no every each either neither both all half such another other others "
    "much many more most few fewer fewest less least several enough plenty lot lots couple own same "
    # pronouns
    "i me my mine myself we us our ours ourselves you your yours yourself yourselves y' he him his himself she "
    "her hers herself it its itself they them 'em their theirs themselves one ones oneself each who whom whose "
    "which what whoever whomever whatever whichever somebody someone something anybody anyone anything nobody "
    "none nothing everybody everyone everything "
    # prepositions
    "about above across after against along alongside amid amidst among amongst around as at atop before behind "
    "below beneath beside besides between beyond by concerning despite down during except for from in inside into "
    "like near next of off on onto opposite out outside over past per round since through throughout till 'til "
    "'till to toward towards under underneath until unto up upon via with within without w "
    # conjunctions
    "and or nor but yet so if unless because 'cause although though whereas while whilst whether than lest once "
    "and/or "
    # auxiliaries and what contractions leave
    "be am is are was were been being 's 'm 're have has had having 've do does did doing done 'd will would "
    "shall should can could may might must ought 'll wo ca sha ai n't cannot not na ta gon gonna "
    # particles and adverbs of the closed class
    "there here where when why how wherever whenever however therefore thus also too very just only even still "
    "ever never always away back again apart aside together then now almost quite rather really perhaps maybe "
    "else instead already yes oh ok o't 't let "
    # brackets that the tokenizer leaves
    "-lrb- -rrb- -lsb- -rsb- -lcb- -rcb-".split()
)


@dataclass(frozen=True, eq=False)
class InventionScores:
    """Content words of captions that the references do not have.

    Args:
        corpus: Invented content words of all captions, divided by content words of all captions; 0 if there are none.
        n_content: Content words of each caption, repetitions included, (n_images,).
        n_invented: How many of them are invented, (n_images,). The two counts can be resampled together.
        words: The invented words of each image's caption, in their order.
    """

    corpus: float
    n_content: Integers
    n_invented: Integers
    words: list[list[str]]


def invented_words(
    captions: Sequence[str], references: Sequence[Sequence[str]] | PreparedReferences
) -> InventionScores:
    """Share of the captions' content words that none of the image's references has.

    A content word is a token with a letter or digit that is not in :data:`FUNCTION_WORDS`. Words are compared by stem
    (Snowball, English), so that "dogs" is "dog". Captions without content words count 0 of 0.

    Args:
        captions: The caption of each image, (n_images,) English strings.
        references: For each image its references, or what ``prepare_references`` made of them.

    Returns:
        Counts, the corpus share, and the words.

    Raises:
        TypeError: If there is a string where a list is expected.
        ValueError: If the numbers of captions and images differ, or an image has no references.
    """
    check_strings(captions, "captions")
    if not isinstance(references, PreparedReferences):
        references = PreparedReferences.from_strings(references, ptb_tokenize)
    check_same_number(len(captions), len(references))
    tokenize = references.tokenize or ptb_tokenize
    n_content = np.zeros(len(captions), np.int64)
    words: list[list[str]] = []
    for image, (caption, of_image) in enumerate(zip(tokenize(captions), references.words, strict=True)):
        known = {stem(word) for reference in of_image for word in reference}
        content = [word for word in caption if is_content_word(word)]
        n_content[image] = len(content)
        words.append([word for word in content if stem(word) not in known])
    n_invented = np.fromiter(map(len, words), np.int64, len(words))
    return InventionScores(float(n_invented.sum() / max(n_content.sum(), 1)), n_content, n_invented, words)


def is_content_word(word: str) -> bool:
    """Whether a token of the tokenizer says something: not a function word, and not a sign alone."""
    return word not in FUNCTION_WORDS and any(character.isalnum() for character in word)


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem of an English word; of a word with a full stop kept by the tokenizer, that of the word."""
    stemmed: str = _stemmer().stemWord(word.rstrip("."))
    return stemmed


@lru_cache(maxsize=1)
def _stemmer() -> snowballstemmer.basestemmer.BaseStemmer:
    return snowballstemmer.stemmer("english")
