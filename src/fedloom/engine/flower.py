"""The two apps that Flower runs: they carry bytes between Flower and fedloom's own processes, and know nothing else.

Flower starts a process for the server's app and one for every message at a site. Neither loads a model. The server's app
connects to the process of `fedloom server` and does with Flower's grid what it is asked to; the site's app gives each
message to the process of `fedloom site`, which lives as long as the site takes part, and returns its answer. Rounds,
clients, deadlines and everything that is learned stay in those two, so that they outlive Flower's processes.

This is the only module that imports Flower.
"""

# Flower comes with an extra, which need not be installed where types are checked.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedloom.engine.envelope import Envelope, Stream, connected, read_frame, write_frame

ACTION, NOTHING = "fedloom", "nothing"
"""The names of the actions that sites have: to answer a message of fedloom, and to do nothing."""

NAME = "message"
"""The name under which a Flower message holds our bytes."""

SMALL = 1 << 20
"""Up to so many bytes go as one object. More go as an array, which Flower cuts into chunks that are fetched one by one."""

server = ServerApp()
client = ClientApp()


@server.main()
def serve(grid: Grid, context: Context) -> None:
    """Do what the server's process asks until it closes the connection."""
    with connected(str(context.run_config["socket"])) as stream:
        relay(grid, stream)


@client.query(ACTION)
def proxy(message: Message, context: Context) -> Message:
    """Give a message to the site's process and return its answer."""
    with connected(str(context.node_config["socket"])) as stream:
        write_frame(stream, content_of(message))
        return Message(record_of(read_frame(stream)), reply_to=message)


@client.query(NOTHING)
def nothing(message: Message, context: Context) -> Message:
    """Answer at once: what Flower's own machinery takes is measured by this; see `benchmarks/flower_floor.py`."""
    return Message(RecordDict(), reply_to=message)


def relay(grid: Grid, stream: Stream) -> None:
    """Answer requests about a grid until they end: which nodes there are, what to send, and what has come back."""
    while True:
        try:
            request = Envelope.from_bytes(read_frame(stream))
        except EOFError:
            return
        write_frame(stream, DOES[request.kind](grid, request).to_bytes())


def _nodes(grid: Grid, request: Envelope) -> Envelope:
    return Envelope("nodes", {"nodes": [[node.node_id, node.name] for node in grid.get_nodes()]})


def _send(grid: Grid, request: Envelope) -> Envelope:
    message = Message(
        record_of(request.parts[0]),
        dst_node_id=request.head["node"],
        message_type=f"query.{request.head['action']}",
        ttl=float(request.head["seconds"]),
        group_id=request.head["group"],
    )
    (found,) = grid.push_messages([message]) or [None]
    return Envelope("sent", {"id": found})


def _collect(grid: Grid, request: Envelope) -> Envelope:
    replies, parts = list[dict[str, str | None]](), list[bytes]()
    for reply in grid.pull_messages(request.head["ids"]):
        error = f"{reply.error.reason} (Flower's code {reply.error.code})" if reply.has_error() else None
        replies.append({"id": reply.metadata.reply_to_message_id, "error": error})
        parts.append(b"" if reply.has_error() or NAME not in reply.content else content_of(reply))
    return Envelope("collected", {"replies": replies}, tuple(parts))


DOES: dict[str, Callable[[Grid, Envelope], Envelope]] = {"nodes": _nodes, "send": _send, "collect": _collect}
"""What the server's app does, by the kind of a request."""


def record_of(content: bytes) -> RecordDict:
    """Put bytes into what Flower carries."""
    if len(content) <= SMALL:
        return RecordDict({NAME: ConfigRecord({NAME: content})})
    return RecordDict({NAME: ArrayRecord({NAME: Array("uint8", (len(content),), "fedloom", content)})})


def content_of(message: Message) -> bytes:
    """Take the bytes out of what Flower carried."""
    record = message.content[NAME]
    found = record[NAME]
    if isinstance(found, Array):
        return found.data
    assert isinstance(found, bytes)
    return found
