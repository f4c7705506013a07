"""Steering that looks at what came out: a member is drawn again until its finished frames meet its target.

Guidance holds the predicted latent to a command, as the alignment network reads it. What is read off the finished
frames differs: noise that the sampler leaves is cut at the dry floor, quantiles are mapped, and far from what is usual
the network extrapolates. So the command is corrected by what it led to, member by member, as a secant on logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Members (their numbers) and their commands (m,) → frames (m, ...).
Draw = Callable[[Sequence[int], Tensor], Tensor]

_TOLERANCE = math.log(1.1)  # a member within a tenth of its target is kept
_FIRST_RESPONSE = 0.25  # usual change of the logarithm of what comes out over that of the command
_RESPONSES = 0.1, 1.0
_REACH = math.log(50.0)  # commands stay within this of the target


class Steered(NamedTuple):
    """Of each member the draw that came nearest to its target: frames (M, ...) and the command (M,) that led there."""

    frames: Tensor
    commands: Tensor


def steer(
    draw: Draw,
    measure: Callable[[Tensor], Tensor],
    targets: Tensor,
    *,
    commands: Tensor | None = None,
    rounds: int = 4,
) -> Steered:
    """Members whose quantity is near their targets.

    Args:
        draw: Guided samples; a member's must depend on its number and its command alone.
        measure: Frames (m, ...) → the quantity (m,), above zero.
        targets: (M,), above zero.
        commands: (M,), above zero, to begin with, such as those that served with fewer steps; None: the targets.
        rounds: Draws of a member, at most; one within a tenth of its target is not drawn again.
    """
    goal = targets.log()
    command = (targets if commands is None else commands).log()
    before, served = torch.full_like(goal, torch.nan), command.clone()
    found_before, response = before.clone(), torch.full_like(goal, _FIRST_RESPONSE)
    best, least = torch.empty(0), torch.full_like(goal, torch.inf)
    waiting = torch.arange(len(goal), device=goal.device)
    for turn in range(rounds):
        frames = draw(waiting.tolist(), command[waiting].exp())
        found = measure(frames).log()
        off = goal[waiting] - found
        if turn == 0:
            best = frames.clone()
        nearer = off.abs() < least[waiting]
        kept = waiting[nearer]
        best[kept], least[kept], served[kept] = frames[nearer], off.abs()[nearer], command[kept]
        if turn:
            slope = (found - found_before[waiting]) / (command - before)[waiting]
            response[waiting] = torch.nan_to_num(slope, nan=_RESPONSES[0], posinf=_RESPONSES[1]).clamp(*_RESPONSES)
        before[waiting], found_before[waiting] = command[waiting], found
        moved = (command[waiting] + off / response[waiting] - goal[waiting]).clamp(-_REACH, _REACH)
        command[waiting] = goal[waiting] + moved
        waiting = waiting[(least[waiting] > _TOLERANCE) & (command[waiting] != before[waiting])]
        if not len(waiting):
            break
    return Steered(best, served.exp())
