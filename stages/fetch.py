"""Bring a model here at its pinned revision, and say by hashes which weights it has."""

from freezeasguard.commands import DATA, Model, run
from freezeasguard.models.fetch import fetch_model
from freezeasguard.settings.params import Model as ModelSettings
from freezeasguard.settings.resolve import read_settings


def main(model: Model) -> None:
    settings = read_settings(ModelSettings, f"fetch/{model}")
    fetch_model(settings, DATA / "fetched" / model, DATA / "downloads" / "models" / model)


if __name__ == "__main__":
    run(main)
