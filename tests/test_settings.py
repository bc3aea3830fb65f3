"""params.yaml is checked; presets and profiles mean what they say; each stage is given its own settings and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from freezeasguard.arms import Arm
from freezeasguard.cli import cli
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.code import REPORTS
from freezeasguard.settings.mask import MASK_PRESETS, Mask
from freezeasguard.settings.origins import leaves, origins
from freezeasguard.settings.params import Params, load_params, parse_params
from freezeasguard.settings.profiles import check_cells, profile_names, profile_text, write_cells, write_profile
from freezeasguard.settings.resolve import (
    AdaptSettings,
    ProtectSettings,
    protect_settings,
    read_reported,
    read_settings,
    write_settings,
)

ROOT = Path(__file__).parent.parent


def values_of(profile: str = "smoke", **changed: Any) -> dict[str, Any]:
    """A profile's values, with dotted keys changed."""
    values = yaml.safe_load(profile_text(profile))
    for key, value in changed.items():
        *path, last = key.split("__")
        block = values
        for part in path:
            block = block[part]
        block[last] = value
    return values


def params_of(profile: str = "smoke", **changed: Any) -> Params:
    return parse_params(values_of(profile, **changed), Path("params.yaml"))


def files_of(params: Params, folder: Path) -> dict[str, str]:
    write_settings(params, folder)
    return {str(p.relative_to(folder).with_suffix("")): p.read_text() for p in folder.rglob("*.json")}


# --- the file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", profile_names())
def test_profiles_are_valid_and_read_back_from_their_resolved_form(name: str) -> None:
    params = params_of(name)
    assert params.profile == name
    assert Params.model_validate(json.loads(json.dumps(params.model_dump(mode="json")))) == params


def test_an_overlay_holds_differences_alone() -> None:
    base = dict(leaves(yaml.safe_load(profile_text("tiny"))))
    folder = ROOT / "stages/freezeasguard/settings/profiles"
    for name in set(profile_names()) - {"tiny"}:
        for key, value in leaves(yaml.safe_load((folder / f"{name}.yaml").read_text())):
            assert base.get(key, "absent") != value, f"{name}.yaml repeats {key} of base.yaml"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rho", 1.5, "rho is 1.5"),
        ("rho", -0.1, "rho is -0.1"),
        ("rhoo", 0.3, "rhoo is not a key"),
        ("roles", "both", "roles is 'both'"),
        ("mask__preset", "mine", "mask.preset is 'mine'"),
        ("mask__temprature", 0.2, "mask.temprature is not a key"),
        ("mask__of_profile", {"mine": {}}, "mask.of_profile.mine"),
        ("adapt__steps", "many", "adapt.steps is 'many'"),
        ("adapt__attacker", "nobody", "adapt.attacker is 'nobody'"),
        ("cases__portraits__domain", "faces", "cases.portraits.domain is 'faces'"),
        ("cases__portraits__arms", ["pretrained", "full", "magic"], "no method 'magic'"),
        ("cases__portraits__arms", ["full", "random"], "lack 'pretrained'"),
        ("cases__portraits__arms", ["pretrained", "full", "full"], "'full' is listed twice"),
        ("cells", {}, "cells is not a key"),
    ],
)
def test_bad_params_are_named(key: str, value: object, said: str) -> None:
    with pytest.raises(FreezeAsGuardError, match="params.yaml") as error:
        params_of(**{key: value})
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["a;touch X", "../x", "", "a\nb", "x" * 61, "a b", "$(id)", "-rf"])
def test_names_that_reach_a_command_or_a_path_follow_one_rule(name: str) -> None:
    for block in ("domains", "models", "cases"):
        values = values_of()
        values[block][name] = next(iter(values[block].values()))
        with pytest.raises(FreezeAsGuardError, match=block):
            parse_params(values, Path("params.yaml"))


