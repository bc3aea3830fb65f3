"""Mask learning and IMMA, killed midway: the next run goes on from the checkpoint, and ends as if nothing had been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import CHANNELS, ToyDenoiser, random_latents
from freezeasguard.checkpoints import Checkpoint
from freezeasguard.costs import Meter
from freezeasguard.masks.bilevel import LearnedMask, MaskLearner
from freezeasguard.models.diffusion import NoiseSchedule, stored_tensors
from freezeasguard.models.latents import CaseData, LatentSet
from freezeasguard.protections.imma import immunise
from freezeasguard.protections.protect import Inputs
from freezeasguard.settings.compute import Compute
from freezeasguard.settings.mask import Mask
from freezeasguard.settings.methods import IMMA
from freezeasguard.settings.resolve import ProtectSettings
from test_bilevel import mask_config, moved, sides_of, weights_of
from test_kill import ROOT, project  # noqa: F401
from test_mask_compute import Data, weights_after

MODEL = ROOT / "data/models/tiny-1.5"
ALWAYS = 1e-9
"""Minutes between checkpoints."""


class Killed(BaseException):
    pass


def kill_at(network: torch.nn.Module, forward: int) -> None:
    calls = iter(range(1, 1000))

    def count(*_: Any) -> None:
        if next(calls) == forward:
            raise Killed

    network.register_forward_pre_hook(count)


# --- in one process -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "changes", "compute"),
    [
        ("freezeasguard", {}, Compute()),
        ("freezeasguard", {"granularity": "row"}, Compute(users_on_host=True, micro_batch_size=1)),
        ("freezeasguard", {"mask_optimizer": "adam", "signal": "path", "users": "joint"}, Compute()),
        ("official", {"user_lr": 0.01}, Compute()),
    ],
    ids=str,
)
def test_a_mask_that_was_killed_is_the_same_bit_for_bit(
    preset: str, changes: dict[str, Any], compute: Compute, schedule: NoiseSchedule, latent_sets: Data, tmp_path: Path
) -> None:
    config = mask_config(preset, **{"user_lr": 1e-3, "mask_steps": 5, "checkpoint_minutes": ALWAYS, **changes})

    def learner() -> MaskLearner:
        toy = ToyDenoiser(1)
        finetuned = {sides: moved(weights_of(toy), 10 + i) for i, sides in enumerate(sides_of(config.users))}
        draw = torch.Generator().manual_seed(0)
        return MaskLearner(toy, schedule, latent_sets, finetuned, config, 0.3, draw, compute)

    whole = learner()
    expected = whole.learn()
    killed = learner()
    n_forwards: list[int] = []
    handle = killed.unet.register_forward_pre_hook(lambda *_: n_forwards.append(1))
    killed._round()
    handle.remove()
    killed, checkpoint = learner(), Checkpoint(tmp_path / "run.pt", {})
    kill_at(killed.unet, 2 * len(n_forwards) + 2)  # within the third round
    with pytest.raises(Killed):
        killed.learn(checkpoint=checkpoint)
    meter, resumed = Meter("cpu"), learner()
    found = resumed.learn(checkpoint=checkpoint, meter=meter)
    assert (meter.resumed_at, meter.steps) == (2, 3)
    assert torch.equal(found.logits, expected.logits) and torch.equal(found.initial_logits, expected.initial_logits)
    assert all(torch.equal(a, b) for a, b in zip(weights_after(resumed), weights_after(whole), strict=True))
    assert told(found) == told(expected)


def told(learned: LearnedMask) -> str:
    plain = {key: value for key, value in vars(learned.history).items() if not key.endswith("_sum") or "path" in key}
    sums = [learned.history.mean_signal("legal").tolist(), learned.history.mean_size("illegal").tolist()]
    return json.dumps([plain, sums])


class Attentive(ToyDenoiser):
    """With an attention's projection, which IMMA defends."""

    def __init__(self) -> None:
        super().__init__(1)
        self.attn2 = torch.nn.ModuleDict({"to_q": torch.nn.Linear(CHANNELS, CHANNELS, bias=False)})
        with torch.no_grad():
            self.attn2["to_q"].weight.copy_(torch.eye(CHANNELS))

    def forward(self, x: Tensor, t: Tensor, text: Tensor) -> Any:
        return super().forward(self.attn2["to_q"](x.to(self.weight).movedim(1, -1)).movedim(-1, 1), t, text)


@pytest.mark.parametrize("compute", [Compute(), Compute(micro_batch_size=1)], ids=str)
def test_an_immunisation_that_was_killed_is_the_same_bit_for_bit(
    compute: Compute, schedule: NoiseSchedule, tmp_path: Path
) -> None:
    config = IMMA(steps=5, batch_size=3, inner_lr=1e-2, outer_lr=1e-2, checkpoint_minutes=ALWAYS)
    n_forwards = 2 * (1 if compute.micro_batch_size is None else 3)

    def run(killed_at: int | None = None, **more: Any) -> Any:
        unet = Attentive()
        if killed_at:
            kill_at(unet, killed_at)
        draw = torch.Generator().manual_seed(0)
        data: LatentSet = random_latents(6, seed=3)
        return immunise(unet, schedule, data, config, generator=draw, compute=compute, **more)

    edited, history = run()
    checkpoint, meter = Checkpoint(tmp_path / "run.pt", {}), Meter("cpu")
    with pytest.raises(Killed):
        run(2 * n_forwards + 2, checkpoint=checkpoint)
    again, resumed = run(checkpoint=checkpoint, meter=meter)
    assert (meter.resumed_at, meter.steps) == (2, 3) and len(history.outer) == 5
    assert resumed == history
    assert all(torch.equal(again[name], tensor) for name, tensor in edited.items()) and len(edited) == 1


