"""Train, measure and export `clip/demo`, the small CLIP that comes with the package.

Run from the repository's root:

    python training/clip_demo.py train --seed 0 -o OUT      # writes a folder that load("clip/OUT") takes
    python training/clip_demo.py evaluate OUT               # prints its recall

The images and captions are drawn while training (image_encoders/scenes.py), so there is nothing to fetch.
Training has two parts. First the image tower alone names the colour, shape and size in each patch of crowded
images: shapes are what it finds hardest, and this teaches it many of them per image. Then both towers match
images with captions, the patches still being named, in batches where every scene has a neighbour that differs
in one thing. The heads that name patches are not exported.

docs/clip-demo.md has the results, and what was tried without success.
"""

from __future__ import annotations

import argparse
import copy
import functools
import io
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from captions import RELATIONS, Caption, caption, describe
from image_encoders import scenes
from image_encoders.scenes import BACKGROUNDS, COLOURS, HELD_OUT, SHAPES, SIZES, Scene

SIZE = 60  # side of the model's input [px]
PATCH = 10  # [px]
CONTEXT = 32  # tokens, the longest caption's count included
MEAN, STD = (0.45,) * 3, (0.35,) * 3


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome besides the seed."""

    # the net
    width: int = 160
    layers: int = 4
    heads: int = 4
    text_width: int = 96
    text_layers: int = 3
    text_heads: int = 3
    dim: int = 128
    # first the image tower alone learns to name what lies in each patch of crowded images ...
    crowd_steps: int = 1400
    crowd_batch: int = 32  # images
    # ... then both towers learn to match images with captions
    steps: int = 2300
    batch: int = 96  # scenes, half of them the other half with one thing changed
    full: float = 0.6  # share of captions that name every thing
    filed: float = 0.2  # share of images drawn larger, stored as JPEG and read back
    patch_weight: float = 1.0  # of the patches' loss, the captions' being 1
    # optimisation
    muon_rate: float = 0.02  # of the blocks' matrices
    adam_rate: float = 0.003  # of everything else
    warmup: int = 50  # steps, of each part
    steady: float = 0.2  # share of the second part before the rates fall to 0
    memory: float = 0.998  # of the running average of the weights, which is what is exported
    scale: float = 20.0  # of the logits at the start


# ---- tokens ----


def words_of(text: str) -> list[str]:
    """The words and marks of a caption, as CLIP's tokenizer splits it."""
    return re.findall(r"[a-z]+|[^\sa-z]+", text)


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Tokens and merges of CLIP's byte-level BPE that keep every word of the captions whole."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    rng = random.Random(0)
    seen: dict[str, int] = {}
    for _ in range(20_000):
        for word in words_of(caption(scenes.sample_scene(rng), rng, rng.random() < 0.5)):
            seen[word] = seen.get(word, 0) + 1
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in seen}
    merges: list[tuple[str, str]] = []
    while True:
        pairs: dict[tuple[str, str], int] = {}
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] = pairs.get(pair, 0) + seen[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in pieces.items():
            pieces[word] = merged(parts, best)
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(pair) for pair in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    """A word's parts, with every occurrence of the pair put together."""
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def token_ids(texts: list[str], vocab: dict[str, int]) -> torch.Tensor:
    """(B, L) ids, padded with the end token to the longest text."""
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    rows = [[start, *(vocab[word + "</w>"] for word in words_of(text)), end] for text in texts]
    longest = max(map(len, rows))
    return torch.tensor([row + [end] * (longest - len(row)) for row in rows])


# ---- batches ----


def variant(scene: Scene, rng: random.Random) -> Scene:
    """The same scene but for one attribute of one thing, the background, or two things' colours swapped."""
    while True:
        things = list(scene.things)
        i = rng.randrange(len(things))
        thing = things[i]
        what = rng.choice(("colour", "colour", "shape", "shape", "size", "place", "background", "swap", "swap"))
        if what == "swap" and len(things) > 1:
            j = rng.choice([j for j in range(len(things)) if j != i])
            other = things[j]
            things[i] = replace(thing, colour=other.colour, rgb=other.rgb)
            things[j] = replace(other, colour=thing.colour, rgb=thing.rgb)
        elif what == "colour":
            colour = rng.choice(list(COLOURS))
            things[i] = replace(thing, colour=colour, rgb=scenes.jittered(rng, COLOURS[colour]))
        elif what == "shape":
            things[i] = replace(thing, shape=rng.choice(SHAPES))
        elif what == "size":
            size = rng.choice(list(SIZES))
            things[i] = replace(thing, size=size, radius=rng.uniform(*SIZES[size]))
        elif what == "place":
            row, column = rng.randrange(3), rng.randrange(3)
            x = thing.x + scenes.CENTRES[column] - scenes.CENTRES[thing.column]
            y = thing.y + scenes.CENTRES[row] - scenes.CENTRES[thing.row]
            things[i] = replace(thing, row=row, column=column, x=x, y=y)
        elif what == "background":
            background = rng.choice(list(BACKGROUNDS))
            changed = replace(scene, background=background, rgb=scenes.jittered(rng, BACKGROUNDS[background]))
            if background != scene.background:
                return changed
        changed = replace(scene, things=tuple(things))
        apart = all(scenes.apart(a, b) for a, b in itertools.combinations(things, 2))
        if changed != scene and apart and not any(thing.pair in HELD_OUT for thing in things):
            return changed


def filed(scene: Scene, rng: random.Random) -> np.ndarray:
    """A scene's image drawn larger, stored with loss and read back by the model's preprocessing."""
    image = jpeg(scene, rng.randint(72, 224), rng.randint(60, 95))
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def pixels_of(images: list[np.ndarray]) -> torch.Tensor:
    """(B, 3, SIZE, SIZE) float32, normalised."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (stacked - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def truth(captions: list[Caption], of: list[Scene]) -> np.ndarray:
    """(captions, scenes) bool: whether the caption is true of the scene."""
    colours, shapes, sizes = list(COLOURS), list(SHAPES), list(SIZES)

    def codes(things: tuple) -> list[list[int]]:  # -1 is left unsaid, -2 is an absent claim or thing
        rows = [
            [
                -1 if thing.colour is None else colours.index(thing.colour),
                -1 if thing.shape is None else shapes.index(thing.shape),
                -1 if thing.size is None else sizes.index(thing.size),
                -1 if thing.row is None else thing.row,
                -1 if thing.column is None else thing.column,
            ]
            for thing in things
        ]
        return rows + [[-2] * 5] * (3 - len(rows))

    said = np.array([codes(caption.claims) for caption in captions], np.int8)[:, None, :, None]  # (C, 1, 3, 1, 5)
    there = np.array([codes(scene.things) for scene in of], np.int8)[None, :, None]  # (1, S, 1, 3, 5)
    fits = ((said == -1) | (said == there)).all(-1) | (said[..., 0] == -2)  # (C, S, 3 claims, 3 things)
    steps = {None: (0, 0), **{name: step for name, (_, *step) in RELATIONS.items()}}
    step = np.array([steps[caption.relation] for caption in captions])[:, None]  # (C, 1, 2)
    true = np.zeros(fits.shape[:2], bool)
    for order in itertools.permutations(range(3)):
        lies = ((there[:, :, 0, order[1], 4:2:-1] - there[:, :, 0, order[0], 4:2:-1]) * step).sum(-1) > 0
        placed = lies | ~step.any(-1)
        true |= placed & fits[:, :, 0, order[0]] & fits[:, :, 1, order[1]] & fits[:, :, 2, order[2]]
    names = [*BACKGROUNDS, None]
    ground = np.array([names.index(caption.background) for caption in captions])[:, None]
    return true & ((ground == len(BACKGROUNDS)) | (ground == np.array([names.index(s.background) for s in of])))


def patch_labels(of: list[Scene]) -> torch.Tensor:
    """(B, patches, 3): the colour, shape and size of the thing a patch lies in, 0 where there is none."""
    colours, shapes, sizes = list(COLOURS), list(SHAPES), list(SIZES)
    side = SIZE // PATCH
    middles = (np.arange(side) + 0.5) / side
    labels = np.zeros((len(of), side, side, 3), np.int64)
    for image, scene in zip(labels, of, strict=True):
        for thing in scene.things:
            reach = thing.radius + 0.3 / side
            inside = np.hypot(middles - thing.x, (middles - thing.y)[:, None]) < reach
            image[inside] = (
                1 + colours.index(thing.colour),
                1 + shapes.index(thing.shape),
                1 + sizes.index(thing.size),
            )
    return torch.from_numpy(labels.reshape(len(of), side * side, 3))


def crowded(rng: random.Random) -> Scene:
    """A scene of about seven things: many shapes to learn from in one image."""
    scene = scenes.sample_scene(rng)
    for _ in range(5):
        for thing in scenes.sample_scene(rng).things:
            if all(scenes.apart(thing, other) for other in scene.things):
                scene = replace(scene, things=(*scene.things, thing))
    return scene


def images_of(of: list[Scene], recipe: Recipe, rng: random.Random) -> torch.Tensor:
    """(B, 3, SIZE, SIZE): the scenes drawn, some by way of a file."""
    return pixels_of([filed(scene, rng) if rng.random() < recipe.filed else scenes.draw(scene, SIZE) for scene in of])


def related_scenes(recipe: Recipe, rng: random.Random) -> list[Scene]:
    """A batch of scenes, each followed by one that differs in one thing."""
    first = [scenes.sample_scene(rng) for _ in range(recipe.batch // 2)]
    return [scene for one in first for scene in (one, variant(one, rng))]


# ---- the net: transformers' CLIPModel, run here without what training does not need ----


def clip_model(recipe: Recipe, vocab: dict[str, int]) -> CLIPModel:
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    tokens = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    text = {
        "vocab_size": len(vocab),
        "hidden_size": recipe.text_width,
        "intermediate_size": 4 * recipe.text_width,
        "num_hidden_layers": recipe.text_layers,
        "num_attention_heads": recipe.text_heads,
        "max_position_embeddings": CONTEXT,
        "projection_dim": recipe.dim,
        "hidden_act": "gelu",
        **tokens,
    }
    vision = {
        "image_size": SIZE,
        "patch_size": PATCH,
        "hidden_size": recipe.width,
        "intermediate_size": 4 * recipe.width,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "projection_dim": recipe.dim,
        "hidden_act": "gelu",
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=recipe.dim))


def block(layer: nn.Module, x: torch.Tensor, causal: bool, only: torch.Tensor | None = None) -> torch.Tensor:
    """One transformer block; `only`: the position in each row to compute, (B,), else all of them."""
    at = layer.self_attn
    y = layer.layer_norm1(x)
    mask = None
    if only is not None:
        rows = torch.arange(len(x))
        x, asked = x[rows, only][:, None], y[rows, only][:, None]
        if causal:
            mask = (torch.arange(y.shape[1]) <= only[:, None])[:, None, None]
    else:
        asked = y
    q, k, v = (
        t.unflatten(-1, (at.num_heads, -1)).transpose(1, 2) for t in (at.q_proj(asked), at.k_proj(y), at.v_proj(y))
    )
    read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and only is None)
    x = x + at.out_proj(read.transpose(1, 2).flatten(2))
    return x + layer.mlp(layer.layer_norm2(x))


def patch_states(model: CLIPModel, pixels: torch.Tensor) -> torch.Tensor:
    """(B, 1 + patches, width): the states before the last block, of which the first is the image's."""
    vision = model.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers[:-1]:
        x = block(layer, x, causal=False)
    return x


def embed_states(model: CLIPModel, states: torch.Tensor) -> torch.Tensor:
    """(B, dim) unit rows of images."""
    vision = model.vision_model
    first = torch.zeros(len(states), dtype=torch.long)
    pooled = block(vision.encoder.layers[-1], states, causal=False, only=first)[:, 0]
    return F.normalize(model.visual_projection(vision.post_layernorm(pooled)), dim=-1)


def embed_ids(model: CLIPModel, ids: torch.Tensor) -> torch.Tensor:
    """(B, dim) unit rows."""
    text = model.text_model
    x = text.embeddings(ids)
    for layer in text.encoder.layers[:-1]:
        x = block(layer, x, causal=True)
    end = (ids == text.config.eos_token_id).int().argmax(-1)
    pooled = block(text.encoder.layers[-1], x, causal=True, only=end)[:, 0]
    return F.normalize(model.text_projection(text.final_layer_norm(pooled)), dim=-1)


# ---- training ----


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made nearly orthogonal before each step.

    Unlike torch.optim.Muon it stays in float32: processors without bfloat16 units are very slow at the other.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, decay: float = 0.01, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "decay": decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for alike in by_shape.values():
                moves = []
                for p in alike:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(p.grad, 1 - group["momentum"])
                    moves.append(p.grad.lerp(average, group["momentum"]))
                moves = orthogonal(torch.stack(moves))
                scale = max(1.0, alike[0].shape[0] / alike[0].shape[1]) ** 0.5
                for p, move in zip(alike, moves, strict=True):
                    p.mul_(1 - group["lr"] * group["decay"]).sub_(move, alpha=group["lr"] * scale)


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Each matrix's nearest orthogonal one, roughly, by five Newton-Schulz steps. (N, R, C)"""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def contrastive(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Cross entropy both ways; a caption that is also true of another scene is no wrong answer for it."""
    logits = scale * text @ image.T  # (captions, scenes)
    logits = logits.masked_fill(true & ~torch.eye(len(true), dtype=torch.bool), -torch.inf)
    own = torch.arange(len(true))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class PatchHeads(nn.Module):
    """Name the colour, shape and size in each patch; needed for training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.counts = [len(names) + 1 for names in (COLOURS, SHAPES, SIZES)]
        self.guess = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.counts)))

    def loss(self, patches: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        guesses = self.guess(patches).flatten(0, 1).split(self.counts, -1)
        return sum(F.cross_entropy(guess, labels[..., i].flatten()) for i, guess in enumerate(guesses))


class Trainer:
    """The model, its optimisers and the running average of its weights."""

    def __init__(self, recipe: Recipe, seed: int) -> None:
        torch.manual_seed(seed)
        self.recipe = recipe
        self.rng = random.Random(seed)
        self.vocab, self.merges = vocabulary()
        self.model = clip_model(recipe, self.vocab)
        self.heads = PatchHeads(recipe.width)
        with torch.no_grad():
            self.model.logit_scale.fill_(math.log(recipe.scale))
        named = dict(self.model.named_parameters())
        matrices = [p for name, p in named.items() if ".layers." in name and p.ndim == 2]
        others = [p for name, p in named.items() if not (".layers." in name and p.ndim == 2)]
        others += self.heads.parameters()
        self.optimizers = [
            Muon(matrices, recipe.muon_rate),
            torch.optim.AdamW(others, recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in self.optimizers]
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self.done = 0  # steps

    def crowd_loss(self) -> torch.Tensor:
        """The patches' loss of one batch of crowded images."""
        of = [crowded(self.rng) for _ in range(self.recipe.crowd_batch)]
        patches = patch_states(self.model, images_of(of, self.recipe, self.rng))[:, 1:]
        return self.heads.loss(patches, patch_labels(of))

    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The captions' and the patches' loss of one batch of scenes."""
        of = related_scenes(self.recipe, self.rng)
        captions = [describe(scene, self.rng, self.rng.random() < self.recipe.full) for scene in of]
        states = patch_states(self.model, images_of(of, self.recipe, self.rng))
        image = embed_states(self.model, states)
        text = embed_ids(self.model, token_ids([words.text for words in captions], self.vocab))
        true = torch.from_numpy(truth(captions, of))
        return (
            contrastive(image, text, self.model.logit_scale.exp(), true),
            self.heads.loss(states[:, 1:], patch_labels(of)),
        )

    def step(self, loss: torch.Tensor, rate: float) -> None:
        loss.backward()
        for optimizer, full_rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = full_rate * rate
            optimizer.step()
            optimizer.zero_grad()
        self.done += 1
        keep = min(self.recipe.memory, self.done / (self.done + 10))
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)


def train(recipe: Recipe, seed: int, out: Path) -> None:
    """Train from nothing and export; the same seed and number of threads give the same model."""
    trainer = Trainer(recipe, seed)
    check = evaluation_set("check", 500, unseen_pairs=False)
    check_unseen = evaluation_set("check", 500, unseen_pairs=True)
    for step in range(recipe.crowd_steps):
        loss = trainer.crowd_loss()
        trainer.step(loss, min(1.0, (step + 1) / recipe.warmup))
        if (step + 1) % 50 == 0:
            print(f"crowd step {step + 1}: {cpu_minutes():.1f} CPU min, patches {loss.item():.3f}", flush=True)
    for step in range(recipe.steps):
        captions, patches = trainer.losses()
        left = (recipe.steps - step) / recipe.steps
        rate = min(1.0, (step + 1) / recipe.warmup, left / (1 - recipe.steady))
        trainer.step(captions + recipe.patch_weight * patches, rate)
        if (step + 1) % 25 == 0:
            print(
                f"step {step + 1}: {cpu_minutes():.1f} CPU min, captions {captions.item():.3f}, "
                f"patches {patches.item():.3f}, scale {trainer.model.logit_scale.exp().item():.1f}",
                flush=True,
            )
        if (step + 1) % 200 == 0 or step + 1 == recipe.steps:
            export(trainer.average, trainer.vocab, trainer.merges, out)
            seen, unseen = (quick_recall(trainer.average, trainer.vocab, pairs) for pairs in (check, check_unseen))
            print(f"recall@1 among 500: {seen:.3f}, with unseen pairs {unseen:.3f}", flush=True)


def cpu_minutes() -> float:
    return time.process_time() / 60


def export(model: CLIPModel, vocab: dict[str, int], merges: list[tuple[str, str]], out: Path) -> None:
    """Write the folder that transformers' CLIPModel, CLIPTokenizer and CLIPImageProcessor load."""
    out.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    (out / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (out / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    write_json(out / "special_tokens_map.json", special)
    tokenizer = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CONTEXT,
        "do_lower_case": True,
        **special,
    }
    write_json(out / "tokenizer_config.json", tokenizer)
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": SIZE, "width": SIZE},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    write_json(out / "preprocessor_config.json", preprocessor)


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


# ---- measuring ----


def evaluation_set(name: str, count: int, unseen_pairs: bool) -> list[tuple[Scene, Caption]]:
    """Scenes with full captions, each caption true of its own scene alone."""
    rng = random.Random(f"{name}, unseen pairs: {unseen_pairs}")  # no training seed is a sentence
    chosen: list[tuple[Scene, Caption]] = []
    while len(chosen) < count:
        scene = scenes.sample_scene(rng, unseen_pairs)
        words = describe(scene, rng)
        if not any(words.holds(other) or said.holds(scene) for other, said in chosen):
            chosen.append((scene, words))
    return chosen


@torch.no_grad()
def quick_recall(model: CLIPModel, vocab: dict[str, int], pairs: list[tuple[Scene, Caption]]) -> float:
    """Text to image recall@1 with the trainer's own forward pass."""
    image = embed_states(model, patch_states(model, pixels_of([scenes.draw(scene, SIZE) for scene, _ in pairs])))
    text = embed_ids(model, token_ids([words.text for _, words in pairs], vocab))
    return recall(text @ image.T, 1)


@torch.no_grad()
def evaluate(folder: Path) -> None:
    """Print the recall table of an exported model, run as its users run it: by transformers, in float32."""
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    print("| 1,000 scenes | images | text to image @1 | @10 | image to text @1 | @10 |")
    print("|---|---|---|---|---|---|")
    for unseen_pairs in (False, True):
        pairs = evaluation_set("evaluation", 1000, unseen_pairs)
        tokens = tokenizer([words.text for _, words in pairs], padding=True, return_tensors="pt")
        text = unit_rows(model.get_text_features(**tokens))
        for name, image_of in IMAGES.items():
            images = [image_of(scene) for scene, _ in pairs]
            rows = [
                unit_rows(model.get_image_features(**processor(images[i : i + 100], return_tensors="pt")))
                for i in range(0, len(images), 100)
            ]
            scores = text @ torch.cat(rows).T
            found = [recall(way, k) for way in (scores, scores.T) for k in (1, 10)]
            cells = " | ".join(f"{share:.3f}" for share in found)
            print(
                f"| {'with an unseen pair' if unseen_pairs else 'of seen pairs'} | {name} | {cells} |",
                flush=True,
            )


def unit_rows(features: object) -> torch.Tensor:
    """transformers 4 gives the rows themselves, 5 an output that holds them."""
    return F.normalize(getattr(features, "pooler_output", features), dim=-1)


def jpeg(scene: Scene, size: int, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(scenes.draw(scene, size)).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


IMAGES: dict[str, Callable[[Scene], Image.Image]] = {
    f"drawn at {SIZE} px": lambda scene: Image.fromarray(scenes.draw(scene, SIZE)),
    "300 px, JPEG quality 85": lambda scene: jpeg(scene, 300, 85),
}


def recall(scores: torch.Tensor, k: int) -> float:
    """The share of rows whose own column is among their k best; a tie counts as lost."""
    own = scores.diagonal()[:, None]
    return ((scores >= own).sum(-1) <= k).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train from nothing and export")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("-o", "--out", type=Path, required=True, help="folder to write the model to")
    for field in fields(Recipe):
        training.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    measuring = commands.add_parser("evaluate", help="print a model's recall table")
    measuring.add_argument("model", type=Path)
    args = parser.parse_args()
    if args.command == "evaluate":
        evaluate(args.model)
    else:
        recipe = Recipe(**{field.name: getattr(args, field.name) for field in fields(Recipe)})
        print(recipe, flush=True)
        train(recipe, args.seed, args.out)


if __name__ == "__main__":
    main()
