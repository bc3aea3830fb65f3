"""Learned anchors, against autograd in float64; and the edits of UCE and IMMA, frozen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor
from torch.func import functional_call

from conftest import random_latents
from freezeasguard.arms import Arm
from freezeasguard.checkpoints import Checkpoint
from freezeasguard.costs import Meter
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.batches import fixed_noise_loss
from freezeasguard.models.diffusion import NoiseSchedule, load_unet, named_tensors
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.models.protected import Protected, read_protected
from freezeasguard.protections import anchored
from freezeasguard.protections.anchored import AnchorLearner
from freezeasguard.protections.protect import Inputs, protect_case
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.methods import Anchored
from freezeasguard.settings.params import parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.resolve import protect_settings
from freezeasguard.settings.users import Adapt, Finetuning
from freezeasguard.sides import SIDES
from freezeasguard.users.compliant import attack
from freezeasguard.users.training import finetune
from test_mask_resume import ALWAYS, Attentive, Killed, kill_at

MODEL = Path(__file__).parent.parent / "data" / "models" / "tiny-1.5"
CONFIG = Anchored(
    rounds=4,
    batch_size=3,
    user_lr=1e-2,
    outer_lr=1e-2,
    lambda_legal=0.7,
    lambda_published=3.0,
    cap=1e6,
    restart_rounds=2,
    component="attention",
)
PROJECTION = "attn2.to_q.weight"


def learner_of(config: Anchored = CONFIG, *, double: bool = True, compute: Compute | None = None) -> AnchorLearner:
    schedule = NoiseSchedule((1 - torch.linspace(1e-4, 2e-2, 50, dtype=torch.float64)).cumprod(0).float())
    data = {side: random_latents(6 + i, seed=i) for i, side in enumerate(SIDES)}
    network = Attentive().double() if double else Attentive()
    draw = torch.Generator().manual_seed(0)
    neutral, empty = random_latents(5, seed=9), random_latents(1, seed=8).text[0]
    return AnchorLearner(network, schedule, data, neutral, empty, config, draw, compute or Compute())


def moved(learner: AnchorLearner) -> AnchorLearner:
    """Users who have trained, and anchors that have left theta_pre."""
    for side in SIDES:
        for _ in range(3):
            learner.user_step(side)
    with torch.no_grad():
        noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(5))
        learner.parameters[PROJECTION] += 0.1 * noise
    return learner


def expected_terms(learner: AnchorLearner, phi: Tensor) -> Iterator[Tensor]:
    """L_illegal, L_legal and D on the tape, on the batches that the learner draws next."""
    schedule = learner.schedule

    def predict(tensors: dict[str, Tensor], batch: Any) -> Tensor:
        noisy = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        return functional_call(learner.unet, tensors, (noisy, batch.timesteps, batch.text)).sample

    for side in SIDES:
        batch = learner._draw([learner.data[side]])
        tensors = {**learner.users[side].tensors, PROJECTION: phi}
        yield (predict(tensors, batch) - batch.noise).square().mean()
    both = learner.held()
    own, teacher = (predict({**learner.published, **more}, both) for more in ({PROJECTION: phi}, {}))
    yield (own - teacher.detach()).square().mean()


@pytest.mark.parametrize("size", [None, 1, 2])
def test_the_anchors_gradient_is_autograds(size: int | None) -> None:
    learner = moved(learner_of(compute=Compute(micro_batch_size=size)))
    state = learner.generator.get_state()
    values = learner.gradient()
    found = learner.parameters[PROJECTION].grad.clone()
    learner.generator.set_state(state)
    phi = learner.parameters[PROJECTION].detach().clone().requires_grad_(True)
    illegal, legal, drift = expected_terms(learner, phi)
    (-illegal + 0.7 * legal + 3.0 * drift).backward()
    torch.testing.assert_close(found, phi.grad, rtol=1e-9, atol=1e-12)
    told = torch.tensor([values[name] for name in ("illegal", "legal", "published")])
    torch.testing.assert_close(told, torch.stack([illegal, legal, drift]).detach().float(), rtol=1e-5, atol=0)
    assert values["published"] > 0
    assert all(p.grad is None for name, p in learner.parameters.items() if name != PROJECTION)


@pytest.mark.parametrize("size", [None, 1])
def test_beyond_the_cap_the_illegal_term_is_silent(size: int | None) -> None:
    found = []
    for changes in ({"cap": 1e-9}, {"lambda_illegal": 0.0}):
        learner = moved(learner_of(CONFIG.model_copy(update=changes), compute=Compute(micro_batch_size=size)))
        learner.gradient()
        found.append(learner.parameters[PROJECTION].grad.clone())
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_what_is_published_costs_nothing_while_it_is_the_pretrained_model() -> None:
    learner = learner_of(CONFIG.model_copy(update={"lambda_illegal": 0.0, "lambda_legal": 0.0}))
    for side in SIDES:
        learner.user_step(side)
    assert learner.gradient()["published"] == 0
    assert not learner.parameters[PROJECTION].grad.any()


@pytest.mark.parametrize(("share", "n_empty"), [(0.0, 0), (0.34, 1), (1.0, 3)])
def test_d_is_taken_at_neutral_images_and_both_sides_a_share_under_the_empty_prompt(share: float, n_empty: int) -> None:
    learner = learner_of(CONFIG.model_copy(update={"empty_share": share}))
    sets = [learner.neutral, learner.data["illegal"], learner.data["legal"]]
    batch = learner.held()
    for part, latents, text in zip(sets, batch.latents.split(3), batch.text.split(3), strict=True):
        for i, (image, words) in enumerate(zip(latents, text, strict=True)):
            row = next(r for r, both in enumerate(part.latents) if any(torch.equal(image, one) for one in both))
            assert torch.equal(words, learner.empty_text if i < n_empty else part.text[row])


def test_drift_is_told_on_images_that_nothing_was_learned_from() -> None:
    learner = moved(learner_of())
    images = random_latents(4, seed=7)
    losses = learner.neutral_losses(images)
    fresh = learner_of()
    draws = torch.Generator().manual_seed(0)
    expected = fixed_noise_loss(fresh.unet, fresh.schedule, images, draws)
    assert losses["pretrained"] == pytest.approx(expected) and losses["anchored"] != pytest.approx(expected)


def test_each_level_moves_its_own_tensors() -> None:
    learner = moved(learner_of())
    phi = learner.parameters[PROJECTION].detach().clone()
    users = {side: {n: t.clone() for n, t in user.tensors.items()} for side, user in learner.users.items()}
    learner.user_step("legal")
    assert torch.equal(learner.parameters[PROJECTION], phi)
    now = learner.users["legal"].tensors
    assert all(not torch.equal(now[name], tensor) for name, tensor in users["legal"].items())
    assert all(torch.equal(learner.users["illegal"].tensors[n], t) for n, t in users["illegal"].items())
    learner.anchor_step()
    assert not torch.equal(learner.parameters[PROJECTION], phi)
    assert all(torch.equal(learner.users["legal"].tensors[name], tensor) for name, tensor in now.items())


def test_the_anchors_rate_falls_to_zero_over_the_second_half() -> None:
    learner, rates = learner_of(CONFIG.model_copy(update={"rounds": 5})), []
    learner.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    for _ in range(5):
        learner.round()
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 0.8e-2, 0.4e-2])


def test_a_simulated_user_trains_as_the_loop_trains() -> None:
    """The first round's users are those of `finetune` with the anchors frozen, on the same draws."""
    learner = learner_of()
    state = learner.generator.get_state()
    for _ in range(3):
        learner.user_step("illegal")
    network, draw = Attentive().double(), torch.Generator()
    draw.set_state(state)
    config = Finetuning(steps=3, batch_size=3, lr=1e-2)
    finetune(network, learner.schedule, learner.data["illegal"], config, frozen={PROJECTION}, generator=draw)
    expected = named_tensors(network)
    for name, tensor in learner.users["illegal"].tensors.items():
        torch.testing.assert_close(tensor, expected[name].detach(), rtol=0, atol=0)


