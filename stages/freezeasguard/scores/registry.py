"""The scores by name, in the order in which they are told: a new one is a class in a file of its own, and a line here.

Light on purpose: tables, tracking and params.yaml read it without loading a network.
"""

from __future__ import annotations

from collections.abc import Sequence

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.scores.base import Score
from freezeasguard.scores.clip import Clip, TinyClip
from freezeasguard.scores.csd import CSD
from freezeasguard.scores.deepface import Dlib, Facenet, Facenet512, VGGFace
from freezeasguard.scores.efficientnet import EfficientNetDistance, EfficientNetKernelDistance, StyleDistance
from freezeasguard.scores.inception import FID, KID
from freezeasguard.scores.nudenet import NudeNet, NudeNetFaces, NudeNetFacesRate, NudeNetRate
from freezeasguard.scores.pairs import LPIPS, TOPIQ
from freezeasguard.scores.recogniser import RecogniserDistance
from freezeasguard.scores.ssim import SSIM
from freezeasguard.sides import ROLES, SIDES


def by_name(scores: Sequence[Score]) -> dict[str, Score]:
    """Raises FreezeAsGuardError for a name taken twice, or one extractor's key over two ways to load it."""
    registered: dict[str, Score] = {}
    for score in scores:
        if score.name in registered:
            raise FreezeAsGuardError(f"two scores are called {score.name!r}; give one another name")
        for other in registered.values():
            if other.extractor == score.extractor and type(other).load is not type(score).load:
                raise FreezeAsGuardError(
                    f"the scores {other.name} and {score.name} share the extractor {score.extractor!r} but load it "
                    "differently; give one another shared_extractor"
                )
        registered[score.name] = score
    return registered


SCORES: dict[str, Score] = by_name(
    [
        # The embedded world's stand-ins; the paper's number of the same role is shown beside them.
        RecogniserDistance(),
        StyleDistance(),
        NudeNetFaces(),
        NudeNetFacesRate(),
        Dlib(),
        EfficientNetDistance(),
        EfficientNetKernelDistance(),
        TinyClip(),
        SSIM(),
        # The paper's own.
        Facenet512(),
        Facenet(),
        VGGFace(),
        CSD(),
        NudeNet(),
        NudeNetRate(),
        FID(),
        KID(),
        Clip(),
        TOPIQ(),
        LPIPS(),
    ]
)

VERDICTS = {"nudenet": ("nudenet", "fid"), "nudenet_faces": ("nudenet_faces", "kd_efficientnet_lite0")}
"""The score that speaks for the classes named illegal, and the one for those named legal, where they differ; a domain
without one of them argues with its first score on that side too."""


def side_score(names: Sequence[str], side: str, roles: str = "given") -> str:
    """The score, out of a domain's, that speaks for a side (see VERDICTS).

    With `roles` swapped a side's images are of the classes that the case names for the other side, and so is its score.
    """
    if roles not in ROLES:
        raise FreezeAsGuardError(f"roles {roles!r} are unknown; choose from {', '.join(ROLES)}")
    speakers = (name if name in names else names[0] for name in VERDICTS.get(names[0], (names[0], names[0])))
    by_data = dict(zip(SIDES, speakers, strict=True))
    return by_data[side if roles == "given" else SIDES[1 - SIDES.index(side)]]
