r"""The words of captions as COCO's evaluation sees them: Penn Treebank tokens, in lower case, without punctuation.

COCO's evaluation sends captions through the Java class ``PTBTokenizer`` of Stanford CoreNLP 3.4.1 and then drops the
tokens of its list of punctuation. :func:`ptb_tokenize` gives the same words without Java. Like that lexer it takes at
each place the longest of several patterns, and its oddities are kept because scores depend on them:

- the list holds ``-LRB-`` in capitals, and the words are in lower case, so ``(with hat)`` keeps ``-lrb-`` and
  ``-rrb-`` as words;
- only single marks are on the list: ``!!`` is a word;
- ``can't`` becomes ``ca n't``, ``cannot`` ``can not`` and ``gonna`` ``gon na``; ``dog.the`` stays one word;
- abbreviations keep their full stop: ``st.``, ``p.m.``, and a single letter at the end of a sentence.

A caption can never change the words of another one: line separators and control characters, of any kind, are white
space. (In ``pycocoevalcap`` a ``\r`` or U+2028 in one caption moves the words of all later captions to other images.)

Compared with the Java tokenizer, none of the 40,000 captions of Flickr8k has other words, as they are stored (with
spaces around punctuation) as well as written in the ordinary way; with odd punctuation, contractions and numbers put
in at random, 2 of 40,000 have, and of 9,167 lines of Python's documentation 17. Known differences: a space within a
token (``3 1/2``, ``(555) 555-1234``, tags with attributes) always separates words here; some addresses, numeric
entities and program code; and the Java tokenizer looks into the next caption, where a caption that ends in a single
letter and a full stop loses the stop if the next one begins with a word such as "A".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from hf_contrastive_caption.evaluation.metrics.prepared import check_strings

#: What COCO's evaluation drops. The bracket names cannot occur: words are in lower case by then.
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"] + ". ? ! , : - -- ... ;".split())

_MARKS = (  # combining marks of the scripts that have them; they belong to words
    r"\u0300-\u036F\u0483-\u0489\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7\u0610-\u061A\u064B-\u065F\u0670"
    r"\u06D6-\u06DC\u06DF-\u06E8\u06EA-\u06ED\u0900-\u0903\u093A-\u094F\u0951-\u0957\u0981-\u0983\u09BC-\u09CD"
    r"\u0A01-\u0A4D\u0A81-\u0A83\u0ABC-\u0ACD\u0B01-\u0B4D\u0B82-\u0BCD\u0C00-\u0C4D\u0C81-\u0CCD\u0D02-\u0D4D"
    r"\u0E31\u0E34-\u0E3A\u0E47-\u0E4E\u0EB1\u0EB4-\u0EBC\u0EC8-\u0ECD"
)
_NO_ALNUM = r"\u00B2\u00B3\u00B9\u00BC-\u00BE\u2070-\u209F\u2150-\u2189"  # fractions and small digits
_LETTER = rf"(?:[^\W\d_{_NO_ALNUM}]|[{_MARKS}])"
_ALNUM = rf"(?:[^\W_{_NO_ALNUM}]|[{_MARKS}])"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_PART = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
_CLITIC = r"'(?:[sdm]|ll|re|ve)(?![A-Za-z])"
#: Words that keep their full stop.
_ABBREVIATIONS = (
    "adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd bros calif capt cf cie cmdr co col "
    "colo conn corp cos cpl ct dak dec dept det dr drs elec esq est etc ext feb fla fri ft ga gen gov hon inc ind "
    "insp intl invt jan jos jr jul jun kan ky lt ltd maj mar md messrs mfg mich minn mlle mme mo mon mont mr mrs ms "
    "mt natl neb nev nov oct okla penn ph pres prof profs pty pvt rd rep rev sen sep sept seq sgt sq sr st ste supt "
    "tel tenn thu thurs treas tue tues univ va vs vt wed wis wm wyo"
).replace(" ", "|")
#: Those that keep it when they have a capital, and those that keep it before a number (marked by a tab).
_CAPITALS = "(?:Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash|ARK|DEL|ILL|LA|MASS|MISS|ORE|PA|TEX|WASH)"
_NUMBERED = "(?:art|ca|fig|figs|no|nos|op|pp|prop)"

# The longest match wins, and of several the first. A pattern with groups gives one word for each group.
_PATTERNS = [
    re.compile(pattern)
    for pattern in (
        r"(?i:(can)(not)|(gon|wan)(na)|(got)(ta)|(gim|lem)(me)|('t)(is|was))",
        r"(?i:([A-Za-z]+)(n['`]t))",
        rf"(?i:([A-Za-z]+)({_CLITIC}))",
        rf"(?i:{_CLITIC})",
        r"[Yy]'(?=[A-Za-z])",
        # Words with an apostrophe of their own.
        r"(?i:n't|'till?|'cause|'n|c'mon|s'mores|li'l|e'er|nor'easter|ev'ry|ol'|dunkin'|somethin')(?![A-Za-z])",
        r"'(?:[nN]'|em)",
        r"'[2-9]0s|'\d\d(?![\d'\"]|[.:,]\d)",
        r"[A-HJ-XZn]'[A-Za-z]{2,}",
        r"[A-Za-z]+[aeiouyAEIOUY]'[aeiouA-Z][A-Za-z]*",
        rf"(?i:[dol]'){_ALNUM}+(?:[-_]{_ALNUM}+)*",
        # Abbreviations.
        rf"(?i:{_ABBREVIATIONS})\.",
        rf"{_CAPITALS}\.",
        rf"(?i:{_NUMBERED})\.(?=[\t\d])",
        r"(?i:ph\.d)\.?",
        r"[A-Za-z](?:\.[A-Za-z])*\.",
        r"(?:[A-Za-z]\.)+(?:-[A-Za-z]+(?:\.[A-Za-z]+)*\.?)+",
        # Words, and what is written like words.
        rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*(?:\.(?=[,;:])|(?:-{_ALNUM}+)+)?",
        rf"{_ALNUM}+(?:[-_]{_ALNUM}+)*(?:\.(?=[,;:]))?",
        rf"{_PART}(?:/{_PART}){{1,2}}",
        rf"[-+]?{_NUMBER}",
        rf"{_NUMBER}(?:-[A-Za-z]+)+",
        r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}|\d{1,4}/\d{1,4}",
        r"[A-Z]+(?:[+&][A-Z]+)+|[A-Za-z]\+\+",
        r"[A-Z]*\$",
        rf"@[A-Za-z_]\w*|#{_LETTER}+",
        r"[A-Za-z0-9][A-Za-z0-9.]*@[A-Za-z0-9]+(?:\.[A-Za-z]+)*",
        r"https?://[^\s\"<>|()]*[^\s\"<>|()\[\]{}.,;:!?'-]",
        r"</?[A-Za-z][^<>]*/?>",
        # Faces.
        r"[<>]?[:;=][-o*']?(?:[()\\{@|\[\]]|[DPdpO](?![A-Za-z]))",
        r"\^_\^|>_<|-_-",
        # Punctuation that runs together.
        r"[!?]+|\.{3,}|-{2,}|_+|\*+|@+|#+|<<|>>",
        r"''",
    )
]
_REWRITTEN = {
    '"': "''",
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\u00a2": "cents",
    "\u00a3": "#",
    "\u00a4": "$",
    "\u20ac": "$",
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
}
# Before patterns: quotation marks and dashes become the plain ones, entities what they stand for.
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u201c\u201d\u00ab\u00bb\u2018\u201b\u2039\u203a\u300c\u300d\u300e\u300f", '"'),
        **dict.fromkeys("\u2013\u2014\u2015", "--"),
        "\u2019": "'",
        "\u2026": "...",
        "\u00ad": None,
    }
)
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))
_NUMBERED_AND_SPACE = re.compile(rf"(?i:\b({_NUMBERED})\.) +(?=\d)")
# A single letter loses its full stop before a word that begins a sentence.
_LETTER_BEFORE_SENTENCE = re.compile(
    r"(?<![\w.])([A-Za-z])\. +(?=(?:A|About|After|Although|An|And|As|At|But|For|He|Her|Here|However|If|In|It|Many|"
    r"More|Now|On|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|When|While|What|"
    r"Yet|You)\s)"
)
_NO_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b\u200d\u2010\u2011\ufeff\U00010000-\U0010ffff]")
_LONG_DASHES = 5  # runs of dashes that are this long stay as they are


def ptb_tokenize(captions: Sequence[str]) -> list[list[str]]:
    """Split captions into words as COCO's evaluation does.

    Args:
        captions: The captions, (n_captions,) strings.

    Returns:
        The words of each caption, (n_captions,) lists; an empty list for a caption without words.

    Raises:
        TypeError: If ``captions`` is one string, or holds something other than strings.
    """
    check_strings(captions, "captions")
    return [_words(caption) for caption in captions]


def _words(caption: str) -> list[str]:
    text = _NO_TEXT.sub(" ", caption).translate(_CHARACTERS)
    if "&" in text:
        text = _ENTITY.sub(lambda match: _ENTITIES[match[0]], text)
    if ". " in text:
        text = _LETTER_BEFORE_SENTENCE.sub("\\1 ", text)
    words: list[str] = []
    if ". " in text and any(character.isdigit() for character in text):
        # A tab tells the pattern that a number follows; the chunk does not show it.
        chunks = _NUMBERED_AND_SPACE.sub("\\1.\t ", text).split(" ")
        chunks = [part for chunk in chunks for part in ([chunk] if chunk.endswith("\t") else chunk.split())]
    else:
        chunks = text.split()
    for chunk in chunks:
        words += _words_of_chunk(chunk)
    return words


@lru_cache(maxsize=1 << 16)
def _words_of_chunk(chunk: str) -> tuple[str, ...]:
    """Words of what stands between two spaces. Most chunks are words that come again and again."""
    words: list[str] = []
    start = 0
    while start < len(chunk):
        best: re.Match[str] | None = None
        for pattern in _PATTERNS:
            match = pattern.match(chunk, start)
            if match is not None and (best is None or match.end() > best.end()):
                best = match
        if best is not None and best.end() > start:
            words += [word for word in best.groups() if word is not None] or [best[0]]
            start = best.end()
        else:
            if unicodedata.category(chunk[start])[0] in "SPN":
                words.append(chunk[start])
            start += 1
    return tuple(word for word in map(_written, words) if word not in PUNCTUATION)


def _written(word: str) -> str:
    """The word as the Java tokenizer writes it."""
    if word in _REWRITTEN:
        return _REWRITTEN[word]
    if word[0] == "-" and not word.strip("-"):
        return word if len(word) >= _LONG_DASHES else "--"[: len(word)]
    if word.startswith("..."):
        return "..."
    if word[0] in ":;=<>" and word[-1] in "()":
        return word[:-1] + _REWRITTEN[word[-1]]
    return word.lower()
