"""From a protected folder to a user's model: who trains on what, which attacker, and which checkpoint is whose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from conftest import ToyDenoiser, random_latents, sd_schedule
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import write_json
from freezeasguard.models.batches import fixed_noise_loss, fixed_noise_losses
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.models.protected import Protected, load_tensors, write_for
from freezeasguard.protections.freezeasguard import load_finetuned
from freezeasguard.seeds import seed_of
from freezeasguard.settings.compute import PLAIN, Compute
from freezeasguard.settings.resolve import AdaptSettings, RelearnSettings, read_settings
from freezeasguard.settings.users import Adapt
from freezeasguard.sides import PARTS, SIDES
from freezeasguard.users import adapt, registry, relearn, training

SETTINGS = Adapt(steps=7, batch_size=3, lr=1e-2, checkpoint_steps=2)
TENSORS = {"gain", "skip", "weight", "text", "time", "speed", "bias"}


def toy_tensors(seed: int = 1) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in ToyDenoiser(seed).named_parameters()}


class World:
    """A toy published model, with what a user's run depends on beside it; each entry can be another."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.model_seed, self.prediction_type, self.seed = 1, "epsilon", 0
        self.settings, self.data, self.device = SETTINGS, random_latents(6, seed=0), "cpu"
        self.compute = PLAIN
        self.protected = Protected("p", frozenset({"weight"}), {"bias": torch.full((4,), 0.25)})
        self.steps = 0
        self.kill_at: int | None = None
        monkeypatch.setattr(adapt, "CHECKPOINTS", folder / "checkpoints")
        monkeypatch.setattr(adapt, "load_unet", lambda _: ToyDenoiser(self.model_seed))
        monkeypatch.setattr(adapt, "stored_tensors", lambda _: toy_tensors(self.model_seed))
        monkeypatch.setattr(adapt, "load_scheduler", lambda _: self._scheduler())
        monkeypatch.setattr(training, "optimizer_step", self._counted(training.optimizer_step))

    def _scheduler(self) -> Any:
        config = SimpleNamespace(prediction_type=self.prediction_type)
        return SimpleNamespace(alphas_cumprod=sd_schedule().alphas_cumprod, config=config)

    def _counted(self, step: Callable[..., None]) -> Callable[..., None]:
        def counted(*args: Any) -> None:
            if self.steps == self.kill_at:
                raise KeyboardInterrupt
            self.steps += 1
            step(*args)

        return counted

    def run(self, name: str = "illegal") -> tuple[dict[str, Tensor], list[float]]:
        """The user's changed tensors and losses; `steps` counts those that were taken."""
        self.steps = 0
        write_for(toy_tensors(self.model_seed), self.folder / "p", self.protected)
        how = {"seed": self.seed, "device": self.device, "checkpoint_name": "c", "compute": self.compute}
        adapt.adapt_and_save(name, Path(), self.folder / "p", self.data, self.settings, self.folder, **how)
        losses = json.loads((self.folder / f"{name}.json").read_text())["losses"]
        return load_file(self.folder / f"{name}.safetensors"), losses

    def killed_at(self, step: int) -> None:
        self.kill_at = step
        with pytest.raises(KeyboardInterrupt):
            self.run()
        self.kill_at = None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def same(a: tuple[dict[str, Tensor], list[float]], b: tuple[dict[str, Tensor], list[float]]) -> bool:
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][name], b[0][name]) for name in a[0])


# --- checkpoints ----------------------------------------------------------------------------------


def test_the_very_same_run_goes_on_from_its_checkpoint_bit_for_bit(world: World) -> None:
    expected = world.run()
    assert world.steps == 7 and not list((world.folder / "checkpoints").glob("*"))
    world.killed_at(5)
    assert same(world.run(), expected) and world.steps == 3  # checkpoints are taken after steps 2, 4 and 6


def edits(value: float) -> Protected:
    return Protected("p", frozenset({"weight"}), {"bias": torch.full((4,), value)})


def swap(tensor: Tensor) -> Tensor:
    """The same values in another order: no sum tells them apart."""
    return tensor.flip(0)


