"""Captions for images whose source ships none: BLIP-2 goes on from "a photo of <subject> which shows".

Naming the subject in the prompt keeps BLIP-2 from inventing one (paper, App. C).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tqdm.auto import tqdm

from freezeasguard.data.manifest import read_manifest
from freezeasguard.errors import FreezeAsGuardError
from freezeasguard.files import folder_atomically, write_json
from freezeasguard.reading import read_png, read_table
from freezeasguard.settings.params import Caption

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

BLIP2 = Caption().model
BARE_CAPTION = "a photo of {subject}"
"""Of an image that the model says nothing about."""


class Completion(str):
    """What a captioner said after the prompt, and whether it came to an end by itself."""

    ended: bool

    def __new__(cls, text: str, ended: bool = True) -> Completion:
        completion = super().__new__(cls, text)
        completion.ended = ended
        return completion


class Captioner(Protocol):
    """A plain str counts as a completion that ended."""

    def __call__(self, images: list[Image.Image], subjects: list[str]) -> Sequence[str]: ...


# --- text ---


def prompt_for(config: Caption, subject: str) -> str:
    return config.prompt.replace("{subject}", subject)


def strip_echo(text: str, prompt: str) -> str:
    """The text without the prompt in front of it, however often echoed and in whatever case and spacing."""
    words = [re.escape(word) for word in prompt.split()]
    echo = r"\s*" + r"\s+".join(words) + r"(?!\w)"
    return re.sub(rf"^(?:{echo})+", "", text, flags=re.IGNORECASE).strip() if words else text.strip()


def is_runaway(text: str, ended: bool = True) -> bool:
    """Whether the model talked in circles (a 3-gram three times), or did not end in the room it had."""
    return not ended or _repetition(text) is not None


def _repetition(text: str, n: int = 3, times: int = 3) -> int | None:
    """Where the first n-gram that is said `times` times starts its second time; None if there is none.

    N-grams overlap, so the same word five times in a row is the same 3-gram three times.
    """
    words = list(re.finditer(r"\w+(?:['’]\w+)*", text))
    places: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(words) - n + 1):
        places.setdefault(tuple(word.group().casefold() for word in words[i : i + n]), []).append(i)
    seconds = [starts[1] for starts in places.values() if len(starts) >= times]
    return words[min(seconds)].start() if seconds else None


def cut_runaway(text: str, ended: bool = True) -> str:
    """The text up to its first repetition; one without any and without an end loses its unfinished clause."""
    place = _repetition(text)
    if place is None:
        if ended:
            return text
        # No clause to fall back to: the last word may be half a word.
        place = max(text.rfind(mark) for mark in ".,;!?")
        place = place if place > 0 else max(text.rfind(" "), 0)
    # A cut leaves no loose joint: "him in a suit and" is "him in a suit".
    return re.sub(r"(?:\W+(?:and|or|with|in|on|of|a|an|the))*\W*$", "", text[:place], flags=re.IGNORECASE)


def _compose(said: str, ended: bool, subject: str, config: Caption) -> tuple[str, bool, bool]:
    """The caption, whether the model said nothing, and whether it ran away."""
    text = " ".join(strip_echo(said, prompt_for(config, subject)).split())
    has_words = re.search(r"\w", text) is not None
    runaway = has_words and is_runaway(text, ended)
    text = cut_runaway(text, ended) if runaway else text
    if not has_words or not text:
        return BARE_CAPTION.replace("{subject}", subject), True, runaway
    return f"{prompt_for(config, subject)} {text}", False, runaway


# --- the model ---


class Blip2Captioner:
    """Greedy, so that the same images give the same captions; bf16 on a GPU, float32 on a CPU."""

    def __init__(self, config: Caption, device: str = "cpu") -> None:
        import torch

        self.config = config
        self.device = torch.device(device)
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        try:
            # Not at the top: transformers takes seconds to import, and a table may need no captions.
            from transformers import Blip2ForConditionalGeneration, Blip2Processor

            where: dict[str, Any] = {"revision": config.revision} if config.revision else {}
            # transformers' own default is torchvision's image processor, which the base install does not have.
            self.processor = Blip2Processor.from_pretrained(config.model, backend="pil", **where)
            model, loaded = Blip2ForConditionalGeneration.from_pretrained(
                config.model, dtype=dtype, output_loading_info=True, **where
            )
        except Exception as error:  # anything from OSError and HfHubHTTPError to SafetensorError and KeyError
            raise FreezeAsGuardError(_remedy(config, error)) from error
        if loaded["missing_keys"]:
            # transformers would fill them at random and caption with noise.
            name = min(loaded["missing_keys"])
            raise FreezeAsGuardError(_remedy(config, f"its weights lack {name}"))
        if model.config.image_token_id is None:
            raise FreezeAsGuardError(_remedy(config, "its config.json has no image_token_index; newer revisions do"))
        self.model = model.eval().requires_grad_(False).to(self.device)
        # Early checkpoints do not say it, and the processor would leave no room for the image.
        self.processor.num_query_tokens = model.config.num_query_tokens

        # OPT counts positions over unmasked tokens and goes on from the right end, so it pads on the left;
        # T5 reads distances between tokens, and padding between image and text would stretch them.
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left" if model.config.use_decoder_only_language_model else "right"
        begins = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
        self.prefix = "" if begins or tokenizer.bos_token is None else tokenizer.bos_token
        self.end_ids = _token_ids(
            # BLIP-2's OPT ends a caption with a newline, which the tokenizer does not know to be an end.
            model.generation_config.eos_token_id,
            model.language_model.generation_config.eos_token_id,
            tokenizer.eos_token_id,
        )

    def __call__(self, images: list[Image.Image], subjects: list[str]) -> list[Completion]:
        import torch

        prompts = [prompt_for(self.config, subject) for subject in subjects]
        inputs = self.processor(
            images=[image.convert("RGB") for image in images],
            text=[self.prefix + prompt for prompt in prompts],
            padding=True,
            return_tensors="pt",
        ).to(self.device, self.model.dtype)
        try:
            with torch.inference_mode():
                tokens = self.model.generate(
                    **inputs,
                    max_new_tokens=self.config.max_new_tokens,
                    do_sample=False,
                    num_beams=1,
                    eos_token_id=self.end_ids,
                    pad_token_id=self.processor.tokenizer.pad_token_id,
                )
        except torch.OutOfMemoryError as error:
            raise FreezeAsGuardError(
                f"{self.device} has no memory for {len(images)} images at once; lower caption.batch_size (captions "
                "made so far are kept)"
            ) from error
        # A decoder's output starts with its input, an encoder-decoder's does not.
        n_input = inputs["input_ids"].shape[1]
        if tokens.shape[1] >= n_input and torch.equal(tokens[:, :n_input], inputs["input_ids"]):
            tokens = tokens[:, n_input:]
        pairs = zip(tokens.tolist(), prompts, strict=True)
        return [self._completion(row, prompt) for row, prompt in pairs]

    def _completion(self, tokens: list[int], prompt: str) -> Completion:
        end = next((i for i, token in enumerate(tokens) if token in self.end_ids), None)
        text = self.processor.tokenizer.decode(tokens[:end], skip_special_tokens=True)
        return Completion(strip_echo(text, prompt), ended=end is not None)


def _token_ids(*values: int | Sequence[int] | None) -> list[int]:
    ids: set[int] = set()
    for value in values:
        ids.update([value] if isinstance(value, int) else value or [])
    return sorted(ids)


def _remedy(config: Caption, error: object) -> str:
    """What is wrong with the model, what to fetch, from where, and where to put it."""
    path = Path(config.model)
    on_hub = config.on_hub
    repo = config.model if on_hub else BLIP2
    folder = f"data/models/{repo.split('/')[1]}" if on_hub else config.model
    revision = config.revision if on_hub else None
    at_revision = f" at revision {revision}" if revision else ""
    command = (
        f"hf download {repo}{f' --revision {revision}' if revision else ''} --exclude '*.bin' --local-dir {folder}"
    )
    # transformers goes on to guess at causes; the first sentence is the fact.
    reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".") or type(error).__name__
    if not on_hub and not path.is_dir():
        reason = "there is no such folder"
    return (
        f"cannot load the captioner {config.model}: {reason}. Fetch config.json, the *.safetensors weights and the "
        f"processor's and tokenizer's files of https://huggingface.co/{repo}{at_revision} (`{command}`) into {folder}"
        + (f" and set caption.model to {folder}" if on_hub else "")
    )


# --- a table of images ---


class Progress:
    """What the model has said so far, one JSON line an image, for a run that may be killed.

    A line counts for the very same image, prompt and model; cutting and counting come after, so they
    may change without captioning again.
    """

    def __init__(self, path: Path, config: Caption) -> None:
        self.path = path
        self.model = _fingerprint(config)
        self.sync_images = config.checkpoint_images
        self.unsynced = 0

    def load(self) -> dict[tuple[str, str], Completion]:
        """Completions by sha256 and prompt; a torn line counts as none, and the next one starts afresh."""
        try:
            lines = self.path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        if lines[-1]:
            os.truncate(self.path, self.path.stat().st_size - len(lines[-1]))
        said = {}
        for line in lines[:-1]:
            try:
                row = json.loads(line)
                if row["model"] == self.model:
                    said[row["sha256"], row["prompt"]] = Completion(row["text"], bool(row["ended"]))
            except (ValueError, KeyError, TypeError):  # what a power cut leaves
                continue
        return said

    def append(self, rows: Iterable[tuple[str, str, Completion]]) -> None:
        lines = [
            json.dumps({"model": self.model, "sha256": sha256, "prompt": prompt, "text": said, "ended": said.ended})
            for sha256, prompt, said in rows
        ]
        self.unsynced += len(lines)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("".join(line + "\n" for line in lines))
                file.flush()
                if self.unsynced >= self.sync_images:
                    os.fsync(file.fileno())
                    self.unsynced = 0
        except OSError as error:
            raise FreezeAsGuardError(
                f"cannot write {self.path} ({error.strerror}); captions made so far are kept, run the stage again"
            ) from error


def _fingerprint(config: Caption) -> str:
    """Of what decides the words, so neither batch size nor device; of a folder, also its files."""
    folder = Path(config.model)
    stats = {path.name: path.stat() for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()]
    identity = json.dumps([config.model, config.revision, config.max_new_tokens, files])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def read_edits(path: Path) -> dict[str, str]:
    """Captions edited by hand, by image path or sha256; none where there is no such file."""
    if not path.is_file():
        return {}
    remedy = "save it as CSV in UTF-8, with commas, the columns path and caption, and text that has commas in quotes"
    table = read_table(path, remedy, ("path", "caption"), by_hand=True)
    if len(twice := table["path"][table["path"].duplicated()]):
        raise FreezeAsGuardError(f"{path} names the image {twice.iloc[0]} twice; keep one of its captions")
    return dict(zip(table["path"], table["caption"], strict=True))


def name_only(table: pd.DataFrame) -> pd.DataFrame:
    """The table with "a photo of SUBJECT" where the source ships no caption and no model is to make one."""
    bare = [BARE_CAPTION.format(subject=subject) for subject in table["subject"]]
    return table.assign(caption=table["caption"].where(table["caption"].str.strip() != "", bare))


def caption_images(
    table: pd.DataFrame,
    raw: Path,
    config: Caption,
    progress_file: Path,
    make_captioner: Callable[[Caption], Captioner] = Blip2Captioner,
    edited: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Give every image a caption: an edited one, else its source's, else the model's.

    Args:
        table: path (below `raw`), class, subject, caption ("" where the source has none), sha256.
        progress_file: what the model said so far; a killed run goes on from it.
        make_captioner: called only if some image is still to be captioned.
        edited: captions by sha256 or by path, of any number of images; a blank one is no edit.
    Returns:
        The table with `caption` filled and `caption_source` in edited, source, blip2; and how many rows
        are from_source, edited, captioned (by the model), and of these empty and runaway.
    """
    # A caption is one line: Python's csv writer leaves a lone "\r" unquoted, which would tear the table.
    edits = {
        key: " ".join(text.split()) for key, text in (edited or {}).items() if isinstance(text, str) and text.strip()
    }
    if unknown := sorted(edits.keys() - set(table["sha256"]) - set(table["path"])):
        message = f"{len(unknown)} of {len(edits)} edited captions are of no image here, e.g. {unknown[0]}"
        tqdm.write(message, file=sys.stderr)

    progress = Progress(progress_file, config)
    said = progress.load()
    captions, sources, todo = [], [], {}
    for row in table.to_dict("records"):
        shipped = row["caption"] if isinstance(row["caption"], str) else ""  # NaN is no caption
        edit = edits.get(row["sha256"]) or edits.get(row["path"])
        captions.append(edit or shipped)
        sources.append("edited" if edit else "source" if shipped.strip() else "blip2")
        key = (row["sha256"], prompt_for(config, row["subject"]))
        if sources[-1] == "blip2" and key not in said:
            todo[key] = row
    _say(todo, said, raw, config, progress, make_captioner, done=sources.count("blip2") - len(todo))

    counts = {
        "from_source": sources.count("source"),
        "edited": sources.count("edited"),
        "captioned": sources.count("blip2"),
        "empty": 0,
        "runaway": 0,
    }
    for i, row in enumerate(table.to_dict("records")):
        if sources[i] == "blip2":
            completion = said[row["sha256"], prompt_for(config, row["subject"])]
            captions[i], empty, runaway = _compose(completion, completion.ended, row["subject"], config)
            counts["empty"] += empty
            counts["runaway"] += runaway
    return table.assign(caption=captions, caption_source=sources), counts


