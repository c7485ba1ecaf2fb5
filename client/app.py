"""The institution's Flower ClientApp: the messages it understands, and a guard over every reply.

`query.plan` asks whether the institution answers a plan; `query.answer` carries one question of it; `query.share`,
`query.consent` and `query.unmask` are the other waves of a secure sum; `query.witness` is about audit logs. Whatever
happens inside, the coordinator learns `accepted`, a sealed release, a sealed message of the secure sum or about logs,
or the constant `declined`: the guard wraps all handlers, turns every exception into `declined`, and stops any reply
that the door did not seal. The reason stays in the node's own log, without customer values.
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
    LogMessage,
    PlanQuestion,
    Release,
    SumMessage,
    parse_question_request,
    plain_reply,
    reply_kind,
    split_log,
    with_log,
)
from cohortium.study.witness import WitnessRequest

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
        node = open_node(context)
        content, log = split_log(message.content)
        asked = PlanQuestion.from_record(content)
        _take_cosignatures(node, asked.plan, log)
        introduction = node.accept(asked)
        reply = plain_reply(ACCEPTED) if introduction is None else introduction.to_record()
        return Message(with_log(reply, _about_logs(node, WitnessRequest(plan=asked.plan))), reply_to=message)

    @app.query("answer")
    def answer(message: Message, context: Context) -> Message:
        node = open_node(context)
        content, log = split_log(message.content)
        question, sum_input = parse_question_request(content)
        _take_cosignatures(node, question.header.plan, log)
        release = node.door.release(question, sum_input)
        return Message(release.to_record(), reply_to=message)

    @app.query("witness")
    def witness(message: Message, context: Context) -> Message:
        request = LogMessage.from_record(message.content)
        if request.seal:
            raise RefusedError("a request with a seal")
        reply = _about_logs(open_node(context), WitnessRequest.from_bytes(request.payload))
        return Message(reply.to_record(), reply_to=message)

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
    reply = node.door.seal_message(SumMessage(answer(node.sums, request.payload)))
    return Message(reply.to_record(), reply_to=message)


def _take_cosignatures(node: Node, plan: str, message: LogMessage | None) -> None:
    """What came beside a question: the cosigned checkpoint without which it could not be answered."""
    if message is None:
        return
    request = WitnessRequest.from_bytes(message.payload)
    if message.seal or request.plan != plan or request.to_cosign or request.growth_from or request.cosigned is None:
        raise RefusedError("a message about logs that does not belong to its question")
    node.log.take(request)


def _about_logs(node: Node, request: WitnessRequest) -> LogMessage:
    return node.door.seal_message(LogMessage(node.log.answer(request).to_bytes()))


def _refuse_unsealed(reply: Message, node: Node) -> None:
    if reply.has_error():
        raise RefusedError("a handler failed")
    content, log = split_log(reply.content)
    kind = reply_kind(content)
    sealed = kind in ("accepted", "declined")
    if kind == "release":
        sealed = node.door.has_sealed(Release.from_record(content))
    elif kind == "secure-sum":
        sealed = node.door.has_sealed_message(SumMessage.from_record(content))
    elif kind == "log":
        sealed = node.door.has_sealed_message(LogMessage.from_record(content))
    if log is not None:
        sealed &= node.door.has_sealed_message(log)
    if not sealed:
        raise RefusedError("a reply that the door did not seal")
