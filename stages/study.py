"""One study: every mask and control of a case, after re-adaptation, in both role assignments."""

import shutil

from freezeasguard.commands import DATA, REPORTS, SCORERS, load, model_path, run
from freezeasguard.files import fingerprint
from freezeasguard.study import run_study
from freezeasguard.users.adapt import CHECKPOINTS


def main(name: str) -> None:
    params = load()
    model = model_path(params, params.studies[name].case)
    settings = params.model_dump(mode="json", exclude={"studies", "workers"})
    # Pieces of a killed run are taken up again by the same settings alone.
    scratch = CHECKPOINTS / f"study-{name}-{fingerprint(settings, params.studies[name].model_dump(mode='json'))}"
    run_study(params, name, model, DATA, SCORERS, scratch, REPORTS / "study" / "results" / f"{name}.json")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    run(main)
