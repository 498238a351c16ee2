import gzip
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from lighten.errors import TaskError
from lighten.tasks.idx import parse_idx, read_idx
from tests.tasks.idx_files import idx_bytes

FOUR = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 255])


def test_a_file_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "four.gz"
    path.write_bytes(gzip.compress(FOUR))
    elements = read_idx(path)
    assert elements.dtype == torch.uint8
    assert elements.tolist() == [[1, 2], [3, 255]]


@given(hnp.arrays("uint8", hnp.array_shapes(max_dims=4, max_side=5)))
def test_every_shape_comes_back(array: NDArray) -> None:  # type: ignore[type-arg]
    elements = torch.from_numpy(array)
    assert torch.equal(parse_idx(idx_bytes(elements), "x"), elements)


@given(st.integers(0, len(FOUR) - 1))
def test_no_shortened_file_is_accepted(length: int) -> None:
    with pytest.raises(TaskError, match="'short'"):
        parse_idx(FOUR[:length], "short")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "holds 0 bytes"),
        (b"\x00\x00\x0d\x01" + FOUR[4:], "starts with 0x00000d01.*not an IDX file of unsigned bytes"),
        (b"P5 2 2 255", "starts with 0x50352032"),
        (FOUR[:9], "cut short inside its header: 9 of 12 bytes"),
        (FOUR[:-1], r"holds 3 bytes after its header, which promises 4 \(shape \[2, 2\]\)"),
        (FOUR + b"\x00", "holds 5 bytes after its header, which promises 4"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "promises 18446744065119617025"),
    ],
    ids=["empty", "floats", "not idx", "short header", "short", "long", "enormous"],
)
def test_what_is_not_idx_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(TaskError, match=words):
        parse_idx(content, "x")


@pytest.mark.parametrize("length", [5, 20, -1], ids=["header", "body", "checksum"])
def test_a_gzip_that_was_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(FOUR * 20)[:length])
    with pytest.raises(TaskError, match=r"Cannot unpack .*cut\.gz.*fetch it again"):
        read_idx(path)


def test_what_is_not_gzip_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.gz"
    path.write_bytes(FOUR)
    with pytest.raises(TaskError, match="Not a gzipped file"):
        read_idx(path)
    with pytest.raises(TaskError, match="There is no file"):
        read_idx(tmp_path / "gone.gz")
