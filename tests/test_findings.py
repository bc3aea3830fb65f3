"""What a study found: the endpoint's arithmetic, its test, and verdicts and answers that follow from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.reports.collect import read_cells
from freezeasguard.reports.findings import (
    HEADER,
    answers,
    finding_notes,
    finding_rows,
    findings_of,
    overview,
    write_block,
    write_findings,
)
from freezeasguard.reports.summary import write_rows
from test_collect import Row, row

MARKS = ("<!-- findings: `freezeasguard collect --readme` -->", "<!-- end of the findings -->")


def seeds(arm: str, kept: list[tuple[float | None, float | None]], **more: Any) -> list[Row]:
    """A repetition each of an arm that keeps (illegal, legal), the same in both role assignments."""
    return [
        row(arm, side, value, roles=roles, seed=seed, **more)
        for seed, pair in enumerate(kept)
        for roles in ("given", "swapped")
        for side, value in zip(("illegal", "legal"), pair, strict=True)
    ]


LEARNED = [(0.20, 0.97), (0.30, 1.00), (0.24, 0.98), (0.28, 0.99), (0.22, 1.01)]
BLIND = [(0.80, 0.85), (0.82, 0.80), (0.79, 0.83), (0.85, 0.86), (0.80, 0.81)]


def verdicts(cells: list[Row]) -> dict[str, str]:
    return {line[1]: line[HEADER.index("Finding")] for line in finding_rows(findings_of(cells))}


def test_a_mask_is_measured_by_its_random_twin_seed_by_seed() -> None:
    (one,) = findings_of([*seeds("freezeasguard", LEARNED), *seeds("random", BLIND)])
    own, blind = (np.array([legal - illegal for illegal, legal in kept]) for kept in (LEARNED, BLIND))
    assert list(one.over("score").values()) == pytest.approx(list(own - blind))
    assert one.p("score") == pytest.approx(ttest_rel(own, blind).pvalue)
    (line,) = finding_rows([one])
    assert line[:6] == ["portraits", "FG-30%", "5", "0.25", "0.99", "+0.74"] and len(line) == len(HEADER)
    assert line[8] == line[-1] == "protects"


def test_a_twin_is_of_the_same_kind_and_ratio() -> None:
    """Another granularity, or another ratio, is no twin: the gap is then measured from full fine-tuning's 0."""
    others = [*seeds("random-element", BLIND, granularity="element"), *seeds("random-70", BLIND, arm_rho=0.7)]
    (one,) = findings_of([*seeds("freezeasguard", LEARNED), *others])
    assert one.blind is None
    assert list(one.over("score").values()) == pytest.approx([legal - illegal for illegal, legal in LEARNED])
    both = findings_of([*seeds("freezeasguard-70", LEARNED, arm_rho=0.7), *others])
    assert [bool(one.blind) for one in both] == [True]


def test_the_verdict_follows_from_the_endpoint() -> None:
    costly = [(illegal - 0.2, legal - 0.2) for illegal, legal in LEARNED]
    noisy = [(0.5, 0.9), (0.9, 0.5), (0.6, 0.9), (0.9, 0.6), (0.7, 0.7)]
    assert verdicts(seeds("anchored", LEARNED)) == {"Anchored": "protects"}
    assert verdicts(seeds("anchored", costly)) == {"Anchored": "parts the sides, at a legal cost of 21%"}
    assert verdicts(seeds("anchored", noisy)) == {"Anchored": "not shown"}
    assert verdicts(seeds("anchored", [(b, a) for a, b in LEARNED])) == {"Anchored": "spares the illegal side"}
    assert verdicts(seeds("anchored", LEARNED[:1])) == {"Anchored": "one repetition: nothing to test"}
    silent = [*LEARNED[:2], (0.2, None), (None, 0.9), (None, None)]
    assert verdicts(seeds("anchored", silent)) == {
        "Anchored": "no signal: full fine-tuning hardly betters it in 3 of 5 repetitions"
    }


def test_a_repetition_without_a_signal_is_left_out() -> None:
    (one,) = findings_of(seeds("anchored", [*LEARNED[:4], (0.2, None)]))
    (without,) = findings_of(seeds("anchored", LEARNED[:4]))
    assert finding_rows([one]) == finding_rows([without])
    assert finding_rows([one])[0][2] == "4"


