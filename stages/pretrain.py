"""Train the miniature models and their scorers, put them together, and measure their gates."""

from pathlib import Path
from typing import Annotated

import typer

from freezeasguard.commands import DATA, SCORERS, run
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.family import FAMILY, assemble_variant, train_variant
from freezeasguard.miniature.gates import MODEL, format_gates, write_gates
from freezeasguard.miniature.measure import OF_UNET, measure_gates
from freezeasguard.miniature.recipe import assemble, run_recipe


def main(
    work: Annotated[Path, typer.Option(help="Where the parts are trained.")] = DATA / "pretrain",
    models: Annotated[Path, typer.Option(help="Where the diffusers folders are written.")] = MODEL.parent,
    scorers: Annotated[Path, typer.Option(help="The folder of their scorers.")] = SCORERS,
) -> None:
    run_recipe(work)
    assemble(work, models / MODEL.name, scorers)
    _measure(models / MODEL.name, scorers)
    for name in FAMILY:
        train_variant(name, models / MODEL.name, work / name)
        assemble_variant(name, models / MODEL.name, work / name, models / name)
        _measure(models / name, scorers, OF_UNET)


def _measure(model: Path, scorers: Path, only: tuple[str, ...] = ()) -> None:
    gates = measure_gates(model, scorers, only)
    write_gates(gates, model)
    print(f"{model.name}\n{format_gates(gates)}")
    if failed := [gate.name for gate in gates if gate.passed is False]:
        raise FreezeAsGuardError(f"gates of {model} failed: {', '.join(failed)}; train longer or widen the model")


if __name__ == "__main__":
    run(main)
