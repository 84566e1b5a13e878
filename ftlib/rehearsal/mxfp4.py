"""Packs expert weights in MXFP4, as the published checkpoint stores them, in plain torch, without Triton or a GPU.

A block of 32 values shares one power of two, and each value is one of ±{0, 0.5, 1, 1.5, 2, 3, 4, 6} times it (OCP
Microscaling Formats specification 1.0, section 5).
"""

import torch

BLOCK = 32
MAGNITUDES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # a code is a sign bit and an index into these
MIDPOINTS = (MAGNITUDES[1:] + MAGNITUDES[:-1]) / 2  # rounding to the nearest magnitude is a search among these
EXPONENT_BIAS = 127
LARGEST_EXPONENT = 2  # of the largest magnitude, 6


def _encode(groups: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    """Codes 0 to 15 of values in blocks `[..., BLOCK]`, given each block's exponent `[..., 1]`."""
    scaled = (groups * torch.exp2(-exponent)).contiguous()
    return torch.bucketize(scaled.abs(), MIDPOINTS.to(groups.device)) + 8 * (scaled < 0)


def _decode(codes: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    sign = 1.0 - 2.0 * (codes >= 8)
    return sign * MAGNITUDES.to(codes.device)[codes % 8] * torch.exp2(exponent)


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack an expert weight, each block with the exponent that rounds better: the smallest that fits, or the next.

    Of a float weight `[experts, in, out]`, where 32 divides `in`, come uint8 blocks `[experts, out, in / 32, 16]`, two
    codes a byte with the first in the low half, and uint8 scales `[experts, out, in / 32]`, the exponent plus 127.
    """
    groups = weight.detach().float().transpose(1, 2).unflatten(-1, (-1, BLOCK))
    largest = groups.abs().amax(dim=-1, keepdim=True).clamp(min=2.0**-100)
    lower = largest.log2().floor() - LARGEST_EXPONENT
    errors = [(_decode(_encode(groups, e), e) - groups).square().sum(dim=-1, keepdim=True) for e in (lower, lower + 1)]
    exponent = torch.where(errors[1] < errors[0], lower + 1, lower)
    codes = _encode(groups, exponent)
    blocks = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
    scales = (exponent.squeeze(-1) + EXPONENT_BIAS).to(torch.uint8)
    return blocks.contiguous(), scales.contiguous()


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Undo `pack`: the float32 weight `[experts, in, out]` that a packed one stands for."""
    codes = torch.stack([blocks & 0xF, blocks >> 4], dim=-1).flatten(-2).long()
    exponent = scales.float().unsqueeze(-1) - EXPONENT_BIAS
    return _decode(codes, exponent).flatten(-2).transpose(1, 2).contiguous()
