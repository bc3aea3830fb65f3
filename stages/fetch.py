"""Bring a model here at its pinned revision, and say by hashes which weights it has."""

from freezeasguard.commands import DATA, load, model_folder, run
from freezeasguard.files import write_json
from freezeasguard.models.fetch import check_model_folder, fetch_model, weight_hashes


def main(model: str) -> None:
    params = load()
    folder = model_folder(params, model)
    if params.models[model].repo is not None:
        fetch_model(params.models[model], folder)
    write_json(DATA / "fetched" / f"{model}.json", {"files": weight_hashes(check_model_folder(folder))})


if __name__ == "__main__":
    run(main)
