"""A BLIP-2 with random weights, tiny, in the released format."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

PROMPT = "a photo of Mira Tovena which shows"
QUERIES = 4


def save_tiny_blip2(folder: Path, *, with_bos: bool = True, seed: int = 0) -> None:
    """OPT's kind of tokenizer (byte-level BPE, </s> in front), a ViT, a Q-Former and an OPT, all tiny."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, GPT2Tokenizer
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        [f"{PROMPT} her smiling in a hotel hallway"],
        vocab_size=320,
        min_frequency=1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        show_progress=False,
    )
    specials = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    with TemporaryDirectory() as vocabulary:
        bpe.save_model(vocabulary)
        tokenizer = GPT2Tokenizer.from_pretrained(vocabulary, **specials, add_bos_token=with_bos)
    image_processor = BlipImageProcessorPil(size={"height": 32, "width": 32})
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=QUERIES)  # adds <image>
    tiny = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    config = Blip2Config(
        vision_config=dict(**tiny, intermediate_size=32, image_size=32, patch_size=8, initializer_range=0.3),
        qformer_config=dict(**tiny, intermediate_size=32, vocab_size=50, initializer_range=0.3),
        text_config=dict(
            **tiny,
            model_type="opt",
            vocab_size=len(tokenizer),
            word_embed_proj_dim=16,
            ffn_dim=32,
            max_position_embeddings=128,
            init_std=0.3,
            bos_token_id=2,
            pad_token_id=1,
            eos_token_id=tokenizer("\n", add_special_tokens=False).input_ids[0],
        ),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=0.3,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(config)
        torch.nn.init.normal_(model.query_tokens)  # zeros as made: they would see nothing
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
