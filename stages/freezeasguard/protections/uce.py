"""UCE: erase concepts by a closed-form edit of the cross-attention projections (Gandikota et al. 2024).

Two readings exist (METHOD, section 4) and differ in which tokens stand for a concept and in what is kept:
`A`, the copy that FreezeAsGuard used, and `B`, the method's own repository today.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import encode_text, load_text, load_unet, named_tensors, tokenize
from freezeasguard.models.protected import Protected
from freezeasguard.protections.protect import Inputs
from freezeasguard.settings.methods import UCE
from freezeasguard.sides import PARTS, SIDES

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

PROJECTIONS = ("attn2.to_k.weight", "attn2.to_v.weight")
READINGS = {"uce": "A", "uce_b": "B"}
"""By the method's name."""


def preserve_scale(reading: str, n_preserved: int) -> float:
    """A: max(0.1, 1 / n) for n preserved prompts, the empty one among them; B: 1."""
    return max(0.1, 1 / n_preserved) if reading == "A" and n_preserved else 1.0


@dataclass(frozen=True)
class Edit:
    """One concept's tokens and what they should mean: rows [n, d] of text embeddings."""

    context: Tensor
    guide: Tensor


def last_subject_token(tokenizer: CLIPTokenizer, text: str) -> int:
    """Position of the last token before the end-of-text token; the start token for an empty text."""
    return len(tokenizer(text, truncation=True).input_ids) - 2


def concept_edits(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, concepts: Sequence[str], guide: str, reading: str
) -> list[Edit]:
    """What each concept's tokens are, and the guide's beside them.

    A: from the last subject token through the padding, both texts cut to one length. B: that token alone.
    """
    ids, _ = tokenize(tokenizer, [*concepts, guide])
    embeddings = encode_text(encoder, ids)
    guide_start = last_subject_token(tokenizer, guide)
    edits = []
    for concept, embedding in zip(concepts, embeddings[:-1], strict=True):
        start = last_subject_token(tokenizer, concept)
        n = 1 if reading == "B" else embedding.shape[0] - max(start, guide_start)
        edits.append(Edit(embedding[start : start + n], embeddings[-1][guide_start : guide_start + n]))
    return edits


def preserved_contexts(
    tokenizer: CLIPTokenizer, encoder: CLIPTextModel, prompts: Sequence[str], reading: str
) -> list[Tensor]:
    """Rows of the prompts to keep. A: all tokens, and the empty prompt always; B: the last subject tokens."""
    if reading == "A":
        prompts = ["", *prompts]
    if not prompts:
        return []
    embeddings = encode_text(encoder, tokenize(tokenizer, list(prompts))[0])
    if reading == "A":
        return list(embeddings)
    starts = [last_subject_token(tokenizer, prompt) for prompt in prompts]
    return [e[start : start + 1] for e, start in zip(embeddings, starts, strict=True)]


def edited_projection(
    weight: Tensor, edits: Sequence[Edit], preserved: Sequence[Tensor], config: UCE, reading: str
) -> Tensor:
    """W' [out, d], the minimiser of UCE's objective for one projection W [out, d]:

        ridge |W' - W|^2 + s_e sum |C_e W'^T - V*_e|^2 + s_p sum |C_p W'^T - V_p|^2,

    with V* = guide W^T and V_p = C_p W^T. Its normal equations are

        W' = (ridge W + sum s V^T C) (ridge I + sum s C^T C)^-1.
    """
    w = weight.double()
    left = config.ridge * w
    right = config.ridge * torch.eye(w.shape[1], dtype=torch.float64)
    for edit in edits:
        context, target = edit.context.double(), edit.guide.double() @ w.T
        left = left + config.erase_scale * target.T @ context
        right = right + config.erase_scale * context.T @ context
    for rows in preserved:
        context, scale = rows.double(), preserve_scale(reading, len(preserved))
        left = left + scale * (context @ w.T).T @ context
        right = right + scale * context.T @ context
    # right is symmetric and positive definite: W' right = left is right W'^T = left^T.
    return torch.linalg.solve(right, left.T).T.to(weight)


def cross_attention_projections(unet: torch.nn.Module) -> dict[str, Tensor]:
    """attn2's key and value projections of all blocks, by sorted name: 32 in SD v1.x's topology."""
    tensors = named_tensors(unet)
    found = {name: tensors[name] for name in sorted(tensors) if name.endswith(PROJECTIONS)}
    if not found:
        raise FreezeAsGuardError(
            "the UNet has no cross-attention projections (attn2.to_k, attn2.to_v): UCE edits those"
        )
    return found


@torch.no_grad()
def uce_edit(
    unet: torch.nn.Module,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    concepts: Sequence[str],
    guide: str,
    config: UCE,
    reading: str,
) -> Mapping[str, Tensor]:
    """The edited projections by name; the UNet is left alone.

    Args:
        concepts: phrases to erase, e.g. the names of the illegal classes; guide: what they shall mean
            instead ("celebrity", "art", " "); reading: A or B.
    """
    if not concepts:
        raise FreezeAsGuardError("UCE has no concept to erase; the case has no illegal class")
    edits = concept_edits(tokenizer, encoder, concepts, guide, reading)
    preserved = preserved_contexts(tokenizer, encoder, config.preserve, reading)
    return {
        name: edited_projection(weight.detach(), edits, preserved, config, reading)
        for name, weight in cross_attention_projections(unet).items()
    }


@torch.no_grad()
def movement(old: Mapping[str, Tensor], edited: Mapping[str, Tensor], text: Tensor) -> float:
    """How far keys and values of `text` [n, tokens, d] move, as a share of their norm; the mean over projections."""
    rows = text.flatten(0, 1).double()
    shares = [
        float((rows @ (edited[name] - old[name]).double().T).norm() / (rows @ old[name].double().T).norm())
        for name in sorted(edited)
    ]
    return sum(shares) / len(shares)


def erase(inputs: Inputs, reading: str) -> Protected:
    """The illegal classes' names, or the case's own concepts, are edited out of the cross-attention."""
    settings = inputs.settings
    assert settings.uce is not None
    unet = load_unet(inputs.model)
    index, legal = inputs.data.index, inputs.data.rows("legal", ["mask_learning"])
    concepts = settings.concepts or sorted(set(index.loc[index["side"] == "illegal", "subject"]))
    kept = [*settings.uce.preserve, *(sorted(set(legal["caption"])) if settings.uce.preserve_legal else ())]
    config = settings.uce.model_copy(update={"preserve": kept})
    edited = uce_edit(unet, *load_text(inputs.model), concepts, settings.guide, config, reading)
    tensors = named_tensors(unet)
    moved = {
        name: float((new - tensors[name]).detach().norm() / tensors[name].detach().norm())
        for name, new in edited.items()
    }
    told = {"reading": reading, **settings.uce.model_dump(), "concepts": concepts, "guide": settings.guide}
    sides = {side: movement(tensors, edited, inputs.data.select(side, PARTS).text.unique(dim=0)) for side in SIDES}
    diagnostics = {"n_edited": len(edited), "n_preserved": len(kept), "relative_change": moved, "movement": sides}
    return Protected("uce", frozenset(), edited, told, diagnostics)


def protect(inputs: Inputs) -> Protected:
    return erase(inputs, READINGS[inputs.arm.method])
