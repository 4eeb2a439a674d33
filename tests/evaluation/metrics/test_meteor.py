"""METEOR and the Java tokenizer: what is said without Java, and the numbers with it (slow)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hf_contrastive_caption.evaluation.metrics import java
from hf_contrastive_caption.evaluation.metrics.meteor import MeteorProcess, meteor, meteor_available
from hf_contrastive_caption.evaluation.metrics.prepared import PreparedCaptions, PreparedReferences
from hf_contrastive_caption.evaluation.metrics.tokenization import ptb_tokenize
from hf_contrastive_caption.evaluation.metrics.tokenization_java import java_ptb_tokenize, java_ptb_tokenizer_available

needs_java = pytest.mark.skipif(meteor_available() is not None, reason=str(meteor_available()))


@pytest.fixture
def process() -> Iterator[MeteorProcess]:
    with MeteorProcess(timeout_s=120) as running:
        yield running


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "find_java", lambda: None)
    monkeypatch.setattr(java, "find_jar", lambda name: None)
    line = meteor_available()
    assert line is not None and "\n" not in line
    assert "hf-contrastive-caption[coco]" in line and "Java (for example" in line
    monkeypatch.setattr(java, "find_java", lambda: "/usr/bin/java")
    line = java_ptb_tokenizer_available()
    assert line is not None and "pycocoevalcap" in line and "Java (for" not in line


def test_java_home_goes_first(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.touch(mode=0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert java.find_java() == str(program)


def test_java_that_does_not_start_is_found_before_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Could not reserve enough space' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr(java, "find_jar", lambda name: tmp_path / name)
    assert meteor_available() == f"{program} does not start with 2G of memory: Could not reserve enough space"


def test_lines_hold_one_text() -> None:
    assert java.one_line(["a\u2028b", "c\r", "", "\x0b"]) == "a b c"


@pytest.mark.slow
@needs_java
def test_scores_do_not_move_between_images(process: MeteorProcess) -> None:
    references = [[["a", "dog", "runs"], ["the", "dog"]], [["two", "cats"]], [["a", "bus"]]]
    plain = process.score(PreparedCaptions([["a", "dog"], [], ["a", "bus"]]), PreparedReferences(references))
    assert plain.per_image[1] == 0 and plain.per_image[2] > 0.9 and 0 < plain.corpus < 1
    odd = PreparedCaptions([["a\u2028", "dog\r"], ["\n"], ["a", "|||", "bus\x0c"]])
    assert process.score(odd, PreparedReferences(references)).per_image.tolist() == plain.per_image.tolist()


@pytest.mark.slow
@needs_java
def test_equals_pycocoevalcap(process: MeteorProcess) -> None:
    theirs = pytest.importorskip("pycocoevalcap.meteor.meteor").Meteor()
    captions = [["a", "brown", "dog", "is", "running"], ["cats"], ["a", "man", "riding", "bicycles"]]
    references = [[["the", "dog", "runs"], ["a", "dog"]], [["two", "cat"]], [["a", "person", "rides", "a", "bike"]]]
    texts = {number: [" ".join(words) for words in of_image] for number, of_image in enumerate(references)}
    corpus, per_image = theirs.compute_score(texts, {i: [" ".join(words)] for i, words in enumerate(captions)})
    score = process.score(PreparedCaptions(captions), PreparedReferences(references))
    assert score.corpus == corpus
    assert score.per_image.tolist() == per_image


@pytest.mark.slow
@needs_java
def test_comma_locale_changes_nothing(monkeypatch: pytest.MonkeyPatch, process: MeteorProcess) -> None:
    captions, references = PreparedCaptions([["a", "dog"]]), PreparedReferences([[["a", "big", "dog"]]])
    # The locale of the machine may not be installed; this gives Java one with a comma all the same.
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=de -Duser.country=DE")
    with MeteorProcess() as german:
        assert german.score(captions, references).corpus == process.score(captions, references).corpus


@pytest.mark.slow
@needs_java
def test_a_process_that_ends_or_hangs_is_an_error_with_its_reason() -> None:
    captions, references = PreparedCaptions([["a"]]), PreparedReferences([[["a"]]])
    with (
        MeteorProcess(heap="8M") as starved,
        pytest.raises(RuntimeError, match="METEOR ended.*It wrote: .*OutOfMemory"),
    ):
        starved.score(captions, references)
    with MeteorProcess(timeout_s=0.001) as hasty, pytest.raises(RuntimeError, match="did not answer within 0.001 s"):
        hasty.score(captions, references)
    hasty.close()
    with pytest.raises(RuntimeError, match="ended"):
        hasty.score(captions, references)


@pytest.mark.slow
@needs_java
def test_shared_process_is_kept() -> None:
    first = meteor([["a", "dog"]], [[["a", "dog"]]])
    assert first.corpus == meteor([["a", "dog"]], [[["a", "dog"]]]).corpus
    assert first.name == "meteor"


@pytest.mark.slow
@needs_java
def test_java_tokenizer_gives_the_same_words() -> None:
    captions = ["A man (with hat)", "a\u2028b\r\nc", "", "It's 5 p.m., isn't it?", "猫が 座っている", "."]
    assert java_ptb_tokenize(captions) == ptb_tokenize(captions)
