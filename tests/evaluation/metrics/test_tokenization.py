"""The words of the Java tokenizer, written down here from its output, and captions that never touch each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_contrastive_caption.evaluation.metrics.tokenization import PUNCTUATION, ptb_tokenize

# What CoreNLP 3.4.1 with -preserveLines -lowerCase prints, less COCO's punctuation.
JAVA = {
    "A man (with hat) sits on a bench.": "a man -lrb- with hat -rrb- sits on a bench",
    "It's 5:30 p.m. on St. Mary's clock; Mr. Smith etc.": "it 's 5:30 p.m. on st. mary 's clock mr. smith etc.",
    "can't cannot gonna wanna gotta gimme lemme": "ca n't can not gon na wan na got ta gim me lem me",
    "I saw 'em, 'tis so": "i saw 'em 't is so",
    "rock 'n' roll o'clock y'all s'mores": "rock 'n' roll o'clock y' all s'mores",
    "$5.00 and 50% of #1 @home &amp; R&B AT&T": "$ 5.00 and 50 % of # 1 @home & r&b at&t",
    "A t-shirt - with -- dashes — and – en…": "a t-shirt with dashes and en",
    "\"quoted\" “curly” ‘single’ 'single' don’t dogs'": "quoted curly single single do n't dogs",
    "a black/white cat and/or dog * star": "a black/white cat and/or dog * star",
    "hello!!! what??? wow?! ok.... ok.. ok.": "hello !!! what ??? wow ?! ok ok ok",
    "[brackets] {braces} <b>tag</b> :)": "-lsb- brackets -rsb- -lcb- braces -rcb- <b> tag </b> :-rrb-",
    "the dog.the cat": "the dog.the cat",
    "in lb. oz. ft. in.": "in lb oz ft. in",
    "No. 5 and no. a": "no. 5 and no a",
    "12\" 6'2\" 1950's '80s 10:30pm 5-year-old": "12 6 2 1950 's '80s 10:30 pm 5-year-old",
    "2½ 5¢ £5 €5": "2 1/2 5 cents # 5 $ 5",
    "wouldn't've should've n't": "would n't 've should 've n't",
    "a dog., a cat": "a dog. a cat",
    "U.S. The letter x. The dog": "u.s. the letter x the dog",
    "猫が座っている。 قطة تجلس، שלום, привет. हिन्दी": "猫が座っている 。 قطة تجلس ، שלום привет हिन्दी",
    "dog²": "dog ²",
    "😀": "",
    "----- a---b": "----- a b",
}


@pytest.mark.parametrize("caption", JAVA)
def test_words_are_those_of_the_java_tokenizer(caption: str) -> None:
    assert ptb_tokenize([caption]) == [JAVA[caption].split()]


def test_captions_without_words_are_empty_lists() -> None:
    assert ptb_tokenize(["", "  ", ".", " , ", "'", "a"]) == [[], [], [], [], [], ["a"]]
    assert ptb_tokenize([]) == []


@pytest.mark.parametrize("separator", list("\n\r\t\f\v\x00\x1c\x1d\x1e\x1f\x7f\x85\u2028\u2029\xa0\u200b") + ["\r\n"])
def test_line_separators_and_control_characters_are_white_space(separator: str) -> None:
    captions = [f"a{separator}dog", f"{separator}two cats{separator}", "three"]
    assert ptb_tokenize(captions) == [["a", "dog"], ["two", "cats"], ["three"]]


@given(st.lists(st.text(max_size=30), max_size=6))
def test_captions_do_not_depend_on_their_neighbours(captions: list[str]) -> None:
    words = ptb_tokenize(captions)
    assert words == [ptb_tokenize([caption])[0] for caption in captions]
    for word in (word for of_caption in words for word in of_caption):
        assert word and word not in PUNCTUATION and not any(character.isspace() for character in word)


@given(st.lists(st.text(alphabet="abcdefghij", min_size=2, max_size=8), max_size=8))
def test_plain_words_stay_as_they_are(words: list[str]) -> None:
    assert ptb_tokenize([" ".join(words)]) == [words]
    assert ptb_tokenize([" , ".join(words).upper()]) == [words]


@pytest.mark.parametrize("captions", ["a dog", [1], [["a dog"]], [None]])
def test_what_is_no_list_of_strings_is_refused(captions: object) -> None:
    with pytest.raises(TypeError, match="captions must be a list of strings"):
        ptb_tokenize(captions)  # type: ignore[arg-type]
