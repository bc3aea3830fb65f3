"""Captions: the text rules, a killed run, and a BLIP-2 of random weights in the real format."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from freezeasguard.data.caption import (
    Blip2Captioner,
    Completion,
    Progress,
    caption_images,
    cut_runaway,
    is_runaway,
    prompt_for,
    strip_echo,
)
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.rehearsal.blip2 import PROMPT, QUERIES, save_tiny_blip2
from freezeasguard.settings.params import Caption

MAX_NEW = 12


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# --- text ---


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (f"{PROMPT} her smiling", "her smiling"),
        (" A PHOTO of  mira tovena\nwhich shows her smiling \n", "her smiling"),
        (f"{PROMPT} {PROMPT} her smiling", "her smiling"),
        (" her smiling\n", "her smiling"),
        (PROMPT, ""),
        (f"her and {PROMPT}", f"her and {PROMPT}"),
        (f"{PROMPT}tune", f"{PROMPT}tune"),
    ],
)
def test_echoed_prompt_is_removed_only_from_the_front(said, text):
    assert strip_echo(said, PROMPT) == text


def test_echo_takes_the_prompt_literally():
    assert strip_echo("a photo of J.R. (Bo) her", "a photo of J.R. (Bo)") == "her"
    assert strip_echo("a photo of JxR. (Bo) her", "a photo of J.R. (Bo)") == "a photo of JxR. (Bo) her"
    assert strip_echo("  her ", "") == "her"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a man a man a man a man", "a man"),
        ("him in a suit and tie, and a tie, and a tie, and a tie", "him in a suit and tie"),
        ("him smiling and Him smiling, and him smiling and", "him smiling"),
        ("a very very very very very tall man", "a very"),
    ],
)
def test_runaway_is_cut_at_its_first_repetition(text, kept):
    assert is_runaway(text)
    assert cut_runaway(text) == kept
    assert not is_runaway(kept)


@pytest.mark.parametrize("text", ["", "her", "a man and a man and a dog", "a very very very very tall man"])
def test_a_little_repetition_is_no_runaway(text):
    assert not is_runaway(text)
    assert cut_runaway(text) == text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("her smiling. She wears a str", "her smiling"),
        ("her smiling in a hot", "her smiling"),
        ("hahahahahaha", ""),
    ],
)
def test_caption_without_an_end_loses_its_unfinished_clause(text, kept):
    assert is_runaway(text, ended=False)
    assert cut_runaway(text, ended=False) == kept


# --- a table of images ---


class FakeCaptioner:
    """Says what `script` holds for a subject; dies, as a killed run does, at batch `dies_at`."""

    def __init__(self, script: dict[str, str] | None = None, dies_at: int | None = None) -> None:
        self.script = script or {}
        self.dies_at = dies_at
        self.loads = 0
        self.batches: list[list[str]] = []

    def __call__(self, config: Caption):
        self.loads += 1
        return self.say

    def say(self, images: list[Image.Image], subjects: list[str]) -> list[str]:
        if len(self.batches) == self.dies_at:
            raise KeyboardInterrupt
        self.batches.append(list(subjects))
        assert all(image.mode == "RGB" for image in images)
        return [self.script.get(subject, f"{subject} smiling") for subject in subjects]

    @property
    def seen(self) -> list[str]:
        return [subject for batch in self.batches for subject in batch]


def make_table(raw: Path, captions: list[str]) -> pd.DataFrame:
    rows = []
    for i, caption in enumerate(captions):
        path = f"images/c/{i}.png"
        (raw / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(raw / path)
        rows.append({"path": path, "class": "c", "subject": f"S{i}", "caption": caption, "sha256": f"{i:064x}"})
    return pd.DataFrame(rows)


@pytest.fixture
def raw(tmp_path) -> Path:
    return tmp_path / "raw"


@pytest.fixture
def progress(tmp_path) -> Path:
    return tmp_path / "work" / "progress.jsonl"


CONFIG = Caption(model="no/model", revision="0" * 40, batch_size=2, max_new_tokens=MAX_NEW)


def test_edited_wins_over_source_and_source_over_the_model(raw, progress):
    table = make_table(raw, ["a drawing", "a drawing", "", "", "  "])
    fake = FakeCaptioner()
    edited = {table["sha256"][1]: "edited one", table["path"][2]: "edited two", table["path"][0]: " "}
    out, counts = caption_images(table, raw, CONFIG, progress, fake, edited)
    assert list(out["caption"]) == [
        "a drawing",
        "edited one",
        "edited two",
        "a photo of S3 which shows S3 smiling",
        "a photo of S4 which shows S4 smiling",
    ]
    assert list(out["caption_source"]) == ["source", "edited", "edited", "blip2", "blip2"]
    assert counts == {"from_source": 1, "edited": 2, "captioned": 2, "empty": 0, "runaway": 0}
    assert fake.seen == ["S3", "S4"]
    assert list(table["caption"]) == ["a drawing", "a drawing", "", "", "  "], "the caller's table is left alone"


def test_no_model_is_loaded_where_none_is_needed(raw, progress):
    fake = FakeCaptioner()
    table = make_table(raw, ["a drawing", ""])
    _, counts = caption_images(table, raw, CONFIG, progress, fake, {table["path"][1]: "edited"})
    assert fake.loads == 0 and not progress.exists()
    assert counts["captioned"] == 0


def test_missing_values_count_as_no_caption(raw, progress):
    table = make_table(raw, ["", ""]).assign(caption=[float("nan"), None])
    out, counts = caption_images(table, raw, CONFIG, progress, FakeCaptioner())
    assert counts["captioned"] == 2 and out["caption"].str.startswith("a photo of S").all()


def test_edit_of_no_image_is_told(raw, progress, capsys):
    caption_images(make_table(raw, ["x"]), raw, CONFIG, progress, FakeCaptioner(), {"images/c/9.png": "x"})
    assert "1 of 1 edited captions are of no image here, e.g. images/c/9.png" in capsys.readouterr().err


def test_empty_and_runaway_captions_are_counted(raw, progress):
    script = {
        "S0": "",
        "S1": "!!!! \n",
        "S2": "a photo of S2 which shows",
        "S3": "a man a man a man a man",
        "S4": Completion("her smiling, in a hot", ended=False),
        "S5": Completion("hahahaha", ended=False),
        "S6": "her\nsmiling",
    }
    out, counts = caption_images(make_table(raw, [""] * 7), raw, CONFIG, progress, FakeCaptioner(script))
    assert list(out["caption"]) == [
        "a photo of S0",
        "a photo of S1",
        "a photo of S2",
        "a photo of S3 which shows a man",
        "a photo of S4 which shows her smiling",
        "a photo of S5",
        "a photo of S6 which shows her smiling",
    ]
    assert counts == {"from_source": 0, "edited": 0, "captioned": 7, "empty": 4, "runaway": 3}
    again = caption_images(make_table(raw, [""] * 7), raw, CONFIG, progress, FakeCaptioner(dies_at=0))
    assert again[1] == counts, "counts are the same from the progress file"
    pd.testing.assert_frame_equal(again[0], out)


def test_killed_run_captions_only_the_rest(raw, progress):
    table = make_table(raw, [""] * 7)
    whole, _ = caption_images(table, raw, CONFIG, progress.with_name("other.jsonl"), FakeCaptioner())
    killed = FakeCaptioner(dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        caption_images(table, raw, CONFIG, progress, killed)
    assert killed.seen == ["S0", "S1", "S2", "S3"]
    rest = FakeCaptioner()
    out, counts = caption_images(table, raw, CONFIG, progress, rest)
    assert rest.seen == ["S4", "S5", "S6"]
    assert counts["captioned"] == 7
    pd.testing.assert_frame_equal(out, whole)


@pytest.mark.parametrize("torn", [b'{"model": "x", "sha', b"\x00\x00\x00", b'{"model": 1}\n[]\n\xff\n{"mo'])
def test_torn_progress_is_ignored_and_does_not_swallow_the_next_line(raw, progress, torn):
    table = make_table(raw, [""] * 6)
    with pytest.raises(KeyboardInterrupt):
        caption_images(table, raw, CONFIG, progress, FakeCaptioner(dies_at=1))
    with progress.open("ab") as file:
        file.write(torn)
    with pytest.raises(KeyboardInterrupt):
        caption_images(table, raw, CONFIG, progress, second := FakeCaptioner(dies_at=1))
    assert second.seen == ["S2", "S3"]
    caption_images(table, raw, CONFIG, progress, third := FakeCaptioner())
    assert third.seen == ["S4", "S5"]


def test_line_cut_by_a_kill_is_captioned_again(raw, progress):
    table = make_table(raw, [""] * 2)
    caption_images(table, raw, CONFIG, progress, FakeCaptioner())
    progress.write_bytes(progress.read_bytes()[:-5])
    caption_images(table, raw, CONFIG, progress, fake := FakeCaptioner())
    assert fake.seen == ["S1"]


@pytest.mark.parametrize(
    ("change", "n_again"),
    [
        ({"batch_size": 5, "checkpoint_images": 1}, 0),
        ({"model": "other/model"}, 3),
        ({"revision": "abc0" * 10}, 3),
        ({"prompt": "{subject}:"}, 3),
        ({"max_new_tokens": 9}, 3),
    ],
)
def test_progress_counts_only_for_what_decides_the_words(raw, progress, change, n_again):
    table = make_table(raw, [""] * 3)
    caption_images(table, raw, CONFIG, progress, FakeCaptioner())
    fake = FakeCaptioner()
    caption_images(table, raw, CONFIG.model_copy(update=change), progress, fake)
    assert len(fake.seen) == n_again


def test_progress_counts_only_for_the_same_subject_and_model_files(raw, progress, tmp_path):
    table = make_table(raw, [""] * 2)
    config = CONFIG.model_copy(update={"model": str(tmp_path / "model")})
    (tmp_path / "model").mkdir()
    caption_images(table, raw, config, progress, FakeCaptioner())
    caption_images(table.assign(subject=["S0", "Other"]), raw, config, progress, fake := FakeCaptioner())
    assert fake.seen == ["Other"]
    (tmp_path / "model" / "config.json").write_text("{}")
    caption_images(table, raw, config, progress, fake := FakeCaptioner())
    assert fake.seen == ["S0", "S1"]


def test_progress_is_synced_to_disk_every_so_many_images(progress, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", synced.append)
    log = Progress(progress, CONFIG.model_copy(update={"checkpoint_images": 4}))
    for i in range(5):
        log.append([(f"{i}", "p", Completion("x")), (f"{i}b", "p", Completion("é", ended=False))])
    assert len(synced) == 2
    said = log.load()
    assert len(said) == 10 and said["4b", "p"] == "é" and not said["4b", "p"].ended


def test_unreadable_image_is_named_and_the_batches_before_it_are_kept(raw, progress):
    table = make_table(raw, [""] * 3)
    (raw / table["path"][2]).write_bytes(b"not an image")
    with pytest.raises(FreezeAsGuardError, match=r"images/c/2\.png cannot be read"):
        caption_images(table, raw, CONFIG, progress, FakeCaptioner())
    assert len(progress.read_text().splitlines()) == 2


def test_missing_image_is_named_before_the_model_is_loaded(raw, progress):
    table = make_table(raw, [""] * 3)
    (raw / table["path"][2]).unlink()
    with pytest.raises(FreezeAsGuardError, match=r"images/c/2\.png is missing; run `dvc repro crawl`"):
        caption_images(table, raw, CONFIG, progress, fake := FakeCaptioner())
    assert fake.loads == 0


def test_config_refuses_a_prompt_without_subject_and_empty_batches():
    with pytest.raises(ValidationError, match="prompt"):
        Caption(prompt="a photo of a man")
    with pytest.raises(ValidationError, match="batch_size"):
        Caption(batch_size=0)
    with pytest.raises(ValidationError, match="'nobody/blip2' is of the hub, so it needs a revision"):
        Caption(model="nobody/blip2")
    assert len(Caption().revision or "") == 40 and Caption(model="Salesforce/blip2-opt-2.7b") == Caption()
    assert Caption(revision="0" * 40).revision == "0" * 40
    assert prompt_for(Caption(), "{x}") == "a photo of {x} which shows"


# --- BLIP-2 in its real format, with random weights ---


@pytest.fixture(scope="session")
def blip2_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioner") / "blip2"
    save_tiny_blip2(folder)
    return folder


@pytest.fixture
def blip2_config(blip2_folder) -> Caption:
    return Caption(model=str(blip2_folder), batch_size=3, max_new_tokens=MAX_NEW)


@pytest.fixture
def blip2(blip2_config) -> Blip2Captioner:
    return Blip2Captioner(blip2_config)


SUBJECTS = ["Mira Tovena", "Al", "Maximiliana Konstantinopolitana", "Al"]


def images() -> list[Image.Image]:
    """Of several sizes and modes, as users have them."""
    sizes, modes = [(40, 40), (64, 32), (20, 50), (33, 33)], ["RGB", "L", "RGBA", "P"]
    made = []
    for i, (size, mode) in enumerate(zip(sizes, modes, strict=True)):
        pixels = np.random.default_rng(i).integers(0, 255, (*size, 3), dtype=np.uint8)
        made.append(Image.fromarray(pixels).convert(mode))
    return made


def test_batch_says_what_the_images_say_one_by_one(blip2):
    together = blip2(images(), SUBJECTS)
    alone = [blip2([image], [subject])[0] for image, subject in zip(images(), SUBJECTS, strict=True)]
    assert together == alone
    assert [t.ended for t in together] == [t.ended for t in alone]
    assert all(isinstance(text, str) for text in together)
    assert len(set(together)) == 4, "image and subject both count"


def test_captions_are_reproducible_after_loading_again(blip2, blip2_config):
    torch.manual_seed(1)
    first = blip2(images(), SUBJECTS)
    torch.manual_seed(2)
    assert Blip2Captioner(blip2_config)(images(), SUBJECTS) == first


def test_completion_follows_the_image(blip2):
    one, other = images()[0], images()[3]
    assert blip2([one], ["Al"]) != blip2([other], ["Al"])


def test_prompt_is_padded_on_the_left_and_images_come_first(blip2, monkeypatch):
    seen = {}
    generate = blip2.model.generate
    monkeypatch.setattr(blip2.model, "generate", lambda **inputs: seen.update(inputs) or generate(**inputs))
    blip2(images(), SUBJECTS)
    ids, mask = seen["input_ids"], seen["attention_mask"]
    assert (ids[:, :QUERIES] == blip2.model.config.image_token_id).all()
    assert (mask[:, -1] == 1).all() and (mask[1, QUERIES:-5] == 0).any()
    assert all((row == 2).sum() == 1 for row in ids), "one </s> in front of each prompt"
    assert seen["do_sample"] is False


def test_caption_ends_at_a_newline_or_is_said_not_to_end(blip2, monkeypatch):
    tokenizer = blip2.processor.tokenizer
    newline = tokenizer("\n", add_special_tokens=False).input_ids[0]
    assert set(blip2.end_ids) == {newline, 2}
    said = tokenizer(" her smiling", add_special_tokens=False).input_ids
    pad = [1] * len(said)

    def echo(**inputs):
        ids = inputs["input_ids"]
        rest = torch.tensor(
            [[*said, newline, *pad], [*said, *said, said[0]], [newline, 1, *pad, *pad][: 2 * len(said) + 1]]
        )
        return torch.cat([ids, rest], 1)

    monkeypatch.setattr(blip2.model, "generate", echo)
    texts = blip2(images()[:3], SUBJECTS[:3])
    assert texts == ["her smiling", tokenizer.decode([*said, *said, said[0]]).strip(), ""]
    assert [text.ended for text in texts] == [True, False, True]


def test_output_without_the_prompt_and_echo_as_text_are_both_understood(blip2, monkeypatch):
    newline = min(set(blip2.end_ids) - {2})
    echoed = blip2.processor.tokenizer(f"{PROMPT} her smiling", add_special_tokens=False).input_ids
    monkeypatch.setattr(blip2.model, "generate", lambda **inputs: torch.tensor([[*echoed, newline]]))
    assert blip2(images()[:1], ["Mira Tovena"]) == ["her smiling"]


def test_tokenizer_without_a_beginning_gets_one(blip2, tmp_path):
    save_tiny_blip2(tmp_path / "bare", with_bos=False)
    bare = Blip2Captioner(Caption(model=str(tmp_path / "bare"), max_new_tokens=MAX_NEW))
    assert bare.prefix == "</s>" and blip2.prefix == ""
    assert bare(images(), SUBJECTS) == blip2(images(), SUBJECTS)


def test_processor_that_does_not_know_its_queries_is_told(blip2, blip2_folder, tmp_path):
    folder = shutil.copytree(blip2_folder, tmp_path / "early")
    processor = json.loads((folder / "processor_config.json").read_text())
    del processor["num_query_tokens"]
    (folder / "processor_config.json").write_text(json.dumps(processor))
    early = Blip2Captioner(Caption(model=str(folder), max_new_tokens=MAX_NEW))
    assert early(images(), SUBJECTS) == blip2(images(), SUBJECTS)


def test_table_is_captioned_by_blip2_and_a_killed_run_ends_alike(raw, progress, blip2_config):
    table = make_table(raw, ["a drawing", "", "", "", ""])
    whole, counts = caption_images(table, raw, blip2_config, progress.with_name("other.jsonl"))
    assert counts["from_source"] == 1 and counts["captioned"] == 4
    assert whole["caption"].str.startswith("a photo of S").sum() == 4
    assert "\n" not in "".join(whole["caption"])
    small = blip2_config.model_copy(update={"batch_size": 1})

    def dying(config):
        captioner, calls = Blip2Captioner(config), iter(range(2))
        return lambda images, subjects: captioner(images, subjects) if next(calls) < 1 else 1 / 0

    with pytest.raises(ZeroDivisionError):
        caption_images(table, raw, small, progress, dying)
    out, again = caption_images(table, raw, small, progress)
    pd.testing.assert_frame_equal(out, whole)
    assert again == counts


def test_missing_folder_says_what_to_fetch_from_where_and_to_which_folder(tmp_path):
    folder = tmp_path / "blip2"
    with pytest.raises(FreezeAsGuardError) as caught:
        Blip2Captioner(Caption(model=str(folder)))
    message = str(caught.value)
    assert "there is no such folder" in message
    assert "https://huggingface.co/Salesforce/blip2-opt-2.7b" in message
    assert f"--local-dir {folder}`) into {folder}" in message


def test_unreachable_hub_says_where_the_model_may_be_put():
    commit = "abc0" * 10
    with pytest.raises(FreezeAsGuardError) as caught:
        Blip2Captioner(Caption(model="nobody/blip2-none", revision=commit))
    message = str(caught.value)
    assert f"https://huggingface.co/nobody/blip2-none at revision {commit}" in message
    assert (
        f"hf download nobody/blip2-none --revision {commit} --exclude '*.bin' --local-dir data/models/blip2-none"
        in message
    )
    assert "set caption.model to data/models/blip2-none" in message


def test_relative_folder_is_not_taken_for_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    with pytest.raises(FreezeAsGuardError, match="there is no such folder.* into data/blip2"):
        Blip2Captioner(Caption(model="data/blip2"))


def test_torn_or_partial_weights_are_refused(blip2_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(blip2_folder, tmp_path / "torn")
    config = Caption(model=str(folder))
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FreezeAsGuardError, match="cannot load the captioner .*torn"):
        Blip2Captioner(config)
    save_file({n: t for n, t in tensors.items() if n != "query_tokens"}, weights, {"format": "pt"})
    with pytest.raises(FreezeAsGuardError, match="its weights lack query_tokens"):
        Blip2Captioner(config)


def test_checkpoint_that_does_not_name_its_image_token_is_refused(blip2_folder, tmp_path):
    folder = shutil.copytree(blip2_folder, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    config["image_token_index"] = None
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(FreezeAsGuardError, match="no image_token_index"):
        Blip2Captioner(Caption(model=str(folder)))


def test_full_gpu_names_the_key_to_lower(blip2, monkeypatch):
    def full(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(blip2.model, "generate", full)
    with pytest.raises(FreezeAsGuardError, match="lower caption.batch_size"):
        blip2(images(), SUBJECTS)


def test_half_precision_as_on_a_gpu_runs(blip2):
    blip2.model.to(torch.bfloat16)
    assert len(blip2(images(), SUBJECTS)) == 4
