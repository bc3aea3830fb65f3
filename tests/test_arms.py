"""An arm's name is written and read in one place, and says what it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from freezeasguard.arms import GRANULARITIES, Arm
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.protections.registry import METHODS

FREEZING = sorted(name for name, method in METHODS.items() if method.freezes)


@given(
    st.sampled_from(FREEZING),
    st.sampled_from(GRANULARITIES),
    st.none() | st.integers(0, 100),
    st.integers(0, 9),
    st.booleans(),
)
def test_every_arm_reads_back_from_its_name(method: str, granularity: str, percent, draw: int, before: bool) -> None:
    arm = Arm(method, granularity, percent, draw if method.startswith("random") else 0, before)
    assert Arm.parse(arm.name) == arm


@pytest.mark.parametrize(
    ("name", "label", "rho"),
    [
        ("pretrained", "Pre-trained model", 0),
        ("full", "Full FT", 0),
        ("uce-before", "UCE before fine-tuning", 0),
        ("uce_b", "UCE, reading B", 0),
        ("imma", "IMMA", 0),
        ("freezeasguard", "FG-30%", 0.3),
        ("random-70", "R-70%", 0.7),
        ("freezeasguard-row", "FG-30% of rows", 0.3),
        ("random-element-50-draw2", "R-50% of weights, draw 2", 0.5),
        ("random_parameters", "R-30% of parameters", 0.3),
        ("magnitude", "Magnitude first, 30%", 0.3),
    ],
)
def test_label_and_ratio(name: str, label: str, rho: float) -> None:
    arm = Arm.parse(name)
    assert (arm.name, arm.label(0.3), arm.rho(0.3)) == (name, label, rho)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "no arm"),
        ("Random", "no arm"),
        ("random-tensor", "no arm"),
        ("random-0.3", "no arm"),
        ("random-101", "0..100"),
        ("random-030", "did you mean 'random-30'"),
        ("full-before", "did you mean 'pretrained'"),
        ("uce-30", "freezes nothing"),
        ("full-row", "freezes nothing"),
        ("freezeasguard-draw2", "only random masks"),
        ("magic", "no method 'magic'"),
        ("random;touch X", "no arm"),
        ("../random", "no arm"),
    ],
)
def test_other_names_are_refused(name: str, said: str) -> None:
    with pytest.raises(FreezeAsGuardError, match=said):
        Arm.parse(name)


def test_the_headline_arms_are_the_papers_at_rho() -> None:
    names = ["full", "uce", "imma", "freezeasguard", "random"]
    others = ["pretrained", "uce-before", "random-70", "freezeasguard-row", "random-draw2", "one_shot"]
    assert [name for name in names + others if Arm.parse(name).headline] == names


def test_arms_before_fine_tuning_share_a_protected_model() -> None:
    assert Arm.parse("pretrained").protected.name == "full" and Arm.parse("uce-before").protected.name == "uce"
    assert Arm.parse("freezeasguard-row-70").random_twin.name == "random-row-70"
    assert Arm.parse("one_shot_parameters-95").random_twin.name == "random_parameters-95"


def test_only_the_papers_own_arms_stand_beside_its_numbers() -> None:
    assert [Arm.parse(n).paper_method for n in ("full", "random-70", "uce", "pretrained")] == [
        "full",
        "random",
        "uce",
        "pretrained",
    ]
    assert {Arm.parse(n).paper_method for n in ("uce_b", "uce-before", "freezeasguard-row", "one_shot")} == {""}
