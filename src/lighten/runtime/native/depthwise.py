"""Depthwise convolutions: found among the products, and the wide layers before them that are made some rows at a time.

An inverted bottleneck widens its input before a depthwise convolution and narrows what that makes. The wide tensor of
the first blocks is several times a core's cache, and writing and reading it takes longer than computing it. So a
*chain* makes a few rows of it, has the depthwise convolution read them while they are in the cache, and puts the next
rows in their place. Nor does a thread read rows that another has made, so small ones are chained as well.
"""

from collections.abc import Mapping

import numpy as np

from lighten.runtime.native.packed import Packed
from lighten.runtime.native.program import Conv, Program
from lighten.runtime.native.stored import Stored

# Of a stride-1 window's weights: with fewer, a product without the zeros beats a window with them.
LEAST_OF_WINDOW = 0.5
CACHED = 2**13  # floats that stay in a core's nearest cache until they are read
GROUPS = 8  # of rows at least, where there are so many blocks, so that threads have about as much to do


def find_depthwise(program: Program, stored: Stored) -> dict[int, Packed]:
    """The convolutions of which each row reads its own alone, and most of its window where there is no stride to take
    out, by their place in the program; with weights for all of the window."""
    found, tensors = {}, program.tensors
    for i, op in enumerate(program.ops):
        if not isinstance(op, Conv) or op.kernel == (1, 1) or tensors[op.inputs[0]].rows != op.rows:
            continue
        size = op.kernel[0] * op.kernel[1]
        if stored.weights[op.weight].block > 1 or len(stored.weights[op.weight].index) > op.rows * size:
            continue
        weight = stored.weights[op.weight].floats
        row = np.repeat(np.arange(len(weight.ptr) - 1), np.diff(weight.ptr))
        whole = np.arange(op.rows * size)
        is_own = np.array_equal(weight.index // size, row)
        if is_own and np.array_equal(weight.index, whole):
            found[i] = weight
        elif is_own and (op.stride != (1, 1) or len(row) >= LEAST_OF_WINDOW * len(whole)):
            value = np.zeros((len(whole), 1), np.float32)
            value[weight.index] = weight.value
            found[i] = Packed(np.arange(op.rows + 1, dtype=np.int32) * np.int32(size), whole, value, weight.bias)
    return found


def find_chains(program: Program, stored: Stored, depthwise: Mapping[int, Packed]) -> dict[int, int]:
    """The products that only the depthwise convolution after them reads, by their place in the program, and how many
    rows of each are made at a time."""
    readers, tensors = [at for op in program.ops for at in op.inputs], program.tensors
    chains = {}
    for i, op in enumerate(program.ops[:-1]):
        out = len(program.inputs) + i
        sizes, after = tensors[out], program.ops[i + 1]
        places = sizes.height * sizes.width
        is_product = isinstance(op, Conv) and i not in depthwise and len(op.inputs) == 1
        is_read_once = after.inputs == (out,) and readers.count(out) == 1 and out not in program.outputs
        if is_product and i + 1 in depthwise and is_read_once:
            assert isinstance(op, Conv)
            block = stored.weights[op.weight].block
            chains[i] = block * max(1, min(CACHED // places, sizes.rows // GROUPS) // block)
    return chains
