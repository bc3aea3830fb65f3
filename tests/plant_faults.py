"""Plants faults of wiring, one at a time, and says which the tests let live. Run before a release:

    python tests/plant_faults.py            # all, about a quarter of an hour on two cores
    python tests/plant_faults.py checkpoint # those whose name holds the word

Each fault is an edit of one place in the library; the tests named beside it must then fail. The file is put back
whatever happens, so commit first. Exits with 1 if a fault survives, or if its place is not found any more.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "stages/freezeasguard"


class Fault(NamedTuple):
    name: str
    file: str
    """Below stages/freezeasguard; ../x.py is a stage's command."""
    old: str
    new: str
    tests: str
    """Below tests/, by blanks."""


OTHER = "SIDES[1 - SIDES.index(side)]"
USERS, PARTS, PROTECT = "test_users.py", "test_parts.py", "test_protections.py test_baseline_stages.py test_parts.py"
SOURCES, SCORING = "test_sources.py", "scores/test_score_wiring.py"

FAULTS = [
    # --- sides, parts, seeds
    Fault(
        "mask learned on swapped sides",
        "protections/freezeasguard.py",
        "sides = {side: inputs.data.select(side,",
        f"sides = {{side: inputs.data.select({OTHER},",
        PROTECT,
    ),
    Fault(
        "IMMA immunises the legal side",
        "protections/imma.py",
        'inputs.data.select("illegal"',
        'inputs.data.select("legal"',
        PROTECT,
    ),
    Fault(
        "fine-tuned sides swapped",
        "protections/freezeasguard.py",
        "        sides: load_file(folder",
        "        tuple(reversed(sides)) if len(sides) > 1 else (SIDES[1 - SIDES.index(sides[0])],): load_file(folder",
        "test_users.py",
    ),
    Fault(
        "assign_sides swapped",
        "data/split.py",
        "    if roles == ROLES[0]:\n",
        "    if roles != ROLES[0]:\n",
        "test_data.py test_parts.py",
    ),
    Fault(
        "relearn sees the adaptation half",
        "users/relearn.py",
        '["mask_learning"]',
        '["mask_learning", "adaptation"]',
        PARTS,
    ),
    Fault("held-out images trained on", "users/adapt.py", '["adaptation"]', '["adaptation", "held_out"]', PARTS),
    Fault("adapted sides swapped", "users/adapt.py", "data.select(side,", f"data.select({OTHER},", PARTS),
    Fault(
        "the other seed's mask written",
        "protections/freezeasguard.py",
        "learned, *others = [torch",
        "*others, learned = [torch",
        "test_diagnostics.py",
    ),
    Fault(
        "generate: the other side's model",
        "models/generate.py",
        "load_adapted(model, adapted, side)",
        f"load_adapted(model, adapted, {OTHER})",
        "test_generate.py",
    ),
    Fault("vertical flip", "models/encode.py", "images.flip(3)", "images.flip(2)", "test_encode.py"),
    Fault(
        "roles never reach the encoder", "models/encode.py", "roles=settings.roles", 'roles="given"', "test_parts.py"
    ),
    # --- checkpoints
    Fault(
        "a checkpoint is never taken up",
        "users/training.py",
        'saved["state"] if known else None',
        "None",
        "test_training.py",
    ),
    Fault(
        "any checkpoint is taken up",
        "users/training.py",
        'saved.get("identity") == self.identity',
        "True",
        "test_training.py",
    ),
    *[
        Fault(
            f"checkpoint identity lacks {key}",
            "users/adapt.py",
            f'        "{key}": ',
            f'        "{key}": 0 and ',
            USERS,
        )
        for key in ("seed", "model", "schedule", "edited", "mask", "data", "device", "settings")
    ],
    # --- scores and reports
    Fault(
        "reference features include mask-learning images",
        "scores/scoring.py",
        'data.index["part"] != "mask_learning"',
        'data.index["part"] != "nothing"',
        SCORING,
    ),
    Fault(
        "KID's error halved",
        "scores/networks/inception.py",
        "return float(np.mean(values)), float(error)",
        "return float(np.mean(values)), float(error) / 2",
        "scores/test_kernel_distance.py scores/test_score_wiring.py",
    ),
    Fault(
        "explicit images unblurred in figures",
        "reports/figures.py",
        "resized = blur(resized)",
        "resized = resized",
        "test_figures.py",
    ),
    Fault(
        "explicit images unblurred on the contact sheet",
        "reports/survey.py",
        "shown = blur(shown) if blurred else shown",
        "shown = shown",
        "test_figures.py",
    ),
    Fault(
        "the survey forgets what is explicit",
        "../survey.py",
        "blurred=settings.explicit",
        "blurred=False",
        "test_stages.py",
    ),
    Fault(
        "explicit samples in MLflow",
        "reports/track.py",
        "if self.params.domain_of(self.case).explicit:",
        "if False:",
        "test_track.py",
    ),
    # --- what comes from outside
    Fault(
        "near-duplicates: < for <=",
        "data/clean.py",
        "distances[nearest] <= max_bits",
        "distances[nearest] < max_bits",
        f"{SOURCES} test_data.py",
    ),
    Fault(
        "redirect targets unchecked",
        "data/download.py",
        "if reason := refuse_address(url, limits.allow_private):",
        "if _ == 0 and (reason := refuse_address(url, limits.allow_private)):",
        SOURCES,
    ),
    Fault(
        "only the first address checked", "data/download.py", "for entry in found", "for entry in found[:1]", SOURCES
    ),
    Fault(
        "result pages unlimited",
        "data/sources/engines.py",
        "        crawler.parser.session = LimitedSession(crawler.session, limits)\n",
        "",
        SOURCES,
    ),
    Fault("zip: links unchecked", "data/download.py", " or stat.S_ISLNK(info.external_attr >> 16)", "", SOURCES),
    Fault("zip: running byte count unchecked", "data/download.py", "if left < 0:", "if False:", SOURCES),
    Fault("zip: file count unchecked", "data/download.py", "len(infos) > max_files or ", "", SOURCES),
    # --- settings
    Fault(
        "a mask of a sweep follows rho",
        "arms.py",
        "return headline if self.percent is None else self.percent / 100",
        "return headline",
        "test_arms.py",
    ),
    Fault(
        "a profile's values override another preset",
        "settings/mask.py",
        "profile.get(preset) if",
        'profile.get("freezeasguard") if',
        "test_settings.py",
    ),
]


def planted(fault: Fault) -> str:
    """caught, SURVIVED, or why it could not be planted."""
    path = LIBRARY / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        return f"NOT PLANTED: its place is there {text.count(fault.old)} times"
    tests = [str(ROOT / "tests" / name) for name in fault.tests.split()]
    try:
        path.write_text(text.replace(fault.old, fault.new))
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    finally:
        path.write_text(text)
    return {0: "SURVIVED", 1: "caught"}.get(done.returncode, f"NOT PLANTED: pytest ended with {done.returncode}")


def main() -> int:
    words = sys.argv[1:]
    chosen = [fault for fault in FAULTS if not words or any(word in fault.name for word in words)]
    bad = 0
    for fault in chosen:
        outcome = planted(fault)
        bad += outcome != "caught"
        print(f"{outcome:<9} {fault.name}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} faults caught")
    return int(bad > 0)


if __name__ == "__main__":
    raise SystemExit(main())
