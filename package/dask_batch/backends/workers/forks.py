"""Forks of a client, which are not whom its workers work for.

A fork has a copy of every connection: as long as it lives, nobody at the other end would notice
that the client has been killed.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["let_go_in_forks"]


class _Holder(Protocol):
    def abandon(self) -> None:
        """Let go of all descriptors."""


_holders: weakref.WeakSet[_Holder] = weakref.WeakSet()


def let_go_in_forks(holder: _Holder) -> None:
    """Have a holder of descriptors abandon them in every fork of this process."""
    _holders.add(holder)


def _abandon_all() -> None:
    for holder in list(_holders):
        holder.abandon()


os.register_at_fork(after_in_child=_abandon_all)
