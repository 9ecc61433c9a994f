"""Operators that hold subgraphs."""

from __future__ import annotations

import torch

from ..registry import Call, Result, Tensor, rule


@rule("If")
def _if(call: Call) -> Result:
    return call.run(call.attr("then_branch") if bool(call[0]) else call.attr("else_branch"), [])


@rule("Loop")
def _loop(call: Call) -> Result:
    body = call.attr("body")
    most, going = call.get(0), call.get(1)
    carried: list[Tensor] = [x for x in call.x[2:] if x is not None]
    count = len(carried)
    scans: list[list[Tensor]] = [[] for _ in range(len(call.node.outputs) - count)]
    step, go = 0, going is None or bool(going)
    while go and (most is None or step < int(most)):
        inner = [torch.tensor(step), torch.tensor(go), *carried]
        results = call.run(body, inner)
        go, carried = bool(results[0]), results[1 : 1 + count]
        for scan, value in zip(scans, results[1 + count :], strict=True):
            scan.append(value)
        step += 1
    return [*carried, *(torch.stack(scan) if scan else torch.empty(0) for scan in scans)]
