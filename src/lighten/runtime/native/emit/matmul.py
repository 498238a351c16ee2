"""The product of two activations, group by group: R rows x V vectors of places in registers, as in product.py.

The second operand's numbers are broadcast, as weights are there; nothing is packed, since rows lie where they are.
"""

from collections.abc import Sequence

from lighten.runtime.native.emit.code import F32, I64, POINTER, Code, Kernels, Value, vector
from lighten.runtime.native.emit.product import each_vector, load_mask, splats
from lighten.runtime.native.schedule import Lanes


def matmul(kernels: Kernels, *, r: int, lanes: Lanes, masked: bool) -> Value:
    """f(x, w, y, mask, column, scale, depth, blocks, x_row, x_group, w_row, w_step, w_group, y_row, y_group,
    first_item, last_item, first_tile, last_tile).

    lanes: of each vector of a tile. Item i is block i % blocks, of R rows, of group i // blocks; of it

        y[r][v] = scale · sum over k in [0, depth)   w[r · w_row + k · w_step] · x[k · x_row + v]
    """

    def emit(code: Code, args: Sequence[Value]) -> None:
        x, w, y, mask, column, scale, depth, blocks, x_row, x_group, w_row, w_step, w_group, y_row, y_group, *ends = (
            args
        )
        low, high, first_tile, last_tile = ends
        b, c = code.b, code.const

        def item(i: Value, start: Value) -> list[Value]:
            group, row = b.udiv(i, blocks), b.mul(b.urem(i, blocks), c(r))
            xs_at = code.at(x, b.mul(group, x_group), start)
            ws_at = code.at(w, b.mul(group, w_group), b.mul(row, w_row))
            ys_at = code.at(y, b.mul(group, y_group), b.mul(row, y_row), start)

            def term(k: Value, acc: list[Value]) -> list[Value]:
                source = code.at(xs_at, b.mul(k, x_row))
                xs = [code.load(code.at(source, c(skip)), vector(n)) for skip, n in each_vector(lanes)]
                weights = code.at(ws_at, b.mul(k, w_step))
                firsts = [code.load(code.at(weights, b.mul(c(i), w_row))) for i in range(r)]
                ws = [w for first in firsts for w in splats(code, first, lanes)]
                return [code.fma(w, x, total) for w, x, total in zip(ws, xs * r, acc, strict=True)]

            acc = code.loop(c(0), depth, term, splats(code, F32(0.0), lanes) * r)
            factors = splats(code, scale, lanes)
            for j, (skip, n) in enumerate(each_vector(lanes)):
                keep = load_mask(code, mask, b.add(start, c(skip)), n) if masked else None
                for k in range(r):
                    total = b.fmul(acc[k * len(lanes) + j], factors[j])
                    if keep is not None:
                        total = b.select(keep, total, code.number(0.0, total))
                    code.store(total, code.at(ys_at, b.mul(c(k), y_row), c(skip)))
            return []

        def tile(t: Value, _: list[Value]) -> list[Value]:
            start = code.index(column, t)
            code.loop(low, high, lambda i, _: item(i, start))
            return []

        code.loop(first_tile, last_tile, tile)

    kinds = [POINTER] * 5 + [F32] + [I64] * 13
    return kernels.get(("matmul", r, *lanes, *(["mask"] if masked else [])), kinds, emit)
