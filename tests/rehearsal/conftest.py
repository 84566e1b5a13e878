"""Nothing stands between these tests' clients and their Hubs."""

from collections.abc import Iterator

import pytest
from huggingface_hub import close_session


@pytest.fixture(scope="module", autouse=True)
def no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        close_session()  # the client reads the variable when it opens its session
        yield
    close_session()
