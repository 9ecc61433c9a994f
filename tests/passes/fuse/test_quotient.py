"""Quotients: cycles are seen before they are closed, against networkx on random graphs and merges."""

from __future__ import annotations

import networkx
from burnish.passes.fuse.quotient import Quotient, bits
from hypothesis import given, settings
from hypothesis import strategies as st


def test_bits() -> None:
    assert list(bits(0b101001)) == [0, 3, 5] and list(bits(0)) == []


def test_two_convex_blocks_that_would_wait_for_each_other() -> None:
    # 0 -> 2, 1 -> 3: the blocks {0, 3} and {1, 2} are convex, each for itself.
    quotient = Quotient([[], [], [0], [1]])
    assert not quotient.closes_cycle(0, 3)
    quotient.merge(0, 3)
    assert quotient.closes_cycle(1, 2)
    broken = Quotient([[], [], [0], [1]], [[0, 3], [1, 2]])
    assert len(broken.order()) < 2


def test_a_residual_edge() -> None:
    quotient = Quotient([[], [0], [0, 1]])
    assert quotient.closes_cycle(0, 2)
    quotient.merge(0, 1)
    assert not quotient.closes_cycle(0, 2)
    assert quotient.reaches(0, 2) and not quotient.reaches(2, 0)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_against_networkx(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    before = [sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=3))) if n else [] for n in range(count)]
    quotient = Quotient(before)
    graph = networkx.DiGraph([(need, node) for node, needs in enumerate(before) for need in needs])
    graph.add_nodes_from(range(count))
    for _ in range(data.draw(st.integers(1, 10))):
        names = sorted(quotient.members)
        if len(names) < 2:
            break
        a, b = data.draw(st.sampled_from(names)), data.draw(st.sampled_from(names))
        if a == b:
            continue
        groups = [set(m) for n, m in quotient.members.items() if n not in (a, b)]
        groups.append({*quotient.members[a], *quotient.members[b]})
        acyclic = networkx.is_directed_acyclic_graph(networkx.quotient_graph(graph, groups))
        assert quotient.closes_cycle(a, b) is not acyclic
        if not acyclic:
            continue
        quotient.merge(a, b)
        fresh = Quotient(before, list(quotient.members.values()))
        for x in quotient.members:
            for y in quotient.members:
                assert quotient.reaches(x, y) is fresh.reaches(fresh.home[x], fresh.home[y])
        assert sorted(quotient.order()) == sorted(quotient.members)
