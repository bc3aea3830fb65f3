"""UCE against an independent solve, its own objective, and the miniature model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from freezeasguard.data.embedded.drawn_people import caption, draw_pose, other_figures, render_figure
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.gates_figures import generate_images
from freezeasguard.miniature.train_vae import to_tensor
from freezeasguard.models.diffusion import encode_text, load_text, load_unet, tokenize
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import load_tensors
from freezeasguard.protections import uce
from freezeasguard.protections.protect import Inputs
from freezeasguard.protections.uce import (
    Edit,
    concept_edits,
    cross_attention_projections,
    edited_projection,
    last_subject_token,
    movement,
    preserve_scale,
    preserved_contexts,
    uce_edit,
)
from freezeasguard.scores.networks.recogniser import Recogniser, identity_distance
from freezeasguard.settings.methods import UCE
from freezeasguard.settings.resolve import ProtectSettings

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"
CONCEPTS = ["Fito Bakago", "Nita Rodoga", "Fata Mafasa"]


def problem(seed: int = 0) -> tuple[Tensor, list[Edit], list[Tensor]]:
    g = torch.Generator().manual_seed(seed)

    def rows(n: int) -> Tensor:
        return torch.randn(n, 6, generator=g)

    return rows(4), [Edit(rows(3), rows(3)), Edit(rows(2), rows(2))], [rows(5), rows(1)]


def objective(
    new: Tensor, weight: Tensor, edits: list[Edit], preserved: list[Tensor], config: UCE, reading: str
) -> Tensor:
    """Written from the sum of squares, token by token."""
    total = config.ridge * (new - weight).square().sum()
    for edit in edits:
        for context, guide in zip(edit.context.double(), edit.guide.double(), strict=True):
            total = total + config.erase_scale * (new @ context - weight @ guide).square().sum()
    for prompt in preserved:
        for context in prompt.double():
            kept = (new @ context - weight @ context).square().sum()
            total = total + preserve_scale(reading, len(preserved)) * kept
    return total


@pytest.mark.parametrize("reading", ["A", "B"])
def test_edit_solves_the_normal_equations_and_is_stationary(reading: str) -> None:
    weight, edits, preserved = problem()
    config = UCE(erase_scale=1.7, ridge=0.3)
    new = edited_projection(weight, edits, preserved, config, reading)
    # NumPy, as one least-squares problem of stacked and weighted rows.
    w = weight.double().numpy()
    scale = preserve_scale(reading, 2)
    left = [np.sqrt(config.ridge) * np.eye(6)]
    right = [np.sqrt(config.ridge) * w.T]
    for e in edits:
        left.append(np.sqrt(1.7) * e.context.double().numpy())
        right.append(np.sqrt(1.7) * e.guide.double().numpy() @ w.T)
    for p in preserved:
        left.append(np.sqrt(scale) * p.double().numpy())
        right.append(np.sqrt(scale) * p.double().numpy() @ w.T)
    expected = np.linalg.lstsq(np.concatenate(left), np.concatenate(right), rcond=None)[0].T
    np.testing.assert_allclose(new.double().numpy(), expected, rtol=1e-5, atol=1e-6)
    exact = torch.tensor(expected, requires_grad=True)
    gradient = torch.autograd.grad(objective(exact, weight.double(), edits, preserved, config, reading), exact)[0]
    assert gradient.abs().max() < 1e-9
    moved = weight.double().requires_grad_()
    assert (
        torch.autograd.grad(objective(moved, weight.double(), edits, preserved, config, reading), moved)[0].abs().max()
        > 1e-2
    )


def test_residual_shrinks_with_the_erase_scale() -> None:
    weight, edits, preserved = problem()
    residuals = []
    for scale in (0.0, 0.1, 1.0, 10.0, 1e4):
        new = edited_projection(weight, edits, preserved, UCE(erase_scale=scale), "A")
        residuals.append(float(sum((e.context @ new.T - e.guide @ weight.T).square().sum() for e in edits)))
        if scale == 0:
            torch.testing.assert_close(new, weight)
    assert residuals == sorted(residuals, reverse=True) and residuals[-1] < 0.5 * residuals[0]


def test_preserve_scale_of_the_two_readings() -> None:
    assert preserve_scale("A", 1) == 1.0
    assert preserve_scale("A", 4) == 0.25
    assert preserve_scale("A", 50) == 0.1
    assert preserve_scale("B", 50) == 1.0


def test_tokens_of_a_concept() -> None:
    tokenizer, encoder = load_text(MODEL)
    start = last_subject_token(tokenizer, "a person")
    ids = tokenize(tokenizer, ["a person"])[0][0]
    assert ids[start + 1] == tokenizer.eos_token_id and ids[start] != tokenizer.eos_token_id
    assert last_subject_token(tokenizer, "") == 0
    embedding = encode_text(encoder, tokenize(tokenizer, ["Fito Bakago"])[0])[0]
    name = last_subject_token(tokenizer, "Fito Bakago")
    (a,) = concept_edits(tokenizer, encoder, ["Fito Bakago"], "a person", "A")
    (b,) = concept_edits(tokenizer, encoder, ["Fito Bakago"], "a person", "B")
    assert len(a.context) == len(a.guide) == tokenizer.model_max_length - max(name, start)
    torch.testing.assert_close(a.context, embedding[name : name + len(a.context)])
    assert len(b.context) == len(b.guide) == 1
    assert len(preserved_contexts(tokenizer, encoder, [], "A")) == 1
    assert preserved_contexts(tokenizer, encoder, [], "B") == []


@pytest.mark.parametrize("reading", ["A", "B"])
def test_edit_of_the_miniature_model(reading: str) -> None:
    unet = load_unet(MODEL)
    tokenizer, encoder = load_text(MODEL)
    weights = {n: w.detach().clone() for n, w in cross_attention_projections(unet).items()}
    edited = uce_edit(unet, tokenizer, encoder, CONCEPTS, "a person", UCE(), reading)
    assert len(edited) == 32 and all("attn2.to_k" in n or "attn2.to_v" in n for n in edited)
    assert all(torch.equal(w, weights[n]) for n, w in cross_attention_projections(unet).items())
    empty = encode_text(encoder, tokenize(tokenizer, [""])[0])[0]
    (concept,) = concept_edits(tokenizer, encoder, CONCEPTS[:1], "a person", "B")
    for name, new in edited.items():
        old = weights[name]
        assert not torch.equal(new, old)
        before = (concept.context - concept.guide) @ old.T
        after = concept.context @ new.T - concept.guide @ old.T
        assert after.norm() < before.norm()
        if reading == "A":
            drift = (empty @ (new - old).T).norm() / (empty @ old.T).norm()
            assert drift < 0.15, name
    other = uce_edit(unet, tokenizer, encoder, CONCEPTS, "a person", UCE(), "B" if reading == "A" else "A")
    assert any((other[name] - edited[name]).abs().max() > 1e-4 for name in edited)


def test_movement_is_the_share_that_keys_and_values_move_by() -> None:
    weight = torch.eye(2)
    text = torch.tensor([[[3.0, 4.0]]])
    assert movement({"w": weight}, {"w": weight}, text) == 0
    assert movement({"w": weight}, {"w": torch.diag(torch.tensor([1.0, 0.0]))}, text) == pytest.approx(4 / 5)
    both = movement({"w": weight, "v": weight}, {"w": weight, "v": 2 * weight}, text)
    assert both == pytest.approx(1 / 2)  # the mean over projections


def test_the_legal_sides_captions_are_preserved_where_that_is_asked_for(tmp_path: Path) -> None:
    """Legal prompts then move less, the erased ones more than they, and nothing of the adaptation half is read."""
    moved = {}
    for preserve in (False, True):
        protected = uce.protect(inputs_of(tmp_path, preserve_legal=preserve))
        moved[preserve] = protected.diagnostics["movement"]
        assert protected.diagnostics["n_preserved"] == (2 if preserve else 0)
    assert moved[True]["legal"] < 0.5 * moved[False]["legal"] < moved[False]["legal"]
    assert moved[True]["illegal"] > 1.5 * moved[True]["legal"]


def inputs_of(folder: Path, **uce_block: Any) -> Inputs:
    """Of the shipped model, with two captions a side; the legal one of the adaptation half is another."""
    captions = {
        ("illegal", "mask_learning"): [f"a photo of {name}" for name in CONCEPTS[:2]],
        ("legal", "mask_learning"): [
            "a photo of Kode Sikama which shows a smile",
            "a photo of Kode Sikama, a red hoodie",
        ],
        ("legal", "adaptation"): ["a photo of Kode Sikama, a blue background"],
    }
    rows = [
        {
            "side": side,
            "part": part,
            "caption": text,
            "class": side,
            "subject": "Kode Sikama" if side == "legal" else name,
        }
        for (side, part), texts in captions.items()
        for text, name in zip(texts, CONCEPTS, strict=False)
    ]
    tokenizer, encoder = load_text(MODEL)
    text = encode_text(encoder, tokenize(tokenizer, [row["caption"] for row in rows])[0])
    data = CaseData(pd.DataFrame(rows), torch.zeros(len(rows), 2, 8, 16, 16), text, text[0])
    settings = ProtectSettings(seed=0, arm="uce", rho=0.0, uce=UCE(**uce_block), guide="a person")
    inputs = Inputs(settings, MODEL, folder, folder)
    inputs.__dict__["data"] = data
    return inputs


def test_linear_projections_and_a_wide_text_tower() -> None:
    """SD v2.x: transformers with linear projections, and text 1024 wide."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=1024,
        norm_num_groups=4,
        attention_head_dim=4,
        use_linear_projection=True,
    )
    tokenizer, _ = load_text(MODEL)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
    )
    edited = uce_edit(unet, tokenizer, CLIPTextModel(config).eval(), CONCEPTS, " ", UCE(), "A")
    assert {w.shape[1] for w in edited.values()} == {1024}
    assert len(edited) == len(cross_attention_projections(unet)) == 8


