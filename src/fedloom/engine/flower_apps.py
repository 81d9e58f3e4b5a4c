"""The two apps that Flower runs; they only carry bytes between Flower and fedloom's own processes.

Flower starts a process for the server's app and one for every message at a site. Neither loads a model. The server's app
connects to the process of `fedloom server` and executes its requests on Flower's grid. The site's app passes each
message to the process of `fedloom site`, which runs as long as the site takes part, and returns its answer. Rounds,
clients, deadlines and all that is learned stay in these two processes, so they outlive those of Flower.

This is the only module that imports Flower.
"""

# Flower comes with an extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedloom.wire.site_messages import SiteMessage, Stream, connect_to_socket, receive_bytes, send_bytes

ACTION, NOTHING = "fedloom", "nothing"
"""The names of the actions of sites: to answer a message of fedloom, and to do nothing."""

NAME = "message"
"""The name under which a Flower message holds fedloom's bytes."""

SMALL = 1 << 20
"""Largest number of bytes that are sent as one object. More are sent as an array, which Flower cuts into chunks."""

server = ServerApp()
client = ClientApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Execute requests of the server's process until it closes the connection."""
    with connect_to_socket(str(context.run_config["socket"])) as stream:
        relay(grid, stream)


@client.query(ACTION)
def proxy(message: Message, context: Context) -> Message:
    """Pass a message to the site's process and return its answer."""
    with connect_to_socket(str(context.node_config["socket"])) as stream:
        send_bytes(stream, content_of(message))
        return Message(record_of(receive_bytes(stream)), reply_to=message)


@client.query(NOTHING)
def nothing(message: Message, context: Context) -> Message:
    """Answer at once, to measure the time of Flower itself; see `benchmarks/flower_floor.py`."""
    return Message(RecordDict(), reply_to=message)


def relay(grid: Grid, stream: Stream) -> None:
    """Answer requests about a grid until they end: list nodes, send messages, collect replies."""
    while True:
        try:
            request = SiteMessage.from_bytes(receive_bytes(stream))
        except EOFError:
            return
        send_bytes(stream, ACTIONS[request.kind](grid, request).to_bytes())


def _nodes(grid: Grid, request: SiteMessage) -> SiteMessage:
    return SiteMessage("nodes", {"nodes": [[node.node_id, node.name] for node in grid.get_nodes()]})


def _send(grid: Grid, request: SiteMessage) -> SiteMessage:
    message = Message(
        record_of(request.parts[0]),
        dst_node_id=request.head["node"],
        message_type=f"query.{request.head['action']}",
        ttl=float(request.head["seconds"]),
        group_id=request.head["group"],
    )
    (identifier,) = grid.push_messages([message]) or [None]
    return SiteMessage("sent", {"id": identifier})


def _collect(grid: Grid, request: SiteMessage) -> SiteMessage:
    replies, parts = list[dict[str, str | None]](), list[bytes]()
    for reply in grid.pull_messages(request.head["ids"]):
        error = f"{reply.error.reason} (Flower's code {reply.error.code})" if reply.has_error() else None
        replies.append({"id": reply.metadata.reply_to_message_id, "error": error})
        parts.append(b"" if reply.has_error() or NAME not in reply.content else content_of(reply))
    return SiteMessage("collected", {"replies": replies}, tuple(parts))


ACTIONS: dict[str, Callable[[Grid, SiteMessage], SiteMessage]] = {
    "nodes": _nodes,
    "send": _send,
    "collect": _collect,
}
"""Kind of a request → the function of the server's app that executes it."""


def record_of(content: bytes) -> RecordDict:
    """Return a record of Flower that holds bytes."""
    if len(content) <= SMALL:
        return RecordDict({NAME: ConfigRecord({NAME: content})})
    return RecordDict({NAME: ArrayRecord({NAME: Array("uint8", (len(content),), "fedloom", content)})})


def content_of(message: Message) -> bytes:
    """Return the bytes that a message of Flower holds."""
    record = message.content[NAME]
    content = record[NAME]
    if isinstance(content, Array):
        return content.data
    assert isinstance(content, bytes)
    return content
