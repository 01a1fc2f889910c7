import numpy as np

from harness_ext.ragged import ragged


def test_shorter_rows_end_in_nan():
    found = ragged([(1.0,), (2.0, 3.0, 4.0), (5.0, 6.0)])
    np.testing.assert_array_equal(found, [[1, np.nan, np.nan], [2, 3, 4], [5, 6, np.nan]])
    assert found.dtype == np.float64
