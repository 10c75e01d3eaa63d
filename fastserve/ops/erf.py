"""The error function, which NumPy doesn't have.

    erf(x) = 2 / sqrt(pi) · integral of exp(-t²) from 0 to x

float64 follows Cephes (Moshier, "Methods and programs for mathematical functions",
1989) and Cody ("Rational Chebyshev approximations for the error function", 1969):
x T(x²) / U(x²) below 1, and 1 - exp(-x²) P(x) / Q(x) from there on, to 5e-16.

float32 needs less: one quotient x A(x²) / B(x²), fitted for the least relative error up
to the x from which erf is 1 in float32. It is within 4e-7, and half as long.
"""

from __future__ import annotations

import numpy as np

from fastserve.ops.blocks import Array, room, spare

# highest power first
_T = (
    9.60497373987051638749e0,
    9.00260197203842689217e1,
    2.23200534594684319226e3,
    7.00332514112805075473e3,
    5.55923013010394962768e4,
)
_U = (
    1.0,
    3.35617141647503099647e1,
    5.21357949780152679795e2,
    4.59432382970980127987e3,
    2.26290000613890934246e4,
    4.92673942608635921086e4,
)
_P = (
    2.46196981473530512524e-10,
    5.64189564831068821977e-1,
    7.46321056442269912687e0,
    4.86371970985681366614e1,
    1.96520832956077098242e2,
    5.26445194995477358631e2,
    9.34528527171957607540e2,
    1.02755188689515710272e3,
    5.57535335369399327526e2,
)
_Q = (
    1.0,
    1.32281951154744992508e1,
    8.67072140885989742329e1,
    3.54937778887819891062e2,
    9.75708501743205489753e2,
    1.82390916687909736289e3,
    2.24633760818710981792e3,
    1.65666309194161350182e3,
    5.57535340817727675546e2,
)
_A = (
    2.08739305e-08,
    -1.98290788e-06,
    1.37072448e-04,
    3.42987747e-03,
    4.96780153e-02,
    1.93060144e-01,
    1.12837912e00,
)
_B = (8.95812637e-04, 1.37830651e-02, 1.12175577e-01, 5.04427092e-01, 1.0)
_ONE_FLOAT32 = 3.84  # the quotient reaches 1 here
_ONE_FLOAT64 = 6.0
_BOOL = np.dtype(np.bool_)


def erf(x: Array, out: Array) -> None:
    """out = erf(x), float32 or float64; out may be x. Takes slots 10 to 13."""
    if x.dtype == np.float32:
        _erf_float32(x, out)
    else:
        _erf_float64(x, out)


def _erf_float32(x: Array, out: Array) -> None:
    one, end = np.float32(1), np.float32(_ONE_FLOAT32)
    c = np.clip(x, -end, end, out=spare(10, x))
    square = np.multiply(c, c, out=spare(11, x))
    np.multiply(_polynomial(_A, square, 12), c, out=c)
    np.divide(c, _polynomial(_B, square, 12), out=c)
    np.clip(c, -one, one, out=out)


def _erf_float64(x: Array, out: Array) -> None:
    far = np.greater(np.abs(x, out=spare(10, x)), 1, out=room(10, x.shape, _BOOL))
    c = np.clip(x, -_ONE_FLOAT64, _ONE_FLOAT64, out=spare(10, x))
    square = np.multiply(c, c, out=spare(11, x))
    np.abs(c, out=c)
    tail = _polynomial(_P, c, 12)
    np.divide(tail, _polynomial(_Q, c, 13), out=tail)
    np.copysign(c, x, out=c)
    near = np.multiply(_polynomial(_T, square, 13), c, out=c)
    np.divide(near, _polynomial(_U, square, 13), out=near)
    np.negative(square, out=square)
    np.exp(square, out=square)
    np.multiply(tail, square, out=tail)
    np.subtract(1, tail, out=tail)
    np.copysign(tail, x, out=tail)
    np.copyto(near, tail, where=far)
    np.copyto(out, near)


def _polynomial(coefficients: tuple[float, ...], x: Array, slot: int) -> Array:
    """Return the polynomial's values, by Horner's rule, in the spare array ``slot``."""
    kind = x.dtype.type
    y = np.multiply(x, kind(coefficients[0]), out=spare(slot, x))
    for coefficient in coefficients[1:-1]:
        np.add(y, kind(coefficient), out=y)
        np.multiply(y, x, out=y)
    return np.add(y, kind(coefficients[-1]), out=y)
