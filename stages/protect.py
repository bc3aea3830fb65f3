"""Protect a case's model as one arm does: learn a mask, draw one, edit weights, or do nothing."""

from freezeasguard.commands import DATA, AnArm, Case, Model, machine, run
from freezeasguard.protections.protect import Inputs, protect_case
from freezeasguard.settings.resolve import ProtectSettings, read_settings


def main(case: Case, arm: AnArm, model: Model) -> None:
    settings = read_settings(ProtectSettings, f"protect/{case}-{arm}")
    folders = {"model": DATA / "fetched" / model, "latents": DATA / "latents" / case}
    inputs = Inputs(settings, **folders, finetuned=DATA / "finetuned" / case, **machine()._asdict())
    protect_case(inputs, DATA / "protected" / case / arm, DATA / "costs" / "protect" / f"{case}-{arm}.json")


if __name__ == "__main__":
    run(main)
