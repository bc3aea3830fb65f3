"""Images of every prompt from an adapted model, with the same noise whatever the arm."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from PIL import Image
from tqdm.auto import tqdm

from freezeasguard.checkpoints import CHECKPOINTS, Pieces, digest
from freezeasguard.files import folder_atomically, link_or_copy, write_atomically
from freezeasguard.models.computing import configure
from freezeasguard.models.diffusion import decode_latents, load_scheduler, load_vae, model_hash, named_tensors
from freezeasguard.models.images import to_uint8
from freezeasguard.models.latents import CaseData
from freezeasguard.models.protected import load_adapted
from freezeasguard.models.sampling import check_finite, sample, starting_noise
from freezeasguard.settings.compute import PLAIN, Compute
from freezeasguard.settings.resolve import GenerateSettings
from freezeasguard.settings.users import Generate
from freezeasguard.sides import SIDES, user_name
from freezeasguard.workers import run_side_by_side

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


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


def generate_user(
    unet: torch.nn.Module,
    vae: AutoencoderKL,
    data: CaseData,
    table: pd.DataFrame,
    model: Path,
    out: Path,
    config: Generate,
    seed: int,
    label: str,
    compute: Compute = PLAIN,
) -> None:
    """Write one PNG a row of `table` under `out`; a batch that lies there whole is left alone."""
    scheduler = load_scheduler(model)
    device = next(unet.parameters()).device
    shape = tuple(data.latents.shape[2:])
    for start in tqdm(range(0, len(table), config.batch_size), desc=f"generating {label}"):
        # Always the same batches: in another one an image may come out with other last bits.
        rows = table.iloc[start : start + config.batch_size]
        if all((out / file).is_file() for file in rows["file"]):
            continue
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
            compute=compute,
        )
        images = decode_latents(vae, latents)
        check_finite(images, f"generating {label}", f"images after step {config.steps}")
        for file, image in zip(rows["file"], to_uint8(images), strict=True):
            with write_atomically(out / file) as temporary:
                Image.fromarray(image).save(temporary, format="PNG")


def images_identity(
    settings: GenerateSettings,
    unet: torch.nn.Module,
    vae: torch.nn.Module,
    scheduler: Any,
    data: CaseData,
    table: pd.DataFrame,
) -> dict[str, Any]:
    """All that a user's images depend on: those of a killed run are kept where every entry agrees."""
    rows = torch.tensor(table["reference_row"].to_numpy())
    return {
        "settings": settings.model_dump(),
        "code": settings.code,
        "weights": [model_hash(named_tensors(network)) for network in (unet, vae)],
        "sampler": dict(scheduler.config),
        "table": table.to_csv(),
        "prompts": [digest(data.text[rows]), digest(data.empty_text), list(data.latents.shape[2:])],
        "device": next(unet.parameters()).device.type,
        "torch": torch.__version__,
    }


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
    """The images of both sides' prompts, each from its own user's model, and their index.

    The users are those that `adapted` holds: one a side, or one a class. Images wait below data/checkpoints until the
    cell is whole.
    """
    configure(settings.compute, device)
    tables = {side: prompt_table(data, side, settings.generate) for side in SIDES}
    users = {user: rows for side, table in tables.items() for user, rows in by_user(adapted, side, table)}
    waiting = {user: CHECKPOINTS / "-".join([*label.split(), *user.split("/"), "images"]) for user in users}

    def task(user: str) -> None:
        unet, vae = load_adapted(model, adapted, user).to(device), load_vae(model).to(device)  # pyright: ignore
        identity = images_identity(settings, unet, vae, load_scheduler(model), data, users[user])
        pieces = Pieces(waiting[user], identity)
        how = (settings.generate, settings.seed, f"{label} {user}", settings.compute)
        generate_user(unet, vae, data, users[user], model, pieces.path, *how)

    run_side_by_side({user: (lambda user=user: task(user)) for user in users}, workers, device)
    with folder_atomically(out) as temporary:
        for user, table in users.items():
            for file in table["file"]:
                link_or_copy(waiting[user] / file, temporary / file)
        pd.concat(list(tables.values())).to_csv(temporary / "index.csv", index=False)
    for folder in waiting.values():
        shutil.rmtree(folder)


def by_user(adapted: Path, side: str, table: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """The users of a side with the rows of its table that are theirs: a class's user is asked for that class alone."""
    if (adapted / user_name(side)).is_dir():
        for name, rows in table.groupby("class", sort=True):
            yield user_name(side, str(name)), rows
    else:
        yield user_name(side), table
