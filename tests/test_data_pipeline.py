"""Every source through `dvc repro`, on this machine alone: crawl, clean, caption, split, survey; and new-case."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from freezeasguard.rehearsal.blip2 import save_tiny_blip2
from freezeasguard.settings.profiles import update_params
from loopback import jpeg, serve
from project import copy_project, repro, run
from test_sources import zipped


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_project(tmp_path_factory.mktemp("data") / "project")


def write_images(folder: Path, first: int, n: int) -> None:
    folder.mkdir(parents=True)
    for i in range(n):
        (folder / f"{i}.jpg").write_bytes(jpeg(first + i))


def test_five_kinds_of_source_reach_the_split(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(project / "hf-cache"))
    outside = project.parent
    save_tiny_blip2(outside / "blip2")
    for number, name in enumerate(("ann_lee", "bo_ray")):
        write_images(outside / "own" / name, 1000 + 20 * number, 6)
    repo = outside / "logos"
    write_images(repo / "train", 2000, 6)
    lines = [json.dumps({"file_name": f"{i}.jpg", "text": f"a logo {i}"}) for i in range(6)]
    (repo / "train/metadata.jsonl").write_text("\n".join(lines))
    archive = zipped({f"FF25/{who}/{i}.jpg": jpeg(3000 + 20 * n + i) for n, who in enumerate("ab") for i in range(6)})
    crawl = {"engine": "page", "allow_private": True, "timeout_s": 1.5, "max_bytes": 1_000_000}
    with serve({"/ff25.zip": archive}) as (address, hits):
        crawl |= {"search_url": address + "/search?q={query}", "classes": {"mira": {"query": "mira", "images": 50}}}
        digest = hashlib.sha256(archive).hexdigest()
        sources: dict[str, dict[str, Any]] = {
            "own": {"source": "folder", "path": str(outside / "own"), "caption": {"model": str(outside / "blip2")}},
            "logos": {"source": "hf", "hf": {"repo": str(repo), "caption_column": "text", "class_name": "logos"}},
            "zip": {
                "source": "archive",
                "archive": {"url": f"{address}/ff25.zip", "sha256": digest, "allow_private": True},
            },
            "web": {"source": "crawl", "crawl": crawl, "clean": {"near_duplicate_bits": 6, "max_pixels": 10_000_000}},
        }
        domains = yaml.safe_load((project / "params.yaml").read_text())["domains"]
        added = {name: {**source, "held_out_images": 1} for name, source in sources.items()}
        update_params(project / "params.yaml", {"domains": {**domains, **added}})
        targets = [f"survey@{name}" for name in ("portraits", *sources)]
        ran = repro(project, *targets)
        assert {f"crawl@{name}" for name in sources} <= set(ran)
        assert repro(project, *targets) == []
        assert hits["/ff25.zip"] == 1
    counts = {
        name: json.loads((project / f"reports/data/{name}/counts.json").read_text()) for name in ("portraits", *sources)
    }
    assert [counts[name]["kept"] for name in ("own", "logos", "zip")] == [12, 6, 12]
    web = counts["web"]
    assert web["in"] == web["kept"] + sum(web["rejected"].values()) and web["rejected"]["http 404"] == 1
    assert {"duplicate", "near-duplicate", "refused: robots.txt"} <= set(web["rejected"])
    for name in counts:
        assert (project / f"reports/data/{name}/classes.png").stat().st_size > 5000
        assert (project / f"reports/data/{name}/contact.png").is_file()
    captions = {
        name: pd.read_csv(project / f"data/captioned/{name}/captions.csv") for name in ("own", "logos", "zip", "web")
    }
    assert set(captions["own"]["caption_source"]) == {"blip2"}
    assert captions["own"]["caption"].str.startswith("a photo of ").all()
    assert set(captions["logos"]["caption_source"]) == {"source"}
    assert captions["web"]["caption"].tolist() == ["a photo of Mira"] * web["kept"]

    # A caption edited by hand wins, and only what follows from it runs again.
    path = captions["own"]["path"][0]
    (project / "data/edits/own.csv").write_text(f'path,caption\n{path},"a photo of Ann Lee which shows her hat"\n')
    again = repro(project, "survey@own")
    assert "caption@own" in again and "crawl@own" not in again
    edited = pd.read_csv(project / "data/captioned/own/captions.csv").set_index("path")
    assert edited.loc[path, "caption"] == "a photo of Ann Lee which shows her hat"


def test_new_case_is_added_checked_and_encoded(project: Path) -> None:
    outside = project.parent / "mine"
    write_images(outside / "mine" / "jane_doe", 4000, 10)
    write_images(outside / "free", 5000, 10)
    command = [sys.executable, "-c", "from freezeasguard.cli import app; app()", "new-case"]
    environment = {**os.environ, "PYTHONPATH": str(project)}

    def new_case(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *arguments], cwd=project, env=environment, capture_output=True, text=True)

    files = ("params.yaml", "data/cells.json")
    before = [(project / name).read_text() for name in files]
    folders = ["--illegal", str(outside / "mine"), "--legal", str(outside / "free")]
    for arguments, said in (
        (["My Case", *folders], "is no name for a case"),
        (["mine", "--illegal", str(outside / "none"), "--legal", str(outside / "free")], "is no folder"),
        (["mine", *folders, "--model", "someone/model"], "give its --revision"),
        (["portraits", *folders], "has a case 'portraits' already"),
        (["mine", "--illegal", str(outside / "free"), "--legal", str(outside / "free")], "on both sides"),
    ):
        refused = new_case(*arguments)
        assert refused.returncode == 1 and said in refused.stderr, refused
        assert [(project / name).read_text() for name in files] == before
    done = new_case("mine", *folders)
    assert done.returncode == 0 and "10 illegal images, 10 legal images" in done.stdout, done
    values = yaml.safe_load((project / "params.yaml").read_text())
    assert values["cases"]["mine"]["illegal"] == ["jane-doe"]
    assert "mine-freezeasguard" in json.loads((project / "data/cells.json").read_text())["cells"]
    assert "encode@mine" in repro(project, "encode@mine")
    index = pd.read_csv(project / "data/latents/mine/index.csv")
    assert index.groupby("side")["class"].unique().map(list).to_dict() == {"illegal": ["jane-doe"], "legal": ["free"]}
    assert "encode@mine" not in repro(project, "encode@mine")
    run([sys.executable, "-m", "dvc", "stage", "list"], project)


def test_explicit_material_is_opt_in_and_blurred(project: Path) -> None:
    from PIL import Image

    from freezeasguard.errors import FreezeAsGuardError
    from freezeasguard.reports.survey import contact_sheet
    from freezeasguard.settings.params import parse_params

    values = yaml.safe_load((project / "params.yaml").read_text())
    values["domains"]["portraits"]["explicit"] = True
    with pytest.raises(FreezeAsGuardError, match="allow_explicit: true"):
        parse_params(values, Path("params.yaml"))
    values["allow_explicit"] = True
    assert parse_params(values, Path("params.yaml")).domains["portraits"].explicit

    raw = project.parent / "checks"
    raw.mkdir()
    Image.effect_mandelbrot((64, 64), (-2, -2, 2, 2), 50).convert("RGB").save(raw / "a.png")
    table = pd.DataFrame({"class": ["a"], "path": ["a.png"]})
    sharpness = {}
    for blurred in (False, True):
        sheet = contact_sheet(table, raw, raw / f"{blurred}.png", blurred=blurred)
        tile = Image.open(sheet).convert("L").crop((152, 4, 214, 66))
        sharpness[blurred] = sum(abs(a - b) for a, b in zip(tile.tobytes(), tile.tobytes()[1:], strict=False))
    assert sharpness[True] < 0.25 * sharpness[False]
