"""The formulas that the kernels compile: plain scalar Python, pure arithmetic.

Exponentials and logarithms are taken by the callers, block by block, with vector code; what is left
is here, once, with the reason for every form. Conditions are joined by ``&``, not by ``and``, whose
short cut would be a branch and keep the loop around it scalar. Names: ``m`` a row's largest logit,
``S = Σ_{j≠max} e^(z_j - m)``, ``Z = 1 + S``, ``L = log1p(S) = log Z``. `reference.py` is the same in NumPy.
"""

from __future__ import annotations

# Minimax coefficients, lowest power first; tests/test_math.py fits them again and measures their error.
ATANH_TAIL = (
    0.3333333333333333, 0.20000000000007354, 0.14285714283537695, 0.11111111360401034, 0.09090894633246725,
    0.07692787412678452, 0.06657033083633097, 0.06000907475849295, 0.04398474241690317, 0.0808604034599896,
)  # fmt: skip
EXPM1_TAIL = (
    0.5, -0.16666666666666666, 0.04166666666666609, -0.008333333333333299, 0.0013888888888981404,
    -0.00019841269841324198, 2.4801587246096818e-05, -2.7557319191381816e-06, 2.755733506893373e-07,
    -2.5052117695907823e-08, 2.0874435575864273e-09, -1.6057679623801638e-10, 1.1639194124150522e-11,
    -7.746178593018827e-13,
)  # fmt: skip

# The same for float32, and what only that needs: 2^-d = 1 - d·log 2 + d²·P(d) for |d| <= 1, atanh s = s + s³·P(s²) for
# |s| <= 1/5, log(1+e) = e + e²·P(e) for 0 <= e <= 1, tanh(x/2) = x·P(x²) for |x| <= 1, and
# (1+t)·log(1+t) + (1-t)·log(1-t) = t² + t⁴·P(t²) for t <= 0.7.
ATANH_TAIL_F32 = (
    0.33333264698093396, 0.2000803477904472, 0.14040033943483646, 0.13832658244837237,
)  # fmt: skip
EXPM1_TAIL_F32 = (
    0.4999999979286023, -0.16666667010220385, 0.0416667345418212, -0.00833331026062411, 0.001388545209074165,
    -0.0001984402761123246, 2.5354813342996423e-05, -2.7722553706966878e-06,
)  # fmt: skip
EXP2_TAIL_F32 = (
    0.24022650721461197, -0.05550411968805821, 0.009618125244651008, -0.0013332669025038343, 0.00015404152051962813,
    -1.543120051782945e-05, 1.325645221911946e-06,
)  # fmt: skip
ATANH_FIFTH_F32 = (0.3333335679477427, 0.19989487630217762, 0.1497833432723188)
LOG1P_F32 = (
    -0.499999327689561, 0.33330511349720876, -0.24958587139087948, 0.1969539761316515, -0.15355385668664923,
    0.1068053545412744, -0.05766423406227736, 0.020204468683094553, -0.0033184460150702294,
)  # fmt: skip
HALF_TANH = (
    0.4999999934360455, -0.041666336744831306, 0.0041639935429633205, -0.00041395371755833935, 3.346681002258998e-05,
)  # fmt: skip
EVEN_JS = (
    0.16666669612269858, 0.06666080007157434, 0.03590175026656513, 0.020023288411596684, 0.027050962859049076,
    -0.020202063421164797, 0.043404343679630294,
)  # fmt: skip


def atanh_tail(u):
    """``(atanh(s) - s) / s³`` as a function of ``u = s²``, for ``|s| <= 1/3``."""
    a0, a1, a2, a3, a4, a5, a6, a7, a8, a9 = ATANH_TAIL
    return a0 + u * (a1 + u * (a2 + u * (a3 + u * (a4 + u * (a5 + u * (a6 + u * (a7 + u * (a8 + u * a9))))))))


def expm1_tail(d):
    """``(e^-d - 1 + d) / d²`` for ``|d| <= 1``."""
    c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = EXPM1_TAIL
    high = c7 + d * (c8 + d * (c9 + d * (c10 + d * (c11 + d * (c12 + d * c13)))))
    return c0 + d * (c1 + d * (c2 + d * (c3 + d * (c4 + d * (c5 + d * (c6 + d * high))))))


# --- cross-entropy --------------------------------------------------------------------------------


def softmax_gradient(A, b, p, rest):
    """``A·p - b`` with ``rest = 1 - p``: the true class gives ``-rest``, and never ``p - 1``."""
    return (A - b) * p - b * rest


# --- divergences ----------------------------------------------------------------------------------


def close(a, b):
    """Whether ``a/b`` lies between 1/2 and 2."""
    return (a < 2.0 * b) & (b < 2.0 * a)


def log_ratio(a, b, difference, far):
    """``log(a/b)``: from ``a - b`` where the two are close, else `far`, the logarithm of the quotient."""
    s = difference / (a + b)
    near = 2.0 * s * (1.0 + s * s * atanh_tail(s * s))
    return near if close(a, b) else far


def divergence_term(a, b, difference, ratio):
    """``a·log(a/b) - a + b``, non-negative, from ``a - b`` and ``log(a/b)``.

    With ``s = (a-b)/(a+b)`` it is ``(a-b)·s·(1 + s·(1+s)·tail)``: nothing cancels for ``a ≈ b``.
    """
    s = difference / (a + b)
    near = difference * s * (1.0 + s * (1.0 + s) * atanh_tail(s * s))
    far = -difference if a == 0.0 else a * ratio - difference
    return near if close(a, b) else far


def difference_of_logs(p, q, d):
    """``p - q = -p·expm1(-d)`` for ``d = log(p/q)``: from `d` where it is small."""
    near = p * (d * (1.0 - d * expm1_tail(d)))
    return near if abs(d) < 1.0 else p - q


def divergence_term_of_logs(p, q, d, difference):
    """``p·(d + expm1(-d))``: by its series where ``|d| < 1``, else with `q` itself, which may be 0."""
    near = p * d * d * expm1_tail(d)
    far = q if p == 0.0 else p * d - difference
    return near if abs(d) < 1.0 else far


def js_term(w, p, q, m, difference, log_p_m, log_q_m):
    """``w·[p·log(p/m) - p + m] + (1-w)·[q·log(q/m) - q + m]``: the added ``m - p`` and ``m - q`` cancel."""
    of_p = divergence_term(p, m, (1.0 - w) * difference, log_p_m)
    of_q = divergence_term(q, m, -w * difference, log_q_m)
    return 0.0 if m == 0.0 else w * of_p + (1.0 - w) * of_q


def times(weight, value):
    """``weight · value`` where a weight of 0 gives 0, also times infinity; NaN stays NaN."""
    return 0.0 if (weight == 0.0) & (value == value) else weight * value
