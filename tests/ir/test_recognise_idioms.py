"""What models spell out in primitive operators becomes the operator that it is; what only looks like it does not."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import ir as I
from tvm.script import relax as R
from tvm_ffi import structural_equal

from rt3_tvm.transform import recognise_idioms
from rt3_tvm.transform.recognise_idioms import IDIOMS, RecogniseIdioms
from tests.ir.before_after import check_pair, check_unchanged, main_of

HIDDEN_AHEAD = relax.const(np.triu(np.full((4, 4), np.finfo(np.float32).min, np.float32), 1))


@I.ir_module
class BroadcastToTheSameShape:
    @R.function
    def before(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            a = R.broadcast_to(x, (4, 8))
            y = R.add(a, x)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            y = R.add(x, x)
            R.output(y)
        return y


@I.ir_module
class ReshapeToTheSameShape:
    @R.function
    def before(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            a = R.reshape(x, (4, 8))
            y = R.add(a, x)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            y = R.add(x, x)
            R.output(y)
        return y


@I.ir_module
class ReshapeOfAReshape:
    @R.function
    def before(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            a = R.reshape(x, (2, 2, 8))
            y = R.reshape(a, (2, 16))
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            y = R.reshape(x, (2, 16))
            R.output(y)
        return y


@I.ir_module
class SliceOfWhatWasWrittenThere:
    @R.function
    def before(x: R.Tensor((2, 8), "float32"), z: R.Tensor((2, 4), "float32")):
        with R.dataflow():
            a = R.slice_scatter(x, z, 4, 8, 1, axis=1)
            b = R.strided_slice(a, axes=[-1], begin=[4], end=[9223372036854775807], strides=[1])
            y = R.add(b, z)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((2, 8), "float32"), z: R.Tensor((2, 4), "float32")):
        with R.dataflow():
            y = R.add(z, z)
            R.output(y)
        return y


@I.ir_module
class TransposeOfUnits:
    @R.function
    def before(x: R.Tensor((1, 4, 1, 2, 8), "float32")):
        with R.dataflow():
            y = R.permute_dims(x, axes=[1, 0, 3, 2, 4])
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((1, 4, 1, 2, 8), "float32")):
        with R.dataflow():
            y = R.reshape(x, (4, 1, 2, 1, 8))
            R.output(y)
        return y


@I.ir_module
class TransposeBehindExpandDims:
    @R.function
    def before(x: R.Tensor((4, 1, 2, 8), "float32")):
        with R.dataflow():
            a = R.expand_dims(x, axis=[4])
            y = R.permute_dims(a, axes=[1, 2, 0, 4, 3])
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 1, 2, 8), "float32")):
        with R.dataflow():
            a = R.permute_dims(x, axes=[1, 2, 0, 3])
            y = R.reshape(a, (1, 2, 4, 1, 8))
            R.output(y)
        return y


@I.ir_module
class TransposeBehindReshape:
    @R.function
    def before(x: R.Tensor((4, 2, 8), "float32")):
        with R.dataflow():
            a = R.reshape(x, (4, 1, 2, 1, 8))
            y = R.permute_dims(a, axes=[1, 2, 3, 0, 4])
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 2, 8), "float32")):
        with R.dataflow():
            a = R.permute_dims(x, axes=[1, 0, 2])
            y = R.reshape(a, (1, 2, 1, 4, 8))
            R.output(y)
        return y


@I.ir_module
class EinsumOfHeads:
    @R.function
    def before(x: R.Tensor((40, 2, 4, 12), "float32")):
        with R.dataflow():
            a = R.expand_dims(x, axis=[4])
            b = R.permute_dims(a, axes=[1, 2, 0, 4, 3])
            c = R.permute_dims(b, axes=[0, 1, 2, 4, 3])
            y = R.reshape(c, (8, 40, 12))
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((40, 2, 4, 12), "float32")):
        with R.dataflow():
            a = R.permute_dims(x, axes=[1, 2, 0, 3])
            y = R.reshape(a, (8, 40, 12))
            R.output(y)
        return y


@I.ir_module
class TransposesThatCancel:
    @R.function
    def before(x: R.Tensor((2, 3, 4, 5), "float32")):
        with R.dataflow():
            a = R.permute_dims(x, axes=[0, 2, 3, 1])
            b = R.permute_dims(a, axes=[0, 3, 1, 2])
            y = R.add(b, x)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((2, 3, 4, 5), "float32")):
        with R.dataflow():
            y = R.add(x, x)
            R.output(y)
        return y


@I.ir_module
class GeluInItsTanhForm:
    @R.function
    def before(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            cube = R.power(x, R.const(3.0, "float32"))
            cubic = R.multiply(cube, R.const(0.044715, "float32"))
            both = R.add(x, cubic)
            scaled = R.multiply(both, R.const(0.7978845608, "float32"))
            squashed = R.tanh(scaled)
            above = R.add(squashed, R.const(1.0, "float32"))
            half = R.multiply(x, R.const(0.5, "float32"))
            y = R.multiply(half, above)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            y = R.nn.gelu_tanh(x)
            R.output(y)
        return y


@I.ir_module
class Silu:
    @R.function
    def before(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            a = R.sigmoid(x)
            y = R.multiply(x, a)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            y = R.nn.silu(x)
            R.output(y)
        return y


@I.ir_module
class SiluSigmoidFirst:
    @R.function
    def before(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            a = R.sigmoid(x)
            y = R.multiply(a, x)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            y = R.nn.silu(x)
            R.output(y)
        return y


@I.ir_module
class RmsNormWeightFirst:
    @R.function
    def before(x: R.Tensor((2, 4, 8), "float32"), w: R.Tensor((8,), "float32")):
        with R.dataflow():
            square = R.power(x, R.const(2.0, "float32"))
            mean = R.mean(square, axis=[-1], keepdims=True)
            more = R.add(mean, R.const(0.125, "float32"))
            scale = R.rsqrt(more)
            normal = R.multiply(x, scale)
            y = R.multiply(w, normal)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((2, 4, 8), "float32"), w: R.Tensor((8,), "float32")):
        with R.dataflow():
            y = R.nn.rms_norm(x, w, axes=[-1], epsilon=0.125)
            R.output(y)
        return y


@I.ir_module
class RmsNormWeightLast:
    @R.function
    def before(x: R.Tensor((2, 4, 8), "float32"), w: R.Tensor((8,), "float32")):
        with R.dataflow():
            square = R.power(x, R.const(2.0, "float32"))
            mean = R.mean(square, axis=[2], keepdims=True)
            more = R.add(mean, R.const(0.125, "float32"))
            scale = R.rsqrt(more)
            normal = R.multiply(x, scale)
            y = R.multiply(normal, w)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((2, 4, 8), "float32"), w: R.Tensor((8,), "float32")):
        with R.dataflow():
            y = R.nn.rms_norm(x, w, axes=[-1], epsilon=0.125)
            R.output(y)
        return y


@I.ir_module
class CausalAttention:
    @R.function
    def before(x: R.Tensor((1, 4, 2, 8), "float32")):
        with R.dataflow():
            y = R.nn.attention(x, x, x, scale=0.25, causal_mask="TopLeft")
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((1, 4, 2, 8), "float32")):
        with R.dataflow():
            heads = R.permute_dims(x, axes=[0, 2, 1, 3])
            keys = R.permute_dims(heads, axes=[0, 1, 3, 2])
            s = R.matmul(heads, keys)
            scaled = R.multiply(s, R.const(0.25, "float32"))
            masked = R.add(scaled, HIDDEN_AHEAD)
            w = R.nn.softmax(masked, axis=-1)
            mixed = R.matmul(w, heads)
            y = R.permute_dims(mixed, axes=[0, 2, 1, 3])
            R.output(y)
        return y


@I.ir_module
class AttentionWithABias:
    @R.function
    def before(x: R.Tensor((1, 4, 2, 16), "float32"), bias: R.Tensor((1, 2, 4, 4), "float32")):
        with R.dataflow():
            y = R.nn.attention(x, x, x, bias)
            R.output(y)
        return y

    @R.function
    def expected(x: R.Tensor((1, 4, 2, 16), "float32"), bias: R.Tensor((1, 2, 4, 4), "float32")):
        with R.dataflow():
            heads = R.permute_dims(x, axes=[0, 2, 1, 3])
            keys = R.permute_dims(heads, axes=[0, 1, 3, 2])
            s = R.matmul(heads, keys)
            scaled = R.multiply(s, R.const(0.25, "float32"))
            biased = R.add(scaled, bias)
            w = R.nn.softmax(biased, axis=-1)
            mixed = R.matmul(w, heads)
            y = R.permute_dims(mixed, axes=[0, 2, 1, 3])
            R.output(y)
        return y


RECOGNISED = {name: mod for name, mod in globals().items() if isinstance(mod, tvm.IRModule)}


@pytest.mark.parametrize("name", RECOGNISED)
def test_idiom_is_recognised(name):
    check_pair([RecogniseIdioms()], RECOGNISED[name])


@pytest.mark.parametrize("idiom", IDIOMS, ids=lambda idiom: idiom.name)
def test_every_idiom_is_in_one_of_the_modules(idiom, monkeypatch):
    monkeypatch.setattr(recognise_idioms, "IDIOMS", (idiom,))
    befores = [main_of(mod, "before") for mod in RECOGNISED.values()]
    assert any(not structural_equal(RecogniseIdioms()(before), before) for before in befores)


@I.ir_module
class SliceOfMoreThanWasWritten:
    @R.function
    def main(x: R.Tensor((2, 8), "float32"), z: R.Tensor((2, 4), "float32")):
        with R.dataflow():
            a = R.slice_scatter(x, z, 4, 8, 1, axis=1)
            y = R.strided_slice(a, axes=[1], begin=[3], end=[7], strides=[1])
            R.output(y)
        return y


@I.ir_module
class TransposesThatDoNotCancel:
    @R.function
    def main(x: R.Tensor((2, 3, 4, 5), "float32")):
        with R.dataflow():
            a = R.permute_dims(x, axes=[0, 2, 3, 1])
            y = R.permute_dims(a, axes=[0, 2, 3, 1])
            R.output(y)
        return y


@I.ir_module
class TransposeThatMovesMoreThanUnits:
    @R.function
    def main(x: R.Tensor((2, 3, 1, 4, 5), "float32")):
        with R.dataflow():
            y = R.permute_dims(x, axes=[1, 0, 2, 3, 4])
            R.output(y)
        return y


@I.ir_module
class ReshapeThatIsNoExpansion:
    @R.function
    def main(x: R.Tensor((2, 12, 8), "float32")):
        with R.dataflow():
            a = R.reshape(x, (2, 3, 4, 1, 8))
            y = R.permute_dims(a, axes=[1, 0, 2, 3, 4])
            R.output(y)
        return y


@I.ir_module
class GeluWithAnotherConstant:
    @R.function
    def main(x: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            cube = R.power(x, R.const(3.0, "float32"))
            cubic = R.multiply(cube, R.const(0.05, "float32"))
            both = R.add(x, cubic)
            scaled = R.multiply(both, R.const(0.7978845608, "float32"))
            squashed = R.tanh(scaled)
            above = R.add(squashed, R.const(1.0, "float32"))
            half = R.multiply(x, R.const(0.5, "float32"))
            y = R.multiply(half, above)
            R.output(y)
        return y


@I.ir_module
class SigmoidOfSomethingElse:
    @R.function
    def main(x: R.Tensor((4, 8), "float32"), z: R.Tensor((4, 8), "float32")):
        with R.dataflow():
            a = R.sigmoid(z)
            y = R.multiply(x, a)
            R.output(y)
        return y


@I.ir_module
class NormOfFourthPowers:
    @R.function
    def main(x: R.Tensor((2, 4, 8), "float32"), w: R.Tensor((8,), "float32")):
        with R.dataflow():
            fourth = R.power(x, R.const(4.0, "float32"))
            mean = R.mean(fourth, axis=[-1], keepdims=True)
            more = R.add(mean, R.const(0.125, "float32"))
            scale = R.rsqrt(more)
            normal = R.multiply(x, scale)
            y = R.multiply(w, normal)
            R.output(y)
        return y


@I.ir_module
class NormOverTokens:
    @R.function
    def main(x: R.Tensor((2, 4, 8), "float32"), w: R.Tensor((8,), "float32")):
        with R.dataflow():
            square = R.power(x, R.const(2.0, "float32"))
            mean = R.mean(square, axis=[1], keepdims=True)
            more = R.add(mean, R.const(0.125, "float32"))
            scale = R.rsqrt(more)
            normal = R.multiply(x, scale)
            y = R.multiply(w, normal)
            R.output(y)
        return y


@I.ir_module
class AttentionWithAnotherTriangle:
    @R.function
    def main(q: R.Tensor((1, 4, 2, 8), "float32"), k: R.Tensor((1, 6, 2, 8), "float32")):
        with R.dataflow():
            y = R.nn.attention(q, k, k, causal_mask="BottomRight")
            R.output(y)
        return y


LEFT_ALONE = {name: mod for name, mod in globals().items() if isinstance(mod, tvm.IRModule) and name not in RECOGNISED}


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_what_only_looks_like_an_idiom_is_left_alone(name):
    check_unchanged([RecogniseIdioms()], LEFT_ALONE[name])
