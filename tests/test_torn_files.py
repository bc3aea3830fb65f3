"""What a later stage reads that is torn, foreign, or edited by hand: one line, or exactly what was written."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from conftest import ToyDenoiser, random_latents, sd_schedule
from freezeasguard.data.caption import caption_domain, read_edits
from freezeasguard.data.manifest import COLUMNS, read_manifest
from freezeasguard.data.split import split_domain
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.masks.bilevel import MaskLearner
from freezeasguard.models import generate
from freezeasguard.models.diffusion import load_scheduler, load_text, load_unet, model_hash, named_tensors
from freezeasguard.models.images import read_images
from freezeasguard.models.latents import CaseData
from freezeasguard.reading import read_json, read_png, read_table
from freezeasguard.reports.survey import survey_domain
from freezeasguard.settings.mask import Mask
from freezeasguard.settings.params import load_params
from freezeasguard.settings.profiles import check_cells, write_profile
from freezeasguard.settings.resolve import SplitSettings, write_settings
from freezeasguard.settings.users import Finetuning
from freezeasguard.sides import SIDES
from freezeasguard.users import adapt

ROOT = Path(__file__).parent.parent
MANY = hypothesis_settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def refused(call: Callable[[], Any], *said: str) -> None:
    with pytest.raises(FreezeAsGuardError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in said), message


# --- captions edited by hand ------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_edits_may_have_a_byte_order_mark_and_no_last_newline(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "faces.csv"
    path.write_bytes('path,caption\r\na.png,"Ann, in a café"\r\n\r\nb.png,a "quoted" word'.encode(encoding))
    assert read_edits(path) == {"a.png": "Ann, in a café", "b.png": 'a "quoted" word'}
    path.write_text("path,caption\n")
    assert read_edits(path) == read_edits(tmp_path / "none.csv") == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has no column 'path', but ''"),
        (b'path,caption\na.png,"Ann\nb.png,Bo\n', "unexpected end of data"),
        (b'path,caption\na.png,"Ann\nb.png,"Bo"\n', "expected after"),
        (b'path,caption\na.png,"Ann "the" Lee"\n', "expected after"),
        ("path,caption\na.png,café\n".encode("latin-1"), "is no table in UTF-8"),
        ("path,caption\na.png,Ann\n".encode("utf-16"), "is no table in UTF-8"),
        (b"path;caption\na.png;Ann\n", "has no column 'path', but 'path;caption'"),
        (b"path,caption\na.png,Ann, laughing\n", "line 2 has 3 fields for 2 columns"),
        (b"path,caption\na.png\n", "line 2 has 1 fields for 2 columns"),
        (b"path,caption,caption\na.png,Ann,Bo\n", "has two columns 'caption'"),
    ],
)
def test_edits_of_a_spreadsheet_are_read_or_told_how_to_be_saved(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "faces.csv"
    path.write_bytes(content)
    refused(lambda: read_edits(path), "faces.csv", said, "save it as CSV in UTF-8, with commas")


def test_an_image_that_is_edited_twice_is_named(tmp_path: Path) -> None:
    path = tmp_path / "faces.csv"
    path.write_text("path,caption\na.png,Ann\nb.png,Bo\na.png,Bea\n")
    refused(lambda: read_edits(path), "faces.csv", "names the image a.png twice")


@MANY
@given(st.binary(max_size=80), st.sampled_from([b"", b"path,caption\n", b"\xef\xbb\xbfpath,caption\r\na.png,"]))
def test_edits_of_any_bytes_are_a_table_or_one_line(tmp_path: Path, junk: bytes, start: bytes) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(start + junk)
    try:
        edits = read_edits(path)
    except FreezeAsGuardError as error:
        assert "any.csv" in str(error) and "\n" not in str(error)
    else:
        assert all(isinstance(text, str) for pair in edits.items() for text in pair)


# --- tables that a stage wrote ------------------------------------------------------------------------


def image_bytes(shade: int = 0, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((32, 32), (-2, -2, 2 + shade, 2), 20).convert("RGB").save(buffer, format)
    return buffer.getvalue()


def write_domain(root: Path, n: int = 8) -> Path:
    """root/raw/faces with its manifest, of n images."""
    raw = root / "raw/faces"
    raw.mkdir(parents=True)
    rows = []
    for i in range(n):
        (raw / f"{i}.png").write_bytes(image_bytes(i))
        row = dict.fromkeys(COLUMNS, "") | {
            "path": f"{i}.png",
            "class": "ann",
            "subject": "Ann",
            "caption": f"Ann, {i}",
        }
        rows.append(row | {"sha256": f"{i:064x}", "status": "ok", "bytes": 9})
    pd.DataFrame(rows).to_csv(raw / "manifest.csv", index=False)
    return raw


def caption_and_split(root: Path) -> None:
    caption_domain(None, root / "raw/faces", root / "edits.csv", root / "progress", root / "captioned/faces", "cpu")
    settings = SplitSettings(seed=0, mask_learning_images=100, held_out_images=1)
    split_domain(settings, root / "captioned/faces", root / "raw/faces", root / "splits/faces")


def survey(root: Path) -> None:
    survey_domain(root / "raw/faces", root / "splits/faces", root / "reports", blurred=False)


TORN_TABLES = {
    b"": "has no column",
    b"\n": "has no column",
    b"path,caption\n": "has no column",
    b"\xff\xfe": "is no table in UTF-8",
}


@pytest.mark.parametrize("content", [*TORN_TABLES, "header", "cut", "short"])
def test_a_table_that_is_empty_torn_or_without_its_columns_is_one_line(content: Any, tmp_path: Path) -> None:
    write_domain(tmp_path)
    caption_and_split(tmp_path)
    readers = {
        tmp_path / "raw/faces/manifest.csv": (lambda: caption_and_split(tmp_path), "crawl@faces"),
        tmp_path / "captioned/faces/captions.csv": (
            lambda: split_domain(
                SplitSettings(seed=0, mask_learning_images=9, held_out_images=1),
                tmp_path / "captioned/faces", tmp_path / "raw/faces", tmp_path / "splits/faces",
            ),
            "caption@faces",
        ),
        tmp_path / "splits/faces/split.csv": (lambda: survey(tmp_path), "split@faces"),
    }  # fmt: skip
    for path, (read, stage) in readers.items():
        whole = path.read_bytes()
        lines = whole.splitlines(keepends=True)
        torn = {
            "header": (lines[0], "is empty"),
            "cut": (whole[:-2], "torn: its last line has no end"),
            "short": (whole + b"x,y\n", f"line {len(lines) + 1} has 2 fields for"),
        }.get(content) or (content, TORN_TABLES[content])
        path.write_bytes(torn[0])
        kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
        refused(read, str(path), torn[1], f"dvc repro -f {stage}")
        assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == kept
        path.write_bytes(whole)


@MANY
@given(
    # Python's csv writer leaves a lone \r unquoted until 3.13; such a table is refused (the next test).
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=12), min_size=1)
)
def test_a_manifest_of_any_text_comes_back_as_it_was(tmp_path: Path, texts: list[str]) -> None:
    """Captions of the web: quotes, commas, line breaks, numbers, NA, formulas."""
    table = pd.DataFrame([dict.fromkeys(COLUMNS, "x") | {"caption": text, "class": text} for text in texts], dtype=str)
    table.to_csv(tmp_path / "manifest.csv", index=False)
    read = read_manifest(tmp_path)
    assert read["caption"].tolist() == read["class"].tolist() == texts


@MANY
@given(st.binary(max_size=60), st.integers(0, 400), st.booleans())
def test_a_manifest_of_any_bytes_is_a_table_or_one_line(tmp_path: Path, junk: bytes, at: int, cut: bool) -> None:
    (tmp_path / "faces").mkdir(exist_ok=True)
    rows = [dict.fromkeys(COLUMNS, "x") | {"path": f"{i}.png", "status": "too small"} for i in range(3)]
    whole = pd.DataFrame(rows).to_csv(index=False).encode()
    (tmp_path / "faces/manifest.csv").write_bytes(whole[:at] + junk + (b"" if cut else whole[at:]))
    try:
        captioned = tmp_path / "captioned"
        counts = caption_domain(None, tmp_path / "faces", tmp_path / "no", tmp_path / "p", captioned, "cpu")
    except FreezeAsGuardError as error:
        assert "faces/manifest.csv" in str(error) and "\n" not in str(error) and "crawl@faces" in str(error)
    else:
        assert counts["from_source"] >= 0 and {p.name for p in captioned.iterdir()} == {"captions.csv", "counts.json"}
    assert not list(tmp_path.rglob("*.tmp"))


def test_numbers_that_are_none_are_told(tmp_path: Path) -> None:
    for text in ("x", "", "1.5", "9" * 30):
        (tmp_path / "t.csv").write_text(f"row,name\n{text},a\n")
        refused(
            lambda: read_table(tmp_path / "t.csv", "do it again", ["name"], ["row"]), "whole numbers in row", "again"
        )
    (tmp_path / "t.csv").write_text("row,name\n7,007\n")
    assert read_table(tmp_path / "t.csv", "", ["name"], ["row"]).to_dict("records") == [{"row": 7, "name": "007"}]


# --- images ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [None, b"", b"no image", image_bytes()[:200], image_bytes(format="JPEG"), "flipped"]
)
def test_a_missing_torn_or_foreign_image_is_one_line_in_split_and_survey(content: Any, tmp_path: Path) -> None:
    raw = write_domain(tmp_path)
    caption_and_split(tmp_path)
    whole = (raw / "3.png").read_bytes()
    if content is None:
        (raw / "3.png").unlink()
    else:
        (raw / "3.png").write_bytes(whole[:150] + b"\xff" + whole[151:] if content == "flipped" else content)
    said = "is missing" if content is None else "cannot be read"
    kept = sorted(tmp_path.rglob("*"))
    for run in (caption_and_split, survey):
        refused(lambda run=run: run(tmp_path), "raw/faces/3.png", said, "dvc repro -f crawl@faces")
    refused(lambda: read_images([raw / "3.png"]), "3.png", said, "run its stage again")
    # The survey draws its figure before the sheet; whatever is there is whole.
    new = {path.name for path in set(tmp_path.rglob("*")) - set(kept)}
    assert new <= {"reports", "classes.png", "classes.pdf", "classes.svg"}


def test_images_of_two_sizes_are_one_line(tmp_path: Path) -> None:
    for name, size in (("a", 8), ("b", 9)):
        Image.new("RGB", (size, 8)).save(tmp_path / f"{name}.png")
    refused(lambda: read_images([tmp_path / "a.png", tmp_path / "b.png"]), "b.png is not as large as", "a.png")
    assert read_png(tmp_path / "a.png", "").size == (8, 8)


# --- latents ---------------------------------------------------------------------------------------------

LATENTS = {"latents": torch.zeros(3, 2, 1, 2, 2), "text": torch.zeros(3, 2, 2), "empty_text": torch.zeros(2, 2)}
INDEX = "row,side,class,subject,part,path,caption,sha256\n" + "".join(
    f"{i},illegal,a,A,adaptation,{i}.png,A,{i}\n" for i in range(3)
)


@pytest.mark.parametrize(
    ("tensors", "index", "said"),
    [
        (None, INDEX, "latents.safetensors is missing"),
        (b"\x01\x00", INDEX, "latents.safetensors is torn"),
        ({k: t for k, t in LATENTS.items() if k != "text"}, INDEX, "has no tensor text"),
        ({**LATENTS, "more": torch.zeros(1)}, INDEX, "holds a foreign tensor more"),
        ({**LATENTS, "text": torch.zeros(2, 2, 2)}, INDEX, "has 3 index rows for 2 text"),
        ({**LATENTS, "latents": torch.zeros(2, 2, 1, 2, 2)}, INDEX, "has 3 index rows for 2 latents"),
        ({**LATENTS, "latents": torch.zeros(3, 2)}, INDEX, "latents is no finite tensor of 5 axes"),
        ({**LATENTS, "text": torch.full((3, 2, 2), torch.nan)}, INDEX, "text is no finite tensor"),
        ({**LATENTS, "text": torch.zeros(3, 2, 2).long()}, INDEX, "text is no finite tensor"),
        (LATENTS, None, "index.csv is missing"),
        (LATENTS, "", "index.csv has no column"),
        (LATENTS, INDEX[:-1], "index.csv is torn"),
        (LATENTS, INDEX.splitlines()[0] + "\n", "index.csv is empty"),
        (LATENTS, INDEX[: INDEX.index("2,illegal")], "has 2 index rows for 3 latents"),
        (LATENTS, INDEX.replace("2,illegal", "1,illegal"), "not in the order of the latents"),
        (LATENTS, INDEX.replace("2,illegal", "b,illegal"), "whole numbers in row"),
    ],
)
def test_torn_latents_are_one_line(tensors: Any, index: str | None, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "faces"
    folder.mkdir()
    if isinstance(tensors, bytes):
        (folder / "latents.safetensors").write_bytes(tensors)
    elif tensors:
        save_file(tensors, folder / "latents.safetensors")
    if index is not None:
        (folder / "index.csv").write_text(index)
    refused(lambda: CaseData.load(folder), said, "dvc repro -f encode@faces")


def test_whole_latents_are_read(tmp_path: Path) -> None:
    save_file(LATENTS, tmp_path / "latents.safetensors")
    (tmp_path / "index.csv").write_text(INDEX)
    assert len(CaseData.load(tmp_path).select("illegal", ["adaptation"])) == 3


# --- JSON, models, and what a command is asked for ---------------------------------------------------------


@pytest.mark.parametrize("content", ["[]", "1", "null", '"x"', "{", "", "\x00", '{"x": 1}'])
def test_json_of_another_shape_is_one_line(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    refused(lambda: read_json(path, "do it again", keys=("losses",)), "a.json", "do it again")
    monkeypatch.chdir(tmp_path)
    write_profile("smoke", Path("params.yaml"))
    refused(lambda: check_cells(load_params(), path), "a.json", "freezeasguard cells")
    path.write_text(json.dumps({"protected": [], "cells": 3}))
    refused(lambda: check_cells(load_params(), path), "a.json", "freezeasguard cells")
    assert read_json(path, "") == {"protected": [], "cells": 3}


@pytest.mark.parametrize(
    ("stage", "arguments", "said"),
    [
        ("crawl", ["nobody"], "no 'nobody' for the stage crawl"),
        ("caption", ["nobody"], "no 'nobody' for the stage caption"),
        ("split", ["nobody"], "no 'nobody' for the stage split"),
        ("split", ["portraits"], "captions.csv is missing; run `dvc repro -f caption@portraits`"),
        ("survey", ["portraits"], "split.csv is missing; run `dvc repro -f split@portraits`"),
        ("fetch", ["nothing"], "no 'nothing' for the stage fetch"),
        ("encode", ["portraits", "nobody", "tiny-1.5"], "nobody/split.csv is missing; run `dvc repro -f split@nobody`"),
        (
            "reference",
            ["portraits", "portraits"],
            "latents.safetensors is missing; run `dvc repro -f encode@portraits`",
        ),
        ("protect", ["portraits", "nonsense", "tiny-1.5"], "no 'portraits-nonsense' for the stage protect"),
        ("protect", ["portraits", "full", "nothing"], "data/fetched/nothing lacks unet"),
        ("adapt", ["portraits", "Full; touch x", "tiny-1.5"], "no 'portraits-Full; touch x' for the stage adapt"),
        ("generate", ["nobody", "full", "tiny-1.5"], "no 'nobody' for the stage generate"),
        ("relearn", ["portraits", "nothing"], "latents.safetensors is missing; run `dvc repro -f encode@portraits`"),
        ("score", ["portraits", "portraits"], "latents.safetensors is missing; run `dvc repro -f encode@portraits`"),
    ],
)
def test_a_command_asked_for_what_is_not_there_says_so_in_one_line(
    stage: str, arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    write_profile("smoke", Path("params.yaml"))
    write_settings(load_params())
    before = sorted(tmp_path.rglob("*"))
    refused(lambda: import_module(f"stages.{stage}").main(*arguments), said)
    assert sorted(tmp_path.rglob("*")) == before


def test_users_and_generators_name_the_model_or_cell_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.chdir(tmp_path)
    write_profile("smoke", Path("params.yaml"))
    write_settings(load_params())
    folder = Path("data/latents/portraits")
    folder.mkdir(parents=True)
    rows = [(side, part) for side in SIDES for part in ("adaptation", "held_out", "mask_learning")]
    save_file(
        {name: torch.zeros(6, *t.shape[1:]) for name, t in LATENTS.items() if name != "empty_text"}
        | {"empty_text": torch.zeros(2, 2)},
        folder / "latents.safetensors",
    )
    lines = [f"{i},{side},{side},A,{part},{i}.png,A\n" for i, (side, part) in enumerate(rows)]
    (folder / "index.csv").write_text("row,side,class,subject,part,path,caption\n" + "".join(lines))
    stages = {name: import_module(f"stages.{name}").main for name in ("adapt", "relearn", "generate")}
    refused(lambda: stages["adapt"]("portraits", "full", "nothing"), "nothing lacks unet", "dvc repro -f fetch@nothing")
    refused(lambda: stages["relearn"]("portraits", "nothing"), "nothing lacks unet", "dvc repro -f fetch@nothing")
    said = ("legal.safetensors is missing", "dvc repro -f adapt@portraits-nonsense")
    refused(lambda: stages["generate"]("portraits", "nonsense", "tiny-1.5"), *said)
    assert not Path("data/adapted").exists() or not list(Path("data/adapted").rglob("*.json"))


@pytest.mark.parametrize("part", ["unet", "scheduler", "tokenizer", "text_encoder"])
def test_a_torn_model_is_one_line(part: str, tmp_path: Path) -> None:
    source, folder = ROOT / "data/models/tiny-1.5", tmp_path / "fetched/tiny"
    for path in source.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(source)).symlink_to(path)
    for path in (folder / part).iterdir():
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[: len(content) // 2])
    load = {"unet": load_unet, "scheduler": load_scheduler}.get(part, load_text)
    refused(lambda: load(folder), f"cannot load {folder / part}", "fetch the model again")


# --- nothing trains on, or draws, what is not finite --------------------------------------------------------


def broken(name: str = "bias", value: float = torch.inf) -> ToyDenoiser:
    toy = ToyDenoiser()
    with torch.no_grad():
        named_tensors(toy)[name].fill_(value)
    return toy


@pytest.mark.parametrize("case", ["latents", "images", "guidance"])
def test_generation_stops_where_latents_or_images_are_not_finite(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the arm, the side, the step and the remedy; no image and no folder is left."""
    from test_generate import CONFIG, case_data

    data = case_data(list("wxyz"))
    table = pd.concat([data.index, data.index.assign(side="legal")], ignore_index=True)
    shapes = torch.zeros(8, 2, 4, 8, 8), torch.zeros(8, 3, 8)
    data = CaseData(table, *shapes, torch.zeros(3, 8))
    toy = broken("skip", torch.nan) if case == "latents" else ToyDenoiser()
    white = torch.full((2, 3, 8, 8), torch.inf)
    vae = type("VAE", (torch.nn.Linear,), {"config": {"scaling_factor": 1.0, "block_out_channels": [1]}})(1, 1)
    vae.decode = lambda latents: type("Decoded", (), {"sample": white[: len(latents)]})
    scheduler = load_scheduler(ROOT / "data/models/tiny-1.5")
    monkeypatch.setattr(generate, "load_adapted", lambda *_: toy)
    monkeypatch.setattr(generate, "load_scheduler", lambda _: scheduler)
    monkeypatch.setattr(generate, "load_vae", lambda _: vae)
    config = CONFIG.model_copy(update={"guidance_scale": torch.inf} if case == "guidance" else {})
    settings = generate.GenerateSettings.model_construct(seed=0, generate=config)

    def run() -> None:
        generate.generate_cell(settings, Path(), Path(), data, tmp_path / "out", "faces full", "cpu", 1)

    what = "images after step 2" if case == "images" else "latents at step 0 of 3"
    refused(
        run, f"generating faces full illegal: the {what} are not finite", "lower adapt.lr or generate.guidance_scale"
    )
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.png"))


