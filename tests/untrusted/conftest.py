"""What holds for every test of files that somebody else made."""

import pytest
from hostile import Accepting, peak_megabytes


@pytest.fixture(autouse=True)
def bounded(recwarn):
    """No test may take much memory, whatever sizes its files claim."""
    before = peak_megabytes()
    yield
    assert peak_megabytes() - before < 500


@pytest.fixture
def accepting():
    """Counts what a fuzzer's inputs led to; see `Accepting`."""
    accepting = Accepting()
    yield accepting
    accepting.check()
