"""The profile paper asks for what the paper printed: every arm, ratio, model and number of classes of its tables."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from freezeasguard.arms import Arm
from freezeasguard.cli import cli
from freezeasguard.settings.params import Params, load_params, parse_params
from freezeasguard.settings.profiles import profile_text

ROOT = Path(__file__).parent.parent
PRINTED = list(csv.DictReader((ROOT / "stages/freezeasguard/reports/paper_values.csv").open()))
REPEATS = {5: 2, 6: 3, 7: 2}
"""Table 2's case is printed again in Tables 5 and 7, Table 3's in Table 6."""
ARMS_OF_TABLE_1 = {
    "No freezing": "full",
    "Attention projectors": "freeze_attention",
    "Conv. layers": "freeze_convolutions",
    "Time embeddings": "freeze_time_embedding",
    "50% random weights (seed 1)": "random-50",
    "50% random weights (seed 2)": "random-50-draw2",
}


@pytest.fixture(scope="module")
def params() -> Params:
    return parse_params(yaml.safe_load(profile_text("paper")), Path("params.yaml"))


def arm_of(row: dict[str, str]) -> str:
    """A row's arm, by its ratio; the headline's is written without one."""
    if row["table"] == "1":
        return ARMS_OF_TABLE_1[row["method"]]
    percent = round(100 * float(row["freeze_ratio"] or 0))
    if not percent:
        return "full" if row["table"] == "8" else row["method"]
    return row["method"] if percent == 30 and row["table"] != "8" else f"{row['method']}-{percent}"


@pytest.mark.parametrize("table", range(1, 9))
def test_every_printed_row_has_its_cell(params: Params, table: int) -> None:
    cases = {n: c for n, c in params.cases.items() if c.table in (table, REPEATS.get(table))}
    rows = [row for row in PRINTED if row["table"] == str(table)]
    assert rows
    for row in rows:
        counts = [case.illegal if isinstance(case.illegal, int) else len(case.illegal) for case in cases.values()]
        fitting = [
            case
            for case, n in zip(cases.values(), counts, strict=True)
            if row["model"] in ("", case.model) and (table == 8 or row["n_illegal_classes"] in ("", str(n)))
        ]
        assert any(arm_of(row) in case.arms for case in fitting), row


def test_it_asks_for_nothing_that_no_table_prints(params: Params) -> None:
    """Gates before any fine-tuning aside: hours are dear."""
    printed = {(int(row["table"]), arm_of(row)) for row in PRINTED}
    for case in params.cases.values():
        tables = {case.table, *(table for table, of in REPEATS.items() if of == case.table)}
        for arm in map(Arm.parse, case.arms):
            needed = arm.before or arm.name == "full" or any((table, arm.name) in printed for table in tables)
            assert needed, (case.table, arm.name)


def test_its_numbers_are_those_of_appendix_e(params: Params) -> None:
    adapt, generate = params.adapt_block("portraits"), params.generate_block("portraits")
    assert (adapt.steps, adapt.lr, adapt.batch_size, adapt.per_class) == (2000, 1e-5, 4, True)
    assert params.adapt_block("explicit").steps == 5000 and params.adapt_block("artworks").steps == 2000
    assert (generate.steps, generate.guidance_scale, generate.images_per_prompt) == (50, 7.5, 100)
    mask = params.mask_block("portraits")
    assert (mask.preset, mask.batch_size, mask.user_lr, mask.temperature, mask.mask_lr) == ("paper", 16, 1e-5, 0.2, 10)
    assert params.domain_of("portraits").mask_learning_images == 100
    assert params.domain_of("explicit").mask_learning_images == 500


def test_sizes_models_and_explicit_classes(params: Params) -> None:
    for name, case in params.cases.items():
        assert params.domain_of(name).size_px == (768 if case.model == "sd-2.1" else 512)
    assert all(model.repo and len(str(model.revision)) == 40 for model in params.models.values())
    assert params.domain_of("explicit").explicit_classes() == ["nsfw"]
    assert {name for name, domain in params.domains.items() if domain.any_explicit} == {"nsfw-logos"}


def test_explicit_material_is_asked_for_and_never_just_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, there in ((["paper"], False), (["paper", "--allow-explicit"], True)):
        said = CliRunner().invoke(cli, ["profile", *arguments])
        assert said.exit_code == 0 and "explicit images (domain nsfw-logos)" in said.output
        found = load_params(Path("params.yaml"))
        assert found.allow_explicit is there and ("explicit" in found.cases) is there
        assert any(domain.any_explicit for domain in found.domains.values()) is there
    assert not list(tmp_path.glob("*.bak*"))  # neither is an edit of one's own
