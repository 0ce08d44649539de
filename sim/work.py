"""What lies on the GPU's streams: work, operations, events, captures and the graphs they become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from sim.clock import HostThread
from sim.enums import cudaError_t, cudaStreamCaptureMode, require
from sim.order import Line, Order
from sim.races import Range

GLOBAL, THREAD_LOCAL, RELAXED = cudaStreamCaptureMode
HOST_FUNCTION = "the host function"


class Piece(NamedTuple):
    """A copy or a kernel: its duration in ns, and the share of its unit that it keeps busy."""

    name: str
    duration: int
    share: float = 1.0


@dataclass(frozen=True)
class Work:
    """What an operation does: on which unit of the GPU, in which pieces one after the other, to which memory."""

    unit: str  # h2d, d2h, compute, or "" for a marker that takes no time
    pieces: tuple[Piece, ...] = ()
    run: Callable[[], object] = lambda: None
    nbytes: int = 0
    what: str = ""
    site: str = ""
    reads: tuple[Range, ...] = ()
    writes: tuple[Range, ...] = ()


@dataclass(eq=False)
class Operation:
    """Work in its place: after all of ``order``, which it is the latest of, and on its unit from ``start`` to ``end`` (ns)."""

    work: Work
    unit: str
    start: int = 0
    end: int = 0
    handed_over: int = 0  # when another unit may take over from it (its own does at ``end``); a marker passes on what it marks
    order: Order = field(default_factory=dict)
    number: int = 0  # on its line
    serial: int = 0


class Stream(Line):
    kind = "stream"
    site = ""  # ``site``: the line of the script that made it
    tail: Operation | None = None
    capture: Capture | None = None

    def __init__(self, blocking: bool, priority: int = 0) -> None:
        super().__init__()
        self.blocking, self.priority = blocking, priority
        self.waits: list[Operation] = []

    @property
    def last(self) -> list[Operation]:
        """What must be over for its next operation."""
        return [*self.waits, self.tail] if self.tail is not None else self.waits


@dataclass(eq=False)
class Event:
    kind = "event"
    timing: bool
    handle: int = 0
    site: str = ""
    operation: Operation | None = None
    captured: tuple[Capture, frozenset[int]] | None = None


class Node(NamedTuple):
    """Work in a graph, the indices of the nodes that it comes after, and the branch that it is on: one stream's, in turn."""

    work: Work
    after: frozenset[int]
    branch: object


@dataclass(eq=False)
class Graph:
    """Nodes in an order in which they may run."""

    kind = "graph"
    nodes: list[Node]
    handle: int = 0
    site: str = ""


class Executable(Graph):
    """An instantiated graph. Its launches come after one another, in whatever streams."""

    kind = "executable graph"
    last: Operation | None = None

    def __init__(self, graph: Graph) -> None:
        super().__init__(list(graph.nodes))
        self.branches = {node.branch: Line() for node in self.nodes}


@dataclass(eq=False)
class Capture:
    """A capture in progress: its nodes so far, and by stream those that the stream's next one comes after."""

    origin: Stream
    mode: cudaStreamCaptureMode
    thread: HostThread
    streams: dict[Stream, frozenset[int]]
    nodes: list[Node] = field(default_factory=list)
    invalidated: bool = False

    def require_valid(self) -> None:
        require(not self.invalidated, cudaError_t.cudaErrorStreamCaptureInvalidated)

    def add(self, stream: Stream, work: Work) -> None:
        self.require_valid()
        self.nodes.append(Node(work, self.streams[stream], stream))
        self.streams[stream] = frozenset([len(self.nodes) - 1])

    def is_joined(self) -> bool:
        """Whether everything captured comes before what comes next on the stream where the capture began."""
        joined = set(self.streams[self.origin])
        for index in reversed(range(len(self.nodes))):  # a node comes after nodes of smaller index
            if index in joined:
                joined |= self.nodes[index].after
        return all(tails <= joined for tails in self.streams.values())


def disturb(error: cudaError_t, *captures: Capture | None) -> None:
    """What these captures forbid: the call ends with ``error`` and they are broken. Nothing happens where there are none."""
    broken = [capture for capture in captures if capture is not None]
    for capture in broken:
        capture.invalidated = True
    require(not broken, error)
