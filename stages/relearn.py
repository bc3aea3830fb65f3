"""Fine-tune the plain model fully on the mask-learning halves: theta_ft of Algorithm 1."""

from freezeasguard.commands import DATA, Case, Model, machine, run
from freezeasguard.models.latents import CaseData
from freezeasguard.settings.resolve import RelearnSettings, read_settings
from freezeasguard.users.relearn import relearn_case


def main(case: Case, model: Model) -> None:
    settings = read_settings(RelearnSettings, f"relearn/{case}")
    data = CaseData.load(DATA / "latents" / case)
    out, label = DATA / "finetuned" / case, f"{case}-relearn"
    how = {**machine()._asdict(), "costs": DATA / "costs" / "relearn" / f"{case}.json"}
    relearn_case(settings, DATA / "fetched" / model, data, out, label, **how)


if __name__ == "__main__":
    run(main)
