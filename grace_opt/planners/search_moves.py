"""Moves of a local search over one layer's slots, and the lists of copies that follow them; compiled."""

from numba import njit

from grace_opt.placement import EMPTY

DROPS = 0.1
"""Share of the moves of one slot that empty it, besides those that draw an expert which the rank already holds."""

GUIDED = 0.8
"""Share of the moves that bring an expert to one it is often chosen with; the others are drawn evenly."""
NOBODY = -1


@njit(nogil=True, cache=True)
def propose(random, slots_RS, room_R, copies_E, rank_EC, ids_TK, first_EB, tokens, filled):  # type: ignore[no-untyped-def]
    """(rank 1, slot 1, rank 2, slot 2, what 1 holds afterwards, what 2 does).

    random is a numpy Generator; filled: no slot is to become empty. Rank 2 is NOBODY in a move of one slot; rank 1 is
    if the draw made no move.
    """
    none = NOBODY, 0, NOBODY, 0, EMPTY, EMPTY
    r1 = random.integers(0, len(slots_RS))
    if room_R[r1] == 0:
        return none
    s1 = random.integers(0, room_R[r1])
    one = slots_RS[r1, s1]
    if (one < 0 or copies_E[one] > 1) and random.random() < 0.5:
        if not filled and random.random() < DROPS:
            new = EMPTY
        elif random.random() < GUIDED:
            near = slots_RS[r1, random.integers(0, room_R[r1])]
            new = _companion(random, near, ids_TK, first_EB, tokens) if near >= 0 else EMPTY
        else:
            new = random.integers(0, len(copies_E))
        if new >= 0 and _holds(slots_RS, r1, new):
            new = EMPTY
        return none if new == one or (filled and new == EMPTY) else (r1, s1, NOBODY, 0, new, EMPTY)
    r2 = random.integers(0, len(slots_RS))
    if one >= 0 and random.random() < GUIDED:
        friend = _companion(random, one, ids_TK, first_EB, tokens)
        if friend >= 0:
            r2 = rank_EC[friend, random.integers(0, copies_E[friend])]
    if room_R[r2] == 0:
        return none
    s2 = random.integers(0, room_R[r2])
    two = slots_RS[r2, s2]
    if r2 == r1 or one == two or _holds(slots_RS, r1, two) or _holds(slots_RS, r2, one):
        return none
    return r1, s1, r2, s2, two, one


@njit(nogil=True, cache=True)
def _companion(random, expert, ids_TK, first_EB, tokens):  # type: ignore[no-untyped-def]
    """An expert drawn from a random token of an expert: those it is often together with come often; or EMPTY."""
    first, last = first_EB[expert, 0], first_EB[expert, -1]
    if first == last:
        return EMPTY
    t = tokens[random.integers(first, last)]
    return ids_TK[t, random.integers(0, ids_TK.shape[1])]


@njit(nogil=True, cache=True)
def _holds(slots_RS, rank, expert):  # type: ignore[no-untyped-def]
    if expert >= 0:
        for slot in range(slots_RS.shape[1]):
            if slots_RS[rank, slot] == expert:
                return True
    return False


@njit(nogil=True, cache=True)
def list_copies(slots_RS, copies_E, rank_EC):  # type: ignore[no-untyped-def]
    """Fill in how many copies each expert has, and their ranks in order."""
    copies_E[:] = 0
    for rank in range(len(slots_RS)):
        for slot in range(slots_RS.shape[1]):
            expert = slots_RS[rank, slot]
            if expert >= 0:
                rank_EC[expert, copies_E[expert]] = rank
                copies_E[expert] += 1


@njit(nogil=True, cache=True)
def move_copy(gone, come, rank, copies_E, rank_EC):  # type: ignore[no-untyped-def]
    """On one rank an expert (or EMPTY) gives way to another; copies stay in order of ranks."""
    if gone >= 0:
        place = 0
        while rank_EC[gone, place] != rank:
            place += 1
        copies_E[gone] -= 1
        for i in range(place, copies_E[gone]):
            rank_EC[gone, i] = rank_EC[gone, i + 1]
    if come >= 0:
        place = copies_E[come]
        while place > 0 and rank_EC[come, place - 1] > rank:
            rank_EC[come, place] = rank_EC[come, place - 1]
            place -= 1
        rank_EC[come, place] = rank
        copies_E[come] += 1
