"""Texts to token ids by byte-pair encoding, as OpenAI's CLIP does it.

Source: https://github.com/openai/CLIP clip/simple_tokenizer.py @ d50d76d (MIT); AudioCLIP's copy is the same.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import re
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from image_encoders.errors import InputError, WeightsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import regex

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_MERGES = 49152 - 256 - 2  # more lines than these are not read
MAX_VOCABULARY = 1 << 26  # bytes, unpacked: the published one has 3.1 MB
MAX_CHARACTERS = 4_000  # of a cleaned text: three times what 77 tokens hold, and bounds the time it takes
WORDS = rf"{re.escape(START)}|{re.escape(END)}|'s|'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"


class BytePairs:
    """A vocabulary of byte pairs and the encoding by it.

    merges: the lines of a vocabulary file after its first: pairs of symbols, the most frequent first
    sha256: of the file they came from
    start, end: the ids around a text; the two highest
    """

    def __init__(self, merges: Sequence[str], sha256: str):
        pairs = [tuple(line.split()) for line in merges]
        symbols = list(_byte_symbols().values())
        vocabulary = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, pairs), START, END]
        self.merges = tuple(merges)
        self.sha256 = sha256
        self._ids = {symbol: i for i, symbol in enumerate(vocabulary)}
        self._ranks = {pair: i for i, pair in enumerate(pairs)}
        self._word_ids = lru_cache(1 << 16)(self._encode_word)
        self.start, self.end = self._ids[START], self._ids[END]

    def __len__(self) -> int:
        return self.end + 1

    @classmethod
    def read(cls, path: str | Path) -> BytePairs:
        """The vocabulary in a file such as bpe_simple_vocab_16e6.txt.gz, packed by gzip or not.

        Raises WeightsError when the file is missing, damaged or something else.
        """
        path = Path(path)
        try:
            content = path.read_bytes()
            packed = content[:2] == b"\x1f\x8b"
            with gzip.open(BytesIO(content)) if packed else BytesIO(content) as file:
                unpacked = file.read(MAX_VOCABULARY + 1)
        except (OSError, EOFError, ValueError) as error:
            raise WeightsError(
                f"{path}: the vocabulary cannot be read: {getattr(error, 'strerror', None) or error}; "
                "get the file again"
            ) from error
        except Exception as error:  # zlib's own
            raise WeightsError(f"{path}: a damaged gzip file: {error}; get the file again") from error
        if len(unpacked) > MAX_VOCABULARY:
            raise WeightsError(f"{path}: more than {MAX_VOCABULARY:,} bytes unpacked; this is no vocabulary")
        try:
            lines = unpacked.decode("utf-8").split("\n")[1 : MAX_MERGES + 1]
        except UnicodeDecodeError as error:
            raise WeightsError(f"{path}: not UTF-8 text at byte {error.start}; wanted a file of merges") from error
        for number, line in enumerate(lines, start=2):
            # an empty line at the end takes an id, as it does in the original
            if len(line.split()) != 2 and not (number == len(lines) + 1 and not line.strip()):
                raise WeightsError(f"{path}: line {number} is {line[:40]!r}; wanted two symbols with a space between")
        if not lines:
            raise WeightsError(f"{path}: no merges in it; wanted a file such as bpe_simple_vocab_16e6.txt.gz")
        return cls(lines, hashlib.sha256(content).hexdigest())

    def encode(self, text: str, limit: int, *, truncate: bool = False) -> list[int]:
        """The ids of a text between `start` and `end`.

        limit: at most so many ids, `start` and `end` included
        truncate: truncate long texts instead of refusing them; the last id is still `end`

        Raises InputError ("too-long").
        """
        cleaned = clean(text)
        if len(cleaned) > MAX_CHARACTERS and not truncate:
            raise InputError(
                f"a text of {len(cleaned):,} characters; at most {MAX_CHARACTERS:,} are accepted; shorten it, "
                "or pass truncate=True",
                code="too-long",
            )
        ids = [self.start]
        for word in _pattern().findall(cleaned[:MAX_CHARACTERS]):
            ids += self._word_ids(word)
        if len(ids) >= limit:
            if not truncate:
                raise InputError(
                    f"a text of {len(ids) + 1} tokens; the model takes {limit}, start and end included; "
                    "shorten it, or pass truncate=True",
                    code="too-long",
                )
            del ids[limit - 1 :]
        return [*ids, self.end]

    def _encode_word(self, word: str) -> list[int]:
        if word in (START, END):  # written out in a text, they are themselves
            return [self._ids[word]]
        symbols = [_byte_symbols()[byte] for byte in word.encode()]
        symbols[-1] += "</w>"
        while len(symbols) > 1:
            first, second = min(pairwise(symbols), key=lambda pair: self._ranks.get(pair, MAX_MERGES))
            if (first, second) not in self._ranks:
                break
            symbols = _merged(symbols, first, second)
        return [self._ids[symbol] for symbol in symbols]


def clean(text: str) -> str:
    """Repaired encoding, HTML entities replaced (twice), single spaces, lower case."""
    import ftfy
    import regex

    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


def _merged(symbols: list[str], first: str, second: str) -> list[str]:
    """Every `first`, `second` in a row joined, from the left."""
    joined: list[str] = []
    i = 0
    while i < len(symbols):
        if symbols[i] == first and i + 1 < len(symbols) and symbols[i + 1] == second:
            joined.append(first + second)
            i += 2
        else:
            joined.append(symbols[i])
            i += 1
    return joined


@lru_cache(1)
def _pattern() -> regex.Pattern[str]:
    import regex

    return regex.compile(WORDS, regex.IGNORECASE)


@lru_cache(1)
def _byte_symbols() -> dict[int, str]:
    """A visible character for each byte, the printable ones of Latin-1 for themselves; their order gives the ids."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
