"""Which images reach whom: the parts of a split, and the sides of a case, from its encoding to every trainer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from freezeasguard.models import encode
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.protections import freezeasguard, imma
from freezeasguard.settings.methods import IMMA
from freezeasguard.settings.resolve import EncodeSettings
from freezeasguard.sides import PARTS, SIDES
from freezeasguard.users import adapt, relearn


@pytest.fixture
def data() -> CaseData:
    """Two images a side and part, whose latents say which they are: 10 * side + part."""
    rows = [(side, part) for side in range(2) for part in range(3) for _ in range(2)]
    codes = torch.tensor([10.0 * side + part for side, part in rows])
    index = pd.DataFrame([{"side": SIDES[side], "part": PARTS[part]} for side, part in rows]).assign(row=range(12))
    return CaseData(index, codes.reshape(12, 1, 1, 1, 1).expand(12, 2, 1, 2, 2), codes.reshape(12, 1, 1), codes[:1])


def shown(data: LatentSet) -> set[tuple[str, str]]:
    codes = set(data.latents.flatten().tolist())
    assert codes == set(data.text.flatten().tolist())
    return {(SIDES[int(code) // 10], PARTS[int(code) % 10]) for code in codes}


def train_users(module: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, LatentSet]:
    """What the module hands to each user's training, which does not take place."""
    handed: dict[str, LatentSet] = {}

    def record(settings: Any, seed: tuple[int, str], model: Path, protected: Path | None, sets: Any, *_: Any) -> None:
        handed.update(sets)

    monkeypatch.setattr(module, "train_users", record)
    return handed


def test_users_adapt_on_the_adaptation_half_alone(data: CaseData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never on a held-out image: its caption is a prompt that nobody trained on."""
    handed = train_users(adapt, monkeypatch)
    settings: Any = SimpleNamespace(finetuning=SimpleNamespace(per_class=False), seed=0, compute=None, code="")
    adapt.adapt_cell(settings, Path(), Path(), data, Path(), "label", "cpu", 1)
    assert {name: shown(given) for name, given in handed.items()} == {side: {(side, "adaptation")} for side in SIDES}


@pytest.mark.parametrize("users", ["joint", "per_side"])
def test_simulated_users_learn_from_the_mask_learning_half_alone(
    users: str, data: CaseData, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed = train_users(relearn, monkeypatch)
    settings: Any = SimpleNamespace(finetuning=None, seed=0, users=[users], compute=None, code="")
    relearn.relearn_case(settings, Path(), data, Path(), "label", "cpu", 1)
    each = {side: {(side, "mask_learning")} for side in SIDES}
    expected = each if users == "per_side" else {"joint": set.union(*each.values())}
    assert {name: shown(given) for name, given in handed.items()} == expected


@pytest.fixture
def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (freezeasguard, imma):
        monkeypatch.setattr(module, "load_unet", lambda _: torch.nn.Identity())
        monkeypatch.setattr(module, "load_scheduler", lambda _: None)
        monkeypatch.setattr(module, "NoiseSchedule", SimpleNamespace(of=lambda _: None))


def protect_inputs(data: CaseData) -> Any:
    block = IMMA(steps=1, batch_size=2, inner_lr=1e-3, outer_lr=1e-3)
    settings = SimpleNamespace(seed=0, rho=0.3, imma=block, compute=None)
    idle = SimpleNamespace(clear=lambda: None)
    read = {"data": data, "model": None, "finetuned": None, "tensors": {}}
    return SimpleNamespace(settings=settings, device="cpu", meter=None, checkpoint=lambda _: idle, **read)


def test_masks_are_learned_from_the_mask_learning_halves_alone(
    data: CaseData, monkeypatch: pytest.MonkeyPatch, without_model: None
) -> None:
    handed: dict[str, LatentSet] = {}

    def learner(unet: Any, schedule: Any, sides: Any, *_: Any) -> Any:
        handed.update(sides)
        return SimpleNamespace(learn=lambda *_: "the mask")

    monkeypatch.setattr(freezeasguard, "load_finetuned", lambda *_: {})
    monkeypatch.setattr(freezeasguard, "MaskLearner", learner)
    mask: Any = SimpleNamespace(users="per_side")
    assert freezeasguard.learn(protect_inputs(data), mask, 0) == "the mask"
    assert {name: shown(given) for name, given in handed.items()} == {side: {(side, "mask_learning")} for side in SIDES}


def test_imma_immunises_against_the_illegal_mask_learning_half(
    data: CaseData, monkeypatch: pytest.MonkeyPatch, without_model: None
) -> None:
    handed: list[LatentSet] = []

    def immunise(unet: Any, schedule: Any, illegal: LatentSet, *_: Any, **__: Any) -> Any:
        handed.append(illegal)
        return {}, imma.IMMAHistory()

    monkeypatch.setattr(imma, "immunise", immunise)
    imma.protect(protect_inputs(data))
    assert [shown(given) for given in handed] == [{("illegal", "mask_learning")}]


@pytest.mark.parametrize("roles", ["given", "swapped"])
def test_a_case_is_encoded_with_the_sides_of_its_roles(
    roles: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.DataFrame({"class": ["a", "b", "b", "c", "unused"], "part": [*PARTS, PARTS[1], PARTS[1]]})
    table = table.assign(subject="", path=[f"{i}.png" for i in range(5)], caption="", sha256=table.index)
    table.to_csv(tmp_path / "split.csv", index=False)
    for name, fake in {
        "load_vae": lambda _: torch.nn.Identity(),
        "load_text": lambda _: (None, torch.nn.Identity()),
        "tokenize": lambda _, captions: (captions, 0),
        "read_images": lambda paths: torch.tensor([[[[float(path.stem)]]] for path in paths]),
        "encode_images": lambda _, images: images,
        "encode_text": lambda _, captions: torch.zeros(len(captions), 1, 1),
    }.items():
        monkeypatch.setattr(encode, name, fake)
    monkeypatch.setattr(encode, "THREADS", torch.get_num_threads())
    settings = EncodeSettings(seed=0, roles=roles, illegal=["a"], legal=["b", "c"])
    encode.encode_case(settings, tmp_path, tmp_path, tmp_path, tmp_path / "out")
    data = CaseData.load(tmp_path / "out")
    chosen = {side: data.select(side, PARTS).latents[:, 0].flatten().tolist() for side in SIDES}
    given = {"illegal": [0.0], "legal": [1.0, 2.0, 3.0]}
    assert chosen == (given if roles == "given" else dict(zip(SIDES, reversed(given.values()), strict=True)))
    parts = {part: data.rows("illegal" if roles == "swapped" else "legal", [part])["path"].tolist() for part in PARTS}
    assert parts == {"mask_learning": [], "adaptation": ["1.png", "3.png"], "held_out": ["2.png"]}
