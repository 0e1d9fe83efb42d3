# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""What kernels compute of single values: weights, moments from codes and back, and bits to round by chance."""

import triton
import triton.language as tl
from triton.language.extra import libdevice

COMPILED = tl.constexpr(not triton.knobs.runtime.interpret)
"""Whether CUDA's functions are there."""


@triton.jit
def chance(seed, number, use: tl.constexpr, row, block: tl.constexpr):
    """Sixteen random bits for each value of some blocks, as int32; one draw of Philox has enough for eight of them."""
    draw = row[:, None] * (block // 8) + tl.arange(0, block // 8)[None, :]
    a, b, c, d = tl.philox(seed, draw, number, use, 0, 7)  # the last argument is the number of rounds
    words = tl.join(tl.join(a, b), tl.join(c, d))
    return tl.join(words & 0xFFFF, words >> 16).reshape(row.shape[0], block).to(tl.int32)


@triton.jit
def moment_of(kept, scales, inside, known, signed: tl.constexpr):
    """A moment in float32, from its values or from codes and the scales of their blocks."""
    if kept.dtype.element_ty == tl.uint8:
        level = _level(tl.load(kept, mask=inside, other=0).to(tl.int32), signed)
        moment = level * tl.load(scales, mask=known, other=0.0)[:, None]
    else:
        moment = tl.load(kept, mask=inside, other=0.0)
    return moment


@triton.jit
def keep(kept, scales, value, random, inside, known, signed: tl.constexpr):
    """Writes a moment as it was read; `random` rounds what becomes a code."""
    if kept.dtype.element_ty == tl.uint8:
        _keep_codes(kept, scales, value, random, inside, known, signed)
    else:
        tl.store(kept, value, mask=inside)


@triton.jit
def weight_of(weights, lows, inside, split: tl.constexpr):
    """A weight in float32, with the bits beside it where it is split: see `models.masters`."""
    weight = tl.load(weights, mask=inside, other=0.0)
    if split:
        high = weight.to(tl.int16, bitcast=True).to(tl.int32) << 16
        low = tl.load(lows, mask=inside, other=0).to(tl.int32)
        weight = (high + low).to(tl.float32, bitcast=True)
    return weight.to(tl.float32)


@triton.jit
def keep_weight(weights, lows, value, half, inside, kind: tl.constexpr, split: tl.constexpr):
    """Writes a weight; in bf16 with what is cut off beside it, or without; `half` is added before it is cut off."""
    if kind == tl.bfloat16:
        bits = value.to(tl.int32, bitcast=True)
        high = (bits + half) >> 16
        tl.store(weights, high.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=inside)
        if split:
            tl.store(lows, (bits - (high << 16)).to(tl.int16), mask=inside)
    else:
        tl.store(weights, value, mask=inside)


@triton.jit
def _level(code, signed: tl.constexpr):
    """See `eight_bits.LEVELS`, which are computed; from memory it would take longer."""
    if signed:
        height = tl.where(code > 127, code - 128, 127 - code)
        level = tl.exp2(16 / 127 * _float(height, -127))
        level = tl.where(code == 127, 0.0, tl.where(code > 127, level, -level))
    else:
        level = tl.exp2(24 / 255 * _float(code, -255))
    return level


@triton.jit
def _keep_codes(codes, scales, value, random, inside, known, signed: tl.constexpr):
    """Writes the level below or above, the nearer the likelier.

    Of levels that grow by a factor g, a value that lies f of their distance above one, in the logarithm, is rounded up
    with probability (g^f - 1) / (g - 1). It is where f > u + ln(g) / 2 u (1 - u) with u uniform, to 1e-4.
    """
    bits = tl.where(inside, value, 0.0).to(tl.int32, bitcast=True)
    if signed:
        bits &= 0x7FFFFFFF
    largest = tl.max(bits, axis=1).to(tl.float32, bitcast=True)  # numbers from zero on are in the order of their bits
    tl.store(scales, largest, mask=known)
    octaves = _log2(bits.to(tl.float32, bitcast=True)) - _log2(tl.maximum(largest, 1.2e-38))[:, None]
    uniform = _float(random, 0.5) / 65536
    if signed:
        least = tl.where(value < 0, 1, 0)  # height of the level beside zero
        position = 127 / 16 * octaves + (128 - uniform * (1.0436621 - 0.0436621 * uniform))
        height = tl.minimum(_floor(position), 127)
        code = tl.where(value < 0, 127 - tl.maximum(height, least), 128 + height)
        share = tl.exp2(octaves + 16 / 127 * _float(127 - least, 0))
        code = tl.where(uniform < share, code, 127)
    else:
        position = 255 / 24 * octaves + (256 - uniform * (1.0326174 - 0.0326174 * uniform))
        code = tl.minimum(_floor(position), 255)
    tl.store(codes, code.to(tl.uint8), mask=inside)


@triton.jit
def _float(whole, plus: tl.constexpr):
    """A number from 0 to 2^23 - 1 in float32, plus another; conversions would wait for the unit of logarithms."""
    return (whole | 0x4B000000).to(tl.float32, bitcast=True) + (plus - 8388608)


@triton.jit
def _floor(number):
    """The whole number below one that is less than 2^22, or 0, likewise."""
    return (tl.maximum(number - 0.49999, 0.0) + 8388608.0).to(tl.int32, bitcast=True) & 0x3FFFFF


@triton.jit
def _log2(number):
    """log2 to within 2^-22: one instruction on a card."""
    return libdevice.fast_log2f(number) if COMPILED else tl.log2(number)


@triton.jit
def ratio(one, other):
    """one / other to within two units in the last place: one instruction on a card."""
    return libdevice.fast_dividef(one, other) if COMPILED else one / other