OTHERS: dict[str, Callable[[World], dict[str, Any]]] = {
    "edits": lambda w: {"protected": edits(0.2501)},
    "no edits": lambda w: {"protected": Protected("p", frozenset({"weight"}))},
    "mask": lambda w: {"protected": replace(w.protected, frozen=frozenset({"text"}))},
    "model": lambda w: {"model_seed": 2},
    "scheduler": lambda w: {"prediction_type": "v_prediction"},
    "images": lambda w: {"data": replace(w.data, latents=swap(w.data.latents))},
    "captions": lambda w: {"data": replace(w.data, text=swap(w.data.text))},
    "seed": lambda w: {"seed": 1},
    "compute": lambda w: {"compute": Compute(micro_batch_size=2)},
    "attacker": lambda w: {"settings": SETTINGS.model_copy(update={"attacker": "unfreeze"})},
    **{
        key: lambda w, key=key, value=value: {"settings": SETTINGS.model_copy(update={key: value})}
        for key, value in {
            "lr": 1.1e-2,
            "batch_size": 2,
            "weight_decay": 0.1,
            "max_grad_norm": 0.5,
            "flip": False,
            "steps": 9,
        }.items()
    },
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_run_is_not_taken_up(other: str, world: World) -> None:
    """The bug was: kill the users of `uce`, change its erase_scale, resume; the old edit's model came out."""
    changes = OTHERS[other](world)
    world.killed_at(5)
    for key, value in changes.items():
        setattr(world, key, value)
    found, steps = world.run(), world.steps
    assert steps == world.settings.steps
    assert same(world.run(), found)  # with no checkpoint about


def test_the_device_is_part_of_a_runs_identity(world: World) -> None:
    """A GPU's numbers are not those of a CPU: such a run would end as neither."""
    own: dict[str, Any] = dict(tensors="", schedule=sd_schedule(), protected=world.protected, data=world.data, seed=0)
    identities = [adapt.run_identity(SETTINGS, device=device, **own) for device in ("cpu", "cuda", "cuda:1")]
    assert identities[0] != identities[1] == identities[2]


def test_code_is_part_of_a_runs_identity(world: World, tmp_path: Path) -> None:
    own: dict[str, Any] = dict(tensors="", schedule=sd_schedule(), protected=world.protected, data=world.data, seed=0)
    identities = [adapt.run_identity(SETTINGS, device="cpu", code=code, **own) for code in ("a", "b", "b")]
    assert identities[0] != identities[1] == identities[2]
    # and it is what the stage `settings` wrote beside the settings
    block = AdaptSettings(seed=0, finetuning=Adapt(steps=1, batch_size=1, lr=1e-3))
    found = []
    for code in ({"a.py": "1"}, {"a.py": "2"}, {"a.py": "2"}):
        write_json(tmp_path / "adapt/x.json", {"settings": block.model_dump(mode="json"), "code": code})
        found.append(read_settings(AdaptSettings, "adapt/x", tmp_path))
    assert found[0].code != found[1].code == found[2].code and "code" not in found[0].model_dump()


def test_users_who_have_finished_wait_for_the_others_of_their_cell(world: World) -> None:
    """On a GPU, where one follows the other, a kill of the second must not cost the first."""
    write_for(toy_tensors(), world.folder / "p", world.protected)
    sets = {side: random_latents(6, seed=i) for i, side in enumerate(SIDES)}
    settings = SETTINGS.model_copy(update={"store": "bfloat16"})

    def cell(name: str) -> dict[str, bytes]:
        out, costs = world.folder / name, world.folder / f"{name}.json"
        world.steps = 0
        adapt.train_users(settings, (0, "adapt"), Path(), world.folder / "p", sets, out, "cell", "cpu", 1, costs)
        assert not list((world.folder / "checkpoints").glob("*"))
        return {path.name: path.read_bytes() for path in out.iterdir()}

    expected = cell("whole")
    assert world.steps == 14 and {t.dtype for t in load_file(world.folder / "whole/legal.safetensors").values()} == {
        torch.bfloat16
    }
    world.kill_at = 7 + 3
    with pytest.raises(KeyboardInterrupt):
        cell("killed")
    world.kill_at = None
    assert not (world.folder / "killed").exists()
    assert cell("killed") == expected and world.steps == 5  # the second user's, from its checkpoint after two
    whole, killed = (json.loads((world.folder / f"{name}.json").read_text()) for name in ("whole", "killed"))
    assert {user: record["resumed_at_step"] for user, record in killed.items()} == {"illegal": 0, "legal": 2}
    assert [record["steps"] for record in (*whole.values(), *killed.values())] == [7, 7, 7, 5]
    assert all(record["peak_bytes"] > 0 and record["median_step_s"] > 0 for record in killed.values())


def test_the_loss_at_the_end_is_told_by_quarter_and_on_unseen_images(world: World) -> None:
    write_for(toy_tensors(), world.folder / "p", world.protected)
    data, unseen = random_latents(6, seed=0), random_latents(4, seed=1)
    how = {"seed": 3, "device": "cpu", "checkpoint_name": "cell"}
    arguments = ("illegal", Path(), world.folder / "p", data, SETTINGS, world.folder)
    adapt.adapt_and_save(*arguments, **how, held_out=unseen)
    told = json.loads((world.folder / "illegal.json").read_text())
    unet, schedule = adapt.load_unet(Path()), adapt.NoiseSchedule.of(adapt.load_scheduler(Path()))
    load_tensors(unet, load_file(world.folder / "illegal.safetensors"))
    losses = fixed_noise_losses(unet, schedule, data, torch.Generator().manual_seed(4))
    assert told["fixed_noise_loss"] == pytest.approx(float(losses.mean()))
    assert told["fixed_noise_quarters"] == pytest.approx([float(losses[i : i + 32].mean()) for i in range(0, 128, 32)])
    expected = fixed_noise_loss(unet, schedule, unseen, torch.Generator().manual_seed(4))
    assert told["held_out_loss"] == pytest.approx(expected) and expected != pytest.approx(told["fixed_noise_loss"])
    adapt.adapt_and_save(*arguments, **how)
    assert json.loads((world.folder / "illegal.json").read_text())["held_out_loss"] is None


def test_a_sides_losses_are_the_means_of_its_classes() -> None:
    def record(loss: float, unseen: float | None) -> dict[str, Any]:
        quarters = [loss, 2 * loss, 3 * loss, 4 * loss]
        told = {"losses": [loss], "fixed_noise_loss": loss, "fixed_noise_quarters": quarters, "held_out_loss": unseen}
        return {**told, "n_changed": 1, "n_images": 2}

    both = {"illegal/ann": record(1.0, 5.0), "illegal/bo": record(3.0, 7.0), "legal/cy": record(1.0, None)}
    found = adapt.by_side(both)
    assert found["illegal"]["fixed_noise_quarters"] == [2.0, 4.0, 6.0, 8.0]
    assert (found["illegal"]["held_out_loss"], found["legal"]["held_out_loss"]) == (6.0, None)


def test_no_two_users_draw_the_same_and_every_arm_draws_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated users (of `relearn`, of masks, of IMMA) and evaluated ones; but arms are compared on the same draws."""
    seeds: dict[str, int] = {}
    monkeypatch.setattr(adapt, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(adapt, "run_side_by_side", lambda tasks, *_: [task() for task in tasks.values()])

    def record(*_: Any, seed: int, checkpoint_name: str, **__: Any) -> None:
        seeds[checkpoint_name] = seed
        raise KeyboardInterrupt

    monkeypatch.setattr(adapt, "adapt_and_save", record)
    sets = {side: random_latents(6, seed=i) for i, side in enumerate(SIDES)}
    for purpose in ("relearn", "adapt"):
        for arm in ("full", "imma"):
            for side in SIDES:  # one after the other, as each call ends at its first user
                own = {side: sets[side]}
                with pytest.raises(KeyboardInterrupt):
                    adapt.train_users(SETTINGS, (0, purpose), Path(), None, own, tmp_path, f"{purpose}-{arm}", "cpu", 1)
    by_arm = [{name.replace(arm, ""): seed for name, seed in seeds.items() if arm in name} for arm in ("full", "imma")]
    assert by_arm[0] == by_arm[1] and len(set(by_arm[0].values())) == len(by_arm[0]) == 4
    others = {seed_of(0, name) for name in ("mask", "imma", "anchored")} | {0}
    assert len(others | set(seeds.values())) == 4 + len(others)


def test_a_finished_user_of_other_settings_does_not_count(world: World) -> None:
    write_for(toy_tensors(), world.folder / "p", world.protected)
    sets = {side: random_latents(6, seed=i) for i, side in enumerate(SIDES)}

    def cell(lr: float) -> None:
        world.steps = 0
        settings = SETTINGS.model_copy(update={"lr": lr})
        adapt.train_users(
            settings, (0, "adapt"), Path(), world.folder / "p", sets, world.folder / "out", "cell", "cpu", 1
        )

    world.kill_at = 8
    with pytest.raises(KeyboardInterrupt):
        cell(1e-2)
    world.kill_at = None
    cell(2e-2)
    assert world.steps == 14


# --- attackers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("attacker", "trained"), [("compliant", TENSORS - {"weight"}), ("unfreeze", TENSORS)])
def test_attackers_take_the_published_weights_and_the_mask_or_not(
    attacker: str, trained: set[str], world: World
) -> None:
    world.settings = SETTINGS.model_copy(update={"attacker": attacker, "steps": 0})
    start, _ = world.run()
    assert start.keys() == {"bias"} and torch.equal(start["bias"], world.protected.edited["bias"])
    world.settings = world.settings.model_copy(update={"steps": 2})
    assert world.run()[0].keys() == trained and world.steps == 2


def test_an_attacker_of_ones_own_is_a_file_and_a_line(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.folder / "my_attacks.py").write_text(
        "from freezeasguard.users.training import finetune\n"
        "def attack(unet, protected, schedule, data, settings, device, **how):\n"
        "    unet.gain.data.fill_(5.0)\n"
        "    return finetune(unet, schedule, data, settings, frozen={'bias'}, **how)\n"
    )
    monkeypatch.syspath_prepend(str(world.folder))
    monkeypatch.setitem(registry.ATTACKERS, "reset", "my_attacks")
    world.settings = SETTINGS.model_copy(update={"attacker": "reset"})
    changed, losses = world.run()
    assert changed.keys() == TENSORS - {"bias"} and float(changed["gain"]) == pytest.approx(5, abs=0.2)
    assert len(losses) == world.steps == 7  # through THE loop
    world.killed_at(5)
    assert same(world.run(), (changed, losses)) and world.steps == 3


def test_an_unknown_attacker_is_told(world: World) -> None:
    world.settings = SETTINGS.model_copy(update={"attacker": "thief"})
    with pytest.raises(FreezeAsGuardError, match="attacker is 'thief'; choose from compliant, unfreeze"):
        world.run()


# --- whose data made which file -------------------------------------------------------------------


@pytest.fixture
def coded(world: World, monkeypatch: pytest.MonkeyPatch) -> CaseData:
    """One image a side and part that says which it is; a user's bias becomes the mean of those it trained on."""

    def train(unet: Any, schedule: Any, data: LatentSet, settings: Any, **how: Any) -> list[float]:
        unet.bias.data.fill_(float(data.latents.mean()))
        return []

    monkeypatch.setattr("freezeasguard.users.compliant.finetune", train)
    rows = [(side, part) for side in range(2) for part in range(3)]
    index = pd.DataFrame([{"row": i, "side": SIDES[s], "part": PARTS[p]} for i, (s, p) in enumerate(rows)])
    codes = torch.tensor([10.0 * side + part for side, part in rows]).reshape(6, 1, 1, 1, 1).expand(6, 2, 4, 8, 8)
    return CaseData(index, codes, torch.zeros(6, 3, 8), torch.zeros(3, 8))


def biases(folder: Path) -> dict[str, float]:
    return {path.stem: float(load_file(path)["bias"][0]) for path in folder.glob("*.safetensors")}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_sides_file_is_of_its_own_adaptation_half(workers: int, world: World, coded: CaseData) -> None:
    write_for(toy_tensors(), world.folder / "p", world.protected)
    settings, out = AdaptSettings(seed=0, finetuning=SETTINGS), world.folder / "out"
    adapt.adapt_cell(settings, Path(), world.folder / "p", coded, out, "c", "cpu", workers)
    assert biases(out) == {"illegal": 1.0, "legal": 11.0}


@pytest.mark.parametrize(
    ("users", "expected"), [("joint", {SIDES: 5.0}), ("per_side", {("illegal",): 0.0, ("legal",): 10.0})]
)
@pytest.mark.parametrize("both", [False, True])
def test_the_simulated_users_files_reach_the_mask_under_their_own_sides(
    users: str, expected: dict[tuple[str, ...], float], both: bool, world: World, coded: CaseData
) -> None:
    """Whether the case's masks simulate one kind of user alone, or both."""
    trained = ["joint", "per_side"] if both else [users]
    settings, out = RelearnSettings(seed=0, users=trained, finetuning=SETTINGS), world.folder / "out"
    relearn.relearn_case(settings, Path(), coded, out, "c", "cpu", 1)
    assert {sides: float(tensors["bias"][0]) for sides, tensors in load_finetuned(out, users).items()} == expected


def test_a_user_whom_relearn_did_not_train_is_named(world: World, coded: CaseData) -> None:
    settings, out = RelearnSettings(seed=0, users=["per_side"], finetuning=SETTINGS), world.folder / "out"
    relearn.relearn_case(settings, Path(), coded, out, "c", "cpu", 1)
    with pytest.raises(FreezeAsGuardError, match=r"joint\.safetensors.*relearn@out"):
        load_finetuned(out, "joint")
