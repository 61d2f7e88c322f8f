"""Which copies serve a token under `cover`, rule by rule; `test_traffic` compares with the reference."""

from collections.abc import Sequence

import numpy as np
import pytest

from grace_opt.cover import copy_table, cover_token
from grace_opt.placement import Placement


def served(
    held: Sequence[Sequence[int]], ranks_per_node: tuple[int, ...], experts: Sequence[int], home: int = 0, turn: int = 0
) -> list[int]:
    """The rank that serves each expert of a token, given what each rank holds."""
    table = copy_table(Placement.from_lists([held], 1 + max(max(rank) for rank in held if rank)), ranks_per_node, 0)
    copy_K, seen_N, seen_R = np.empty(len(experts), np.int64), np.full(len(ranks_per_node), -1), np.full(len(held), -1)
    cover_token(
        np.array([experts]), 0, home, turn, table.num_copies, table.rank, table.node_of_rank, table.entry,
        np.empty_like(copy_K), seen_N, seen_R, 0, copy_K,
    )  # fmt: skip
    return [int(table.rank[expert, copy]) for expert, copy in zip(experts, copy_K, strict=True)]


def test_the_worked_example_of_the_module() -> None:
    held = [[0], [1], [2, 1], [3, 0]]
    assert served(held, (2, 2), [3, 0]) == [3, 0]
    assert served(held, (2, 2), [1, 2]) == [1, 2]


def test_an_expert_left_takes_a_node_that_is_visited_anyway() -> None:
    held = [[0], [3, 1], [3, 2], [3]]  # one rank a node; expert 3 on nodes 1, 2 and 3
    assert served(held, (1, 1, 1, 1), [3, 1]) == [1, 1]
    assert served(held, (1, 1, 1, 1), [3, 2], turn=2) == [2, 2]
    assert served(held, (1, 1, 1, 1), [3, 2, 1], turn=1) == [1, 2, 1]  # of two, the first after home


def test_the_first_node_visited_is_counted_from_home_around() -> None:
    held = [[3, 1], [0], [2], [3, 4]]
    assert served(held, (1, 1, 1, 1), [3, 1, 4], home=1) == [3, 0, 3]
    assert served(held, (1, 1, 1, 1), [3, 1, 4], home=3) == [3, 0, 3]
    assert served(held, (1, 1, 1, 1), [3, 1, 4], home=2) == [3, 0, 3]
    held = [[3, 1], [3, 4], [2], [0]]
    assert served(held, (1, 1, 1, 1), [3, 1, 4], home=2) == [0, 0, 1]  # 3, 0, 1: not in order of numbers


def test_where_none_is_visited_the_node_is_that_holds_most_of_those_left() -> None:
    held = [[0], [1, 4], [2, 1, 3], [3, 2], [4]]
    assert served(held, (1,) * 5, [1, 2, 3]) == [2, 2, 2]
    # node 2 holds three, then 4 is left, on nodes 1 and 4: a tie that turn decides
    assert served(held, (1,) * 5, [1, 2, 3, 4]) == [2, 2, 2, 1]
    assert served(held, (1,) * 5, [1, 2, 3, 4], turn=1) == [2, 2, 2, 4]


def test_nodes_that_hold_equally_many_take_turns() -> None:
    held = [[0], [1], [1], [1]]
    assert [served(held, (1, 1, 1, 1), [1], 0, turn)[0] for turn in range(5)] == [1, 2, 3, 1, 2]
    assert [served([[1], [0], [1], [1]], (1, 1, 1, 1), [1], 1, turn)[0] for turn in range(5)] == [2, 3, 0, 2, 3]


def test_the_own_node_is_preferred_to_one_that_is_visited_anyway() -> None:
    assert served([[0], [1], [2, 1], [3]], (2, 2), [2, 1]) == [2, 1]
    assert served([[0], [2], [1], [1]], (3, 1), [1], turn=1) == [2]


def test_in_a_node_the_rank_where_the_row_enters_serves_if_it_can() -> None:
    held = [[0], [3], [1, 2], [1, 2]]
    for turn in (0, 1):
        assert served(held, (2, 2), [1, 2], turn=turn) == [2, 2]
        assert served(held, (2, 2), [1, 2], home=1, turn=turn) == [3, 3]
        assert served([[0, 1], [1]], (2,), [1], home=1, turn=turn) == [1]
    assert served([[0], [1], [2], [3], [4], [4]], (4, 2), [4], home=3) == [5]  # local numbers wrap around


