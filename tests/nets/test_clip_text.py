"""The text net: causal, and blind to what follows a text's end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from image_encoders.nets.clip_text import CONTEXT, CausalAttention, ClipText

END = 99


@pytest.fixture(scope="module")
def net() -> ClipText:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return ClipText(vocabulary=END + 1, width=32, heads=2, layers=2, dim=16).eval()


def ids(*lengths: int) -> torch.Tensor:
    rows = torch.zeros(len(lengths), CONTEXT, dtype=torch.int64)
    generator = torch.Generator().manual_seed(3)
    for row, length in zip(rows, lengths):
        row[: length - 1] = torch.randint(1, END, (length - 1,), generator=generator)
        row[length - 1] = END
    return rows


def test_embeddings_are_the_same_alone_and_in_a_batch(net):
    batch = ids(2, 77, 12, 5)
    with torch.inference_mode():
        rows = net(batch)
        alone = torch.cat([net(one[None]) for one in batch])
    assert rows.shape == (4, 16)
    torch.testing.assert_close(rows, alone, rtol=1e-5, atol=1e-6)


def test_what_follows_the_end_does_not_matter(net):
    plain, filled = ids(6), ids(6)
    filled[:, 6:] = 7
    with torch.inference_mode():
        torch.testing.assert_close(net(plain), net(filled), rtol=1e-5, atol=1e-6)


def test_every_token_before_the_end_matters(net):
    plain = ids(6)
    with torch.inference_mode():
        rows = net(plain)
        for position in range(5):
            other = plain.clone()
            other[0, position] = other[0, position] % 50 + 30
            assert not torch.allclose(net(other), rows, atol=1e-4)


def test_attention_equals_torchs_own_with_a_causal_mask():
    attention = CausalAttention(32, heads=4).eval()
    own = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    own.load_state_dict(attention.state_dict())
    x = torch.randn(3, 9, 32, generator=torch.Generator().manual_seed(4))
    mask = torch.full((9, 9), float("-inf")).triu(1)
    with torch.no_grad():
        wanted, _ = own(x, x, x, attn_mask=mask, need_weights=False)
        torch.testing.assert_close(attention(x), wanted, rtol=1e-5, atol=1e-6)
