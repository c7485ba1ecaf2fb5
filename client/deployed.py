"""The client app that the study's bundle names. It answers nothing.

Institutions answer through `cohortium node start`, which checks every run's bundle against the approved plan. A
SuperNode that would run whatever it is sent gets this app, and declines.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from cohortium.study.question import DECLINED, plain_reply

__all__ = ["app"]


def _decline(message: Message, _context: Context, _next: object) -> Message:
    return Message(plain_reply(DECLINED), reply_to=message)


app = ClientApp(mods=[_decline])
"""Declines whatever it is asked."""
