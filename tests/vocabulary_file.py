"""Vocabulary pickles of VSE++ as the authors' program writes them."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Sequence
from typing import Any


def vocabulary_bytes(words: Sequence[str], protocol: int = 4, **attributes: Any) -> bytes:
    """A pickled vocab.Vocabulary of these words; `attributes` replace its own."""
    module = types.ModuleType("vocab")
    module.Vocabulary = type("Vocabulary", (), {"__module__": "vocab"})  # type: ignore[attr-defined]
    sys.modules["vocab"] = module
    try:
        one = module.Vocabulary()
        one.word2idx = {word: i for i, word in enumerate(words)}
        one.idx2word = dict(enumerate(words))
        one.idx = len(words)
        vars(one).update(attributes)
        return pickle.dumps(one, protocol)
    finally:
        del sys.modules["vocab"]
