"""The institution's Flower ClientApp: the messages it understands, and a guard over every reply.

`query.plan` asks whether the institution answers a plan; `query.answer` carries one question of it; `query.share`,
`query.consent` and `query.unmask` are the other waves of a secure sum. Whatever happens inside, the coordinator learns
`accepted`, a sealed release, a sealed message of the secure sum, or the constant `declined`: the guard wraps all
handlers, turns every exception into `declined`, and stops any reply that the door did not seal. The reason stays in the
node's own log, without customer values.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from cohortium.client.node import Node
from cohortium.client.sums import NodeSums
from cohortium.study.errors import CohortiumError, RefusedError
from cohortium.study.question import (
    ACCEPTED,
    DECLINED,
    PlanQuestion,
    Release,
    SumMessage,
    parse_question_request,
    plain_reply,
    reply_kind,
)

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
        introduction = open_node(context).accept(PlanQuestion.from_record(message.content))
        return Message(plain_reply(ACCEPTED) if introduction is None else introduction.to_record(), reply_to=message)

    @app.query("answer")
    def answer(message: Message, context: Context) -> Message:
        question, sum_input = parse_question_request(message.content)
        release = open_node(context).door.release(question, sum_input)
        return Message(release.to_record(), reply_to=message)

    @app.query("share")
    def share(message: Message, context: Context) -> Message:
        return _about_keys(message, open_node(context), NodeSums.share)

    @app.query("consent")
    def consent(message: Message, context: Context) -> Message:
        return _about_keys(message, open_node(context), NodeSums.consent)

    @app.query("unmask")
    def unmask(message: Message, context: Context) -> Message:
        return _about_keys(message, open_node(context), NodeSums.unmask)

    return app


def _about_keys(message: Message, node: Node, answer: Callable[[NodeSums, bytes], bytes]) -> Message:
    """A wave of a secure sum that carries keys, signatures and shares of keys: nothing derived from customers."""
    request = SumMessage.from_record(message.content)
    if request.seal:
        raise RefusedError("a request with a seal")
    return Message(node.door.seal_message(answer(node.sums, request.payload)).to_record(), reply_to=message)


def _refuse_unsealed(reply: Message, node: Node) -> None:
    if reply.has_error():
        raise RefusedError("a handler failed")
    kind = reply_kind(reply.content)
    sealed = kind in ("accepted", "declined")
    if kind == "release":
        sealed = node.door.has_sealed(Release.from_record(reply.content))
    elif kind == "secure-sum":
        sealed = node.door.has_sealed_message(SumMessage.from_record(reply.content))
    if not sealed:
        raise RefusedError("a reply that the door did not seal")
