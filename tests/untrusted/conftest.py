"""What holds for all that reads what somebody else made."""

import pytest
from hostile import peak_megabytes


@pytest.fixture(autouse=True)
def bounded(recwarn):
    """No test may take much memory, whatever sizes it reads of."""
    before = peak_megabytes()
    yield
    assert peak_megabytes() - before < 500
