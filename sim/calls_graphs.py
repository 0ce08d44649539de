"""CUDA's calls that capture work into graphs, and make and launch these."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sim.calls import Calls
from sim.enums import HANDLES, Handle, cudaError_t, cudaStreamCaptureMode, cudaStreamCaptureStatus, require
from sim.sites import site
from sim.work import RELAXED, Capture, Executable, Graph, Node, Work, disturb

INSTANTIATE_FLAGS = 0xF


class GraphCalls(Calls):
    def cudaStreamBeginCapture(self, stream: Any, mode: cudaStreamCaptureMode) -> None:
        item = self.sim.stream(stream)
        require(item is not self.gpu.legacy, cudaError_t.cudaErrorStreamCaptureUnsupported)
        require(item.capture is None, cudaError_t.cudaErrorIllegalState)
        item.capture = Capture(item, mode, self.thread, {item: frozenset()})
        self.gpu.captures.append(item.capture)

    def cudaStreamEndCapture(self, stream: Any) -> Handle:
        item = self.sim.stream(stream)
        capture: Any = item.capture
        require(capture is not None, cudaError_t.cudaErrorIllegalState)
        if capture.origin is not item:
            disturb(cudaError_t.cudaErrorStreamCaptureUnmatched, capture)
        self.gpu.end(capture)
        if capture.mode != RELAXED:
            require(capture.thread is self.thread, cudaError_t.cudaErrorStreamCaptureWrongThread)
        capture.require_valid()
        require(capture.is_joined(), cudaError_t.cudaErrorStreamCaptureUnjoined)
        return self.sim.register("cudaGraph_t", Graph(capture.nodes))

    def cudaStreamIsCapturing(self, stream: Any) -> cudaStreamCaptureStatus:
        item = self.sim.stream(stream)
        blocked = item is self.gpu.legacy and any(s.capture is not None for s in self.gpu.streams if s.blocking)
        require(not blocked, cudaError_t.cudaErrorStreamCaptureImplicit)
        return cudaStreamCaptureStatus(0 if item.capture is None else 2 if item.capture.invalidated else 1)

    def cudaThreadExchangeStreamCaptureMode(self, mode: cudaStreamCaptureMode) -> cudaStreamCaptureMode:
        thread = self.thread
        old, thread.capture_mode = thread.capture_mode, int(mode)
        return cudaStreamCaptureMode(old)

    def cudaGraphCreate(self, flags: int) -> Handle:
        require(flags == 0)
        return self.sim.register("cudaGraph_t", Graph([]))

    def cudaGraphAddEmptyNode(self, graph: Any, pDependencies: Any, numDependencies: int) -> Handle:
        return self._add(self._graph(graph), Graph([]), pDependencies)

    def cudaGraphAddChildGraphNode(self, graph: Any, pDependencies: Any, numDependencies: int, childGraph: Any) -> Handle:
        return self._add(self._graph(graph), self._graph(childGraph), pDependencies)

    def _add(self, graph: Graph, child: Graph, dependencies: Any) -> Handle:
        """Add a child's nodes and, behind them, one that stands for all of it."""
        before = frozenset(int(node) - 1 for node in dependencies or ())
        require(all(0 <= index < len(graph.nodes) for index in before))
        base, branches = len(graph.nodes), {node.branch: object() for node in child.nodes}
        for work, after, branch in child.nodes:
            graph.nodes.append(Node(work, frozenset(base + index for index in after) or before, branches[branch]))
        graph.nodes.append(Node(Work(""), before | frozenset(range(base, len(graph.nodes))), object()))
        return HANDLES["cudaGraphNode_t"](len(graph.nodes))

    def cudaGraphGetNodes(self, graph: Any, numNodes: int) -> tuple[list[Handle], int]:
        count = len(self._graph(graph).nodes)
        return [HANDLES["cudaGraphNode_t"](index + 1) for index in range(min(count, numNodes))], count

    def _graph(self, graph: Any) -> Graph:
        require(int(graph or 0))
        found = self.sim.lookup(graph, Graph)
        require(not isinstance(found, Executable), cudaError_t.cudaErrorInvalidResourceHandle)
        return found

    def _executable(self, graph: Any) -> Executable:
        require(int(graph or 0))
        return self.sim.lookup(graph, Executable)

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> Handle:
        require(not flags & ~INSTANTIATE_FLAGS)
        return self.sim.register("cudaGraphExec_t", Executable(self._graph(graph)))

    def cudaGraphInstantiateWithFlags(self, graph: Any, flags: int) -> Handle:
        return self.cudaGraphInstantiate(graph, flags)

    def cudaGraphExecUpdate(self, hGraphExec: Any, hGraph: Any) -> SimpleNamespace:
        """Take another graph's work, where it has the same nodes."""
        old, new = self._executable(hGraphExec), self._graph(hGraph)
        alike = [(node.work.unit, node.after) for node in old.nodes] == [(node.work.unit, node.after) for node in new.nodes]
        require(alike, cudaError_t.cudaErrorGraphExecUpdateFailure)
        old.nodes = [Node(other.work, node.after, node.branch) for node, other in zip(old.nodes, new.nodes)]
        return SimpleNamespace(result=0, errorNode=None, errorFromNode=None)

    def cudaGraphUpload(self, graphExec: Any, stream: Any) -> None:
        self._executable(graphExec), self.sim.stream(stream)

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> None:
        graph, item = self._executable(graphExec), self.sim.stream(stream)
        disturb(cudaError_t.cudaErrorStreamCaptureUnsupported, item.capture)
        for memory in (each.memory for node in graph.nodes for each in (*node.work.reads, *node.work.writes)):
            if memory.gone:
                self.sim.remark(f"freed too early: the graph launched at {site()} uses {memory.name}, gone since {memory.gone}")
            require(not memory.gone, cudaError_t.cudaErrorIllegalAddress)
        self.gpu.launch(graph, item, site())

    def cudaGraphDestroy(self, graph: Any) -> None:
        self._graph(graph)
        self.sim.release(graph, Graph)

    def cudaGraphExecDestroy(self, graphExec: Any) -> None:
        self.gpu.retire(*self._executable(graphExec).branches.values())
        self.sim.release(graphExec, Executable)