def test_refusals() -> None:
    unet = load_unet(MODEL)
    tokenizer, encoder = load_text(MODEL)
    with pytest.raises(FreezeAsGuardError, match="no concept"):
        uce_edit(unet, tokenizer, encoder, [], " ", UCE(), "A")
    with pytest.raises(FreezeAsGuardError, match="no cross-attention"):
        cross_attention_projections(torch.nn.Linear(2, 2))


def test_figures_that_the_model_knows_by_name_are_erased() -> None:
    """The gate where there is something to erase: the corpus' own named figures, which pretraining taught."""
    known = other_figures(7500, seed=1)[8:16]
    rng = np.random.default_rng(3)
    shown = [(figure, draw_pose(rng)) for figure in known for _ in range(2)]
    recogniser = Recogniser.load(MODEL.parent / "scorers")
    real = to_tensor(np.stack([np.asarray(render_figure(figure, pose)) for figure, pose in shown]))
    reference = recogniser.extract(real)[0]

    def distance(unet: torch.nn.Module) -> float:
        images = generate_images(unet, MODEL, [caption(figure.name, pose) for figure, pose in shown])
        return float(identity_distance(recogniser.extract(images)[0], reference).mean())

    unet = load_unet(MODEL)
    before = distance(unet)
    names = [figure.name for figure in known]
    load_tensors(unet, uce_edit(unet, *load_text(MODEL), names, "a person", UCE(), "A"))
    assert before < 0.9  # the model knows them: a stranger reads about 1
    assert distance(unet) > before + 0.1