# --- presets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_another_preset_is_that_preset_whatever_the_profile_made_of_the_default(preset: str) -> None:
    mask = params_of("tiny", mask__preset=preset).mask_block("portraits")
    for key, value in MASK_PRESETS[preset].items():
        assert getattr(mask, key) == (16 if key == "mask_steps" else value), key  # what tiny makes of its size
    assert mask.mask_batch_size is None and mask.batch_size == 16 and mask.user_lr == 1e-5


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_an_arm_of_a_preset_is_that_preset_beside_the_default(preset: str) -> None:
    params, arm = params_of("tiny", mask__mask_lr=0.5, mask__diagnostic_seeds=3), Arm.parse(f"freezeasguard_{preset}")
    mask = params.mask_block("portraits", arm)
    expected = params_of("tiny", mask__preset=preset, mask__diagnostic_seeds=3).mask_block("portraits")
    assert mask == expected and mask.mask_lr == 10
    assert params.mask_block("portraits", Arm.parse("freezeasguard")).mask_lr == 0.5


def test_an_arm_of_a_preset_takes_what_is_written_where_the_block_names_it_too() -> None:
    params = params_of("tiny", mask__preset="paper", mask__mask_steps=7)
    assert params.mask_block("portraits", Arm.parse("freezeasguard_paper")).mask_steps == 7
    assert params.mask_block("portraits", Arm.parse("freezeasguard_official")).mask_steps == 16


def test_relearn_trains_every_user_whom_a_mask_of_the_case_simulates() -> None:
    assert params_of("tiny").simulated_users("portraits") == ["joint", "per_side"]
    assert params_of("tiny-full").simulated_users("portraits") == ["per_side"]
    assert params_of("paper").simulated_users("portraits") == ["joint"]


def test_what_a_user_writes_overrides_a_preset_and_the_profile() -> None:
    written = params_of("tiny", mask__preset="paper", mask__user_lr=1e-3, mask__mask_steps=7).mask_block("portraits")
    assert (written.user_lr, written.mask_steps, written.user_steps) == (1e-3, 7, 10)
    assert params_of("tiny").mask.mask_steps == 12 and params_of("tiny", mask__mask_steps=7).mask.mask_steps == 7


def test_the_default_presets_simulated_user_has_the_real_users_rate() -> None:
    assert params_of("tiny").mask_block("portraits").user_lr == 2e-4
    assert params_of("tiny", adapt__lr=1e-4).mask_block("portraits").user_lr == 1e-4
    assert params_of("tiny", cases__artworks__adapt_lr=3e-4).mask_block("artworks").user_lr == 3e-4


def test_other_methods_simulate_the_cases_users_too() -> None:
    params = params_of("tiny", cases__artworks__adapt_lr=3e-4)
    imma, anchors = params.imma_block("artworks"), params.own_block("artworks", "anchored")
    assert (imma.inner_lr, imma.outer_lr) == (3e-4, 4 * 3e-4) and anchors["user_lr"] == 3e-4
    assert (imma.steps, params_of("study").imma_block("explicit").steps) == (60, 180)  # as its users have
    written = params_of("tiny", imma__inner_lr=1e-3, methods__anchored__user_lr=1e-2)
    assert (written.imma_block("artworks").inner_lr, written.imma_block("artworks").outer_lr) == (1e-3, 4e-3)
    assert written.own_block("artworks", "anchored")["user_lr"] == 1e-2
    of_arm = {arm: protect_settings(params, "artworks", Arm.parse(arm)) for arm in ("imma", "anchored", "uce")}
    assert of_arm["imma"].imma == imma and of_arm["anchored"].own == anchors and of_arm["uce"].own == {}


def test_a_complete_mask_block_reads_back_unchanged() -> None:
    mask = params_of("tiny", mask__preset="official").mask_block("portraits")
    assert Mask.model_validate(mask.model_dump()) == mask
    assert mask.with_(granularity="row").granularity == "row"


def test_check_says_where_each_value_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_profile("tiny")
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("rho: 0.3", "rho: 0.4").replace("preset: freezeasguard", "preset: paper"))
    found = {key: (value, origin) for key, value, origin in origins()}
    assert found["rho"] == (0.4, "params.yaml (profile tiny: 0.3)")
    assert found["seed"] == (0, "profile tiny")
    assert found["mask.user_steps"] == (10, "preset paper")
    assert found["mask.preset"] == ("paper", "params.yaml (profile tiny: freezeasguard)")
    assert found["score.nudenet_px"] == (320, "default")
    assert found["imma.inner_lr"] == ("the case's adapt.lr", "profile tiny")
    said = CliRunner().invoke(cli, ["check"]).output
    assert "mask.user_lr" in said and "preset paper" in said
    assert "mask.user_lr" not in CliRunner().invoke(cli, ["check", "--short"]).output


