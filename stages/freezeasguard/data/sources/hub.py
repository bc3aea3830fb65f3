"""A data set of the Hugging Face hub, or a local one of its layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from freezeasguard.data.names import slug
from freezeasguard.data.sources.base import Item, is_inside, spoken
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.settings.params import Domain
from freezeasguard.settings.pins import needs_pin


def class_names(domain: Domain) -> list[str] | None:
    return domain.told_classes()


def items(domain: Domain, downloads: Path, seed: int) -> Iterator[Item]:
    """A data set through `datasets`, by pinned revision."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    config = domain.hf
    assert config is not None
    needs_pin(config.revision, f"hf.revision of {config.repo}")
    try:
        loaded = datasets.load_dataset(config.repo, revision=config.revision, split=config.split)
    except Exception as error:  # the hub's, the builder's and the network's errors have no common class
        raise FreezeAsGuardError(
            f"cannot load {config.repo} (revision {config.revision}, split {config.split}): {error}. "
            "Download it elsewhere and set hf.repo to its folder"
        ) from error
    wanted = [c for c in (config.image_column, config.caption_column, config.class_column) if c]
    if missing := [column for column in wanted if column not in loaded.column_names]:
        raise FreezeAsGuardError(f"{config.repo} has no column {missing[0]!r}; it has {', '.join(loaded.column_names)}")
    loaded = loaded.cast_column(config.image_column, datasets.Image(decode=False))
    labels = loaded.features[config.class_column] if config.class_column else None
    roots = [HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH]
    if Path(config.repo).is_dir():
        roots += [config.repo, Path(config.repo).resolve()]
    for number, row in enumerate(loaded):
        if config.max_images is not None and number >= config.max_images:
            return
        name = config.class_name or row[config.class_column]
        if isinstance(labels, datasets.ClassLabel):
            name = labels.int2str(name)
        content, status = _content(row[config.image_column], roots)
        caption = str(row[config.caption_column] or "") if config.caption_column else ""
        source = f"{config.repo}@{config.revision or 'local'}#{number}"
        yield Item(slug(str(name)), spoken(str(name)), content, source, config.licence, caption, status=status)


def _content(stored: dict[str, Any] | None, roots: Sequence[Path | str]) -> tuple[bytes | Path | None, str]:
    """Bytes, or a file of the data set itself: its rows may name any other."""
    stored = stored or {}
    if stored.get("bytes") is not None:
        return stored["bytes"], "ok"
    if not stored.get("path"):
        return None, "missing file"
    path = Path(stored["path"])
    return (path, "ok") if is_inside(path, *roots) else (None, "refused: a file outside the data set")
