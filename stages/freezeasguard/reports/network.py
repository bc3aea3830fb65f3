"""Where a tensor sits in the UNet: its block, and the order in which an image passes the tensors."""

from __future__ import annotations


def block_of(name: str) -> str:
    """The UNet block of a tensor: "down 0", "mid", "up 3", "time", "in", "out"."""
    parts = name.split(".")
    if parts[0] in ("down_blocks", "up_blocks"):
        return f"{parts[0].split('_')[0]} {parts[1]}"
    return {"mid_block": "mid", "time_embedding": "time", "conv_in": "in"}.get(parts[0], "out")


PART_ORDER = ["resnets", "attentions", "downsamplers", "upsamplers"]
BLOCK_ORDER = ["in", "time", *(f"down {i}" for i in range(4)), "mid", *(f"up {i}" for i in range(4)), "out"]


def network_order(names: list[str]) -> list[str]:
    """Tensor names in the order in which an image passes them: block, layer, its resnet, its attention."""

    def place(name: str) -> tuple[int, int, int, str]:
        parts = name.split(".")
        inside = next((i for i, part in enumerate(parts) if part in PART_ORDER), None)
        if inside is None:
            return BLOCK_ORDER.index(block_of(name)), 0, 0, name
        layer = int(parts[inside + 1])
        if block_of(name) == "mid":  # resnet 0, attention 0, resnet 1
            return BLOCK_ORDER.index("mid"), 2 * layer + (parts[inside] == "attentions"), 0, name
        last = parts[inside].endswith("samplers")
        return BLOCK_ORDER.index(block_of(name)), 99 if last else layer, PART_ORDER.index(parts[inside]), name

    return sorted(names, key=place)
