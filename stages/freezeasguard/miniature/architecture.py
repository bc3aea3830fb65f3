"""The parts of the miniature Stable Diffusion, in diffusers' and transformers' own classes.

64 px images, 16x16 latents with 8 channels (a factor of 4), a UNet with SD v1.x's topology and so
its 686 tensor names. Factor 4 was chosen over 8: see the README's table of trade-offs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

IMAGE_PX = 64
MAX_TOKENS = 48
"""Length to which every prompt is padded; SD pads to 77."""
VOCABULARY = 1536


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=IMAGE_PX,
        scaling_factor=1.0,  # the recipe folds the latents' standardisation into quant_conv
    )


def new_unet(**overrides: Any) -> UNet2DConditionModel:
    config: dict[str, Any] = dict(
        sample_size=16,
        in_channels=8,
        out_channels=8,
        block_out_channels=(24, 48, 72, 72),
        layers_per_block=2,
        cross_attention_dim=96,
        attention_head_dim=2,  # number of heads: diffusers' name is historical
        norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    return UNet2DConditionModel(**{**config, **overrides})


def new_clip(vocabulary: int, bos: int, eos: int, **of_text: Any) -> CLIPModel:
    """`of_text`: what the text tower has otherwise."""
    text: dict[str, Any] = dict(
        vocab_size=vocabulary,
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    text |= of_text
    vision = dict(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_PX,
        patch_size=8,
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def new_scheduler(prediction_type: str = "epsilon") -> PNDMScheduler:
    """SD's noise schedule and sampler; v2.1's UNet predicts v, with v1.x's schedule."""
    return PNDMScheduler(
        prediction_type=prediction_type,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_tokenizer(captions: Iterable[str], vocabulary: int = VOCABULARY) -> CLIPTokenizer:
    """A byte-level BPE in CLIP's format, trained on the corpus.

    A vocabulary of the corpus's own keeps the token embeddings small and trained: an unseen name
    falls apart into syllables that other names taught, instead of into tokens nobody ever saw.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    shell = CLIPTokenizer()  # CLIP's own normalisation and splitting
    trained = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    trained.normalizer = shell.backend_tokenizer.normalizer
    trained.pre_tokenizer = shell.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=60,  # syllables and words, not the rarer whole names
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    trained.train_from_iterator(captions, trainer)
    import json

    state = json.loads(trained.to_str())["model"]
    vocab = state["vocab"]
    # Every byte also needs its end-of-word form, or a word's last letter could be unknown.
    for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab.setdefault(f"{symbol}</w>", len(vocab))
    merges = [tuple(m.split()) if isinstance(m, str) else tuple(m) for m in state["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)
