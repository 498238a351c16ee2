from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Programs made up by tests are compiled into a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIGHTEN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
