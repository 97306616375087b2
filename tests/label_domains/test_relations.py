"""M_intra of Eq. (6)."""

import logging

import numpy as np

from sst_d2.label_domains import LabelDomain, get_label_domain, intra_adjacency


def test_pascal_adjacency_is_the_hand_written_matrix():
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0, 0],  # background: only itself
            [0, 1, 1, 0, 0, 0, 0],  # head: torso
            [0, 1, 1, 1, 0, 1, 0],  # torso: head, upper arm, upper leg
            [0, 0, 1, 1, 1, 0, 0],
            [0, 0, 0, 1, 1, 0, 0],
            [0, 0, 1, 0, 0, 1, 1],
            [0, 0, 0, 0, 0, 1, 1],
        ],
        dtype=np.float32,
    )
    assert np.array_equal(intra_adjacency(get_label_domain("pascal_person_part")), expected)


def test_one_way_entries_count_both_ways():
    atr = get_label_domain("atr")
    matrix = intra_adjacency(atr)
    assert matrix[atr.index("skirt"), atr.index("dress")] == matrix[atr.index("dress"), atr.index("skirt")] == 1
    assert np.array_equal(matrix, matrix.T) and matrix.sum() == 18 + 2 * 34


def test_without_adjacency_all_classes_touch_and_the_log_says_so(caplog):
    domain = LabelDomain("toy", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    with caplog.at_level(logging.INFO):
        assert np.array_equal(intra_adjacency(domain), np.ones((2, 2)))
    assert "'toy'" in caplog.text and "no adjacency" in caplog.text
