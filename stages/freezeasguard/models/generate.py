"""Images of every prompt from an adapted model, with the same noise whatever the arm."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from freezeasguard.files import folder_atomically
from freezeasguard.models.diffusion import decode_latents, load_scheduler, load_vae
from freezeasguard.models.images import to_uint8
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import load_adapted
from freezeasguard.models.sampling import check_finite, sample, starting_noise
from freezeasguard.settings.resolve import GenerateSettings
from freezeasguard.settings.users import Generate
from freezeasguard.sides import SIDES
from freezeasguard.workers import run_side_by_side


def prompt_table(data: CaseData, side: str, config: Generate) -> pd.DataFrame:
    """The images to generate: a row each, with the prompt, its part, and its reference image.

    The first prompts of each class, of the adaptation split (what the paper's evaluation uses) and of the
    held-out images, in the order of the case's index.
    """
    wanted = {"adaptation": config.prompts_per_side, "held_out": config.held_out_prompts_per_side}
    rows = {part: data.rows(side, [part]) for part, n in wanted.items() if n}
    pieces = [
        of_part.groupby("class", sort=True).head(max(1, wanted[part] // of_part["class"].nunique()))
        for part, of_part in rows.items()
    ]
    prompts = pd.concat(pieces)
    table = prompts.loc[prompts.index.repeat(config.images_per_prompt)].reset_index(names="reference_row")
    # Counted over the caption: two rows of one caption would otherwise share their noise, and be one image.
    table["image"] = table.groupby("caption").cumcount()
    table["file"] = [
        f"{side}/{row:05d}-{image:03d}.png" for row, image in zip(table["reference_row"], table["image"], strict=True)
    ]
    return table.drop(columns="row")


def generate_side(
    unet: torch.nn.Module,
    data: CaseData,
    table: pd.DataFrame,
    model: Path,
    out: Path,
    config: Generate,
    seed: int,
    label: str,
) -> None:
    """Write one PNG a row of `table` under `out`."""
    scheduler, vae = load_scheduler(model), load_vae(model)
    device = next(unet.parameters()).device
    shape = tuple(data.latents.shape[2:])
    for start in tqdm(range(0, len(table), config.batch_size), desc=f"generating {label}"):
        rows = table.iloc[start : start + config.batch_size]
        noise = starting_noise(rows["caption"].tolist(), rows["image"].tolist(), shape, seed)
        text = data.text[torch.tensor(rows["reference_row"].to_numpy())].float()
        latents = sample(
            unet,
            scheduler,
            noise.to(device),
            text.to(device),
            data.empty_text.float().to(device),
            steps=config.steps,
            guidance_scale=config.guidance_scale,
            label=f"generating {label}",
        )
        images = decode_latents(vae, latents)
        check_finite(images, f"generating {label}", f"images after step {config.steps}")
        for file, image in zip(rows["file"], to_uint8(images), strict=True):
            path = out / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def generate_cell(
    settings: GenerateSettings,
    model: Path,
    adapted: Path,
    data: CaseData,
    out: Path,
    label: str,
    device: str,
    workers: int,
) -> None:
    """The images of both sides' prompts, each from its own user's model, and their index."""
    config, seed = settings.generate, settings.seed
    tables = {side: prompt_table(data, side, config) for side in SIDES}
    with folder_atomically(out) as temporary:

        def side_task(side: str) -> None:
            unet = load_adapted(model, adapted, side).to(device)
            generate_side(unet, data, tables[side], model, temporary, config, seed, f"{label} {side}")

        run_side_by_side({side: (lambda side=side: side_task(side)) for side in SIDES}, workers, device)
        pd.concat(list(tables.values())).to_csv(temporary / "index.csv", index=False)
