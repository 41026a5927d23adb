"""exp, erf, tanh and the activations made of them, as arithmetic that every vector unit has.

Calls to libm would turn vector code into scalar code. Each function here takes and returns an expression of REAL (the
polynomials are as good as float32 is) and uses only +, *, /, min, max, select and conversions, so LLVM keeps it in vector
registers on AVX, NEON and ARMv7.
Errors are measured in ``tests/kernels/test_vector_math.py``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx import Expr as PrimExpr

from rt3_tvm.schedules.layout import REAL

# exp(x) leaves the normal float32 range below and above these.
EXP_MIN, EXP_MAX = -87.33, 88.37
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
# Of least largest relative error, 7.5e-8, among polynomials of degree 5 on |r| <= ln2/2: below what rounding adds.
EXP_POLYNOMIAL = (
    8.297636388811116e-03,
    4.1915492511557316e-02,
    1.6667575582394192e-01,
    4.999889387313604e-01,
    9.999996915663646e-01,
    1.0000000717490949e00,
)
# Added to a number below 2**22 it leaves no bits behind the point: the sum is rounded, and its low bits are the integer.
ROUNDING = 1.5 * 2.0**23
# 2**(r / 2) on |r| <= 1/2 but for a factor, as the product of (r**2 + a r + b): of least largest relative error, 8.1e-8.
HALF_POWER = ((10.007266998291016, 31.589702606201172), (1.570393443107605, 52.726295471191406))
POWER_FACTOR = 2.0 * math.prod(b for _, b in HALF_POWER) ** 2
"""What weights of a softmax are multiples of."""
BIAS_OF_POWERS = 128
"""Of the exponent of those weights: what is even stays whole where numbers have no bits for what is odd."""
MANTISSA = 23
# Rational approximation of erf on [-4, 4], odd numerator over even denominator (coefficients as used by Eigen and XLA).
ERF_LIMIT = 4.0
ERF_NUMERATOR = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
ERF_DENOMINATOR = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)


def _f(value: float) -> PrimExpr:
    return REAL.const(value)


def _polynomial(x: PrimExpr, coefficients: Sequence[float]) -> PrimExpr:
    """Return the polynomial by Horner's rule, highest coefficient first."""
    result = _f(coefficients[0])
    for c in coefficients[1:]:
        result = result * x + _f(c)
    return result


def _clamp(x: PrimExpr, low: float, high: float) -> PrimExpr:
    return tirx.max(tirx.min(x, _f(high)), _f(low))


def exp(x: PrimExpr) -> PrimExpr:
    """Return e**x; relative error below 3e-7."""
    return exp_of_negative(tirx.min(x, _f(EXP_MAX)))


def exp_of_negative(x: PrimExpr) -> PrimExpr:
    """Return e**x of what is no larger than EXP_MAX: 2**n times a polynomial on the remainder."""
    x = tirx.max(x, _f(EXP_MIN))
    # ARMv7 has no vector rounding, and conversions both ways cost more than a sum and a difference.
    bits = tirx.reinterpret("int32", x * _f(math.log2(math.e)) + _f(ROUNDING))
    # By way of its bits: TVM's simplifier would take a sum and its difference to cancel.
    n = tirx.reinterpret(REAL.dtype, bits) - _f(ROUNDING)
    remainder = x - n * _f(LN2_HIGH) - n * _f(LN2_LOW)
    power = tirx.reinterpret(REAL.dtype, (bits + 127) << 23)
    return power * _polynomial(remainder, EXP_POLYNOMIAL)


