"""What `freezeasguard check` looks at beyond params.yaml itself: the device, the models, the classes, the weights."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path

from freezeasguard.commands import DATA, SCORERS
from freezeasguard.data.sources.registry import SOURCES
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.family import FULL_SIZE_PX, configurations, expected_prediction, trained_px
from freezeasguard.models.fetch import check_model_folder
from freezeasguard.reading import read_json
from freezeasguard.scores.base import Score
from freezeasguard.scores.registry import SCORES
from freezeasguard.settings.params import Case, Domain, Model, Params
from freezeasguard.settings.params import Score as ScoreBlock

FETCHED = DATA / "fetched"


def look(params: Params) -> tuple[list[str], list[str]]:
    """What is wrong, and what only a stage can tell: a line each, by its key of params.yaml."""
    wrong, later = [], []
    for key, check in _checks(params):
        try:
            note = check()
        except FreezeAsGuardError as error:
            wrong.append(f"{key}: {' '.join(str(error).split())}")
        else:
            later += [f"{key}: {note}"] if note else []
    return wrong, later


def _checks(params: Params) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "device", partial(_device, params.device)
    for name, model in params.models.items():
        yield f"models.{name}", partial(_model, name, model)
    for name, case in params.cases.items():
        domain = params.domains[case.domain]
        yield f"cases.{name}", partial(_classes, case, domain, params)
        folder = model_folder(case.model, params.models[case.model])
        yield f"domains.{case.domain}.size_px", partial(check_size, domain.size_px, folder)
        yield f"cases.{name}.model", partial(check_fits, domain.size_px, params.models[case.model], folder)
    for name in {case.domain: None for case in params.cases.values()}:
        for score in params.domains[name].score_names():
            yield f"domains.{name}, score {score}", partial(_weights, SCORES[score], params.score)


def _device(wanted: str) -> str:
    from freezeasguard.workers import resolve_device

    resolve_device(wanted)
    return ""


def _model(name: str, model: Model) -> str:
    if model.path is None and not (FETCHED / name).is_dir():
        return f"whether {model.repo} is complete, and fits size_px, shows once `dvc repro fetch@{name}` has run"
    check_model_folder(model_folder(name, model))
    return ""


def model_folder(name: str, model: Model) -> Path:
    return model.path or FETCHED / name


def check_size(size_px: int, folder: Path) -> str:
    """Refuse an image size that the model's VAE and UNet cannot halve as often as they do; "" once it is known to fit.

    What a folder lacks is told by the check of the model itself.
    """
    halvings = 0
    for part in ("vae", "unet"):
        path = folder / part / "config.json"
        if not path.is_file():
            return ""
        config = read_json(path, "restore the model")
        channels = config.get("block_out_channels")
        if not isinstance(channels, list) or not channels:
            raise FreezeAsGuardError(f"{path} has no list block_out_channels; restore the model")
        halvings += len(channels) - 1  # a block each, the last of which keeps the size
    if size_px % 2**halvings:
        raise FreezeAsGuardError(
            f"size_px is {size_px}, which does not fit the model in {folder}; take a multiple of {2**halvings}"
        )
    return ""


def check_fits(size_px: int, model: Model, folder: Path) -> str:
    """Refuse a size that a full-size model was not trained at, and a scheduler that expects another prediction."""
    configs = configurations(model, folder)
    if configs is None:
        return ""
    px, wanted = trained_px(configs), expected_prediction(configs)
    if px >= FULL_SIZE_PX and px != size_px:
        raise FreezeAsGuardError(
            f"size_px of its domain is {size_px}, but {model.repo or folder} was trained at {px} px; give the case a "
            f"domain with size_px: {px}"
        )
    found = configs["scheduler"].get("prediction_type", "epsilon")
    if wanted is not None and found != wanted:
        raise FreezeAsGuardError(
            f"{folder}/scheduler says prediction_type {found}, but a UNet of that shape predicts {wanted}; fetch the "
            "scheduler of the same release"
        )
    return ""


def _classes(case: Case, domain: Domain, params: Params) -> str:
    from freezeasguard.data.split import assign_sides

    module = import_module(SOURCES[domain.source].import_path)
    names = getattr(module, "class_names", lambda _: None)(domain)
    if names is None:
        return f"which classes {case.domain} has shows once `dvc repro crawl@{case.domain}` has run"
    assign_sides(sorted(names), case.illegal, case.legal, params.seed)
    return ""


def _weights(score: Score, settings: ScoreBlock) -> str:
    if score.name == "dlib":  # copied out of its package when it is first used
        return _dlib()
    try:
        files = score.weight_files(settings, SCORERS)
    except ImportError as error:
        raise FreezeAsGuardError(f"it needs a package that is missing ({error}); install it") from None
    missing = [str(path) for path in files if not path.is_file()]
    if missing or (score.has_weights and not files):
        where = ", ".join(missing) or "its folder (see README, Scores)"
        raise FreezeAsGuardError(f"its weights are missing: {where}; `freezeasguard fetch`, or leave the score out")
    return ""


def _dlib() -> str:
    for package in ("face_recognition_models", "dlib-bin"):
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise FreezeAsGuardError(f'the package {package} is missing; `pip install -e ".[dlib]"`') from None
    return ""
