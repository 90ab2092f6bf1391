"""Analytic FLOPs of a model, and the peaks of the chips they are held against.

The compiler's own count is of no use here: it counts a scanned layer once and leaves
custom kernels out.
"""

import dataclasses
import re

from pit_jax.models.sizes import num_kept

# Published dense bf16 peak of one device as jax counts devices, FLOP/s. A device kind
# matches the first entry whose name it contains, in whole words but for TPUs ("TPU v5p");
# "NVIDIA RTX A1000" is no A100. GPUs by NVIDIA's data sheets, where a card of its own name has
# another clock ("NVIDIA H100 PCIe", "NVIDIA H200 NVL").
PEAK_FLOPS = {
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 1153.5e12,  # half a chip of 2307
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "L4": 121e12,
    "L40S": 362e12,
}


# What the two names mean, in one line each; whoever prints one of them says it in these words.
FORWARD = "every row of every layer, without embedding and head, as papers count"
COMPUTED = "what runs here: of the last layer the rows that are read, with embedding and head"


@dataclasses.dataclass(frozen=True)
class Flops:
    """Cost of one image; a multiply-add counts as two operations.

    "Forward FLOPs" are `forward` everywhere, also in a run's env.json and in comparisons; what
    is made of the other number is called computed or training FLOPs, and model FLOPs a step.
    """

    computed: float  # see COMPUTED
    forward: float  # see FORWARD
    tokens: int  # an image in the encoder
    recomputed: float = 0.0  # what remat makes the backward pass compute once more
    computed_training: float = 0.0  # where training leaves tokens out; 0: as `computed`

    @property
    def training(self) -> float:
        """Forward and backward: three times what forward computes, recomputation not counted."""
        return 3 * (self.computed_training or self.computed)

    def named(self) -> dict[str, float]:
        """What env.json keeps and comparisons show."""
        return {
            "tokens": self.tokens,
            "forward_flops": self.forward,
            "training_flops": self.training,
        }


def trunk(tokens: int, width: int, mlp: int, depth: int, rows_read: int | None = None) -> float:
    """FLOPs of `depth` blocks on `tokens` tokens, the last one for `rows_read` rows only.

    Windows are counted as if everything were seen: on a CPU they save nothing, and the TPU's
    kernel skips the blocks of scores that nobody sees, which depends on their size.
    """

    def block(rows: int) -> float:
        keys_values = 2 * tokens * 2 * width**2
        queries_out_mlp = 2 * rows * (2 * width**2 + 2 * width * mlp)
        return keys_values + queries_out_mlp + 4 * rows * tokens * width

    return (depth - 1) * block(tokens) + block(rows_read or tokens)


