"""exp, erf, tanh and the activations made of them, as arithmetic that every vector unit has.

Calls to libm would turn vector code into scalar code. Each function here takes and returns an expression of REAL (the
polynomials are as good as float32 is) and uses only +, *, /, min, max, select and conversions, so LLVM keeps it in vector
registers on AVX, NEON and ARMv7.
Errors are measured in ``tests/kernels/test_vector_math.py``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.tirx import Expr as PrimExpr

from rt3_tvm.schedules.layout import REAL
from rt3_tvm.schedules.normal_tail import TAIL, TAIL_LIMIT, TAIL_SCALE

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
CUBIC_POWER = (2.33833909034729, 2.059046745300293, 7.750775337219238)
"""2**r on |r| <= 1/2 but for a factor, as (r + c)(r**2 + a r + b): of least largest relative error, 7.5e-5."""
CUBIC_FACTOR = 2.0**-4 * CUBIC_POWER[0] * CUBIC_POWER[2]
"""What ``coarse_weight`` gives multiples of."""
FRACTION_POWER = (0.001877577, 0.008989341, 0.055826318, 0.24015361, 0.6931531, 0.99999994)
"""2**r on 0 <= r <= 1, highest coefficient first: of least largest relative error, 9.1e-8."""
DOWN = 0b1001
"""Of what ``vreduceps`` subtracts: that it is the next lower whole number, and that nothing is reported."""
BIAS_OF_POWERS = 128
"""Of the exponent of those weights: what is even stays whole where numbers have no bits for what is odd."""
MANTISSA = 23
EXPONENT_OF_1 = 127
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

# Phi(x) - 1/2 on [-LIMIT, LIMIT] as x * FACTOR * N(x**2) / D(x**2), for GELU: the rational function of degrees 5 and 4 of least
# largest error, 7e-8 of the larger of 1 and 1 / |x|, as factors (y**2 + a y + b) and (y + b).
PHI_LIMIT = 5.2
PHI_FACTOR = -1.1442704152996785e-04
PHI_NUMERATOR = ((-352.322888409798, -20897.52839246434), (4.735811633587686, 109.25828970270669), (9.681265135035396,))
PHI_DENOMINATOR = ((8.77271318113083, 117.85763864925397), (13.755929957485293, 53.79527754658575))

# (Phi(x) - 1/2) / x on |x| <= LIMIT as a polynomial in x**2, which 2 x**2 / LIMIT**2 - 1 stands for so that sums lose no bits: of
# least largest absolute error of Phi, 2.3e-7, among those that end at 1, where Phi is 1.7e-7 less. Lowest first.
PHI_POLYNOMIAL_LIMIT = 5.1
PHI_POLYNOMIAL = (
    0.1386052966117859,
    -0.06900274753570557,
    0.050781745463609695,
    -0.040232058614492416,
    0.031737618148326874,
    -0.02392209880053997,
    0.017335807904601097,
    -0.012288948521018028,
    0.00719337398186326,
    -0.002911144634708762,
    0.0020242580212652683,
    -0.002093931892886758,
    0.000812044832855463,
)


def _f(value: float) -> PrimExpr:
    return REAL.const(value)


def _polynomial(x: PrimExpr, coefficients: Sequence[float]) -> PrimExpr:
    """Return the polynomial by Horner's rule, highest coefficient first."""
    result = _f(coefficients[0])
    for c in coefficients[1:]:
        result = result * x + _f(c)
    return result


def _fenced(x: PrimExpr) -> PrimExpr:
    """Return a product that several sums share, as it is: no multiply-add computes it again in each of them."""
    return tirx.call_llvm_pure_intrin(REAL.dtype, "llvm.arithmetic.fence", x)


def _product(y: PrimExpr, factors: Sequence[tuple[float, ...]]) -> PrimExpr:
    """Return the product of (y**2 + a y + b) of each pair, and of (y + b) of each single coefficient.

    Two instructions a pair, where Horner's rule takes four if multiply-adds write over what they add to: it copies each constant.
    """
    square, result = _fenced(y * y), None
    for *middle, last in factors:
        factor = square + _f(last) + y * _f(middle[0]) if middle else y + _f(last)
        result = factor if result is None else result * factor
    return result


