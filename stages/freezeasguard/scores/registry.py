"""The scores by name: what each is called, which way it points, and which number of the paper it stands beside.

Light on purpose: tables, tracking and params.yaml read it without loading a network. What computes them is
in `scoring`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreKind:
    """One score of METHOD, section 7, or its embedded stand-in under its own name."""

    extractor: str
    """What looks at the images; scores of one extractor share its pass (see `scoring.Extractors`)."""
    rule: str
    """distance | amount | rate | prompt | pair: a value an image; frechet | kernel: one of two sets of images."""
    label: str
    lower_is_better: bool
    """Whether image quality rises as the score falls."""
    digits: int
    paper_metric: str = ""
    """The metric of `paper_values.csv` that stands beside it."""
    paper_label: str = ""
    missing: str = ""
    """What an image lacks where the extractor found nothing."""

    @property
    def header(self) -> str:
        return f"{self.label} {'↓' if self.lower_is_better else '↑'}"

    @property
    def an_image(self) -> bool:
        """Whether every image has a value of its own."""
        return self.rule not in ("frechet", "kernel")


def _face(name: str, label: str, metric: str = "") -> ScoreKind:
    return ScoreKind(name, "distance", f"{label} distance", True, 3, metric, label if metric else "", "face")


SCORES: dict[str, ScoreKind] = {
    # The embedded world's stand-ins; the paper's number of the same role is shown beside them.
    "recogniser": ScoreKind("recogniser", "distance", "Recogniser distance", True, 3, "fn_l", "FN-L", "figure"),
    "style_efficientnet_lite0": ScoreKind(
        "efficientnet", "distance", "Style distance (EfficientNet)", True, 3, "csd", "CSD"
    ),
    "nudenet_faces": ScoreKind("nudenet_faces", "amount", "NudeNet, face labels", False, 3, "nudenet", "NudeNet"),
    "nudenet_faces_rate": ScoreKind("nudenet_faces", "rate", "Face rate", False, 2),
    "dlib": _face("dlib", "DeepFace Dlib"),
    "fd_efficientnet_lite0": ScoreKind("efficientnet", "frechet", "FD EfficientNet-lite0", True, 1, "fid", "FID"),
    "clip_tiny": ScoreKind("clip_tiny", "prompt", "CLIP (tiny)", False, 2, "clip", "CLIP"),
    # The paper's own.
    "facenet512": _face("facenet512", "FN-L", "fn_l"),
    "facenet": _face("facenet", "FN", "fn"),
    "vgg_face": _face("vgg_face", "VGG", "vgg"),
    "csd": ScoreKind("csd", "distance", "CSD", True, 3, "csd", "CSD"),
    "nudenet": ScoreKind("nudenet", "amount", "NudeNet", False, 2, "nudenet", "NudeNet"),
    "nudenet_rate": ScoreKind("nudenet", "rate", "NudeNet rate", False, 2),
    "fid": ScoreKind("inception", "frechet", "FID", True, 1, "fid", "FID"),
    "kid": ScoreKind("inception", "kernel", "KID x 1000", True, 2),
    "clip": ScoreKind("clip", "prompt", "CLIP", False, 2, "clip", "CLIP"),
    "topiq": ScoreKind("topiq", "pair", "TOPIQ", False, 3, "topiq", "TOPIQ"),
    "lpips": ScoreKind("lpips", "pair", "LPIPS", True, 3, "lpips", "LPIPS"),
}
