"""Generate the images of both sides' prompts from the adapted models of one arm."""

from freezeasguard.commands import DATA, AnArm, Case, Model, machine, run
from freezeasguard.models.generate import generate_cell
from freezeasguard.models.latents import CaseData
from freezeasguard.settings.resolve import GenerateSettings, read_settings


def main(case: Case, arm: AnArm, model: Model) -> None:
    settings = read_settings(GenerateSettings, f"generate/{case}")
    data, adapted = CaseData.load(DATA / "latents" / case), DATA / "adapted" / case / arm
    out, label = DATA / "images" / case / arm, f"{case} {arm}"
    generate_cell(settings, DATA / "fetched" / model, adapted, data, out, label, **machine()._asdict())


if __name__ == "__main__":
    run(main)
