"""Functions of generated kernels that Triton's language lacks, in float32, without libraries of a vendor.

Polynomials for arcs are those of Cephes (Moshier 1992); ``log1p`` and ``expm1`` are Kahan's. Errors are a few units in
the last place, which the tests hold against PyTorch.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(-x)), without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0 / (1.0 + e), e / (1.0 + e))


@triton.jit
def log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x), right for small x."""
    u = 1.0 + x
    d = u - 1.0
    near = tl.where(d == 0.0, 1.0, d)
    return tl.where(d == 0.0, x, tl.where(u == float("inf"), u, tl.log(u) * (x / near)))


@triton.jit
def expm1(x):  # type: ignore[no-untyped-def]
    """exp(x) - 1, right for small x."""
    u = tl.exp(x)
    d = u - 1.0
    kahan = (u == 1.0) | (d == -1.0) | (u == float("inf"))
    log = tl.log(tl.where(kahan, 2.0, u))
    return tl.where(u == 1.0, x, tl.where(kahan, d, d * (x / log)))


@triton.jit
def tanh(x):  # type: ignore[no-untyped-def]
    """The hyperbolic tangent."""
    a = tl.abs(x)
    e = tl.exp(-2.0 * a)
    z = a * a
    small = a * (1.0 + z * (-0.33333333 + z * (0.13333333 + z * (-0.053968254 + z * (0.021869488 - z * 0.008863235)))))
    y = tl.where(a < 0.35, small, (1.0 - e) / (1.0 + e))
    return tl.where(x < 0, -y, y)


@triton.jit
def sinh(x):  # type: ignore[no-untyped-def]
    """The hyperbolic sine."""
    a = tl.abs(x)
    e = tl.exp(a - 0.69314718)
    z = a * a
    small = a * (1.0 + z * (0.16666667 + z * (8.3333333e-3 + z * (1.9841270e-4 + z * 2.7557319e-6))))
    y = tl.where(a < 1.0, small, e - 0.25 / e)
    return tl.where(x < 0, -y, y)


@triton.jit
def cosh(x):  # type: ignore[no-untyped-def]
    """The hyperbolic cosine."""
    e = tl.exp(tl.abs(x) - 0.69314718)
    return e + 0.25 / e


@triton.jit
def tan(x):  # type: ignore[no-untyped-def]
    """The tangent."""
    return tl.sin(x) / tl.cos(x)


@triton.jit
def atan(x):  # type: ignore[no-untyped-def]
    """The arc tangent."""
    a = tl.abs(x)
    far, middle = a > 2.41421356, a > 0.41421356
    base = tl.where(far, 1.57079633, tl.where(middle, 0.78539816, 0.0))
    safe = tl.where(far, a, 1.0)
    t = tl.where(far, -1.0 / safe, tl.where(middle, (a - 1.0) / (a + 1.0), a))
    z = t * t
    p = (((8.05374449538e-2 * z - 1.38776856032e-1) * z + 1.99777106478e-1) * z - 3.33329491539e-1) * z * t + t
    return tl.where(x < 0, -(base + p), base + p)


@triton.jit
def _arc(z, s):  # type: ignore[no-untyped-def]
    """asin(s) for z = s² of at most 1/4."""
    p = (((4.2163199048e-2 * z + 2.4181311049e-2) * z + 4.5470025998e-2) * z + 7.4953002686e-2) * z + 1.6666752422e-1
    return p * z * s + s


@triton.jit
def asin(x):  # type: ignore[no-untyped-def]
    """The arc sine."""
    a = tl.abs(x)
    large = a > 0.5
    z = tl.where(large, 0.5 * (1.0 - a), a * a)
    p = _arc(z, tl.where(large, tl.sqrt(z), a))
    y = tl.where(large, 1.57079633 - 2.0 * p, p)
    return tl.where(x < 0, -y, y)


@triton.jit
def acos(x):  # type: ignore[no-untyped-def]
    """The arc cosine."""
    a = tl.abs(x)
    large = a > 0.5
    z = tl.where(large, 0.5 * (1.0 - a), x * x)
    p = _arc(z, tl.where(large, tl.sqrt(z), x))
    return tl.where(large, tl.where(x < 0, 3.14159265 - 2.0 * p, 2.0 * p), 1.57079633 - p)


@triton.jit
def asinh(x):  # type: ignore[no-untyped-def]
    """The area hyperbolic sine."""
    a = tl.abs(x)
    near = tl.minimum(a, 1e9)
    y = log1p(near + near * near / (1.0 + tl.sqrt(1.0 + near * near)))
    y = tl.where(a > 1e9, tl.log(a) + 0.69314718, y)
    return tl.where(x < 0, -y, y)


@triton.jit
def acosh(x):  # type: ignore[no-untyped-def]
    """The area hyperbolic cosine; NaN below 1."""
    t = tl.minimum(x, 1e9) - 1.0
    y = log1p(t + tl.sqrt(t * (2.0 + t)))
    return tl.where(x > 1e9, tl.log(x) + 0.69314718, y)


@triton.jit
def atanh(x):  # type: ignore[no-untyped-def]
    """The area hyperbolic tangent."""
    a = tl.abs(x)
    y = 0.5 * log1p(2.0 * a / (1.0 - a))
    return tl.where(x < 0, -y, y)


@triton.jit
def round_even(x):  # type: ignore[no-untyped-def]
    """The nearest whole number, halves to even ones: adding 2²³ leaves no fraction in float32."""
    a = tl.abs(x)
    y = tl.where(a < 8388608.0, (a + 8388608.0) - 8388608.0, a)
    return tl.where(x < 0, -y, y)


@triton.jit
def truncate(x):  # type: ignore[no-untyped-def]
    """The whole number next to zero."""
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))


@triton.jit
def softplus(x):  # type: ignore[no-untyped-def]
    """log(1 + exp(x)), without overflow."""
    return tl.maximum(x, 0.0) + log1p(tl.exp(-tl.abs(x)))


@triton.jit
def power(x, y):  # type: ignore[no-untyped-def]
    """x to the power of y as IEEE 754 has it: NaN for a root of a negative number, 1 for y = 0."""
    y = tl.zeros_like(x) + y
    a = tl.abs(x)
    safe = tl.where(a == 0.0, 1.0, a)
    p = tl.exp2(y * tl.log2(safe))
    p = tl.where(a == 0.0, tl.where(y > 0, 0.0, float("inf")), p)
    whole = truncate(y) == y
    half = y * 0.5
    odd = whole & (truncate(half) != half)
    p = tl.where((x < 0) & odd, -p, p)
    p = tl.where((x < 0) & (whole == 0) & (a != float("inf")), float("nan"), p)
    return tl.where((y == 0.0) | (x == 1.0), 1.0, p)


@triton.jit
def floor_mod(x, y):  # type: ignore[no-untyped-def]
    """The remainder with the sign of the divisor."""
    r = x % y
    return tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)


@triton.jit
def multiply(a, b):  # type: ignore[no-untyped-def]
    """For reductions."""
    return a * b
