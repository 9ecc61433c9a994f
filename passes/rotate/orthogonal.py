"""Random rotations of any size: Hadamard matrices where the size allows, orthogonal ones for the odd rest.

A weight matrix is *incoherent* if none of its entries is far above the others (QuIP, Chee et al. 2023, definition 1). A
random rotation of its channels makes it so with high probability, and a Hadamard matrix does it best: each of its
entries has the same magnitude (QuIP#, Tseng et al. 2024, lemma 3.1; QuaRot, Ashkboos et al. 2024, section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def hadamard(size: int) -> Array:
    """Sylvester's Hadamard matrix over ``√size``: float64 ``[size, size]``, orthogonal; ``size`` is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= np.sqrt(size)
    return matrix


def uniform(size: int, random: np.random.Generator) -> Array:
    """A random orthogonal matrix, uniform over all of them: float64 ``[size, size]`` (Stewart 1980)."""
    q, r = np.linalg.qr(random.standard_normal((size, size)))
    turned: Array = q * np.sign(np.diagonal(r))
    return turned


def rotation(size: int, seed: int, *, keep_mean: bool = False) -> Array:
    """A random orthogonal matrix Q, float64 ``[size, size]``; rows x are rotated as ``x Q``.

    With ``size = 2^a m`` and m odd it is ``diag(±1) (Hadamard[2^a] ⊗ orthogonal[m])`` with random signs.

    Args:
        size: number of channels.
        seed: the same seed gives the same matrix.
        keep_mean: Q leaves the vector of ones where it is, so that ``x Q`` has the mean of ``x`` and a layer
            normalization without weight and bias commutes with it.
    """
    random = np.random.default_rng(seed)
    if keep_mean:
        # In the basis of a reflection that takes 1/√n to the first axis, all other axes are rotated.
        inner = np.eye(size)
        inner[1:, 1:] = rotation(size - 1, seed) if size > 1 else inner[1:, 1:]
        axis = np.full(size, 1 / np.sqrt(size))
        axis[0] -= 1
        length = float(axis @ axis)
        reflection = np.eye(size) - (2 / length) * np.outer(axis, axis) if length > 0 else np.eye(size)
        kept: Array = reflection @ inner @ reflection
        return kept
    power = size & -size
    signs = random.choice([-1.0, 1.0], size)
    matrix: Array = signs[:, None] * np.kron(hadamard(power), uniform(size // power, random))
    return matrix