def test_then_a_rank_that_must_be_visited_then_the_one_whose_turn_it_is() -> None:
    held = [[0], [1, 2], [1, 3], [1, 4]]
    assert served(held, (4,), [1, 3]) == [2, 2]
    assert served(held, (4,), [1, 4, 3]) == [2, 3, 2]  # ranks 2 and 3 must be: sought from copy 0
    assert served(held, (4,), [1, 4, 3], turn=2) == [3, 3, 2]
    assert [served(held, (4,), [1], turn=turn)[0] for turn in range(4)] == [1, 2, 3, 1]


def test_experts_whose_turn_it_is_pull_those_after_them() -> None:
    held = [[0], [1, 2], [1], [2]]
    assert served(held, (4,), [1, 2]) == [1, 1]
    assert served(held, (4,), [1, 2], turn=1) == [2, 3]
    assert served(held, (4,), [2, 1], turn=1) == [3, 2]
    assert served(held, (4,), [2, 1], turn=2) == [1, 1]


def test_an_expert_alone_on_a_rank_moves_to_one_that_others_visit() -> None:
    held = [[0], [1], [1, 2], [2]]
    assert served(held, (4,), [1, 2]) == [2, 2]  # expert 1 took rank 1 before 2 took rank 2
    assert served(held, (4,), [1, 2], turn=1) == [2, 2]
    held = [[0], [1, 3], [1, 2], [2, 3]]
    assert served(held, (4,), [1, 2, 3]) == [1, 2, 1]  # 1 is not alone, 2 finds no other
    held = [[0], [1], [1, 2], [4], [2, 3], [3, 4]]
    assert served(held, (6,), [1, 3, 2, 4]) == [
        1,
        4,
        4,
        3,
    ]  # 2 goes where 3 went; 1 and 4 find none


def test_without_copies_every_expert_stays_where_it_is() -> None:
    assert served([[0], [3], [1], [2]], (2, 2), [2, 3, 0], home=2, turn=9) == [3, 1, 0]


def test_a_table_lists_copies_by_rank_without_the_second_on_one() -> None:
    placement = Placement.from_lists([[[0], [1], [2]], [[2, 1, 2], [0], [0, 2, 0]]], 3)
    table = copy_table(placement, (1, 2), 1)
    assert table.num_copies.tolist() == [2, 1, 2]
    assert table.rank.tolist() == [[1, 2], [0, 0], [0, 2]]
    assert table.physical.tolist() == [[3, 6], [1, 0], [0, 7]]
    assert table.node_of_rank.tolist() == [0, 1, 1]
    assert table.entry.tolist() == [[0, 1], [0, 1], [0, 2]]


@pytest.mark.parametrize("turn", range(6))
def test_a_token_is_served_by_copies_of_its_own_experts(turn: int) -> None:
    held = [[0, 1], [2, 3], [4, 5, 0], [1, 3], [5, 2]]
    for home in range(5):
        for experts in ([0, 5, 2], [3, 1, 4], [5, 3, 1]):
            ranks = served(held, (2, 3), experts, home, turn)
            assert all(expert in held[rank] for expert, rank in zip(experts, ranks, strict=True))


def test_scratch_may_be_longer_than_the_token_has_experts() -> None:
    """Whatever it holds behind them: a batch's padded tokens have fewer experts than others."""
    held = [[0], [1, 4], [2, 1, 3], [3, 2], [4]]
    table = copy_table(Placement.from_lists([held], 5), (1,) * 5, 0)
    for behind in (-1, 0, 3):
        copy_K, node_K = np.empty(3, np.int64), np.full(6, behind)
        cover_token(
            np.array([[1, 2, 3, 4, 4, 4]]), 0, 0, 0, table.num_copies, table.rank, table.node_of_rank, table.entry,
            node_K, np.full(5, -1), np.full(5, -1), 0, copy_K,
        )  # fmt: skip
        assert [int(table.rank[expert, copy]) for expert, copy in zip([1, 2, 3], copy_K, strict=True)] == [2, 2, 2]