def vit(model, data) -> Flops:
    """FLOPs of a ViT or PiT classifier from its config groups."""
    patches = (data.image_size // model.patch) ** 2
    cls = model.pool != "mean"
    sizes = (model.width, model.mlp, model.depth)
    head = 2 * model.width * data.num_classes
    rows = 1 if model.pool == "cls" else None

    def forward(patches: int) -> float:
        computed = trunk(patches + cls, *sizes, rows_read=rows)
        return computed + _embedding(model, data, patches) + head

    kept = num_kept(patches, model.token_drop)
    return Flops(
        forward(patches),
        trunk(patches + cls, *sizes),
        patches + cls,
        recomputed(kept + cls, *sizes, remat=model.remat),
        forward(kept),
    )


def depth(model, data) -> Flops:
    """FLOPs of a ViT or PiT that says a number of every pixel: all rows but [CLS] are read."""
    patches = (data.image_size // model.patch) ** 2
    shape = (patches + (model.pool != "mean"), model.width, model.mlp, model.depth)
    head = 2 * patches * model.width * model.patch**2
    return Flops(
        trunk(*shape) + _embedding(model, data, patches) + head,
        trunk(*shape),
        shape[0],
        recomputed(*shape, remat=model.remat),
    )


def mae(model, data, mae) -> Flops:
    """FLOPs of a masked autoencoder: the encoder on the kept patches, the decoder on all."""
    patches = (data.image_size // model.patch) ** 2
    kept = num_kept(patches, mae.mask_ratio)
    cls = model.pool != "mean"
    width = mae.decoder_width
    encoder = (kept + cls, model.width, model.mlp, model.depth)
    decoder = (patches + cls, width, 4 * width, mae.decoder_depth)
    between = 2 * (kept + cls) * model.width * width
    head = 2 * patches * width * model.patch**2 * data.channels
    computed = trunk(*encoder) + trunk(*decoder, rows_read=patches)
    return Flops(
        computed + between + head + _embedding(model, data, kept),
        trunk(*encoder) + trunk(*decoder),
        kept + cls,
        sum(recomputed(*shape, remat=model.remat) for shape in (encoder, decoder)),
    )


def dit(model, data, outputs: int) -> Flops:
    """FLOPs of a Diffusion Transformer that says `outputs` numbers of every pixel."""
    tokens = (data.image_size // model.patch) ** 2
    shape = (tokens, model.width, model.mlp, model.depth)
    head = 2 * tokens * model.width * model.patch**2 * outputs
    modulation = 2 * (6 * model.depth + 2) * model.width**2  # of one vector an image
    time = 2 * (256 + model.width) * model.width
    conditioned = trunk(*shape) + modulation + time
    return Flops(
        conditioned + head + _embedding(model, data, tokens),
        trunk(*shape),
        tokens,
        recomputed(*shape, remat=model.remat),
    )


def autoencoder(sizes, data) -> Flops:
    """FLOPs of encoding and decoding an image, from the config group `autoencoder`.

    All places of a convolution count alike, those at the border too. `tokens` are the
    latents' places.
    """
    encoding, decoding, places = _autoencoder(sizes, data.image_size, data.channels)
    return Flops(encoding + decoding, encoding + decoding, places)


def decoder(sizes, image_size: int, colours: int) -> float:
    """FLOPs of decoding an image; `sizes` is as for `autoencoder`, or the model itself."""
    return _autoencoder(sizes, image_size, colours)[1]


def _autoencoder(sizes, side: int, colours: int) -> tuple[float, float, int]:
    """FLOPs of encoding and of decoding, and the latents' places."""
    channels, latent = tuple(sizes.channels), sizes.latent
    total = 0.0  # `side` is that of the resolution which is being counted

    def convolution(into: int, out: int, size: int = 3) -> float:
        return 2 * side**2 * size**2 * into * out

    def blocks(into: int, out: int, count: int) -> float:
        later = 2 * convolution(out, out)
        shortcut = convolution(into, out, size=1) if into != out else 0.0
        return convolution(into, out) + convolution(out, out) + shortcut + (count - 1) * later

    def middle(features: int) -> float:
        places = side**2
        attention = 8 * places * features**2 + 4 * places**2 * features
        return blocks(features, features, 2) + attention * sizes.attends

    total += convolution(colours, channels[0])
    into = channels[0]
    for level, out in enumerate(channels):
        total += blocks(into, out, sizes.layers)
        if level < len(channels) - 1:
            side //= 2
            total += convolution(out, out)
        into = out
    total += middle(into) + convolution(into, 2 * latent) + convolution(2 * latent, 2 * latent, 1)
    places, encoding = side**2, total
    total = convolution(latent, latent, 1) + convolution(latent, into) + middle(into)
    for level, out in enumerate(reversed(channels)):
        total += blocks(into, out, sizes.layers + 1)
        if level < len(channels) - 1:
            side *= 2
            total += convolution(out, out)
        into = out
    return encoding, total + convolution(into, colours), places


def convnet(sizes, data) -> Flops:
    """FLOPs of a ConvNet from the config group `convnet`; `tokens` are places at the start.

    All places of a convolution count alike, those at the border too.
    """
    side, total = data.image_size, 0.0

    def convolution(into: int, out: int, size: int) -> float:
        return 2 * side**2 * size**2 * into * out

    into = sizes.channels[0]
    total += convolution(data.channels, into, sizes.kernel)
    for stage, (out, count) in enumerate(zip(sizes.channels, sizes.layers, strict=True)):
        side //= 2 if stage and sizes.downsample else 1
        total += convolution(into, out, sizes.kernel) + convolution(into, out, 1) * (into != out)
        total += (2 * count - 1) * convolution(out, out, sizes.kernel)
        into = out
    return Flops(total + 2 * into * data.num_classes, total, data.image_size**2)


def perceiver(model, data, sizes) -> Flops:
    """FLOPs of a Perceiver: linear in the pixels, whose keys and values are made twice at most."""
    tokens, latents, width = (data.image_size // model.patch) ** 2, sizes.latents, model.width
    keys_values = min(sizes.rounds, 2) * 2 * tokens * 2 * width**2
    reading = 2 * latents * (2 * width**2 + 2 * width * model.mlp) + 4 * latents * tokens * width
    shape = (latents, width, model.mlp, model.depth)
    computed = keys_values + sizes.rounds * (reading + trunk(*shape))
    return Flops(
        computed + _embedding(model, data, tokens) + 2 * width * data.num_classes,
        computed,
        tokens,
        sizes.rounds * recomputed(*shape, remat=model.remat),
    )


def autoregressive(model, data, colours: int) -> Flops:
    """FLOPs of an autoregressive model of pixels: attention counts in full, as for others,
    though causal kernels skip half of it; looking colours up multiplies nothing."""
    tokens = data.image_size**2
    shape = (tokens, model.width, model.mlp, model.depth)
    head = 2 * tokens * model.width * colours
    computed = trunk(*shape)
    return Flops(computed + head, computed, tokens, recomputed(*shape, remat=model.remat))


def _embedding(model, data, patches: int) -> float:
    """Of the linear map to so many tokens; looking colours up multiplies nothing."""
    linear = model.embed == "linear"
    return 2 * patches * model.patch**2 * data.channels * model.width * linear


def recomputed(tokens: int, width: int, mlp: int, depth: int, remat: str) -> float:
    """FLOPs that rematerialisation adds to a training step, an image.

    "full" computes every scanned block forward once more; the last block stands outside
    the scan, where the compiler sees both copies and keeps one. "dots", and "auto", which is
    the same on accelerators, keep the dense layers' products and recompute the attention's.
    """
    attention = 4 * tokens**2 * width * (depth - 1)
    scanned = trunk(tokens, width, mlp, depth) * (depth - 1) / depth
    return {"none": 0.0, "full": scanned, "dots": attention, "auto": attention}[remat]


def peak(device_kind: str) -> float | None:
    """Published bf16 peak of a device, FLOP/s, or None where it is not known: of a part of a
    card ("... MIG 1g.10gb"), too."""
    if "MIG" in device_kind:
        return None
    whole = {name: name if "TPU" in name else rf"\b{name}\b" for name in PEAK_FLOPS}
    return next((p for name, p in PEAK_FLOPS.items() if re.search(whole[name], device_kind)), None)
