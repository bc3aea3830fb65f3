"""The illegal and the legal user fine-tune the model of one arm."""

from freezeasguard.arms import Arm
from freezeasguard.commands import DATA, AnArm, Case, Model, machine, run
from freezeasguard.models.latents import CaseData
from freezeasguard.settings.resolve import AdaptSettings, read_settings
from freezeasguard.users.adapt import adapt_cell


def main(case: Case, arm: AnArm, model: Model) -> None:
    settings = read_settings(AdaptSettings, f"adapt/{case}-{arm}")
    protected = DATA / "protected" / case / Arm.parse(arm).protected.name
    data, out = CaseData.load(DATA / "latents" / case), DATA / "adapted" / case / arm
    costs = DATA / "costs" / "adapt" / f"{case}-{arm}.json"
    how = {**machine()._asdict(), "costs": costs}
    adapt_cell(settings, DATA / "fetched" / model, protected, data, out, f"{case}-{arm}", **how)


if __name__ == "__main__":
    run(main)
