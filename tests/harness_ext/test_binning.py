import dataclasses

import numpy as np
import pytest

from harness_ext.binning import bin_index, bin_table, equal_mass_edges, equal_width_edges
from harness_ext.errors import UserError

TENTHS = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def test_equal_width_edges_are_exact_quotients():
    assert equal_width_edges(10).tolist() == TENTHS
    assert equal_width_edges(1).tolist() == [0.0, 1.0]


def test_left_edges_put_an_edge_value_into_the_upper_bin():
    assert bin_index(TENTHS, 10).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9]


def test_right_edges_put_an_edge_value_into_the_lower_bin():
    assert bin_index(TENTHS, 10, edge="right").tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_values_next_to_an_edge_are_not_rounded():
    for edge in TENTHS[1:-1]:
        below, above = np.nextafter(edge, 0), np.nextafter(edge, 1)
        assert np.diff(bin_index([below, edge], 10)) == 1
        assert np.diff(bin_index([edge, above], 10, edge="right")) == 1


def test_float32_or_multiplication_would_move_edge_values():
    left = bin_index(np.array(TENTHS), 10)
    assert (bin_index(np.array(TENTHS, dtype=np.float32), 10) != left).any()
    assert ((np.array([0.57]) * 100).astype(int) != bin_index([0.57], 100)).all()


def test_fourteen_bins_put_sevenths_on_their_edges():
    assert bin_index([3 / 14, 1 / 7, 0.5, 13 / 14], 14).tolist() == [3, 2, 7, 13]


def test_bin_index_keeps_the_shape_and_accepts_edges():
    assert bin_index([[0.1, 0.9], [0.5, 0.5]], 2).tolist() == [[0, 1], [1, 1]]
    assert bin_index([0.1, 0.3, 0.9], np.array([0.0, 0.25, 0.5, 1.0])).tolist() == [0, 1, 2]


@pytest.mark.parametrize("bad", [-0.1, 1.0000001, np.nan, np.inf])
def test_non_probability_is_refused_with_its_row(bad):
    with pytest.raises(UserError, match=r"at row 2 is not a probability"):
        bin_index([0.1, 0.2, bad], 10)


def test_unknown_edge_or_zero_bins_is_refused():
    with pytest.raises(UserError, match="edge is 'middle'"):
        bin_index([0.1], 10, edge="middle")
    for bins in (0, 201):
        with pytest.raises(UserError, match=f"number of bins is {bins}; give a number from 1 to 200"):
            bin_index([0.1], bins)
    assert bin_index([1.0], 200) == 199


def test_bin_table_by_hand():
    table = bin_table([0.1, 0.15, 0.15, 1.0], [1, 0, 0, 1], 10)
    assert table.count.tolist() == [0, 3, 0, 0, 0, 0, 0, 0, 0, 1]
    assert table.accuracy[[1, 9]] == pytest.approx([1 / 3, 1])
    assert table.confidence[[1, 9]] == pytest.approx([0.4 / 3, 1])
    assert np.isnan(table.accuracy[[0, 2]]).all()
    assert np.isnan(table.confidence[[0, 2]]).all()


def test_equal_mass_bins_have_equal_counts():
    values = np.random.default_rng(0).beta(5, 2, 1000)
    edges = equal_mass_edges(values, 10)
    assert (len(edges), edges[0], edges[-1]) == (11, 0.0, 1.0)
    assert bin_table(values, values, edges).count.tolist() == [100] * 10


def test_equal_mass_bins_merge_tied_values():
    edges = equal_mass_edges([0.5] * 90 + [0.9] * 10, 10)
    assert edges.tolist() == sorted(set(edges.tolist()))
    assert len(edges) < 11
    assert bin_table([0.5] * 90 + [0.9] * 10, [1] * 100, edges).count.sum() == 100


def test_saturated_confidences_make_one_bin():
    assert bin_table(np.ones(5), np.ones(5), equal_mass_edges(np.ones(5), 10)).count.sum() == 5


def test_many_edges_are_searched_as_few_are_compared():
    values = np.concatenate([np.linspace(0, 1, 997), equal_width_edges(60)])
    for edge, inside in (("left", np.less_equal), ("right", np.less)):
        expected = inside(equal_width_edges(60)[1:-1], values[:, None]).sum(axis=1)
        assert bin_index(values, 60, edge).tolist() == expected.tolist()


def test_bin_table_has_ten_bins_by_default_and_keeps_empty_last_bins():
    assert bin_table([0.1], [1]).count.tolist() == [0, 1] + [0] * 8
    assert bin_table([0.1], [1], np.array([0.0, 0.5, 1.0])).count.tolist() == [1, 0]
    with pytest.raises(dataclasses.FrozenInstanceError):
        bin_table([0.1], [1]).count = np.zeros(10)
