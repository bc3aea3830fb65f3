"""`freezeasguard rehearse`: what the hub would give, in its release formats, and every stage of a profile over it."""

from __future__ import annotations

import copy
import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from freezeasguard.cli import cli
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.diffusion import load_scheduler, load_text, load_unet, load_vae, stored_tensors, tokenize
from freezeasguard.rehearsal import models, run, scorers, sets
from freezeasguard.rehearsal.plan import LEAST, rehearsed
from freezeasguard.settings.reading import read_yaml

ROOT = Path(__file__).parent.parent
PROFILE = Path(__file__).with_name("rehearsed.yaml")


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return read_yaml(PROFILE)


@pytest.mark.parametrize(("told", "width"), [("CompVis/stable-diffusion-v1-4", 768), ("sd2-community/x-2-1", 1024)])
def test_a_model_has_the_names_of_its_release_and_loads(told: str, width: int, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    release = models.release_of(told)
    assert release.unet["cross_attention_dim"] == release.text["hidden_size"] == width
    folder = models.stable_diffusion(tmp_path / "sd", release, small=True)
    text = load_file(folder / "text_encoder/model.safetensors")
    assert "text_model.embeddings.position_ids" in text and all(name.startswith("text_model.") for name in text)
    stored = load_file(folder / "vae/diffusion_pytorch_model.safetensors")
    assert "encoder.mid_block.attentions.0.query.weight" in stored and not any("to_q" in name for name in stored)
    # Loaded, every tensor is the one that was stored: a name that is not understood would leave a random one.
    tokenizer, encoder = load_text(folder)
    layer = "encoder.layers.1.mlp.fc1.weight"
    own = {name.removeprefix("text_model."): tensor for name, tensor in encoder.state_dict().items()}
    assert torch.equal(own[layer], text[f"text_model.{layer}"])
    vae = load_vae(folder).state_dict()
    assert torch.equal(
        vae["encoder.mid_block.attentions.0.to_q.weight"], stored["encoder.mid_block.attentions.0.query.weight"]
    )
    assert len(stored_tensors(folder)) == len(load_unet(folder).state_dict()) == 686
    assert load_scheduler(folder).config.prediction_type == ("epsilon" if width == 768 else "v_prediction")
    ids, cut = tokenize(tokenizer, ["a photo of a person", "zebra " * 100])
    assert ids.shape == (2, 77) and cut == 1 and ids[0, 0] == 49406 and ids[0, -1] == (49407 if width == 768 else 0)
    assert ids[1, -1] == 49407


def test_full_width_is_the_releases_own() -> None:
    """Counted without weights: SD v1.x's UNet has 859.5 M of them, v2.1's 865.9 M."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unets = [UNet2DConditionModel(**release.unet) for release in (models.V1, models.V2)]
    assert [sum(p.numel() for p in unet.parameters()) for unet in unets] == [859_520_964, 865_910_724]


def test_scorers_load_from_their_release_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from freezeasguard.scores.networks.clip import ClipFeatures
    from freezeasguard.scores.networks.csd import CSDStyle

    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    style = CSDStyle.load(scorers.csd(tmp_path / "csd.pth", small=True)).extract(images)
    assert style.shape == (2, 32) and not torch.equal(style[0], style[1])
    clip = ClipFeatures(models.clip(tmp_path / "clip", small=True))
    assert clip(images)["embedding"].shape == clip.texts(["a logo", "a face"]).shape == (2, 32)
    from safetensors.torch import load_file

    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(clip.model.state_dict()[name], load_file(tmp_path / "clip/model.safetensors")[name])


def test_data_sets_have_their_release_layouts(tmp_path: Path) -> None:
    from datasets import load_dataset

    path = sets.ff25(tmp_path / "ff25.zip", sets.faces(["Ann_Bee", "Cy_Dee"], 4, 96))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        rows = list(csv.DictReader(io.StringIO(archive.read("ff25/train/metadata.csv").decode())))
    assert {"ff25/train/metadata.csv", "ff25/test/metadata.csv", f"ff25/train/{rows[0]['file_name']}"} <= set(names)
    assert list(rows[0]) == ["file_name", "text", "name"] and {row["name"] for row in rows} == {"Ann_Bee", "Cy_Dee"}
    folder = sets.hub_parquet(tmp_path / "hub", sets.logos(["logos"], 3, 32), "image", "text", None, "train")
    loaded = load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == ["image", "text"] and len(loaded) == 3 and loaded[0]["image"].size == (32, 32)


def test_a_plan_names_only_fabricated_files_and_least_counts(values: dict[str, Any]) -> None:
    before = copy.deepcopy(values)
    plan = rehearsed(values, Path("/hub"), 64, False, ["fid"])
    assert values == before
    assert plan.values["profile"] == "rehearsal-of-rehearsed"
    told = json.dumps(plan.values)
    assert "https://" not in told and "someone/" not in told and "stable-diffusion" not in told
    assert [case["arms"] for case in plan.values["cases"].values()] == [
        case["arms"] for case in before["cases"].values()
    ]
    assert all(plan.values[block][key] == value for block, least in LEAST.items() for key, value in least.items())
    assert plan.values["cases"]["logos"]["adapt_steps"] == 2 and plan.values["cases"]["portraits"]["illegal"] == 2
    assert plan.notes == ["domains.portraits: not scored by fid, whose package is not installed"]
    assert "fid" not in plan.scores and plan.values["score"]["inception_weights"] is None
    few = rehearsed(values, Path("/hub"), 64, True, []).values["cases"]
    methods = ["pretrained", "full", "uce", "imma", "freezeasguard", "random", "anchored"]
    assert few["portraits"]["arms"] == methods
    assert few["artworks"]["arms"] == ["pretrained", "full", "freezeasguard"]


def test_a_stage_that_did_not_run_or_left_nothing_is_an_error(
    values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = rehearsed(values, Path("/hub"), 64, False, [])
    monkeypatch.setattr(run, "stage_names", lambda project: {"crawl@a", "split@a"})
    lock = {"stages": {name: {"outs": [{"path": f"data/{name}"}]} for name in ("crawl@a", "split@a")}}
    (tmp_path / "dvc.lock").write_text(json.dumps(lock))
    (tmp_path / "data/crawl@a").mkdir(parents=True)
    (tmp_path / "data/crawl@a/image.png").write_bytes(b"12")
    with pytest.raises(FreezeAsGuardError, match="1 stages did not run, e.g. split@a"):
        run.check_outputs(tmp_path, plan, {"crawl@a": 1.0})
    both = {"crawl@a": 1.0, "split@a": 2.0}
    with pytest.raises(FreezeAsGuardError, match="the stage split@a left its output .* out or empty"):
        run.check_outputs(tmp_path, plan, both)
    (tmp_path / "data/split@a").write_bytes(b"1")
    with pytest.raises(FreezeAsGuardError, match="reports/tables holds no table2.md"):
        run.check_outputs(tmp_path, plan, both)


def test_a_profile_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FreezeAsGuardError, match="there is no profile 'nosuch' to rehearse; choose one of"):
        run.rehearse("nosuch", tmp_path, small=True)


def test_every_stage_runs_at_small_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same classes, names and file formats as at full width, through the whole DAG."""
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "rehearsal"
    done = CliRunner().invoke(cli, ["rehearse", str(PROFILE), "--to", str(folder), "--width", "small", "--few"])
    assert done.exit_code == 0, (done.output[-2000:], done.exception, (folder / run.LOG).read_text()[-3000:])
    lines = [line.split() for line in done.output.splitlines()]
    assert {"fetch", "crawl", "caption", "encode", "protect", "adapt", "generate", "score", "tables", "track"} <= {
        line[0] for line in lines if line
    }
    assert (folder / "project/reports/tables/table2.md").is_file()


@pytest.mark.rehearsal
def test_every_stage_of_the_paper_runs_at_full_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours on two cores, some 60 GB of disk; with --few one case a model and kind of source."""
    monkeypatch.chdir(ROOT)
    print("\n".join(run.rehearse("paper", tmp_path / "rehearsal", small=False, few=True)))