@dataclass(frozen=True)
class VectorUnit:
    """What a vector unit has.

    Parameters
    ----------
    rounds
        An instruction that rounds to whole numbers.
    saturates
        Conversions to unsigned numbers that make 0 of what is negative.
    in_place
        Multiply-adds that write over what they add to, so that a constant that is added is copied first.
    """

    rounds: bool = True
    saturates: bool = False
    in_place: bool = False

    def product(self, a: PrimExpr, b: PrimExpr) -> PrimExpr:
        """Return a product that several sums share; fused into each of them it would take a copy of a constant each time."""
        return tirx.call_llvm_pure_intrin(REAL.dtype, "llvm.arithmetic.fence", a * b) if self.in_place else a * b

    def whole(self, x: PrimExpr) -> PrimExpr:
        """Return x rounded; without an instruction that holds below 2**22, and above 2**23, where all are whole."""
        if self.rounds:
            return tirx.call_llvm_pure_intrin(REAL.dtype, "llvm.nearbyint", x)
        # By way of its bits, as in ``exp_of_negative``.
        return tirx.reinterpret(REAL.dtype, tirx.reinterpret("int32", x + _f(ROUNDING))) - _f(ROUNDING)

    def power(self, e: PrimExpr) -> PrimExpr:
        """Return 2**(e - 127) of a whole number, which the bits of e become the exponent of; 0 where e is not positive."""
        if self.saturates:
            bits = tirx.call_llvm_pure_intrin("uint32", "llvm.fptoui.sat", e * _f(2.0**MANTISSA))
        else:
            bits = tirx.Cast("int32", tirx.max(e, _f(0.0)) * _f(2.0**MANTISSA))
        return tirx.reinterpret(REAL.dtype, bits)


def largest_power(largest: PrimExpr, unit: VectorUnit) -> PrimExpr:
    """Return what ``softmax_weight`` takes for the largest of some scores: whole, so that a difference to it rounds nothing."""
    return unit.whole(largest) - _f(BIAS_OF_POWERS)


def softmax_weight(score: PrimExpr, base: PrimExpr, unit: VectorUnit) -> PrimExpr:
    """Return 2**(score - largest) times a factor that is the same for all, of what is not much above the largest.

    Relative error below 6e-7; exactly 0 from 2**-128 on. ``base`` is ``largest_power`` of the largest; both are below 2**31 in
    magnitude, a score may lie further below. Fewer instructions than ``exp``: the factor leaves polynomials
    their leading coefficient, and sums with a square take no register for a constant that is added.
    """
    whole = unit.whole(score)
    r = score - whole
    square = unit.product(r, r)
    (a0, b0), (a1, b1) = HALF_POWER
    half = (square + _f(b0) + r * _f(a0)) * (square + _f(b1) + r * _f(a1))
    return half * half * unit.power(whole - base)


def erf(x: PrimExpr) -> PrimExpr:
    """Return the error function; absolute error below 5e-7."""
    x = _clamp(x, -ERF_LIMIT, ERF_LIMIT)
    square = x * x
    return x * _polynomial(square, ERF_NUMERATOR) / _polynomial(square, ERF_DENOMINATOR)


def tanh(x: PrimExpr) -> PrimExpr:
    """Return tanh as 1 - 2 / (e**2x + 1); absolute error below 3e-7."""
    return _f(1.0) - _f(2.0) / (exp(x * _f(2.0)) + _f(1.0))


def sigmoid(x: PrimExpr) -> PrimExpr:
    """Return 1 / (1 + e**-x)."""
    return _f(1.0) / (_f(1.0) + exp(_f(0.0) - x))


def gelu(x: PrimExpr) -> PrimExpr:
    """Return x * Phi(x), by erf."""
    return x * _f(0.5) * (_f(1.0) + erf(x * _f(math.sqrt(0.5))))


def gelu_tanh(x: PrimExpr) -> PrimExpr:
    """Return GELU's tanh form."""
    inner = _f(math.sqrt(2.0 / math.pi)) * (x + _f(0.044715) * x * x * x)
    return x * _f(0.5) * (_f(1.0) + tanh(inner))


def silu(x: PrimExpr) -> PrimExpr:
    """Return x * sigmoid(x)."""
    return x * sigmoid(x)


def relu(x: PrimExpr) -> PrimExpr:
    """Return max(x, 0)."""
    return tirx.max(x, _f(0.0))


def identity(x: PrimExpr) -> PrimExpr:
    """Return x."""
    return x


ACTIVATIONS: dict[str, Callable[[PrimExpr], PrimExpr]] = {
    "none": identity,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "tanh": tanh,
}
