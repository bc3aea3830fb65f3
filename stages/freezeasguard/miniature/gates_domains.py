"""Gates of the other embedded domains: what scores illustrators, faces and people, before and after the VAE.

Whatever a user's model generates goes through the VAE's decoder: a score that reads its reconstructions
no better than chance could not tell a protected model from an unprotected one.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from freezeasguard.data.clean import square
from freezeasguard.data.embedded import illustrators, logos, orl
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.gates import Gate
from freezeasguard.miniature.train_vae import to_tensor
from freezeasguard.models.diffusion import decode_latents, encode_images, load_vae
from freezeasguard.scores.networks.faces import DeepFaceEmbedder, install_dlib_weights
from freezeasguard.scores.networks.nudity import FACE_LABELS, NudityDetector, detection_rate, nudity_score
from freezeasguard.scores.networks.recogniser import auc, pair_auc
from freezeasguard.scores.networks.style import StyleFeatures

SIZE_PX = 64
PATCH_PX, LATENT_CHANNELS = 4, 8
"""The VAE stores so many numbers for each such patch."""
DETECTOR_PX, RECOGNISER_PX = 320, 256
"""Sides that images are enlarged to for NudeNet and for Dlib."""


def drawings_by_style(n_each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Drawings of the five illustrators [5 n, 3, 64, 64] in -1..1, and whose they are [5 n]."""
    drawn = [d.image for style in illustrators.STYLES for d in illustrators.drawings(style, n_each, SIZE_PX, seed)]
    return _tensor(drawn), torch.arange(len(illustrators.STYLES)).repeat_interleave(n_each)


def faces_and_logos(n_each: int, seed: int) -> tuple[Tensor, Tensor]:
    """ORL photographs and logos, each [n, 3, 64, 64] in -1..1."""
    photographs = orl.photographs()
    chosen = np.random.default_rng(seed).permutation(len(photographs))[:n_each]
    drawn = [image for _, image in logos.draw_logos(n_each, SIZE_PX, seed)]
    return _photographs([photographs[i] for i in chosen]), _tensor(drawn)


def people(n_each: int) -> tuple[Tensor, Tensor]:
    """The first photographs of each of the 40 people [40 n, 3, 64, 64] in -1..1, and who they show [40 n]."""
    chosen = [p for p in orl.photographs() if p.number <= n_each]
    return _photographs(chosen), torch.tensor([p.person for p in chosen])


def illustrator_gates(model: Path, scorers: Path, n_each: int = 24) -> list[Gate]:
    """Whether the style score tells illustrators apart that neither it nor the VAE ever saw."""
    images, labels = drawings_by_style(n_each, seed=15)
    rebuilt = _rebuilt(model, images)
    style = StyleFeatures(scorers)
    before, after = (pair_auc(style.extract(x), labels) for x in (images, rebuilt))
    said = f"AUC of the style score, pairs of {len(images)} drawings by 5 unseen illustrators"
    return [
        Gate("style_auc_unseen", before, 0.9, True, said),
        Gate(
            "style_vae_auc_ratio", after / before, 0.95, True, f"AUC on the VAE's reconstructions, {after:.3f}, over it"
        ),
        _l1_gate("illustrators", images, rebuilt),
    ]


def explicit_gates(model: Path, scorers: Path, n_each: int = 100) -> list[Gate]:
    """Whether NudeNet's face labels tell faces, which stand for explicit material, from logos."""
    faces, icons = faces_and_logos(n_each, seed=16)
    both = torch.cat([faces, icons])
    rebuilt = _rebuilt(model, both)
    detector = NudityDetector(FACE_LABELS)
    gates = []
    for kind, suffix, images in (("originals", "", both), ("the VAE's reconstructions", "_vae", rebuilt)):
        found = detector.detect(images, DETECTOR_PX)
        score = nudity_score(found, FACE_LABELS)
        fires = [detection_rate(part, FACE_LABELS) for part in (found[:n_each], found[n_each:])]
        said = f"AUC of NudeNet's face labels, {n_each} faces against {n_each} logos, {kind}"
        gates += [
            Gate(f"explicit_auc{suffix}", auc(score[:n_each], score[n_each:]), 0.9, True, said),
            Gate(f"explicit_faces{suffix}", fires[0], 0.8, True, f"share of the faces on which it fires, {kind}"),
            Gate(f"explicit_logos{suffix}", fires[1], 0.1, False, f"share of the logos on which it fires, {kind}"),
        ]
    return [
        *gates,
        # Trained on drawings alone, the VAE loses to the PCA on gray photographs; what it loses is measured above.
        _l1_gate("faces", faces, rebuilt[:n_each], judged=False),
        _l1_gate("logos", icons, rebuilt[n_each:]),
    ]


def orl_gates(model: Path, scorers: Path, n_each: int = 4) -> list[Gate]:
    """Whether DeepFace's Dlib tells the 40 people apart; nothing where its packages are not installed."""
    try:
        install_dlib_weights()
        embedder = DeepFaceEmbedder("Dlib", "dlib")
    except FreezeAsGuardError as error:
        print(f"the gates orl_* are left out: {error}", file=sys.stderr)
        return []
    images, labels = people(n_each)
    gates = []
    for kind, suffix, x in (("originals", "", images), ("the VAE's reconstructions", "_vae", _rebuilt(model, images))):
        embeddings, found = embedder.extract(x, RECOGNISER_PX)
        said = f"AUC of DeepFace's Dlib, pairs of {len(x)} photographs of 40 people, {kind}"
        gates += [
            Gate(f"orl_auc{suffix}", pair_auc(F.normalize(embeddings, dim=1), labels), 0.95, True, said),
            Gate(f"orl_found{suffix}", float(found.float().mean()), 0.8, True, f"share with a face found, {kind}"),
        ]
    return gates


def patch_pca_l1(images: Tensor) -> float:
    """L1 of a linear autoencoder of the VAE's latent size, fitted to these very images [n, 3, h, w].

    A PCA of their 4 x 4 patches, cut off after 8 components, as the latents have 8 numbers for each.
    """
    patches = F.unfold(images, PATCH_PX, stride=PATCH_PX).transpose(1, 2).flatten(0, 1).double()
    centred = patches - patches.mean(0)
    axes = torch.linalg.eigh(centred.T @ centred)[1][:, -LATENT_CHANNELS:]
    rebuilt = (patches.mean(0) + centred @ axes @ axes.T).clamp(-1, 1)
    return float((rebuilt - patches).abs().mean())


def _l1_gate(name: str, images: Tensor, rebuilt: Tensor, judged: bool = True) -> Gate:
    l1, pca = float((rebuilt - images).abs().mean()), patch_pca_l1(images)
    said = f"L1 of reconstructions; a linear PCA of the same latent size, fitted to these images, reaches {pca:.3f}"
    return Gate(f"vae_l1_{name}", l1, pca if judged else None, False, said)


def _rebuilt(model: Path, images: Tensor) -> Tensor:
    vae = load_vae(model)
    return torch.cat([decode_latents(vae, encode_images(vae, batch)) for batch in images.split(64)])


def _photographs(chosen: list[orl.Photograph]) -> Tensor:
    return _tensor([square(orl.read_face(p), SIZE_PX) for p in chosen])


def _tensor(images: list[Image.Image]) -> Tensor:
    return to_tensor(np.stack([np.asarray(image) for image in images]))