def test_users_start_again_from_the_published_model() -> None:
    learner = learner_of()
    learner.round()
    learner.round()
    learner._new_users, made = lambda: made.append(1) or AnchorLearner._new_users(learner), []
    learner.round()
    learner.round()
    assert made == [1]
    assert all(
        torch.equal(t, learner.published[n]) for n, t in AnchorLearner._new_users(learner)["legal"].tensors.items()
    )


def test_a_run_that_was_killed_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"rounds": 5, "checkpoint_minutes": ALWAYS})
    whole = learner_of(config, double=False)
    expected = whole.learn()
    killed, checkpoint = learner_of(config, double=False), Checkpoint(tmp_path / "run.pt", {})
    kill_at(killed.unet, 3 * 6 + 2)  # a round is two users' steps, two sides' terms, and D's two forward passes
    with pytest.raises(Killed):
        killed.learn(checkpoint=checkpoint)
    meter, resumed = Meter("cpu"), learner_of(config, double=False)
    found = resumed.learn(meter, checkpoint)
    assert (meter.resumed_at, meter.steps) == (3, 2)
    assert resumed.history == whole.history and len(whole.history.legal) == 5
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()) and list(found) == [PROJECTION]


def test_a_loss_that_explodes_is_told() -> None:
    learner = learner_of(CONFIG.model_copy(update={"user_lr": 1e12, "rounds": 30}), double=False)
    with pytest.raises(FreezeAsGuardError, match="lower methods.anchored.outer_lr or user_lr"):
        learner.learn()