def learner(users: Any = None, **changes: Any) -> MaskLearner:
    config = Mask(mask_steps=2, user_lr=1e-3, batch_size=2, users="joint", **changes)
    sets = {side: random_latents(4, seed=i) for i, side in enumerate(SIDES)}
    finetuned = {SIDES: {name: t.detach() + 0.1 for name, t in named_tensors(users or ToyDenoiser()).items()}}
    return MaskLearner(ToyDenoiser(), sd_schedule(), sets, finetuned, config, 0.3, torch.Generator().manual_seed(0))


def test_a_mask_is_not_learned_from_what_is_not_finite() -> None:
    before = learner()
    refused(lambda: learner(broken("weight", torch.nan)).learn(), "the loss is nan at", "lower mask.user_lr")
    one_shot = learner(broken("weight", torch.nan)).one_shot
    refused(one_shot, "the illegal side: the loss is nan at mask step 0")
    before.optimizer.step = lambda logits, *_: logits / 0
    refused(before.mask_step, "the mask's logits are not finite", "lower mask.mask_lr")


def test_a_user_whose_last_step_diverged_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ToyDenoiser()
    monkeypatch.setattr(adapt, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(adapt, "stored_tensors", lambda _: named_tensors(ToyDenoiser()))
    monkeypatch.setattr(adapt, "load_unet", lambda _: toy)
    monkeypatch.setattr(adapt, "load_scheduler", lambda _: load_scheduler(ROOT / "data/models/tiny-1.5"))
    sets = {"illegal": random_latents(4, seed=0)}
    config = Finetuning(steps=1, batch_size=2, lr=1).model_copy(update={"lr": 1e30})  # above what params.yaml may say

    def run() -> None:
        adapt.train_users(config, (0, "adapt"), tmp_path, None, sets, tmp_path / "out/c/a", "faces-full", "cpu", 1)

    refused(run, "fine-tuning faces-full-illegal: the loss is", "at the end; lower its lr")
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.tmp"))
    assert model_hash(named_tensors(toy)) != model_hash(named_tensors(ToyDenoiser()))  # the step was taken
