"""Latents and text embeddings of a case, once for every trainer."""

from freezeasguard.commands import DATA, load, model_path, run
from freezeasguard.models.encode import encode_case


def main(case: str) -> None:
    params = load(case)
    domain = params.cases[case].domain
    raw, splits = DATA / "raw" / domain, DATA / "splits" / domain
    encode_case(params, case, model_path(params, case), raw, splits, DATA / "latents" / case)


if __name__ == "__main__":
    run(main)
