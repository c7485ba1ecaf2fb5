"""The institution's Flower ClientApp: two questions it understands, and a guard over every reply.

`query.plan` asks whether the institution answers a plan; `query.answer` carries one question of it. Whatever happens
inside, the coordinator learns `accepted`, a sealed release, or the constant `declined`: the guard wraps both handlers,
turns every exception into `declined`, and stops any reply that the door did not seal. The reason stays in the node's
own log, without customer values.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from cohortium.client.node import Node
from cohortium.study.errors import CohortiumError, RefusedError
from cohortium.study.question import ACCEPTED, DECLINED, Question, Release, plain_reply, reply_kind

__all__ = ["NodeOpener", "make_client_app"]

NodeOpener = Callable[[Context], Node]
"""Finds and opens the node that a message is for."""

_log = logging.getLogger(__name__)
_Next = Callable[[Message, Context], Message]


def make_client_app(open_node: NodeOpener) -> ClientApp:
    """The app every institution runs, on every engine.

    Args:
        open_node: opens the node for a context; called for every message, so it should keep what it opened.
    """

    def guard(message: Message, context: Context, call_next: _Next) -> Message:
        try:
            reply = call_next(message, context)
            _refuse_unsealed(reply, open_node(context))
        except CohortiumError as error:
            _log.warning("declined: %s", error)
            return Message(plain_reply(DECLINED), reply_to=message)
        except Exception as error:  # noqa: BLE001 - the text of any exception could quote a customer: log its type alone
            _log.error("declined: internal error of type %s", type(error).__name__)
            return Message(plain_reply(DECLINED), reply_to=message)
        return reply

    app = ClientApp(mods=[guard])

    @app.query("plan")
    def plan(message: Message, context: Context) -> Message:
        open_node(context).accept(_plan_digest(message))
        return Message(plain_reply(ACCEPTED), reply_to=message)

    @app.query("answer")
    def answer(message: Message, context: Context) -> Message:
        release = open_node(context).door.release(Question.from_record(message.content))
        return Message(release.to_record(), reply_to=message)

    return app


def _refuse_unsealed(reply: Message, node: Node) -> None:
    if reply.has_error():
        raise RefusedError("a handler failed")
    if reply_kind(reply.content) == "release" and not node.door.has_sealed(Release.from_record(reply.content)):
        raise RefusedError("a reply that the door did not seal")


def _plan_digest(message: Message) -> str:
    record = message.content.get("plan")
    if not isinstance(record, ConfigRecord) or set(record) != {"digest"} or not isinstance(record["digest"], str):
        raise RefusedError("malformed message")
    return record["digest"]