# --- on a real model --------------------------------------------------------------------------------------------------


def inputs_of(arm: str, folder: Path, **own: Any) -> Inputs:
    values = yaml.safe_load(profile_text("smoke"))
    values["imma"] |= {"steps": 1, "batch_size": 1}
    prompts = {"neutral_prompts": ["a drawing", "a circle"], "unseen_prompts": ["a square"]}
    prompts |= {"neutral_images": 1, "neutral_steps": 1}
    values["methods"] = {"anchored": {"rounds": 1, "batch_size": 1, "user_lr": 1e-3, **prompts, **own}}
    settings = protect_settings(parse_params(values, Path("params.yaml")), "portraits", Arm.parse(arm))
    rows = [
        {"row": i, "side": side, "class": side, "subject": f"Fito {side}", "part": "mask_learning", "caption": side}
        for i, side in enumerate(SIDES)
    ]
    draw = torch.Generator().manual_seed(0)
    text = torch.randn(2, 48, 96, generator=draw)
    inputs = Inputs(settings, MODEL, folder, folder)
    vars(inputs)["data"] = CaseData(pd.DataFrame(rows), torch.randn(2, 2, 8, 16, 16, generator=draw), text, text[0])
    return inputs


@pytest.mark.parametrize(("arm", "plain"), [("uce_frozen", "uce"), ("imma_frozen", "imma")])
def test_a_frozen_edit_is_the_edit_and_holds(
    arm: str, plain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (arm, plain):
        protect_case(inputs_of(name, tmp_path), tmp_path / name)
    ours, edit = (read_protected(tmp_path / name, load_unet(MODEL)) for name in (arm, plain))
    assert ours.method == arm and ours.edited.keys() == edit.edited.keys() == ours.frozen and not edit.frozen
    assert all(torch.equal(ours.edited[name], tensor) for name, tensor in edit.edited.items())
    trained(ours)


def test_by_default_users_are_left_attention_norms_and_biases() -> None:
    learner = learner_of(Anchored.model_validate(CONFIG.model_dump(exclude={"component"})))
    left = {name for name, p in learner.parameters.items() if p.ndim < 2} | {PROJECTION}
    assert set(learner.others) == left and learner.anchors == sorted(learner.parameters.keys() - left)
    before = {name: p.detach().clone() for name, p in learner.parameters.items()}
    learner.user_step("illegal")
    assert {name for name, p in learner.parameters.items() if not torch.equal(p.detach(), before[name])} == left


def trained(protected: Protected) -> None:
    """A user of the pipeline leaves what is frozen bit-equal, and trains the rest."""
    unet, data = load_unet(MODEL), LatentSet(torch.randn(2, 2, 8, 16, 16), torch.randn(2, 48, 96))
    schedule = NoiseSchedule(torch.linspace(0.99, 0.01, 1000))
    config = Adapt(steps=1, batch_size=1, lr=1e-3)
    attack(unet, protected, schedule, data, config, "cpu", generator=torch.Generator().manual_seed(0))
    after, published = named_tensors(unet), named_tensors(load_unet(MODEL))
    assert all(torch.equal(after[name], protected.edited[name]) for name in protected.frozen)
    assert not torch.equal(after["conv_in.weight"], published["conv_in.weight"])


def test_anchors_ship_as_a_protected_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    protect_case(inputs_of("anchored", tmp_path, component="attention"), tmp_path / "out", tmp_path / "costs.json")
    protected = read_protected(tmp_path / "out", load_unet(MODEL))
    assert len(protected.frozen) == 160 and protected.frozen == protected.edited.keys()
    assert protected.diagnostics["relative_change"].keys() == protected.frozen
    assert protected.settings["rounds"] == 1 and len(protected.diagnostics["published"]) == 1
    losses = protected.diagnostics["neutral_losses"]
    assert losses["anchored"] > 0 and losses["pretrained"] > 0 and losses["anchored"] != losses["pretrained"]
    trained(protected)


def test_neutral_images_are_the_models_own(tmp_path: Path) -> None:
    inputs = inputs_of("anchored", tmp_path)
    config = Anchored.model_validate(inputs.settings.own)
    first, again = (anchored.neutral_images(inputs, load_unet(MODEL), config, "neutral_prompts") for _ in "ab")
    assert first.latents.shape == (2, 2, 8, 16, 16) and torch.equal(first.latents[:, 0], first.latents[:, 1])
    assert torch.equal(first.latents, again.latents) and not torch.equal(first.latents[0], first.latents[1])
    with pytest.raises(FreezeAsGuardError, match="unseen_prompts is empty"):
        none = config.model_copy(update={"unseen_prompts": []})
        anchored.neutral_images(inputs, load_unet(MODEL), none, "unseen_prompts")
