"""Latents and text embeddings of a case, once for every trainer."""

from freezeasguard.commands import DATA, Case, Domain, Model, machine, run
from freezeasguard.models.encode import encode_case
from freezeasguard.settings.resolve import EncodeSettings, read_settings


def main(case: Case, domain: Domain, model: Model) -> None:
    settings = read_settings(EncodeSettings, f"encode/{case}")
    raw, splits = DATA / "raw" / domain, DATA / "splits" / domain
    encode_case(settings, DATA / "fetched" / model, raw, splits, DATA / "latents" / case, machine().device)


if __name__ == "__main__":
    run(main)
