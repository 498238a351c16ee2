import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# A deadline is a wall-clock assertion: it fails when the machine is busy, not when the code is wrong. CI judges a
# change, not the luck of a draw: there the same tests get the same examples; by hand every run draws new ones.
settings.register_profile("lighten", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("lighten")


@pytest.fixture(scope="session", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests train and compile is kept in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