def test_micro_batches_immunise_as_the_whole_batch(schedule: NoiseSchedule) -> None:
    config, found = IMMA(steps=3, batch_size=6, inner_lr=1e-3, outer_lr=1e-3), []
    for size in (None, 1, 4):
        draw = torch.Generator().manual_seed(0)
        compute = Compute(micro_batch_size=size)
        unet = Attentive().double()
        edited, history = immunise(unet, schedule, random_latents(6, 3), config, generator=draw, compute=compute)
        found.append(torch.cat([edited["attn2.to_q.weight"].flatten(), torch.tensor(history.inner + history.outer)]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found[2], found[0], rtol=1e-6, atol=1e-7)


def test_a_checkpoint_is_known_by_all_that_it_depends_on(tmp_path: Path) -> None:
    mask = mask_config("freezeasguard")
    settings = ProtectSettings(seed=0, arm="freezeasguard", rho=0.3, mask=mask)
    rows = [{"row": 0, "side": "illegal", "part": "mask_learning"}]
    data = CaseData(pd.DataFrame(rows), torch.zeros(1, 2, 1, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1))

    def identity(settings: ProtectSettings, data: CaseData = data, device: str = "cpu", **tensors: Any) -> Any:
        inputs = Inputs(settings, MODEL, tmp_path, tmp_path, device)
        vars(inputs).update(data=data, tensors={"w": torch.zeros(2), **tensors})
        return inputs.checkpoint("0").identity

    def changed(**changes: Any) -> ProtectSettings:
        return settings.model_copy(update=changes)

    first = identity(settings)
    others = [
        identity(changed(seed=1)),
        identity(changed(rho=0.5)),
        identity(changed(mask=mask.with_(mask_lr=0.5))),
        identity(changed(compute=Compute(precision="bfloat16"))),
        identity(settings, replace(data, latents=data.latents + 1)),
        identity(settings, replace(data, index=data.index.assign(side="legal"))),
        identity(settings, device="cuda:0"),
        identity(settings, w=torch.ones(2)),
    ]
    assert len({json.dumps(i) for i in (first, *others)}) == 9
    assert identity(changed(mask=mask.with_(checkpoint_minutes=1))) == first == identity(settings, device="cpu:0")


# --- as stages ------------------------------------------------------------------------------------------------


def protect(project: Path, arm: str) -> subprocess.Popen[bytes]:  # noqa: F811
    command = [sys.executable, "-m", "stages.protect", "portraits", arm, "tiny-1.5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FREEZEASGUARD_WARM": "0"}
    return subprocess.Popen(command, cwd=project, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)


def write_settings_of(project: Path, arm: str) -> None:  # noqa: F811
    small = {"mask_steps": 8, "batch_size": 2, "mask_batch_size": 1, "user_lr": 1e-4, "diagnostic_seeds": 0}
    blocks = {
        "mask": Mask.model_validate({**small, "checkpoint_minutes": ALWAYS}),
        "imma": IMMA(steps=10, batch_size=1, inner_lr=1e-4, outer_lr=1e-4, checkpoint_minutes=ALWAYS),
    }
    own = {"mask" if arm == "freezeasguard" else "imma": blocks["mask" if arm == "freezeasguard" else "imma"]}
    settings = ProtectSettings.model_validate({"seed": 0, "arm": arm, "rho": 0.3, **own})
    path = project / f"data/settings/protect/portraits-{arm}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"settings": settings.model_dump(mode="json"), "code": {}}))
    index = project / "data/latents/portraits/index.csv"
    index.write_text(index.read_text().replace("adaptation", "mask_learning"))
    weights = stored_tensors(MODEL)
    folder = project / "data/finetuned/portraits"
    folder.mkdir(parents=True)
    for side, by in (("illegal", 1e-3), ("legal", -1e-3)):
        save_file({name: w.float() + by for name, w in weights.items()}, folder / f"{side}.safetensors")


@pytest.mark.parametrize(("arm", "number"), [("freezeasguard", signal.SIGKILL), ("imma", signal.SIGTERM)])
def test_a_killed_protection_resumes_bit_for_bit(project: Path, arm: str, number: int) -> None:  # noqa: F811
    write_settings_of(project, arm)
    out, checkpoints = project / "data/protected/portraits" / arm, project / "data/checkpoints"
    assert protect(project, arm).wait() == 0
    content, edited = (out / "protected.json").read_text(), out / "edited.safetensors"
    tensors = load_file(edited) if edited.exists() else {}
    shutil.rmtree(out)

    process, deadline = protect(project, arm), time.monotonic() + 200
    while not list(checkpoints.glob("protect-*running*.pt")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, number)
    assert process.wait() != 0
    assert list(checkpoints.glob("protect-*running*.pt")) and not out.exists()

    assert protect(project, arm).wait() == 0
    assert (out / "protected.json").read_text() == content
    again = load_file(edited) if edited.exists() else {}
    assert again.keys() == tensors.keys() and all(torch.equal(again[name], tensors[name]) for name in tensors)
    cost = json.loads((project / f"data/costs/protect/portraits-{arm}.json").read_text())["protect"]
    assert cost["resumed_at_step"] > 0 and cost["steps"] + cost["resumed_at_step"] in (8, 10)
    assert not list(checkpoints.glob("*.pt"))
