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
CODE = "test_dependencies.py"
SOURCES, SCORING, TORN = "test_sources.py", "scores/test_score_wiring.py", "test_torn_files.py"
WEB, FILES = "test_hostile_web.py", "test_hostile_files.py"

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
        "{FINETUNED_SIDES[name]: read_tensors(",
        "{FINETUNED_SIDES[{'illegal': 'legal', 'legal': 'illegal'}.get(name, name)]: read_tensors(",
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
        "learned, *others = masks",
        "*others, learned = masks",
        "test_diagnostics.py test_protections.py",
    ),
    Fault(
        "generate: the other side's model",
        "models/generate.py",
        "load_adapted(model, adapted, user)",
        "load_adapted(model, adapted, SIDES[1 - SIDES.index(user)])",
        "test_generate.py",
    ),
    Fault("vertical flip", "models/encode.py", "images.flip(3)", "images.flip(2)", "test_encode.py"),
    Fault(
        "roles never reach the encoder", "models/encode.py", "roles=settings.roles", 'roles="given"', "test_parts.py"
    ),
    # --- checkpoints
    Fault(
        "a checkpoint is never taken up",
        "checkpoints.py",
        'saved["state"] if known else None',
        "None",
        "test_training.py",
    ),
    Fault(
        "any checkpoint is taken up",
        "checkpoints.py",
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
        for key in ("seed", "model", "schedule", "edited", "mask", "data", "device", "settings", "compute")
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
        "found = resolve(url, limits.allow_private, deadline)",
        "found = resolve(url, limits.allow_private or _ > 0, deadline)",
        WEB,
    ),
    Fault("only the first address checked", "data/download.py", "for entry in found:", "for entry in found[:1]:", WEB),
    Fault(
        "robots.txt of the first hop alone",
        "data/download.py",
        "if robots is not None:",
        "if robots is not None and _ == 0:",
        WEB,
    ),
    Fault(
        "connected to what the name resolves to by now",
        "data/download.py",
        '{"_new_conn": lambda _: self._connect()}',
        "{}",
        WEB,
    ),
    Fault("nobody hangs up at the deadline", "data/download.py", "            timer.start()\n", "", WEB),
    Fault("userinfo in addresses", "data/download.py", 'if "@" in parts.netloc:', "if False:", WEB),
    Fault("two readings of an address", "data/download.py", "if not host or not alike or re", "if not host or re", WEB),
    Fault("netrc sent", "data/download.py", "auth=lambda request: request", "auth=None", WEB),
    Fault("any format decoded", "data/clean.py", ", formats=FORMATS)", ")", FILES),
    Fault("listing of an archive unchecked", "data/sources/archive.py", ", within=unpacked", "", FILES),
    Fault("rows of a data set unchecked", "data/sources/hub.py", "if is_inside(path, *roots)", "if True", FILES),
    Fault("class names unchecked", "data/crawl.py", "if not is_class_name(item.class_name):", "if False:", FILES),
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
    # --- code
    Fault("an edit of code reaches no stage", "settings/code.py", "_name(path): digest(path)", '_name(path): ""', CODE),
    Fault(
        "imports within functions go unseen", "settings/code.py", "                yield from nodes(node)\n", "", CODE
    ),
    Fault(
        "a method's own module is not watched",
        "settings/resolve.py",
        "protect_settings(params, case, arm), (arm.kind.import_path,)",
        "protect_settings(params, case, arm), ()",
        CODE,
    ),
    Fault(
        "a queued experiment runs the installed library",
        "../__init__.py",
        "sys.path.insert(0, str(Path(__file__).parent))",
        'sys.path.insert(0, "")',
        CODE,
    ),
    Fault("a warm stage outlives its command", "warm.py", "                    _kill(key.data)\n", "", "test_warm.py"),
    Fault(
        "scores of a case that went stay in git",
        "reports/gather.py",
        'folder_atomically(reports / "scores") as scores',
        '__import__("contextlib").nullcontext(reports / "scores") as scores',
        "test_tables.py",
    ),
    # --- what a stage before left
    Fault(
        "digests of a mask and its edits unchecked",
        "models/protected.py",
        'if digest != content[f"{kind}_sha256"]:',
        "if False:",
        "test_protected.py",
    ),
    Fault(
        "digest of protected.json unchecked",
        "models/protected_file.py",
        'if sealed(content)["content_sha256"] != content["content_sha256"]:',
        "if False:",
        "test_protected.py",
    ),
    Fault("infinite values drawn", "models/sampling.py", "if not values.isfinite().all():", "if False:", TORN),
    Fault("infinite losses trained on", "models/batches.py", "if not math.isfinite(loss):", "if False:", TORN),
    Fault("rows of any length read", "reading.py", "if odd := [(line, len(row))", "if [] and [(line, len(row))", TORN),
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