def _by_pairs(x: PrimExpr, coefficients: Sequence[float]) -> PrimExpr:
    """Return the polynomial as one in x**2, lowest coefficient first: chains are half as long as Horner's."""
    square, result = x * x, None
    for i in reversed(range(0, len(coefficients), 2)):
        low, high = _f(coefficients[i]), coefficients[i + 1 : i + 2]
        pair = low + x * _f(high[0]) if high else low
        result = pair if result is None else pair + result * square
    assert result is not None, "a polynomial has coefficients"
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
    avx512
        AVX-512 (F and DQ) on vectors of ``AVX512_LANES``: it multiplies by powers of 2, subtracts whole parts, and looks numbers
        up in two vectors.
    """

    rounds: bool = True
    saturates: bool = False
    in_place: bool = False
    avx512: bool = False

    def product(self, a: PrimExpr, b: PrimExpr) -> PrimExpr:
        """Return a product that several sums share; fused into each of them it would take a copy of a constant each time."""
        return _fenced(a * b) if self.in_place else a * b

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


AVX512_LANES = 16
"""Numbers of a vector of AVX-512."""
ANY_UNIT = VectorUnit()
"""Of a core of which nothing is known."""


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


def power_of_vector(x: PrimExpr) -> PrimExpr:
    """Return 2**x of a vector of AVX-512, relative error below 2e-7; exactly 0 from 2**-151 on.

    Of what is below 0 the bits of x itself count: it is off by 2**-24 of its size, and 2**x by so much of what it is.
    """
    dtype, lanes = str(x.ty.dtype), int(x.ty.dtype.lanes)
    rest = (
        tirx.Broadcast(_f(0.0), lanes),
        tirx.const(-1, "int16"),
        tirx.const(4, "int32"),
    )  # all lanes, rounded as usual
    part = tirx.call_llvm_pure_intrin(dtype, "llvm.x86.avx512.mask.reduce.ps.512", x, tirx.const(DOWN, "int32"), *rest)
    power = _polynomial(part, FRACTION_POWER)
    return tirx.call_llvm_pure_intrin(dtype, "llvm.x86.avx512.mask.scalef.ps.512", power, x, *rest)


def coarse_base(largest: PrimExpr, unit: VectorUnit) -> PrimExpr:
    """Return what ``coarse_weight`` takes for the largest of some scores: then weights are 1.6 at most."""
    return unit.whole(largest) - _f(EXPONENT_OF_1 - 4)


def coarse_weight(score: PrimExpr, base: PrimExpr, unit: VectorUnit) -> PrimExpr:
    """Return :func:`softmax_weight` to a relative error of 8e-5, for weights that are rounded to float16; ``base`` is its own.

    Two instructions less. Exactly 0 from 2**-123 on.
    """
    whole = unit.whole(score)
    r = score - whole
    c, a, b = CUBIC_POWER
    return (r + _f(c)) * (unit.product(r, r) + _f(b) + r * _f(a)) * unit.power(whole - base)


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


def gelu(x: PrimExpr, unit: VectorUnit = ANY_UNIT) -> PrimExpr:
    """Return x * Phi(x); error below 4e-7 of the larger of 1 and |x|.

    Where constants that are added are copied, one division costs less than a polynomial has copies; a division of sixteen numbers
    on AVX-512 costs more.
    """
    if unit.in_place:
        inside = _clamp(x, -PHI_LIMIT, PHI_LIMIT)
        square = _fenced(inside * inside)
        beside_half = inside * _product(square, PHI_NUMERATOR) / _product(square, PHI_DENOMINATOR)
        return x * _f(0.5) + x * _f(PHI_FACTOR) * beside_half
    inside = _clamp(x, -PHI_POLYNOMIAL_LIMIT, PHI_POLYNOMIAL_LIMIT)
    u = inside * inside * _f(2.0 / PHI_POLYNOMIAL_LIMIT**2) - _f(1.0)
    return x * (_f(0.5) + inside * _by_pairs(u, PHI_POLYNOMIAL))


def gelu_of_vector(x: PrimExpr) -> PrimExpr:
    """Return :func:`gelu` of a vector of AVX-512, as max(0, x) - |x| * (1 - Phi(|x|)).

    The part of the line that |x| lies in says by which polynomial: twelve instructions, where one for all of it takes nineteen.
    """
    dtype, lanes = str(x.ty.dtype), AVX512_LANES
    size = tirx.min(tirx.call_llvm_pure_intrin(dtype, "llvm.fabs", x), _f(TAIL_LIMIT))
    part = tirx.reinterpret(
        f"int32x{lanes}", size * _f(TAIL_SCALE) + _f(ROUNDING)
    )  # in the low bits, which are looked at
    result = None
    for row in reversed(TAIL):
        low, high = (tirx.Shuffle([*map(_f, half)], [*range(lanes)]) for half in (row[:lanes], row[lanes:]))
        one = tirx.call_llvm_pure_intrin(dtype, "llvm.x86.avx512.vpermi2var.ps.512", low, part, high)
        result = one if result is None else result * size + one
    assert result is not None, "a polynomial has coefficients"
    return tirx.max(_f(0.0), x) - size * result  # in this order x86 keeps what is no number


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


Activation = Callable[[PrimExpr], PrimExpr]
ACTIVATIONS: dict[str, Activation] = {
    "none": identity,
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "tanh": tanh,
}


def activation_of(name: str, unit: VectorUnit) -> Activation:
    """Return a function of ACTIVATIONS as a unit computes it best."""
    return partial(gelu, unit=unit) if name == "gelu" else ACTIVATIONS[name]


def vector_activation_of(name: str, unit: VectorUnit, lanes: int) -> Activation | None:
    """Return a function of ACTIVATIONS on vectors of so many numbers; None where it is as well applied to each of them."""
    return gelu_of_vector if name == "gelu" and unit.avx512 and lanes == AVX512_LANES else None


SHORT = ("none", "relu")
"""Activations of few instructions."""
TOGETHER = 4
"""Vectors that another is applied to at once: their divisions overlap."""