def test_the_notes_say_what_a_repetition_is_averaged_over() -> None:
    both = seeds("anchored", LEARNED)
    alone = [one for one in seeds("anchored", LEARNED, case="explicit") if one["roles"] == "given"]
    texts = [" ".join(finding_notes(findings_of(cells))) for cells in (both, alone, [*both, *alone])]
    assert "averaged over both role assignments" in texts[0]
    assert all("Seeds 0, 1, 2, 3, 4." in text for text in texts)
    assert "roles given alone, corrected" in texts[1] and "roles given alone in explicit, corrected" in texts[2]


def test_cells_of_two_profiles_are_never_one_case() -> None:
    """A random mask that another profile's users trained under is no twin."""
    found = findings_of([*seeds("freezeasguard", LEARNED), *seeds("random", BLIND, profile="tiny")])
    assert [(one.case, one.blind) for one in found] == [("portraits of study", None)]


def test_more_lines_ask_for_more() -> None:
    """A p of .03 alone is a finding; beside two lines that show nothing it is none."""
    gaps = [0.02, 0.1, 0.05, 0.12, 0.02]
    weak, nothing = [(0.5, 0.5 + gap) for gap in gaps], [(0.5, 0.5 + gap - np.mean(gaps)) for gap in gaps]
    (one,) = findings_of(seeds("anchored", weak))
    assert 0.02 < one.p("score") < 0.05 and "parts" in verdicts(seeds("anchored", weak))["Anchored"]
    many = [*seeds("anchored", weak), *seeds("uce", nothing), *seeds("imma", nothing)]
    assert set(verdicts(many).values()) == {"not shown"}


def test_a_line_a_case_and_kind_and_none_for_random_masks() -> None:
    cells = [*seeds("random", BLIND), *seeds("freezeasguard", LEARNED), *seeds("imma", BLIND, case="artworks")]
    assert [(one.case, one.kind.arm.name) for one in findings_of(cells)] == [
        ("portraits", "freezeasguard"),
        ("artworks", "imma"),
    ]


def test_findings_are_files_and_the_readmes_block(tmp_path: Path) -> None:
    cells, readme = tmp_path / "study" / "cells.csv", tmp_path / "README.md"
    cells.parent.mkdir()
    write_rows(cells, seeds("anchored", LEARNED))
    readme.write_text("\n".join(["before", MARKS[0], "earlier", MARKS[1], "after", ""]))
    table, answer = write_findings(cells, readme)
    said = readme.read_text()
    assert "earlier" not in said and said.startswith(f"before\n{MARKS[0]}\n") and said.endswith(f"{MARKS[1]}\nafter\n")
    findings = findings_of(read_cells(cells.read_text(), ""))
    assert overview(findings) in said
    for note in finding_notes(findings):
        assert note in said and note in answer.read_text()
    assert sum(line.startswith("|") for line in table.read_text().splitlines()) == 3
    write_findings(cells, readme)
    assert readme.read_text() == said


def test_the_overview_has_a_table_an_endpoint_and_bold_findings() -> None:
    cells = [
        *seeds("freezeasguard", LEARNED), *seeds("random", BLIND),
        *seeds("uce", [(None, None)] * 3 + BLIND[:2]), *seeds("imma", BLIND, case="artworks"),
    ]  # fmt: skip
    score, loss, read = overview(findings_of(cells)).split("\n\n")
    lines = score.splitlines()
    assert lines[0] == "| By score, the primary endpoint | portraits | artworks |" and len(lines) == 5
    assert loss.splitlines()[0].startswith("| By loss |") and "n = 5 where no other is told" in read
    learned = next(line for line in lines if line.startswith("| FG-30% |"))
    assert learned.startswith("| FG-30% | **protects** +0.7") and learned.endswith("] (0.25 / 0.99) | - |")
    assert "| UCE | no signal in 3 of 5 | - |" in lines
    (unshown,) = [line for line in lines if line.startswith("| IMMA |")]
    assert unshown.startswith("| IMMA | - | +0.0") and "**" not in unshown
    fewer = overview(findings_of(seeds("anchored", [*LEARNED[:4], (0.2, None)])))
    assert "** +0.7" in fewer and ", n = 4 |" in fewer


