"""The text side of CLIP: a causal transformer over token ids, under the names of OpenAI's checkpoints.

Source: https://github.com/openai/CLIP clip/model.py `Transformer`, `encode_text` @ d50d76d (MIT), with float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONTEXT = 77  # token ids of a text, start and end included


class CausalAttention(nn.Module):
    """Every token attends to itself and to those before it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = _random(3 * width, width)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, L, 3 * width)
        query, key, value = projected.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, L, ...)
        x = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(x.transpose(1, 2).flatten(2))


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), which CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attn = CausalAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, layers: int):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        return self.resblocks(x)


class ClipText(nn.Module):
    """Token ids (B, L) int64 -> embeddings (B, dim): the feature at each text's largest id, which is its end.

    What follows the end cannot reach it, so the batch is cut after its last end.
    """

    def __init__(self, vocabulary: int, width: int, heads: int, layers: int, dim: int):
        super().__init__()
        self.transformer = Transformer(width, heads, layers)
        self.token_embedding = nn.Embedding.from_pretrained(_random(vocabulary, width), freeze=False)
        self.positional_embedding = _random(CONTEXT, width)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = _random(width, dim)

    def forward(self, ids: Tensor) -> Tensor:
        ends = ids.argmax(dim=1)
        length = int(ends.max()) + 1
        x = self.token_embedding(ids[:, :length]) + self.positional_embedding[:length]  # (B, L, width)
        x = self.transformer(x)
        x = x[torch.arange(len(x), device=x.device), ends]  # (B, width)
        return self.ln_final(x) @ self.text_projection


def _random(*shape: int) -> nn.Parameter:
    # Uniform, not normal: on the meta device, normal numbers import half of torch, for seconds.
    return nn.Parameter(nn.init.uniform_(torch.empty(shape), -0.2, 0.2))