# --- what each stage is given ---------------------------------------------------------------------------


def changed_files(tmp_path: Path, **changed: Any) -> set[str]:
    """The settings files, but the reports', that a change of the profile tiny touches."""
    before, after = files_of(params_of("tiny"), tmp_path / "a"), files_of(params_of("tiny", **changed), tmp_path / "b")
    assert before.keys() == after.keys() and all(before[name] != after[name] for name in REPORTS)
    return {name for name in before if before[name] != after[name]} - set(REPORTS)


CASES = ("portraits", "artworks", "explicit")


def test_rho_reaches_the_arms_at_the_headline_ratio_alone(tmp_path: Path) -> None:
    methods = ("freezeasguard", "freezeasguard_paper", "freezeasguard_official", "random")
    expected = {
        f"protect/{case}-{arm}" for case in CASES for arm in (*methods, *(f"{a}-element" for a in methods[::3]))
    }
    assert changed_files(tmp_path, rho=0.5) == expected


def test_a_preset_reaches_learned_masks_and_the_users_that_it_simulates(tmp_path: Path) -> None:
    masks = {f"protect/{case}-freezeasguard" for case in CASES}
    masks |= {f"protect/{case}-freezeasguard-70" for case in ("artworks", "explicit")}
    masks |= {f"protect/{case}-freezeasguard-element" for case in CASES}
    assert changed_files(tmp_path, mask__preset="paper") == masks | {f"relearn/{case}" for case in CASES}


def test_a_seed_reaches_all_that_is_drawn(tmp_path: Path) -> None:
    still = {"fetch", "caption", "survey"}
    found = changed_files(tmp_path, seed=1)
    everything = set(files_of(params_of("tiny"), tmp_path / "c")) - set(REPORTS)
    blind_to_it = {f"protect/{case}-{arm}" for case in CASES for arm in ("full", "uce")}
    assert found == {name for name in everything if name.split("/")[0] not in still} - blind_to_it


def test_roles_reach_the_encoded_case_alone(tmp_path: Path) -> None:
    assert changed_files(tmp_path, roles="swapped") == {f"encode/{case}" for case in CASES}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("imma__outer_lr", 1e-3, {f"protect/{case}-imma" for case in CASES}),
        ("uce__ridge", 1.0, {f"protect/{case}-uce" for case in CASES}),
        ("domains__artworks__held_out_images", 8, {"split/artworks"}),
        ("generate__steps", 12, {f"generate/{case}" for case in CASES}),
        ("score__bootstrap_resamples", 9, {f"{stage}/{case}" for stage in ("reference", "score") for case in CASES}),
        ("cases__artworks__guide", "art", {"protect/artworks-uce"}),
        ("relearn__steps", 9, {f"relearn/{case}" for case in CASES}),
    ],
)
def test_a_block_reaches_only_the_stages_that_read_it(tmp_path: Path, key: str, value: Any, expected: set[str]) -> None:
    assert changed_files(tmp_path, **{key: value}) == expected


def test_a_new_default_shows_in_the_settings_that_are_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files_of(params_of("tiny"), tmp_path / "a")
    monkeypatch.setitem(MASK_PRESETS["freezeasguard"], "mask_lr", 0.02)
    after = files_of(params_of("tiny"), tmp_path / "b")
    changed = {name for name in before if before[name] != after[name]} - set(REPORTS)
    assert changed and all(name.startswith("protect/") and "freezeasguard" in name for name in changed)


def test_the_machine_reaches_no_stage(tmp_path: Path) -> None:
    plain, other = params_of("tiny"), params_of("tiny", workers=7, device="cpu")
    assert files_of(plain, tmp_path / "a") == files_of(other, tmp_path / "b")


