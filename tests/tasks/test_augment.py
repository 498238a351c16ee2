import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lighten.tasks.augment import random_affine, random_flip, random_shift


def images(n: int = 40) -> Tensor:
    return torch.randint(1, 256, (n, 2, 5, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_flip_mirrors_whole_images_and_some_of_them() -> None:
    torch.manual_seed(0)
    before = images()
    after = random_flip(before)
    kept = (after == before).flatten(1).all(1)
    mirrored = (after == before.flip(-1)).flatten(1).all(1)
    assert bool((kept | mirrored).all())
    assert 0 < int(mirrored.sum()) < len(before)


@given(st.integers(0, 3), st.integers(0, 100))
def test_a_shift_moves_by_whole_pixels_and_fills_with_zeros(pixels: int, seed: int) -> None:
    torch.manual_seed(seed)
    before = images(4)
    after = random_shift(before, pixels)
    assert after.dtype == before.dtype
    for old, new in zip(before, after, strict=True):
        moves = [(dy, dx) for dy in range(-pixels, pixels + 1) for dx in range(-pixels, pixels + 1)]
        assert any(torch.equal(new, moved(old, dy, dx)) for dy, dx in moves)


def moved(image: Tensor, dy: int, dx: int) -> Tensor:
    """A loop over pixels: slow and obvious."""
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[:, y, x] = image[:, y + dy, x + dx]
    return out


def test_shifts_differ_from_image_to_image() -> None:
    torch.manual_seed(0)
    same = images(1).expand(20, -1, -1, -1)
    assert len({tuple(image.flatten().tolist()) for image in random_shift(same, 2)}) > 5


def test_an_affine_change_of_nothing_changes_nothing() -> None:
    before = images().float()
    # Bilinear weights of 1 and 0 up to float32 rounding of the grid, times values up to 255.
    torch.testing.assert_close(random_affine(before, 0, 0, 0), before, rtol=0, atol=0.01)


def test_each_part_of_an_affine_change_moves_what_it_should() -> None:
    torch.manual_seed(0)
    dot = torch.zeros(50, 1, 33, 33)
    dot[:, :, 16, 26] = 1  # ten pixels right of the centre
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")

    def centre(changed: Tensor) -> Tensor:
        mass = changed[:, 0] / changed.sum((1, 2, 3))[:, None, None]
        return torch.stack([(mass * rows).sum((1, 2)), (mass * columns).sum((1, 2))], -1)

    rotated = centre(random_affine(dot, 20, 0, 0))
    shifted = centre(random_affine(dot, 0, 0.1, 0))
    zoomed = centre(random_affine(dot, 0, 0, 0.2))
    # Bilinear sampling spreads a dot over its neighbours, so its centre is known to half a pixel.
    assert bool(((rotated.norm(dim=1) - 10).abs() < 0.5).all())
    assert 2 < float(rotated[:, 0].abs().max()) < 10 * 0.342 + 0.5  # sin 20° = 0.342
    assert 2 < float((shifted - torch.tensor([0.0, 10.0])).abs().max()) < 3.3 + 0.5
    assert bool((zoomed[:, 0].abs() < 0.5).all())
    assert 10 / 1.2 - 0.5 < float(zoomed[:, 1].min()) < float(zoomed[:, 1].max()) < 10 / 0.8 + 0.5
