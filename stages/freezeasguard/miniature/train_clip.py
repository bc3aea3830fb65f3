"""Train the tiny CLIP whose text tower conditions the UNet and whose two towers give the CLIP score."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm
from transformers import CLIPModel, CLIPTokenizer

from freezeasguard.miniature.train_vae import to_tensor


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [n, model_max_length], padded and truncated."""
    encoded = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return encoded.input_ids


def train_clip(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    images: np.ndarray,
    captions: list[str],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
) -> list[float]:
    """Symmetric contrastive loss over image-caption pairs; images flipped at random."""
    ids = tokenize(tokenizer, captions)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    curve: list[float] = []
    model.train()
    bar = tqdm(range(steps), desc="training CLIP", mininterval=10)
    for _ in bar:
        index = torch.randint(len(images), (batch_size,), generator=generator)
        batch = to_tensor(images[index.numpy()])
        flip = torch.rand(batch_size, generator=generator) < 0.5
        batch[flip] = batch[flip].flip(3)
        tokens = ids[index]
        tokens = tokens[:, : int((tokens != tokenizer.eos_token_id).sum(1).max()) + 1]  # causal: padding is idle
        out = model(input_ids=tokens, pixel_values=batch)
        # Two images may share a caption; such a pair is as right as the labelled one.
        same = (tokens[:, None] == tokens[None]).all(2).float()
        target = same / same.sum(1, keepdim=True)
        logits = out.logits_per_text
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=4.6052)  # ln 100, as in CLIP
        curve.append(loss.item())
        bar.set_postfix(loss=f"{curve[-1]:.3f}")
    model.eval()
    return curve
