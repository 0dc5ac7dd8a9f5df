"""Byte pairs: the vocabulary's file, the cleaning, the ids."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from image_encoders.errors import InputError, WeightsError
from image_encoders.inputs.bpe import END, MAX_CHARACTERS, START, BytePairs, clean

MERGES = ["t h", "th e</w>", "i n", "in g</w>", "a n", "an d</w>", "o o", "oo o</w>"]
FIRST = 512  # 256 bytes, and 256 more for bytes that end a word


@pytest.fixture(scope="module")
def pairs() -> BytePairs:
    return BytePairs(MERGES, "0" * 64)


def vocabulary(folder: Path, content: bytes, name: str = "vocabulary.txt.gz", packed: bool = True) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def file_of(merges: list[str], end: str = "") -> bytes:
    return ("\n".join(["#version: 0.2", *merges]) + end).encode()


def inner(pairs: BytePairs, text: str) -> list[int]:
    ids = pairs.encode(text, 10_000)
    assert (ids[0], ids[-1]) == (pairs.start, pairs.end)
    return ids[1:-1]


def test_ids_follow_the_order_of_the_file(pairs):
    assert (pairs.start, pairs.end) == (FIRST + len(MERGES), FIRST + len(MERGES) + 1)
    assert len(pairs) == pairs.end + 1
    assert inner(pairs, "the") == [FIRST + 1]
    assert inner(pairs, "th") == [ord("t") - 33, 256 + ord("h") - 33]  # th inside a word is no th at its end
    assert inner(pairs, "thing") == [FIRST, FIRST + 3]
    assert inner(pairs, "and") == [FIRST + 5]


def test_the_pair_that_came_first_is_joined_first_and_from_the_left(pairs):
    o, o_end = ord("o") - 33, 256 + ord("o") - 33
    assert inner(pairs, "oo") == [o, o_end]
    assert inner(pairs, "ooo") == [FIRST + 7]
    assert inner(pairs, "oooo") == [FIRST + 6, o, o_end]
    assert inner(pairs, "ooooo") == [FIRST + 6, FIRST + 7]


def test_a_text_of_the_published_kind_gives_the_reference_ids(golden, conformance):
    # All captions of the reference run, whose tokenizer was the original's.
    reference = golden("audioclip")
    pairs = BytePairs.read(conformance / "specs" / "data" / "bpe_synthetic.txt.gz")
    for caption, wanted in zip(reference["text/synthetic_bpe/captions"].tolist(), reference["text/synthetic_bpe/ids"]):
        ids = pairs.encode(caption, 77)
        np.testing.assert_array_equal(ids + [0] * (77 - len(ids)), wanted)


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A \t Cat\n\n sat ", "a cat sat"),
        ("caf\u00c3\u00a9", "café"),  # UTF-8 read as Latin-1
        ("fish &amp;amp; chips &lt;3", "fish & chips <3"),
        ("\u201cquoted\u201d", '"quoted"'),
        ("a\u00a0b\u2003c", "a b c"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_texts_are_cleaned_as_the_original_cleans_them(text, cleaned):
    assert clean(text) == cleaned


def test_words_are_cut_at_marks_digits_and_shortened_verbs(pairs):
    assert inner(pairs, "it's 42!") == [
        *inner(pairs, "it"),
        *inner(pairs, "'s"),
        *inner(pairs, "4"),
        *inner(pairs, "2"),
        *inner(pairs, "!"),
    ]


def test_start_and_end_written_out_are_themselves(pairs):
    assert inner(pairs, f"the {END} the") == [FIRST + 1, pairs.end, FIRST + 1]
    assert inner(pairs, START) == [pairs.start]


def test_an_empty_text_is_start_and_end(pairs):
    assert pairs.encode("", 77) == [pairs.start, pairs.end]


def test_a_text_that_is_too_long_is_refused_or_cut(pairs):
    assert len(pairs.encode("the " * 75, 77)) == 77
    with pytest.raises(InputError, match="78 tokens; the model takes 77") as caught:
        pairs.encode("the " * 76, 77)
    assert caught.value.code == "too-long"
    cut = pairs.encode("the " * 75 + "thing " * 5, 77, truncate=True)
    assert cut == [pairs.start, *[FIRST + 1] * 75, pairs.end]


def test_an_endless_word_takes_no_endless_time(pairs):
    letters = "".join(chr(97 + i % 23) for i in range(300_000))
    start = time.process_time()
    with pytest.raises(InputError, match=rf"at most {MAX_CHARACTERS:,} are accepted") as caught:
        pairs.encode(letters, 77)
    assert caught.value.code == "too-long"
    assert len(pairs.encode(letters, 77, truncate=True)) == 77
    assert time.process_time() - start < 5  # of the processor


@given(st.text(max_size=60))
def test_every_text_has_ids_within_the_vocabulary(text):
    pairs = BytePairs(MERGES, "0" * 64)
    ids = pairs.encode(text, 10_000)
    assert ids[0] == pairs.start
    assert ids[-1] == pairs.end
    assert all(0 <= one <= pairs.end for one in ids)


def test_a_vocabulary_is_read_packed_or_not_with_the_digest_of_its_file(tmp_path):
    packed = BytePairs.read(vocabulary(tmp_path, file_of(MERGES)))
    plain = BytePairs.read(vocabulary(tmp_path, file_of(MERGES), "vocabulary.txt", packed=False))
    assert packed.merges == plain.merges == tuple(MERGES)
    assert packed.sha256 != plain.sha256
    assert len(packed.sha256) == 64
    assert packed.encode("the thing", 77) == plain.encode("the thing", 77)


def test_an_empty_last_line_takes_an_id_as_in_the_original(tmp_path):
    # The original splits the file at line ends and counts what it gets; the published file is cut before its end.
    pairs = BytePairs.read(vocabulary(tmp_path, file_of(MERGES, end="\n")))
    assert pairs.start == FIRST + len(MERGES) + 1


def test_lines_after_the_last_that_counts_are_not_read(tmp_path):
    many = [f"a{i} b{i}" for i in range(49152)]
    assert len(BytePairs.read(vocabulary(tmp_path, file_of([*many, "no merge at all"])))) == 49408


@pytest.mark.parametrize(
    ("content", "packed", "message"),
    [
        (b"", False, "no merges in it"),
        (b"#version: 0.2", True, "no merges in it"),
        (file_of(["t h", "one", "i n"]), True, "line 3 is 'one'"),
        (file_of(["t h", "", "i n"]), True, "line 3 is ''"),
        (file_of(["a b c"]), True, "line 2 is 'a b c'"),
        (b"<html>\n<body>this page was not found</body>", False, "line 2 is"),
        (b"#version\n\xff\xfe t", False, "not UTF-8 text at byte 9"),
        (gzip.compress(file_of(MERGES * 100), mtime=0)[:-20], False, "vocabulary cannot be read"),
        (gzip.compress(file_of(MERGES), mtime=0)[:12], False, "vocabulary cannot be read"),
        (b"\x1f\x8b" + bytes(100), False, "vocabulary"),
        (bytes(1 << 27), True, "bytes unpacked"),
    ],
)
def test_a_file_that_is_no_vocabulary_is_refused_by_name(tmp_path, content, packed, message):
    path = vocabulary(tmp_path, content, packed=packed)
    with pytest.raises(WeightsError, match=message) as caught:
        BytePairs.read(path)
    assert str(path) in str(caught.value)


def test_a_flipped_byte_in_a_packed_vocabulary_is_noticed(tmp_path):
    content = bytearray(gzip.compress(file_of(MERGES * 50)))
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(WeightsError):
        BytePairs.read(vocabulary(tmp_path, bytes(content), packed=False))


def test_a_missing_vocabulary_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"none\.txt\.gz: the vocabulary cannot be read: No such file"):
        BytePairs.read(tmp_path / "none.txt.gz")
