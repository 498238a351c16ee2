"""Number formats of a weight, one file a family; `format_of` finds the one that a scheme names."""

from lighten.quantize.formats.codebook import CodebookFormat, mxfp4, nf4, nvfp4
from lighten.quantize.formats.float8 import Float8Format
from lighten.quantize.formats.grid import Format, Grid, QuantizedWeight
from lighten.quantize.formats.integer import IntegerFormat
from lighten.quantize.scheme import Scheme

__all__ = ["CodebookFormat", "Float8Format", "Format", "Grid", "IntegerFormat", "QuantizedWeight", "format_of"]

_CODEBOOKS = {"nf4": nf4, "mxfp4": mxfp4, "nvfp4": nvfp4}


def format_of(scheme: Scheme) -> Format:
    """The format of scheme's weights."""
    if scheme.weight_type == "int":
        return IntegerFormat(bits=scheme.weight_bits, symmetric=bool(scheme.symmetric))
    if scheme.weight_type in _CODEBOOKS:
        return _CODEBOOKS[scheme.weight_type]()
    return Float8Format(kind=scheme.weight_type.removeprefix("fp8-"))
