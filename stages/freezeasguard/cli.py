"""The `freezeasguard` command: profiles, checks, gates."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from freezeasguard.errors import FreezeAsGuardError

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@cli.command()
def profile(name: Annotated[str | None, typer.Argument(help="Its name; without one, the list.")] = None) -> None:
    """Replace params.yaml, and the cells in data/cells.json, by a profile."""
    from freezeasguard.settings.params import profile_names, write_profile

    if name is None:
        print("\n".join(profile_names()))
        return
    write_profile(name)
    print(f"params.yaml now holds the profile {name}; `git diff` shows what changed")


@cli.command()
def cells() -> None:
    """Derive data/cells.json from the cases of params.yaml again, e.g. after editing a sweep."""
    from freezeasguard.settings.params import write_cells

    write_cells()


@cli.command()
def check() -> None:
    """Check params.yaml and its cells, and say what it will run."""
    from freezeasguard.settings.params import check_cells, load_params

    params = load_params()
    check_cells(params)
    print(f"profile {params.profile}: rho {params.rho}, mask preset {params.mask.preset}, {len(params.cells)} cells")
    for name, case in params.cases.items():
        print(f"  {name} (Table {case.table}): {', '.join(params.arms(name))}")


@cli.command("new-case")
def new_case(
    name: Annotated[str, typer.Argument(help="Of the case: letters, digits and dashes.")],
    illegal: Annotated[
        Path, typer.Option(help="Images that must not be learned: a folder, or one with class folders.")
    ],
    legal: Annotated[Path, typer.Option(help="Images that must stay learnable, likewise.")],
    model: Annotated[str, typer.Option(help="A name in params.yaml, a diffusers folder, or a hub id.")] = "tiny-1.5",
    revision: Annotated[str | None, typer.Option(help="Of a hub model; required for one.")] = None,
    size_px: Annotated[int, typer.Option(help="Image size of the model: 64 for the tiny one, 512 for SD v1.x.")] = 64,
    only: Annotated[bool, typer.Option(help="Drop the other cases from params.yaml.")] = False,
) -> None:
    """Protect a model of yours against a folder of images: adds a case to params.yaml, for `dvc repro`."""
    from freezeasguard.new_case import add_case

    n_images = add_case(name, {"illegal": illegal, "legal": legal}, model, revision, size_px, only)
    counted = ", ".join(f"{n} {side} images" for side, n in n_images.items())
    print(f"params.yaml has the case {name} ({counted}); run `dvc repro`, then see reports/tables/case-{name}.md")


@cli.command()
def gates(
    only: Annotated[
        list[str] | None, typer.Option(help="Measure this group of gates again, and keep what it says.")
    ] = None,
) -> None:
    """Print the quality gates of the shipped miniature model."""
    from freezeasguard.miniature.gates import MODEL, SCORERS, format_gates, merge_gates, read_gates, write_gates

    if only:
        from freezeasguard.miniature.measure import measure_gates

        kept = read_gates()  # where there is nothing to merge into, say so before measuring
        write_gates(merge_gates(kept, measure_gates(MODEL, SCORERS, only)))
    print(format_gates(read_gates()))


def app() -> None:
    """Console entry: an expected error is one line and exit code 1."""
    try:
        cli()
    except FreezeAsGuardError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