def test_what_is_published_stands_beside_what_is_kept_after_training() -> None:
    """Of the seeds that the finding stands on; it is no finding of its own, and no part of one."""
    cells = [*seeds("anchored", [*LEARNED[:4], (0.2, None)]), *seeds("imma", LEARNED, case="artworks")]
    kept = [(-3.0, 0.5), (-4.0, 0.6), (-3.0, 0.5), (-4.0, 0.6), (9.0, 9.0)]
    before = seeds("anchored-before", kept, settings="of no step")
    without, found = findings_of(cells), findings_of([*cells, *before])
    assert finding_rows(found) == finding_rows(without) and "published" not in overview(without).lower()
    *_, table, read = overview(found).split("\n\n")
    assert table.splitlines()[2:] == [
        "| Anchored, by score | -3.50 / 0.55 | - |",
        "| Anchored, by loss | -3.50 / 0.55 | - |",
    ]
    assert "published to everyone" in read
    assert ", before anybody trains -3.50 / 0.55, over full fine-tuning's gap" in answers(found)


def test_other_settings_of_an_arm_are_lines_of_their_own() -> None:
    """Each with what it publishes, and against the twin whose users train alike."""
    strong, weak = ({"settings": name, "apart": f"lambda_legal {value}"} for name, value in (("a", 1), ("b", 4)))
    cells = [
        *seeds("anchored", LEARNED, **strong), *seeds("anchored", BLIND, **weak),
        *seeds("anchored-before", BLIND, **(strong | {"settings": "c"})),
        *seeds("anchored-before", LEARNED, **(weak | {"settings": "d"})),
    ]  # fmt: skip
    found = findings_of(cells)
    assert [(one.label, one.kept_text("loss"), one.published_text("loss")) for one in found] == [
        ("Anchored, lambda_legal 1", "0.25 / 0.99", "0.81 / 0.83"),
        ("Anchored, lambda_legal 4", "0.81 / 0.83", "0.25 / 0.99"),
    ]
    assert {line.split(" |")[0] for line in overview(found).splitlines() if "Anchored, lambda" in line} == {
        f"| Anchored, lambda_legal {value}{by}" for value in (1, 4) for by in ("", ", by score", ", by loss")
    }
    short, long = ({"settings": name, "apart": f"steps {value}"} for name, value in (("a", 60), ("b", 240)))
    masks = [*seeds("freezeasguard", LEARNED, **long), *seeds("freezeasguard", LEARNED, **short)]
    twins = [*seeds("random", BLIND, **short), *seeds("random", LEARNED, **long)]
    assert [(one.label, bool(one.p("loss") < 0.05)) for one in findings_of([*masks, *twins])] == [
        ("FG-30%, steps 60", True),
        ("FG-30%, steps 240", False),
    ]
    mixed = findings_of([*seeds("freezeasguard", LEARNED, preset="paper", illegal_weight=0.7), *masks[:20]])
    assert [one.label for one in mixed] == [
        "FG-30%, preset freezeasguard, illegal weight 0.5, steps 240",
        "FG-30%, preset paper, illegal weight 0.7, abc",
    ]


def test_answers_are_the_findings_own_figures() -> None:
    """A case that found nothing says so beside the one that found something."""
    cells = [
        *seeds("freezeasguard", LEARNED), *seeds("random", BLIND),
        *seeds("freezeasguard", BLIND, case="artworks"), *seeds("random", BLIND, case="artworks"),
    ]  # fmt: skip
    paper, first, second = answers(findings_of(cells)).splitlines()
    assert paper == "- **Does a mask of whole tensors, by our default preset, beat random masks?**"
    own, blind = (np.array([legal - illegal for illegal, legal in kept]) for kept in (LEARNED, BLIND))
    low, high = ttest_1samp(own - blind, 0).confidence_interval()
    over = f"{np.mean(own - blind):+.2f} [{low:+.2f}, {high:+.2f}]"
    figures = f"(kept illegal / legal 0.25 / 0.99, over random masks' gap {over}, n = 5)"
    assert first == f"  - portraits, FG-30%: by score *protects* {figures}; by loss *protects* {figures}."
    assert second.startswith("  - artworks, FG-30%: by score *not shown* (kept illegal / legal 0.81 / 0.83, over")


def test_a_readme_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    with pytest.raises(FreezeAsGuardError, match="has no lines"):
        write_block(readme, "text")
    assert readme.read_text() == "mine"


def test_cells_without_a_protection_are_refused(tmp_path: Path) -> None:
    cells = tmp_path / "cells.csv"
    write_rows(cells, seeds("full", [(1.0, 1.0)]))
    with pytest.raises(FreezeAsGuardError, match="holds no protection"):
        write_findings(cells)
