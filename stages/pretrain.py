"""Train the miniature model and its scorers, put them together, and measure their gates."""

from pathlib import Path
from typing import Annotated

import typer

from freezeasguard.commands import DATA, SCORERS, run
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.gates import format_gates, write_gates
from freezeasguard.miniature.measure import measure_gates
from freezeasguard.miniature.recipe import assemble, run_recipe


def main(
    work: Annotated[Path, typer.Option(help="Where the parts are trained.")] = DATA / "pretrain",
    model: Annotated[Path, typer.Option(help="The diffusers folder to write.")] = DATA / "models" / "tiny-1.5",
    scorers: Annotated[Path, typer.Option(help="The folder of its scorers.")] = SCORERS,
) -> None:
    run_recipe(work)
    assemble(work, model, scorers)
    gates = measure_gates(model, scorers)
    write_gates(gates, model)
    print(format_gates(gates))
    if failed := [gate.name for gate in gates if gate.passed is False]:
        raise FreezeAsGuardError(f"gates failed: {', '.join(failed)}; train longer or widen the model")


if __name__ == "__main__":
    run(main)
