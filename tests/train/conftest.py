"""Runs on the digits, with a cache of the tests' own."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The digits are decoded once per session, and the user's cache stays untouched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRIMP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
