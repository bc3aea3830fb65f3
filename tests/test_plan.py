"""What a profile costs, told beforehand: counted on the real architectures, and by the cells that DVC will run."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from freezeasguard.cli import cli
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import stored_tensors
from freezeasguard.models.family import V1, V2, configurations, size_of
from freezeasguard.models.generate import prompt_table
from freezeasguard.plan import _CaseCosts, anchoring_copies, costs, lines, stage_counts, throughput
from freezeasguard.settings.params import Model, Params, parse_params
from freezeasguard.settings.profiles import profile_text, write_profile
from project import copy_project, dvc
from test_anchored import CONFIG, PROJECTION, learner_of

ROOT = Path(__file__).parent.parent
OVERLAYS = ROOT / "stages/freezeasguard/settings/profiles"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def params_of(profile: str, **changed: Any) -> Params:
    values: Any = yaml.safe_load(profile_text(profile))
    for key, value in changed.items():
        block, _, name = key.partition("__")
        values[block][name] = value
    return parse_params(values, Path("params.yaml"))


def test_the_released_models_have_their_published_sizes() -> None:
    v1, v2 = size_of(V1, 512), size_of(V2, 768)
    assert (v1.parameters, v2.parameters) == (859_520_964, 865_910_724)
    assert v1.unet_tflop == pytest.approx(0.80, abs=0.01)  # 0.40 T multiply-adds, as others count it
    assert v1.decode_tflop > 2 * v1.encode_tflop > 2


def test_a_model_that_is_here_tells_its_own_shape_and_an_unknown_one_nothing(tmp_path: Path) -> None:
    tiny = ROOT / "data/models/tiny-1.5"
    configs = configurations(Model(path=tiny), tiny)
    n_stored = sum(tensor.numel() for tensor in stored_tensors(tiny).values())
    assert configs is not None and size_of(configs, 64).parameters == n_stored
    assert configurations(Model(repo="someone/else", revision="a" * 40), tmp_path) is None
    block = {"sd-x": {"repo": "someone/else", "revision": "a" * 40}}
    values: Any = yaml.safe_load(profile_text("smoke")) | {"models": block}
    values["cases"]["portraits"]["model"] = "sd-x"
    with pytest.raises(FreezeAsGuardError, match="models.sd-x: the shape of someone/else is not known before it is"):
        costs(parse_params(values, Path("params.yaml")))


def tflop_of(params: Params, stage: str) -> list[float]:
    return [cost.tflop for cost in costs(params) if cost.stage == stage]


def test_training_costs_steps_times_images_times_three_forward_passes() -> None:
    params = params_of("smoke")  # two classes a side; arms: pretrained, uce-before, full, uce, freezeasguard, random
    forward = _CaseCosts(params, "portraits").size.unet_tflop
    users = [0, 0] + 4 * [2 * 3 * 4 * 3 * forward]
    assert tflop_of(params, "adapt") == pytest.approx(users)
    a_class = params_of("smoke", adapt__per_class=True)
    assert tflop_of(a_class, "adapt") == pytest.approx([2 * cost for cost in users])
    values = {**yaml.safe_load(profile_text("smoke")), "compute": {"gradient_checkpointing": True}}
    checkpointed = parse_params(values, Path())
    assert tflop_of(checkpointed, "adapt") == pytest.approx([4 / 3 * cost for cost in users])
    # 3 rounds of one user step on 4 images and a mask step on 2 a side, and a second seed
    assert tflop_of(params, "protect") == pytest.approx([0, 0, 2 * 3 * (4 + 4) * 3 * forward, 0])


@pytest.mark.parametrize("component", ["attention", "outside_attention"])
def test_learning_anchors_holds_as_many_copies_as_are_counted(component: str) -> None:
    learner = learner_of(CONFIG.model_copy(update={"component": component}))
    learner.round()
    held = [*learner.published.values(), *(p.data for p in learner.parameters.values())]
    optimizers = [learner.optimizer]
    for user in learner.users.values():
        held += user.tensors.values()
        optimizers.append(user.optimizer)
    for optimizer in optimizers:
        held += [moment for state in optimizer.state.values() for name, moment in state.items() if name != "step"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.numel() for tensor in held}
    sizes = {name: p.numel() for name, p in learner.parameters.items()}
    share = sum(sizes[name] for name in learner.anchors) / sum(sizes.values())
    assert 0 < share < 1 and (PROJECTION in learner.anchors) == (component == "attention")
    assert sum(storages.values()) / sum(sizes.values()) == pytest.approx(anchoring_copies(share))


def test_generation_costs_two_passes_a_step_for_every_row_of_the_prompt_table() -> None:
    params = params_of("smoke", generate__prompts_per_side=5, generate__images_per_prompt=3)
    rows = pd.DataFrame([{"class": c, "caption": f"{c} {i}", "row": i} for c in "abab" for i in range(9)])
    parts = {"adaptation": rows[:18], "held_out": rows[18:]}
    data: Any = SimpleNamespace(rows=lambda side, names: parts[names[0]])
    config = params.generate_block("portraits")
    n_images = sum(len(prompt_table(data, side, config)) for side in ("illegal", "legal"))
    found = _CaseCosts(params, "portraits")
    assert found.n_generated == n_images
    size = found.size
    assert tflop_of(params, "generate") == pytest.approx(6 * [n_images * (2 * 4 * size.unet_tflop + size.decode_tflop)])


def test_a_case_generates_its_own_numbers_of_images() -> None:
    params = params_of("paper")
    assert params.generate_block("costs").images_per_prompt == 4 and params.generate_block("costs").steps == 50
    assert params.generate_block("portraits") == params.generate


@pytest.mark.parametrize("profile", ["smoke", "paper"])
def test_the_plan_counts_what_dvc_will_run(profile: str, tmp_path: Path) -> None:
    project = copy_project(tmp_path)
    write_profile(profile, project / "params.yaml")
    listed = re.findall(r"Running stage '([\w-]+)", dvc(project, "repro", "--dry", "--force"))  # which asks for no file
    expected = stage_counts(params_of(profile), project / "dvc.yaml")
    assert dict(Counter(listed)) == expected and expected["adapt"] == len(params_of(profile).cells)


def test_the_plan_is_printed_by_stage_and_by_table(monkeypatch: pytest.MonkeyPatch) -> None:
    text = list(lines(params_of("paper")))
    in_all = next(line for line in text if line.startswith("in all")).split()
    stages = [line.split() for line in text if re.match(r"\w+ +\d+ +\d+\.\d", line)]
    assert int(in_all[2]) == sum(int(row[1]) for row in stages)
    assert float(in_all[3]) == pytest.approx(sum(float(row[2]) for row in stages), abs=0.1)
    assert all(f"Table {n} " in next(line for line in text if line.startswith("hours of")) for n in range(1, 9))
    twice = [line for line in lines(params_of("paper"), tflops=200) if line.startswith("protect")]
    once = [line for line in text if line.startswith("protect")]
    assert float(once[0].split()[2]) == pytest.approx(2 * float(twice[0].split()[2]), abs=0.02)
    assert throughput(params_of("tiny"))[1] < 1 < throughput(params_of("paper"))[1]
    done = CliRunner().invoke(cli, ["plan"])
    assert done.exit_code == 0 and "profile tiny: 46 cells" in done.output and "to fetch: nothing" in done.output


def test_table_2_fits_into_a_night_and_the_profile_says_so() -> None:
    params = params_of("paper-quick")
    assert params.cases["portraits"].arms == params_of("paper").cases["portraits"].arms and not params.allow_explicit
    total = sum(cost.hours(throughput(params)[1]) for cost in costs(params))
    assert total < 8 and f"{total:.1f} h" in (OVERLAYS / "paper-quick.yaml").read_text()
