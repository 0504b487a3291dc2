"""What is said of config files."""

import pytest

from ssnet_mm.engine.config import describe


def test_a_bare_assertion_is_described_by_what_it_asserts():
    def check(hook):
        assert hook is not None

    with pytest.raises(AssertionError) as caught:
        check(None)
    caught.value.args = ()  # pytest writes the values into its own assertions
    line = describe(caught.value)
    assert line.startswith('AssertionError: assert hook is not None (') and ', line ' in line
