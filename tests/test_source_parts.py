"""A domain made of several sources: classes, licences and the explicit flag stay those of each part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from freezeasguard.checks import look
from freezeasguard.data.crawl import crawl_domain
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reports.survey import contact_sheet
from freezeasguard.settings.params import Domain, Params, parse_params
from freezeasguard.settings.profiles import profile_text
from freezeasguard.settings.resolve import resolved
from loopback import jpeg


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def hub_set(folder: Path, first: int, n: int) -> Path:
    """A data set of the hub's imagefolder layout."""
    (folder / "train").mkdir(parents=True)
    rows = []
    for i in range(n):
        (folder / f"train/{i}.jpg").write_bytes(jpeg(first + i))
        rows.append({"file_name": f"{i}.jpg", "text": f"caption {first + i}"})
    (folder / "train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def hub_part(folder: Path, class_name: str, **more: Any) -> dict[str, Any]:
    hf = {"repo": str(folder), "caption_column": "text", "class_name": class_name, "licence": f"of {class_name}"}
    return {"source": "hf", "hf": hf | {key: more.pop(key) for key in ("max_images",) if key in more}, **more}


@pytest.fixture
def block(tmp_path: Path) -> dict[str, Any]:
    """Table 4's domain, with landscapes in the place of what is not for everyone's eyes."""
    parts = {
        "nsfw": hub_part(hub_set(tmp_path / "nsfw", 0, 6), "landscapes", explicit=True, max_images=4),
        "logos": hub_part(hub_set(tmp_path / "logos", 50, 5), "modern logos"),
    }
    return {"source": "parts", "parts": parts, "size_px": 32, "held_out_images": 1, "scores": ["nudenet", "clip_tiny"]}


def params_of(block: dict[str, Any], **changed: Any) -> Params:
    values: Any = yaml.safe_load(profile_text("smoke")) | {"allow_explicit": True} | changed
    values["domains"]["portraits"] = block
    values["cases"]["portraits"] |= {"illegal": ["landscapes"], "legal": ["modern-logos"]}
    return parse_params(values, Path("params.yaml"))


def test_two_data_sets_meet_in_one_domain(block: dict[str, Any], tmp_path: Path) -> None:
    domain = params_of(block).domains["portraits"]
    manifest = crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    assert manifest["class"].tolist() == ["landscapes"] * 4 + ["modern-logos"] * 5
    assert (manifest["licence"] == "of " + manifest["class"].str.replace("-", " ")).all()
    assert manifest["caption"].tolist() == [f"caption {i}" for i in (0, 1, 2, 3, 50, 51, 52, 53, 54)]
    assert domain.score_names() == ("nudenet", "clip_tiny")
    found = {name: (settings, modules) for name, settings, modules in resolved(params_of(block))}
    assert found["survey/portraits"][0].model_dump() == {"explicit": ["landscapes"]}
    sources = [f"freezeasguard.data.sources.{name}" for name in ("hub", "parts")]
    assert list(found["crawl/portraits"][1]) == sources, "an edit of a part's source must run the crawl again"


def test_what_is_explicit_is_known_by_class_and_needs_a_word(block: dict[str, Any]) -> None:
    with pytest.raises(FreezeAsGuardError, match=r"domains.portraits.parts.nsfw is explicit; set allow_explicit: true"):
        params_of(block, allow_explicit=False)
    domain = params_of(block).domains["portraits"]
    assert domain.any_explicit and domain.shows_explicit("landscapes") and not domain.shows_explicit("modern-logos")
    folder = {"source": "folder", "path": "somewhere", "explicit": True}  # whose classes only its images tell
    unknown = params_of({**block, "parts": {**block["parts"], "nsfw": folder}}).domains["portraits"]
    assert unknown.explicit_classes() is True and unknown.shows_explicit("modern-logos")
    plain = {name: {**part, "explicit": False} for name, part in block["parts"].items()}
    assert params_of({**block, "parts": plain}, allow_explicit=False).domains["portraits"].explicit_classes() is False


def test_a_contact_sheet_blurs_the_explicit_classes_alone(block: dict[str, Any], tmp_path: Path) -> None:
    manifest = crawl_domain(Domain.model_validate(block), tmp_path / "raw", tmp_path / "downloads", 0)

    def rows(blurred: Any) -> tuple[np.ndarray, np.ndarray]:
        path = contact_sheet(manifest, tmp_path / "raw", tmp_path / "sheet.png", blurred=blurred)
        sheet = np.asarray(Image.open(path))
        return sheet[:72], sheet[72:]

    plain, some, every = rows(False), rows(["landscapes"]), rows(True)
    assert (some[0] == every[0]).all() and (some[0] != plain[0]).any()
    assert (some[1] == plain[1]).all() and (some[1] != every[1]).any()


def test_one_class_comes_from_one_part(block: dict[str, Any], tmp_path: Path) -> None:
    block["parts"]["logos"]["hf"]["class_name"] = "Landscapes"  # another name, the same folder
    with pytest.raises(FreezeAsGuardError, match="parts nsfw and logos both have the class 'landscapes'; rename one"):
        params_of(block)
    for name in ("a", "b"):
        (tmp_path / name / "Cats").mkdir(parents=True)
        (tmp_path / name / "Cats/1.jpg").write_bytes(jpeg(ord(name)))
    parts = {name: {"source": "folder", "path": str(tmp_path / name)} for name in ("a", "b")}
    domain = Domain.model_validate({**block, "parts": parts})
    with pytest.raises(FreezeAsGuardError, match="class 'cats' of the part 'b' is also another part's"):
        crawl_domain(domain, tmp_path / "raw", tmp_path / "downloads", 0)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"parts": {}}, "source is parts, so parts must be given"),
        ({"source": "folder", "path": "x"}, "source is folder, which has no parts"),
        ({"parts": {"a": {"source": "parts"}}}, "source is parts, so parts must be given|cannot be made of parts"),
        ({"parts": {"a": {"source": "hf"}}}, "source is hf, so hf must be given"),
        ({"parts": {"a": {"source": "folder", "path": "x", "size_px": 3}}}, "parts.a.size_px is not a key"),
    ],
)
def test_parts_are_checked_as_single_sources_are(block: dict[str, Any], changed: dict[str, Any], said: str) -> None:
    with pytest.raises(FreezeAsGuardError, match=said):
        params_of({**block, **changed})


def test_check_tells_the_classes_of_parts_beforehand(block: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    assert look(params_of(block)) == ([], [])
    block["parts"]["logos"]["hf"]["class_name"] = "signs"
    wrong, later = look(params_of(block))
    assert later == [] and len(wrong) == 1 and "no class is called 'modern-logos'" in wrong[0]
