"""Passes over a block's tokens: values of inequalities in play, which to keep, and what their mix adds up to.

`known` is a `relaxation.Inequalities`. Y of all blocks is [B, E + 1, E + 1], b the block the tokens belong to.
"""

import numpy as np
from numba import njit

FEWEST_SHARE = 1e-3
"""Inequalities with less of a token's mix are dropped."""


@njit(nogil=True, cache=True)
def _products(y_BYY, b, every, experts_K, sign, product_BKK):  # type: ignore[no-untyped-def]
    """X between a token's experts, x on the diagonal, with x the indicator of S_b (sign 1) or of its complement."""
    for block in range(len(y_BYY)):
        if block != b and not every:
            continue
        y, product_KK = y_BYY[block], product_BKK[block]
        for i in range(len(experts_K)):
            one = experts_K[i] + 1
            product_KK[i, i] = 0.5 + 0.5 * sign * y[0, one]
            for j in range(i):
                two = experts_K[j] + 1
                product_KK[i, j] = 0.25 * (1 + sign * (y[0, one] + y[0, two]) + y[one, two])


@njit(nogil=True, cache=True)
def _quadratic(product_KK, members_K, number, row):  # type: ignore[no-untyped-def]
    count = pairs = 0.0
    for p in range(number):
        i = members_K[p]
        count += product_KK[i, i]
        for r in range(p):
            pairs += product_KK[i, members_K[r]]
    return row[0] + (row[1] + row[2]) * count + 2 * row[2] * pairs


@njit(nogil=True, cache=True)
def _value(product_BKK, b, j, known):  # type: ignore[no-untyped-def]
    value = _quadratic(product_BKK[b], known.members[j], known.number[j], known.own[j])
    if j >= known.num_own:
        for block in range(len(product_BKK)):
            if block != b:
                value += _quadratic(product_BKK[block], known.members[j], known.number[j], known.other[j])
    return value


@njit(nogil=True, cache=True)
def values_of_tokens(y_BYY, b, experts_MK, sign_M, known, chosen_MW):  # type: ignore[no-untyped-def]
    """[M, W] the value at Y of every inequality in play; -1e300 for none."""
    size, width = experts_MK.shape[1], chosen_MW.shape[1]
    every = known.num_own < len(known.number)
    product_BKK = np.zeros((len(y_BYY), size, size))
    value_MW = np.full(chosen_MW.shape, -1e300)
    for token in range(len(experts_MK)):
        _products(y_BYY, b, every, experts_MK[token], sign_M[token], product_BKK)
        for w in range(width):
            j = chosen_MW[token, w]
            if j < 0:
                break
            value_MW[token, w] = _value(product_BKK, b, j, known)
    return value_MW


@njit(nogil=True, cache=True)
def renew_of_tokens(y_BYY, b, experts_MK, sign_M, known, chosen_MW, share_MW):  # type: ignore[no-untyped-def]
    """Keep shares of FEWEST_SHARE and more, add the strongest inequality of each kind if it is not in play."""
    size, width = experts_MK.shape[1], chosen_MW.shape[1]
    every = known.num_own < len(known.number)
    product_BKK = np.zeros((len(y_BYY), size, size))
    for token in range(len(experts_MK)):
        kept, total = 0, 0.0
        for w in range(width):
            if share_MW[token, w] >= FEWEST_SHARE:
                chosen_MW[token, kept], share_MW[token, kept] = chosen_MW[token, w], share_MW[token, w]
                total += share_MW[token, kept]
                kept += 1
        kept = min(kept, width - 2)
        _products(y_BYY, b, every, experts_MK[token], sign_M[token], product_BKK)
        for first, last in ((0, known.num_own), (known.num_own, len(known.number))):
            best, strongest = -1, -1e300
            for j in range(first, last):
                value = _value(product_BKK, b, j, known)
                if value > strongest:
                    best, strongest = j, value
            new = best >= 0
            for w in range(kept):
                new &= chosen_MW[token, w] != best
            if new:
                chosen_MW[token, kept] = best
                share_MW[token, kept] = 0.1 * total
                kept += 1
        chosen_MW[token, kept:] = -1
        share_MW[token, kept:] = 0.0
        share_MW[token] /= share_MW[token].sum()


@njit(nogil=True, cache=True)
def _add_slopes(slope_KK, members_K, number, row, share):  # type: ignore[no-untyped-def]
    for p in range(number):
        i = members_K[p]
        slope_KK[i, i] += share * (row[1] + row[2])
        for r in range(p):
            slope_KK[i, members_K[r]] += 2 * share * row[2]


@njit(nogil=True, cache=True)
def assemble_of_tokens(b, experts_MK, weight_M, sign_M, known, chosen_MW, share_MW, linear_BE, pairs_BEE):  # type: ignore[no-untyped-def]
    """Add the mix of the tokens' inequalities to what multiplies x [B, E] and X [B, E, E]; returns its constant."""
    size, width = experts_MK.shape[1], chosen_MW.shape[1]
    slope_BKK = np.zeros((len(linear_BE), size, size))
    constant = 0.0
    for token in range(len(experts_MK)):
        slope_BKK[:] = 0
        every = False
        for w in range(width):
            j = chosen_MW[token, w]
            if j < 0:
                break
            share = weight_M[token] * share_MW[token, w]
            constant += share * known.own[j, 0]
            _add_slopes(slope_BKK[b], known.members[j], known.number[j], known.own[j], share)
            if j >= known.num_own:
                every = True
                for block in range(len(linear_BE)):
                    if block != b:
                        constant += share * known.other[j, 0]
                        _add_slopes(slope_BKK[block], known.members[j], known.number[j], known.other[j], share)
        for block in range(len(linear_BE)):
            if block == b or every:
                slopes = slope_BKK[block]
                constant += _place(experts_MK[token], sign_M[token], slopes, linear_BE[block], pairs_BEE[block])
    return constant


@njit(nogil=True, cache=True)
def _place(experts_K, sign, slope_KK, linear_E, pairs_EE):  # type: ignore[no-untyped-def]
    """Add a token's slopes in the x and X of S or, where the sign is -1, of its complement; what becomes constant."""
    constant = 0.0
    for i in range(len(experts_K)):
        one = experts_K[i]
        linear_E[one] += sign * slope_KK[i, i]
        if sign < 0:
            constant += slope_KK[i, i]
        for j in range(i):
            two, slope = experts_K[j], slope_KK[i, j]
            pairs_EE[one, two] += slope
            if sign < 0:  # (1 - x)(1 - x')
                constant += slope
                linear_E[one] -= slope
                linear_E[two] -= slope
    return constant