def test_a_stage_reads_back_what_was_resolved(tmp_path: Path) -> None:
    params = params_of("tiny")
    write_settings(params, tmp_path)
    adapt = read_settings(AdaptSettings, "adapt/explicit-full", tmp_path)
    assert adapt.finetuning == params.adapt_block("explicit") and adapt.finetuning.steps == 180
    assert read_settings(AdaptSettings, "adapt/explicit-uce-before", tmp_path).finetuning.steps == 0
    mask = read_settings(ProtectSettings, "protect/artworks-freezeasguard-70", tmp_path)
    assert mask.rho == 0.7 and mask.mask == params.mask_block("artworks")
    assert read_reported("tables", tmp_path).cases == params.cases
    assert list(read_reported("tables", tmp_path).cases) == [
        "portraits",
        "artworks",
        "explicit",
    ]  # as params.yaml has them
    with pytest.raises(FreezeAsGuardError, match="no 'nobody-full' for the stage adapt; it has artworks-anchored,"):
        read_settings(AdaptSettings, "adapt/nobody-full", tmp_path)
    for content in ("{}", '{"settings": []}', '{"settings": {"seed": 0, "finetuning": {}, "odd": 1}}', "torn"):
        (tmp_path / "adapt/explicit-uce.json").write_text(content)
        with pytest.raises(FreezeAsGuardError, match="explicit-uce.json .*; run `dvc repro settings`"):
            read_settings(AdaptSettings, "adapt/explicit-uce", tmp_path)
    with pytest.raises(FreezeAsGuardError, match="missing; run `dvc repro settings`"):
        read_settings(AdaptSettings, "adapt/explicit-full", tmp_path / "nowhere")


def test_concepts_named_for_one_role_are_not_erased_in_the_other(tmp_path: Path) -> None:
    for roles, expected in (("given", ["a face"]), ("swapped", [])):
        write_settings(params_of("tiny", roles=roles, cases__explicit__concepts=["a face"]), tmp_path)
        assert read_settings(ProtectSettings, "protect/explicit-uce", tmp_path).concepts == expected


# --- cells ----------------------------------------------------------------------------------------------


def test_the_committed_cells_are_those_of_params_yaml() -> None:
    check_cells(load_params(ROOT / "params.yaml"), ROOT / "data/cells.json")


def test_the_committed_params_are_the_profile_tiny() -> None:
    assert (ROOT / "params.yaml").read_text() == profile_text("tiny")


def test_cells_command_derives_the_arms(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(profile_text("smoke").replace("freezeasguard, random]", "freezeasguard, random, random-10]"))
    write_cells(path)
    params = load_params(path)
    check_cells(params, tmp_path / "data/cells.json")
    assert [arm.name for arm in params.arms("portraits")][-1] == "random-10"
    cells = json.loads((tmp_path / "data/cells.json").read_text())
    assert cells["cells"]["portraits-uce-before"]["protected"] == "uce"
    assert "portraits-pretrained" not in cells["protected"] and "portraits-random-10" in cells["protected"]


def test_a_protected_model_names_the_data_that_it_stands_on(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    write_profile("tiny", path)
    found = json.loads((tmp_path / "data/cells.json").read_text())["protected"]
    model, latents, finetuned = "data/fetched/tiny-1.5", "data/latents/artworks", "data/finetuned/artworks"
    expected = {
        "freezeasguard-70": (latents, finetuned),
        "imma": (latents, model),
        "uce": (latents, model),
        "random": (model, model),
    }
    for arm, data in expected.items():
        cell = found[f"artworks-{arm}"]
        assert (cell["latents"], cell["finetuned"]) == data
    assert Arm.parse("uce").kind.reads == "latents"


def test_cells_that_the_cases_have_outgrown_are_told(tmp_path: Path) -> None:
    path, cells = tmp_path / "params.yaml", tmp_path / "data/cells.json"
    write_profile("smoke", path)
    check_cells(load_params(path), cells)
    path.write_text(path.read_text().replace("uce, freezeasguard", "uce, random-10, freezeasguard"))
    with pytest.raises(FreezeAsGuardError, match="does not match .* portraits-random-10.*run `freezeasguard cells`"):
        check_cells(load_params(path), cells)
    for content, said in (("[]", "does not match"), ("{", "is not JSON"), (None, "is missing")):
        cells.unlink() if content is None else cells.write_text(content)
        with pytest.raises(FreezeAsGuardError, match=f"{said}.*run `freezeasguard cells`"):
            check_cells(load_params(path), cells)
