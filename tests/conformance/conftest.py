from tests.quantize.conftest import _denormals  # noqa: F401  the same fixture, for all tests here
