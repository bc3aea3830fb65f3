"""The `freezeasguard` command: profiles, checks, gates."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from freezeasguard.errors import FreezeAsGuardError

cli = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@cli.command()
def profile(name: Annotated[str | None, typer.Argument(help="Its name; without one, the list.")] = None) -> None:
    """Replace params.yaml by a profile."""
    from freezeasguard.config import profile_names, write_profile

    if name is None:
        print("\n".join(profile_names()))
        return
    write_profile(name)
    print(f"params.yaml now holds the profile {name}; `git diff params.yaml` shows what changed")


@cli.command()
def cells() -> None:
    """Derive the cells of params.yaml from its cases again, e.g. after editing a sweep."""
    from freezeasguard.config import write_cells

    write_cells()


@cli.command()
def check() -> None:
    """Check params.yaml and say what it will run."""
    from freezeasguard.config import load_params

    params = load_params()
    print(f"profile {params.profile}: rho {params.rho}, mask preset {params.mask.preset}, {len(params.cells)} cells")
    for name, case in params.cases.items():
        print(f"  {name} (Table {case.table}): {', '.join(params.arms(name))}")


@cli.command()
def gates() -> None:
    """Print the quality gates of the shipped miniature model."""
    from freezeasguard.miniature.gates import format_gates, read_gates

    print(format_gates(read_gates()))


def app() -> None:
    """Console entry: an expected error is one line and exit code 1."""
    try:
        cli()
    except FreezeAsGuardError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
