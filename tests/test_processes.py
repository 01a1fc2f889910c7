import gc

import pytest

from calibtune.processes import GARBAGE, seldom_collecting


@pytest.mark.parametrize("first", [0, 700, 2 * GARBAGE])
def test_python_searches_for_garbage_seldom_and_afterwards_as_before(first):
    before = gc.get_threshold()
    gc.set_threshold(first, *before[1:])
    try:
        with seldom_collecting():
            assert gc.get_threshold()[0] == {0: 0, 700: GARBAGE, 2 * GARBAGE: 2 * GARBAGE}[first]
        assert gc.get_threshold() == (first, *before[1:])
    finally:
        gc.set_threshold(*before)
