"""The sample grid: which prompts it shows, and where."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml
from PIL import Image

from freezeasguard.reports.figures import sample_grid
from freezeasguard.settings.params import parse_params, profile_text

LEFT, TOP, TILE, GAP = 165, 44, 96, 10


def test_a_side_of_few_classes_shows_several_of_its_prompts(tmp_path: Path) -> None:
    params = parse_params(yaml.safe_load(profile_text("smoke")), Path("smoke"))
    (case,) = params.cases
    rows = []
    for side, names in {"illegal": "a", "legal": "bc"}.items():
        for number in range(4):
            name = names[number % len(names)]
            rows.append(
                {
                    "side": side, "class": name, "subject": name, "part": "adaptation", "image": 0,
                    "path": f"{side}-{number}.png", "file": f"{side}-{number}.png",
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    colors = {row["file"]: (20 + 25 * index, 0, 200) for index, row in enumerate(rows)}
    for folder in (tmp_path / "raw", *(tmp_path / arm for arm in params.arms(case))):
        folder.mkdir()
        table.to_csv(folder / "index.csv", index=False)
        for file, color in colors.items():
            Image.new("RGB", (8, 8), color).save(folder / file)
    path = sample_grid(params, case, tmp_path, tmp_path / "raw", tmp_path / "grid.png", columns=3)
    # Class a alone gives three; b and c take turns, and stand together: b, b, c.
    expected = ["illegal-0", "illegal-1", "illegal-2", "legal-0", "legal-2", "legal-1"]
    with Image.open(path) as sheet:
        assert sheet.width == LEFT + 6 * TILE + GAP
        for line in range(1 + len(params.arms(case))):
            for column, name in enumerate(expected):
                x = LEFT + column * TILE + (GAP if column >= 3 else 0) + TILE // 2
                assert sheet.getpixel((x, TOP + line * TILE + TILE // 2)) == colors[f"{name}.png"]