def _say(
    todo: Mapping[tuple[str, str], Mapping[str, Any]],
    said: dict[tuple[str, str], Completion],
    raw: Path,
    config: Caption,
    progress: Progress,
    make_captioner: Callable[[Caption], Captioner],
    done: int,
) -> None:
    """Caption what is still to do, batch by batch, into `said` and the progress file."""
    if not todo:
        return
    for row in todo.values():  # before the model is loaded
        if not (raw / row["path"]).is_file():
            raise FreezeAsGuardError(f"{raw / row['path']} is missing; run `dvc repro crawl`")
    captioner = make_captioner(config)
    keys = list(todo)
    with tqdm(total=done + len(todo), initial=done, desc="captioning", unit="image") as bar:
        for start in range(0, len(keys), config.batch_size):
            batch = keys[start : start + config.batch_size]
            images = [read_png(raw / todo[key]["path"], "run `dvc repro --force crawl`") for key in batch]
            texts = captioner(images, [todo[key]["subject"] for key in batch])
            if len(texts) != len(batch):
                raise ValueError(f"the captioner gave {len(texts)} captions for {len(batch)} images")
            new = {key: Completion(text, getattr(text, "ended", True)) for key, text in zip(batch, texts, strict=True)}
            progress.append((*key, text) for key, text in new.items())
            said |= new
            bar.update(len(batch))


def caption_domain(
    config: Caption | None, raw: Path, edits: Path, progress: Path, out: Path, device: str
) -> dict[str, int]:
    """Write the captions of a domain's usable images, and how many came from where; null `config`: none is made up."""
    manifest = read_manifest(raw)
    usable: pd.DataFrame = manifest.loc[manifest["status"] == "ok", ["path", "class", "subject", "caption", "sha256"]]
    usable = usable if config else name_only(usable)
    captioner = partial(Blip2Captioner, device=device)
    table, counts = caption_images(usable, raw, config or Caption(), progress, captioner, edited=read_edits(edits))
    with folder_atomically(out) as temporary:
        table.to_csv(temporary / "captions.csv", index=False)
        write_json(temporary / "counts.json", counts)
    return counts
