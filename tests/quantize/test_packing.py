import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lighten.quantize.packing import pack, packed_length, unpack


@pytest.mark.parametrize(
    ("bits", "codes", "packed"),
    [
        (4, [1, 2, 15], [0x21, 0x0F]),
        (2, [1, 2, 3, 0, 2], [0b00_11_10_01, 0b10]),
        (3, [1, 2, 3, 4, 5, 6, 7, 0], [0b11_010_001, 0b0_101_100_0, 0b000_111_11]),
        (8, [7, 255], [7, 255]),
    ],
)
def test_lowest_bits_come_first(bits: int, codes: list[int], packed: list[int]) -> None:
    assert pack(torch.tensor(codes, dtype=torch.uint8), bits).tolist() == packed


@given(bits=st.integers(2, 8), rows=st.integers(0, 3), n=st.integers(0, 40), random=st.integers(0, 2**31))
def test_round_trip_at_every_width_and_length(bits: int, rows: int, n: int, random: int) -> None:
    generator = torch.Generator().manual_seed(random)
    codes = torch.randint(0, 2**bits, (rows, n), dtype=torch.uint8, generator=generator)
    packed = pack(codes, bits)
    assert packed.shape == (rows, packed_length(n, bits))
    assert torch.equal(unpack(packed, bits, n), codes)


@given(bits=st.integers(2, 8), codes=st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_the_stream_is_the_number_that_the_codes_are_digits_of(bits: int, codes: list[int]) -> None:
    number = sum(code << (bits * i) for i, code in enumerate(codes))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert int.from_bytes(bytes(packed.tolist()), "little") == number


def test_codes_are_left_alone() -> None:
    codes = torch.tensor([1, 2, 3], dtype=torch.uint8)
    for bits in range(2, 9):
        pack(codes, bits).zero_()
    assert codes.tolist() == [1, 2, 3]
