#!/usr/bin/env python3
"""Differential test of a CUDA runtime: random race-free programs against a numpy oracle, and probes of error behaviour.

    difffuzz.py --backend real --seed 1 --count 300 > real.jsonl      (needs cuda-python 12 or 13 and numpy; nothing else)
    difffuzz.py --backend sim  --seed 1 --count 300 > sim.jsonl       (needs the project, --project PATH)
    difffuzz.py --compare sim.jsonl real.jsonl

Programs are race-free by construction: `Model` tracks happens-before (only what CUDA documents) and refuses anything that
is not ordered, so their final memory is what executing them in program order gives. A parent process supervises a child:
what crashes, hangs (120 s) or poisons the context is recorded as such, and the run goes on behind it.
"""

# ruff: noqa: B023, E501, UP031
from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time

import numpy as np

CHUNKS = 8
MODES = ("Global", "ThreadLocal", "Relaxed")


# Documented orderings that a program may rely on; a line's "relies" names those without which it would be racy.
RULES = (
    "exec_order",  # cudaGraphLaunch: "ordered behind ... any previous launches of hGraphExec"
    "waits_pass",
)  # legacy stream and blocking streams inherit each other's cudaStreamWaitEvent, work or no work behind it


class Invalid(Exception):
    """A program that is not race-free, or not legal."""


# ---------------------------------------------------------------------------------------------- model and oracle


class MStream:
    def __init__(self, blocking):
        self.blocking, self.tail, self.cap = blocking, 0, False
        self.solid = 0  # the tail without waits that no work or record has followed yet


class MEvent:
    def __init__(self):
        self.mask, self.cap = None, None  # mask: recorded outside; cap: (capture number, node mask)


class MCapture:
    def __init__(self, number, origin, mode):
        self.number, self.origin, self.mode = number, origin, mode
        self.nodes, self.tails = [], {origin: 0}
        self.w, self.r = {}, {}


def touches(spec):
    """(writes, reads) of an operation as lists of (buffer, chunk)."""
    if spec[0] == "ms":
        _, buf, c, n, _ = spec
        return [(buf, c + i) for i in range(n)], []
    _, dst, dc, src, sc, n = spec
    return [(dst, dc + i) for i in range(n)], [(src, sc + i) for i in range(n)]


class Model:
    """Happens-before and contents. ``apply`` raises Invalid for what is racy or illegal; ``missing`` says what is unordered."""

    def __init__(self, hdr, rules=RULES):
        self.K, self.rules = hdr["K"], rules
        names = (
            ["D%d" % i for i in range(hdr["device"])]
            + ["P%d" % i for i in range(hdr["pinned"])]
            + ["G%d" % i for i in range(hdr["pageable"])]
        )
        self.data = {b: np.zeros(CHUNKS * self.K, np.uint8) for b in names}
        self.init = {b: [False] * CHUNKS for b in names}
        self.w = {(b, c): 0 for b in names for c in range(CHUNKS)}
        self.r = dict(self.w)
        self.streams, self.events = {0: MStream(True)}, {}
        self.host, self.count, self.cap, self.ncap = 0, 0, None, 0
        self.graphs, self.execs = {}, {}
        self.seen = []  # hashes of what the host read on the way

    # -- ordering

    def closure(self, s):
        st = self.streams[s]
        mask = st.tail | self.host
        if s == 0:
            for other in self.streams.values():
                if other.blocking:
                    mask |= self.seen_by_others(other)
        elif st.blocking:
            mask |= self.seen_by_others(self.streams[0])
        return mask

    def seen_by_others(self, stream):
        return stream.tail if "waits_pass" in self.rules else stream.solid

    def required(self, spec, staged=False):
        writes, reads = touches(spec)
        mask = 0
        for key in writes:
            mask |= self.w[key] | self.r[key]
        if not staged:
            for key in reads:
                mask |= self.w[key]
        return mask

    def readable(self, spec, extra=()):
        return all(self.init[b][c] or (b, c) in extra for b, c in touches(spec)[1])

    def pageable(self, spec):
        return spec[0] == "cp" and "G" in (spec[1][0], spec[3][0])

    def missing(self, ins):
        """What ``ins`` would have to be ordered after and is not."""
        op = ins[0]
        if op in ("cp", "ms"):
            spec, s = self.spec_of(ins)
            if self.streams[s].cap:
                need = 0
                writes, reads = touches(spec)
                for key in writes:
                    need |= self.cap.w.get(key, 0) | self.cap.r.get(key, 0)
                for key in reads:
                    need |= self.cap.w.get(key, 0)
                return need & ~self.cap.tails[s]
            return self.required(spec, spec[0] == "cp" and spec[3][0] == "G") & ~self.closure(s)
        if op in ("cps", "mss"):
            spec, _ = self.spec_of(ins)
            return self.required(spec, spec[0] == "cp" and spec[3][0] == "G") & ~self.closure(0)
        if op == "launch":
            nodes, last = self.execs[ins[1]]
            need = 0
            for spec, _ in nodes:
                need |= self.required(spec)
            return need & ~(self.closure(ins[2]) | (last if "exec_order" in self.rules else 0))
        if op == "hw":
            need = 0
            for c in range(ins[2], ins[2] + ins[3]):
                need |= self.w[ins[1], c] | self.r[ins[1], c]
            return need & ~self.host
        if op == "hr":
            need = 0
            for c in range(ins[2], ins[2] + ins[3]):
                need |= self.w[ins[1], c]
            return need & ~self.host
        return 0

    @staticmethod
    def spec_of(ins):
        if ins[0] == "cp":
            return ("cp",) + tuple(ins[1:6]), ins[7]
        if ins[0] == "cps":
            return ("cp",) + tuple(ins[1:6]), 0
        if ins[0] == "ms":
            return ("ms",) + tuple(ins[1:5]), ins[5]
        return ("ms",) + tuple(ins[1:5]), 0

    # -- execution

    def execute(self, spec):
        K = self.K
        if spec[0] == "ms":
            _, buf, c, n, value = spec
            self.data[buf][c * K : (c + n) * K] = value
            for i in range(n):
                self.init[buf][c + i] = True
        else:
            _, dst, dc, src, sc, n = spec
            self.data[dst][dc * K : (dc + n) * K] = self.data[src][sc * K : (sc + n) * K]
            for i in range(n):
                self.init[dst][dc + i] = True

    def note(self, spec, bit, staged=False):
        writes, reads = touches(spec)
        for key in writes:
            self.w[key] |= bit
        if not staged:
            for key in reads:
                self.r[key] |= bit

    def new_bit(self):
        self.count += 1
        return 1 << self.count

    def apply(self, ins):
        op = ins[0]
        if op == "stream":
            self.streams[ins[1]] = MStream(ins[2] == 0)
        elif op == "sdestroy":
            if ins[1] not in self.streams or self.streams[ins[1]].cap or ins[1] == 0 or self.cap:
                raise Invalid(ins)
            del self.streams[ins[1]]
        elif op == "event":
            self.events[ins[1]] = MEvent()
        elif op == "edestroy":
            if ins[1] not in self.events or self.cap:
                raise Invalid(ins)
            del self.events[ins[1]]
        elif op == "hw":
            self.must(ins)
            _, buf, c, n, seed = ins
            self.data[buf][c * self.K : (c + n) * self.K] = pattern(n * self.K, seed)
            for i in range(n):
                self.init[buf][c + i] = True
        elif op == "hr":
            self.must(ins)
            _, buf, c, n = ins
            if not all(self.init[buf][c : c + n]):
                raise Invalid(ins)
            self.seen.append(digest(self.data[buf][c * self.K : (c + n) * self.K]))
        elif op in ("cp", "ms"):
            spec, s = self.spec_of(ins)
            self.alive(s)
            if self.streams[s].cap:
                self.capture_node(ins, spec, s)
            else:
                self.no_legacy_in_capture(s)
                self.must(ins)
                if not self.readable(spec):
                    raise Invalid(ins)
                staged = spec[0] == "cp" and spec[3][0] == "G"
                if self.cap and self.pageable(spec):
                    raise Invalid(ins)
                mask, bit = self.closure(s), self.new_bit()
                self.note(spec, bit, staged)
                self.streams[s].tail = self.streams[s].solid = mask | bit
                if spec[0] == "cp" and spec[1][0] == "G":
                    self.host |= mask | bit
                self.execute(spec)
        elif op in ("cps", "mss"):
            spec, _ = self.spec_of(ins)
            if self.cap:
                raise Invalid(ins)
            self.must(ins)
            if not self.readable(spec):
                raise Invalid(ins)
            staged = spec[0] == "cp" and spec[3][0] == "G"
            mask, bit = self.closure(0), self.new_bit()
            self.note(spec, bit, staged)
            self.streams[0].tail = self.streams[0].solid = mask | bit
            if spec[0] == "cp" and (spec[1][0] != "D" or spec[3][0] == "P"):
                self.host |= mask | bit  # to the host, or from page-locked memory: over when the call returns
            self.execute(spec)
        elif op == "rec":
            _, e, s = ins
            self.alive(s), self.known(e)
            event = self.events[e]
            if self.streams[s].cap:
                event.mask, event.cap = None, (self.cap.number, self.cap.tails[s])
            else:
                self.no_legacy_in_capture(s)
                event.mask, event.cap = self.streams[s].tail, None
                self.streams[s].solid = self.streams[s].tail
        elif op == "wait":
            _, s, e = ins
            self.alive(s), self.known(e)
            event = self.events[e]
            if event.cap is not None:
                if self.cap is None or event.cap[0] != self.cap.number or s == 0:
                    raise Invalid(ins)
                self.streams[s].cap = True
                self.cap.tails[s] = self.cap.tails.get(s, 0) | event.cap[1]
            elif self.streams[s].cap:
                raise Invalid(ins)
            else:
                self.no_legacy_in_capture(s)
                if event.mask is not None:
                    self.streams[s].tail |= event.mask
        elif op == "ssync":
            self.alive(ins[1])
            if self.cap:
                raise Invalid(ins)
            self.host |= self.streams[ins[1]].tail
        elif op == "esync":
            self.known(ins[1])
            if self.cap or self.events[ins[1]].cap:
                raise Invalid(ins)
            self.host |= self.events[ins[1]].mask or 0
        elif op == "dsync":
            if self.cap:
                raise Invalid(ins)
            self.host = (1 << (self.count + 1)) - 1
        elif op == "begin":
            if self.cap or ins[1] == 0 or ins[1] not in self.streams:
                raise Invalid(ins)
            self.ncap += 1
            self.cap = MCapture(self.ncap, ins[1], ins[2])
            self.streams[ins[1]].cap = True
        elif op == "end":
            cap = self.cap
            if cap is None or cap.origin != ins[1] or any(tail & ~cap.tails[ins[1]] for tail in cap.tails.values()):
                raise Invalid(ins)
            # a forked stream must be joined even where it did no work: its tail is then the fork's, contained already
            for s in cap.tails:
                self.streams[s].cap = False
            self.graphs[ins[2]], self.cap = cap.nodes, None
        elif op == "inst":
            if ins[1] not in self.graphs:
                raise Invalid(ins)
            self.execs[ins[2]] = [list(self.graphs[ins[1]]), 0]
        elif op == "gdestroy":
            if ins[1] not in self.graphs:
                raise Invalid(ins)
            del self.graphs[ins[1]]
        elif op == "upload":
            if ins[1] not in self.execs or ins[2] not in self.streams or self.cap:
                raise Invalid(ins)
        elif op == "launch":
            _, x, s = ins
            if x not in self.execs or self.cap:
                raise Invalid(ins)
            self.alive(s)
            self.must(ins)
            nodes, last = self.execs[x]
            mask, bits = self.closure(s) | (last if "exec_order" in self.rules else 0), 0
            written = set()
            for spec, _ in nodes:
                if not self.readable(spec, written):
                    raise Invalid(ins)
                written.update(touches(spec)[0])
                bit = self.new_bit()
                self.note(spec, bit)
                bits |= bit
                self.execute(spec)
            self.streams[s].tail = self.streams[s].solid = mask | bits
            self.execs[x][1] = mask | bits
        else:
            raise Invalid(ins)

    def capture_node(self, ins, spec, s):
        cap = self.cap
        if self.pageable(spec) or self.missing(ins) or not self.readable(spec, cap.w):
            raise Invalid(ins)
        bit = 1 << len(cap.nodes)
        writes, reads = touches(spec)
        for key in writes:
            cap.w[key] = cap.w.get(key, 0) | bit
        for key in reads:
            cap.r[key] = cap.r.get(key, 0) | bit
        cap.nodes.append((spec, cap.tails[s]))
        cap.tails[s] |= bit

    def must(self, ins):
        if self.missing(ins):
            raise Invalid(ins)

    def alive(self, s):
        if s not in self.streams:
            raise Invalid(s)

    def known(self, e):
        if e not in self.events:
            raise Invalid(e)

    def no_legacy_in_capture(self, s):
        if s == 0 and self.cap:
            raise Invalid("legacy stream during capture")


def pattern(nbytes, seed):
    return ((np.arange(nbytes, dtype=np.uint32) * np.uint32(2 * seed + 1) + np.uint32(seed * 37)) >> np.uint32(3)).astype(
        np.uint8
    )


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------- generator


class Generator:
    def __init__(self, seed, index):
        self.rng = rng = random.Random("difffuzz-%d-%d" % (seed, index))
        self.hdr = {
            "K": rng.choice([64, 1000, 4096, 32768, 131072]),
            "device": rng.randrange(2, 6),
            "pinned": rng.randrange(2, 5),
            "pageable": rng.randrange(1, 3),
        }
        self.m = Model(self.hdr)
        self.out = []
        self.serial = 0
        for s in range(1, rng.randrange(2, 5) + 1):
            self.emit(("stream", s, rng.choice([0, 1, 1])))
        self.next_stream = len(self.m.streams)
        for e in range(rng.randrange(3, 7)):
            self.emit(("event", e, rng.choice([0, 2])))
        self.next_event = len(self.m.events)
        self.next_graph = self.next_exec = 0
        for b in self.names("PG"):
            self.emit(("hw", b, 0, CHUNKS, rng.randrange(1 << 12)))
        for b in self.names("D"):
            if rng.random() < 0.6:
                self.emit(("ms", b, 0, CHUNKS, rng.randrange(256), rng.choice(sorted(self.m.streams))))
        kinds = (
            ["cp"] * 24
            + ["ms"] * 6
            + ["cps"] * 3
            + ["mss"] * 1
            + ["hw"] * 5
            + ["hr"] * 6
            + ["rec"] * 6
            + ["wait"] * 6
            + ["sync"] * 3
            + ["graph"] * 3
            + ["relaunch"] * 3
            + ["life"] * 2
        )
        for _ in range(rng.randrange(20, 70)):
            getattr(self, "g_" + rng.choice(kinds))()
        self.emit(("dsync",))
        for b in self.names("PG"):
            self.emit(("hr", b, 0, CHUNKS))

    def names(self, kinds):
        return [b for b in self.m.data if b[0] in kinds]

    def emit(self, ins):
        self.m.apply(ins)
        self.out.append(ins)

    def stream(self, legacy=True):
        rng = self.rng
        pool = sorted(s for s in self.m.streams if s or (legacy and rng.random() < 0.35))
        return rng.choice(pool)

    def events_outside(self):
        return sorted(e for e, v in self.m.events.items() if v.cap is None)

    def safe(self, ins, s=None):
        """Order what ``ins`` needs in one of several ways, then emit it; or give it up."""
        rng, m = self.rng, self.m
        for _ in range(4):
            need = m.missing(ins)
            if not need:
                try:
                    self.emit(ins)
                except Invalid:
                    pass
                return
            if rng.random() < 0.15:
                return
            way = rng.random()
            if s is not None and way < 0.65:  # on the device, by events
                covering = [e for e in self.events_outside() if (m.events[e].mask or 0) & need]
                if covering and rng.random() < 0.5:
                    self.emit(("wait", s, rng.choice(covering)))
                    continue
                carriers = sorted(t for t, v in m.streams.items() if v.tail & need and t != s)
                if carriers:
                    e = rng.choice(sorted(m.events))
                    self.emit(("rec", e, rng.choice(carriers)))
                    self.emit(("wait", s, e))
                    continue
            if way < 0.80:
                covering = [e for e in self.events_outside() if (m.events[e].mask or 0) & need]
                if covering:
                    self.emit(("esync", rng.choice(covering)))
                    continue
            carriers = sorted(t for t, v in m.streams.items() if v.tail & need)
            if carriers and way < 0.95:
                self.emit(("ssync", rng.choice(carriers)))
                continue
            self.emit(("dsync",))

    def rand_copy(self, kinds="DPG"):
        rng, _m = self.rng, self.m
        for _ in range(20):
            src = rng.choice(self.names(kinds))
            dst = rng.choice([b for b in self.names(kinds) if b != src])
            pair = src[0] + dst[0]
            if pair in ("GG", "GP", "PG") or (pair == "PP" and rng.random() < 0.8):
                continue
            n = rng.choice([1, 2, 4, 8])
            sc, dc = rng.randrange(CHUNKS - n + 1), rng.randrange(CHUNKS - n + 1)
            kind = {"DD": 3, "DP": 2, "DG": 2, "PD": 1, "GD": 1, "PP": 0}[src[0].replace("G", "G") + dst[0]]
            if rng.random() < 0.15:
                kind = 4
            return (dst, dc, src, sc, n, kind)
        return ("D0", 0, "P0", 0, 1, 1)

    def g_cp(self):
        s = self.stream()
        ins = ("cp",) + self.rand_copy() + (s,)
        self.safe(ins, s)

    def g_cps(self):
        self.safe(("cps",) + self.rand_copy(), 0)

    def g_ms(self):
        s, n = self.stream(), self.rng.choice([1, 3, 8])
        self.safe(
            ("ms", self.rng.choice(self.names("D")), self.rng.randrange(CHUNKS - n + 1), n, self.rng.randrange(256), s), s
        )

    def g_mss(self):
        n = self.rng.choice([1, 3, 8])
        self.safe(("mss", self.rng.choice(self.names("D")), self.rng.randrange(CHUNKS - n + 1), n, self.rng.randrange(256)), 0)

    def g_hw(self):
        n = self.rng.choice([1, 2, 8])
        self.safe(("hw", self.rng.choice(self.names("PG")), self.rng.randrange(CHUNKS - n + 1), n, self.rng.randrange(1 << 12)))

    def g_hr(self):
        n = self.rng.choice([1, 2, 8])
        self.safe(("hr", self.rng.choice(self.names("PG")), self.rng.randrange(CHUNKS - n + 1), n))

    def g_rec(self):
        self.emit(("rec", self.rng.choice(sorted(self.m.events)), self.stream()))

    def g_wait(self):
        pool = self.events_outside()
        if pool:
            self.emit(("wait", self.stream(), self.rng.choice(pool)))

    def g_sync(self):
        way = self.rng.random()
        if way < 0.5:
            self.emit(("ssync", self.stream()))
        elif way < 0.9 and self.events_outside():
            self.emit(("esync", self.rng.choice(self.events_outside())))
        else:
            self.emit(("dsync",))

    def g_life(self):
        rng = self.rng
        if rng.random() < 0.5 and len(self.m.streams) > 3:
            self.emit(("sdestroy", rng.choice([s for s in sorted(self.m.streams) if s])))
        elif rng.random() < 0.5:
            self.emit(("stream", self.next_stream, rng.choice([0, 1])))
            self.next_stream += 1
        elif len(self.m.events) > 3:
            self.emit(("edestroy", rng.choice(sorted(self.m.events))))
        else:
            self.emit(("event", self.next_event, 2))
            self.next_event += 1

    def g_graph(self):
        rng, m = self.rng, self.m
        origin = rng.choice([s for s in sorted(m.streams) if s])
        self.emit(("begin", origin, rng.randrange(3)))
        fork = rng.random() < 0.6
        pool = sorted(m.events)
        for _ in range(rng.randrange(1, 9)):
            members = sorted(m.cap.tails)
            s = rng.choice(members)
            if fork and rng.random() < 0.35:
                others = [t for t in sorted(m.streams) if t and t != s]
                if others:
                    e = rng.choice(pool)
                    self.emit(("rec", e, s))
                    self.emit(("wait", rng.choice(others), e))
                continue
            if rng.random() < 0.12:  # work of a stream that takes no part
                outside = [t for t in sorted(m.streams) if t and not m.streams[t].cap]
                if outside:
                    t = rng.choice(outside)
                    ins = ("cp",) + self.rand_copy("DP") + (t,)
                    if not m.missing(ins):
                        try:
                            self.emit(ins)
                        except Invalid:
                            pass
                    continue
            if rng.random() < 0.25:
                n = rng.choice([1, 4, 8])
                ins = ("ms", rng.choice(self.names("D")), rng.randrange(CHUNKS - n + 1), n, rng.randrange(256), s)
            else:
                ins = ("cp",) + self.rand_copy("DP") + (s,)
            if m.missing(ins):
                carriers = [t for t in members if t != s and m.missing(ins) & m.cap.tails[t]]
                if not carriers:
                    continue
                e = rng.choice(pool)
                self.emit(("rec", e, rng.choice(carriers)))
                self.emit(("wait", s, e))
            try:
                self.emit(ins)
            except Invalid:
                pass
        for s in sorted(m.cap.tails):
            if s != origin:
                e = rng.choice(pool)
                self.emit(("rec", e, s))
                self.emit(("wait", origin, e))
        g, x = self.next_graph, self.next_exec
        self.emit(("end", origin, g))
        self.emit(("inst", g, x))
        self.next_graph, self.next_exec = g + 1, x + 1
        if rng.random() < 0.5:
            self.emit(("gdestroy", g))
        if rng.random() < 0.3:
            self.emit(("upload", x, rng.choice([s for s in sorted(m.streams) if s])))
        for _ in range(rng.randrange(1, 4)):
            self.g_relaunch(x)

    def g_relaunch(self, x=None):
        rng, m = self.rng, self.m
        if not m.execs:
            return
        if x is None:
            x = rng.choice(sorted(m.execs))
        s = self.stream(legacy=rng.random() < 0.3)
        self.safe(("launch", x, s), s)


# ---------------------------------------------------------------------------------------------- running on a backend


class Backend:
    def __init__(self, name, project, device):
        self.name = name
        if name == "sim":
            sys.path.insert(0, project)
            from sim import cudart, simulator

            self.rt, self._simulator, self._device = cudart, simulator, device
            self.info = f"simulated {device} from {project}"
        else:
            try:
                from cuda.bindings import runtime as rt
            except ImportError:
                from cuda import cudart as rt
            self.rt, self._simulator = rt, None
            code, prop = rt.cudaGetDeviceProperties(0)
            if int(code) != 0:
                print(f"no GPU answers: {code.name}", file=sys.stderr)
                os._exit(3)
            self.info = f"{prop.name.decode() if code == 0 else code}, runtime {rt.cudaRuntimeGetVersion()}, driver {rt.cudaDriverGetVersion()}"
        kinds = self.rt.cudaMemcpyKind
        self.kinds = [
            kinds.cudaMemcpyHostToHost,
            kinds.cudaMemcpyHostToDevice,
            kinds.cudaMemcpyDeviceToHost,
            kinds.cudaMemcpyDeviceToDevice,
            kinds.cudaMemcpyDefault,
        ]
        self.modes = [getattr(self.rt.cudaStreamCaptureMode, "cudaStreamCaptureMode" + mode) for mode in MODES]

    def fresh(self):
        if self._simulator is not None:
            self._simulator.start(self._device)
        else:
            self.rt.cudaFree(0)
        self.rt.cudaGetLastError()


def bytes_at(address, nbytes):
    return np.frombuffer((ctypes.c_ubyte * nbytes).from_address(int(address)), np.uint8)


class Runner:
    """Runs a program's instructions; ``codes`` collects what did not succeed."""

    def __init__(self, be, hdr):
        self.be, self.rt, self.K = be, be.rt, hdr["K"]
        self.codes, self.seen, self.step = [], [], -1
        self.streams, self.events, self.graphs, self.execs = {0: 0}, {}, {}, {}
        self.address, self.array = {}, {}
        n = CHUNKS * self.K
        for i in range(hdr["device"]):
            self.address["D%d" % i] = int(self.do("cudaMalloc", n))
        for i in range(hdr["pinned"]):
            address = self.do("cudaHostAlloc", n, 0) if i % 2 else self.do("cudaMallocHost", n)
            self.address["P%d" % i], self.array["P%d" % i] = int(address), bytes_at(address, n)
        for i in range(hdr["pageable"]):
            self.array["G%d" % i] = np.zeros(n, np.uint8)
            self.address["G%d" % i] = self.array["G%d" % i].ctypes.data

    def do(self, name, *args):
        error, *values = getattr(self.rt, name)(*args)
        if int(error) != 0:
            self.codes.append("%d:%s:%s" % (self.step, name, error.name))
        return values[0] if values else None

    def at(self, buf, chunk):
        return self.address[buf] + chunk * self.K

    def run(self, program):
        for self.step, ins in enumerate(program):
            self.one(ins)
        outputs = {}
        self.step = len(program)
        self.do("cudaDeviceSynchronize")
        for buf in sorted(self.address):
            if buf[0] == "D":
                host = np.zeros(CHUNKS * self.K, np.uint8)
                self.do("cudaMemcpy", host.ctypes.data, self.address[buf], host.nbytes, self.be.kinds[2])
                outputs[buf] = host
            else:
                outputs[buf] = self.array[buf].copy()
        return outputs

    def one(self, ins):
        op, K, _rt = ins[0], self.K, self.rt
        if op == "stream":
            self.streams[ins[1]] = self.do("cudaStreamCreateWithFlags", ins[2])
        elif op == "sdestroy":
            self.do("cudaStreamDestroy", self.streams.pop(ins[1]))
        elif op == "event":
            self.events[ins[1]] = self.do("cudaEventCreateWithFlags", ins[2])
        elif op == "edestroy":
            self.do("cudaEventDestroy", self.events.pop(ins[1]))
        elif op == "hw":
            self.array[ins[1]][ins[2] * K : (ins[2] + ins[3]) * K] = pattern(ins[3] * K, ins[4])
        elif op == "hr":
            self.seen.append(digest(self.array[ins[1]][ins[2] * K : (ins[2] + ins[3]) * K]))
        elif op == "cp":
            _, dst, dc, src, sc, n, kind, s = ins
            self.do("cudaMemcpyAsync", self.at(dst, dc), self.at(src, sc), n * K, self.be.kinds[kind], self.streams[s])
        elif op == "cps":
            _, dst, dc, src, sc, n, kind = ins
            self.do("cudaMemcpy", self.at(dst, dc), self.at(src, sc), n * K, self.be.kinds[kind])
        elif op == "ms":
            self.do("cudaMemsetAsync", self.at(ins[1], ins[2]), ins[4], ins[3] * K, self.streams[ins[5]])
        elif op == "mss":
            self.do("cudaMemset", self.at(ins[1], ins[2]), ins[4], ins[3] * K)
        elif op == "rec":
            self.do("cudaEventRecord", self.events[ins[1]], self.streams[ins[2]])
        elif op == "wait":
            self.do("cudaStreamWaitEvent", self.streams[ins[1]], self.events[ins[2]], 0)
        elif op == "ssync":
            self.do("cudaStreamSynchronize", self.streams[ins[1]])
            if ins[1]:
                self.do("cudaStreamQuery", self.streams[ins[1]])
        elif op == "esync":
            self.do("cudaEventSynchronize", self.events[ins[1]])
            self.do("cudaEventQuery", self.events[ins[1]])
        elif op == "dsync":
            self.do("cudaDeviceSynchronize")
        elif op == "begin":
            self.do("cudaStreamBeginCapture", self.streams[ins[1]], self.be.modes[ins[2]])
        elif op == "end":
            self.graphs[ins[2]] = self.do("cudaStreamEndCapture", self.streams[ins[1]])
        elif op == "inst":
            self.execs[ins[2]] = self.do("cudaGraphInstantiate", self.graphs[ins[1]], 0)
        elif op == "gdestroy":
            self.do("cudaGraphDestroy", self.graphs.pop(ins[1]))
        elif op == "upload":
            self.do("cudaGraphUpload", self.execs[ins[1]], self.streams[ins[2]])
        elif op == "launch":
            self.do("cudaGraphLaunch", self.execs[ins[1]], self.streams[ins[2]])
        else:
            raise ValueError(ins)

    def close(self):
        rt = self.rt
        rt.cudaDeviceSynchronize()
        for handle in self.execs.values():
            rt.cudaGraphExecDestroy(handle)
        for handle in self.graphs.values():
            rt.cudaGraphDestroy(handle)
        for key, handle in self.streams.items():
            if key:
                rt.cudaStreamDestroy(handle)
        for handle in self.events.values():
            rt.cudaEventDestroy(handle)
        self.array = {}
        for buf, address in self.address.items():
            if buf[0] == "D":
                rt.cudaFree(address)
            elif buf[0] == "P":
                rt.cudaFreeHost(address)
        rt.cudaGetLastError()


def compare_program(be, hdr, program, model):
    """(bad buffers, bad host reads, codes, hash of all outputs) of one program against its model."""
    be.fresh()
    runner = Runner(be, hdr)
    try:
        outputs = runner.run(program)
        bad, whole = [], hashlib.sha256()
        for buf in sorted(outputs):
            for c in range(CHUNKS):
                if model.init[buf][c]:
                    part = slice(c * model.K, (c + 1) * model.K)
                    whole.update(outputs[buf][part].tobytes())
                    if not np.array_equal(outputs[buf][part], model.data[buf][part]):
                        bad.append("%s[%d]" % (buf, c))
        for seen in runner.seen:
            whole.update(seen.encode())
        late = [i for i, (a, b) in enumerate(zip(runner.seen, model.seen)) if a != b]
        return bad, late, runner.codes, whole.hexdigest()[:16]
    finally:
        runner.close()


def expected_hash(model):
    whole = hashlib.sha256()
    for buf in sorted(model.data):
        for c in range(CHUNKS):
            if model.init[buf][c]:
                whole.update(model.data[buf][c * model.K : (c + 1) * model.K].tobytes())
    for seen in model.seen:
        whole.update(seen.encode())
    return whole.hexdigest()[:16]


def run_program(be, seed, index):
    gen = Generator(seed, index)
    bad, late, codes, got = compare_program(be, gen.hdr, gen.out, gen.m)
    ops = [ins[0] for ins in gen.out]
    return {
        "id": "prog-%d-%d" % (seed, index),
        "kind": "program",
        "ok": not bad and not late and not codes,
        "codes": codes[:20],
        "hash": got,
        "expected": expected_hash(gen.m),
        "wrong": bad[:20],
        "wrong_reads": late[:20],
        "relies": relies(gen.hdr, gen.out),
        "steps": len(ops),
        "chunk": gen.hdr["K"],
        "launches": ops.count("launch"),
        "captures": ops.count("begin"),
        "waits": ops.count("wait"),
    }


def relies(hdr, program):
    """The rules without which the program would be racy."""
    found = []
    for rule in RULES:
        try:
            replay(hdr, program, tuple(other for other in RULES if other != rule))
        except Invalid:
            found.append(rule)
    return found


def replay(hdr, program, rules=RULES):
    """The model of an instruction list; Invalid if it is not race-free."""
    model = Model(hdr, rules)
    for ins in program:
        model.apply(ins)
    return model


def shrink(be, seed, index):
    """A minimal race-free program that still disagrees (dropping instructions, each time checked by the model)."""
    gen = Generator(seed, index)
    program = list(gen.out)

    def fails(candidate):
        try:
            model = replay(gen.hdr, candidate)
        except (Invalid, KeyError):
            return False
        if model.cap is not None:
            return False
        try:
            bad, late, codes, _ = compare_program(be, gen.hdr, candidate, model)
        except Exception:
            return False
        return bool(bad or late or codes)

    if not fails(program):
        return None
    size = len(program) // 2
    while size:
        position = 0
        while position < len(program):
            candidate = program[:position] + program[position + size :]
            if fails(candidate):
                program = candidate
            else:
                position += size
        size //= 2
    return gen.hdr, program


# ---------------------------------------------------------------------------------------------- probes

PROBES = []


def probe(function):
    PROBES.append(("probe-" + function.__name__, function, ()))
    return function


def per_mode(function):
    for index, mode in enumerate(MODES):
        PROBES.append((f"probe-{function.__name__}-{mode.lower()}", function, (index,)))
    return function


class P:
    """What a probe works with: calls that note their codes, and memory that is given back."""

    def __init__(self, be):
        self.be, self.rt, self.codes, self.values = be, be.rt, [], []
        self.h2h, self.h2d, self.d2h, self.d2d, self.default = be.kinds
        self._device, self._pinned, self._streams, self._events, self._graphs, self._execs = [], [], [], [], [], []
        self._arrays = []

    def name_of(self, result):
        return result[0].name

    def __call__(self, name, *args, label=None, quiet=False):
        """Make a call, note its code; its result or None."""
        function = getattr(self.rt, name, None)
        short = name[4:]
        if function is None:
            code, value = "missing", None
        else:
            try:
                result = function(*args)
                code, value = result[0].name, (result[1] if len(result) == 2 else result[1:])
            except Exception as error:
                code, value = "raised:" + type(error).__name__, None
        if not quiet:
            self.codes.append(
                "{}={}".format(
                    label or short,
                    code.replace("cudaErrorStreamCapture", "Capture:").replace("cudaError", "").replace("cudaSuccess", "ok"),
                )
            )
        return value

    def need(self, name, *args):
        """A call that must succeed for the probe to mean anything."""
        result = getattr(self.rt, name)(*args)
        if int(result[0]) != 0:
            raise RuntimeError(f"{name}: {result[0].name}")
        return result[1] if len(result) == 2 else result[1:]

    def stream(self, flags=1):
        self._streams.append(self.need("cudaStreamCreateWithFlags", flags))
        return self._streams[-1]

    def event(self, flags=0):
        self._events.append(self.need("cudaEventCreateWithFlags", flags))
        return self._events[-1]

    def device(self, n=1 << 20):
        self._device.append(int(self.need("cudaMalloc", n)))
        return self._device[-1]

    def pinned(self, n=1 << 20):
        self._pinned.append(int(self.need("cudaMallocHost", n)))
        return bytes_at(self._pinned[-1], n)

    def pageable(self, n=1 << 20):
        self._arrays.append(np.zeros(n, np.uint8))
        return self._arrays[-1]

    def busy(self, stream, times=6, n=64 << 20):
        """Some milliseconds of page-locked copies."""
        if not hasattr(self, "_busy"):
            self._busy = (self.device(n), self.pinned(n))
        for _ in range(times):
            self.need("cudaMemcpyAsync", self._busy[0], self._busy[1].ctypes.data, n, self.h2d, stream)

    def begin(self, stream, mode=1):
        self.need("cudaStreamBeginCapture", stream, self.be.modes[mode])

    def end(self, stream, label=None):
        graph = self("cudaStreamEndCapture", stream, label=label)
        if graph is not None and int(graph):
            self._graphs.append(graph)
        return graph

    def status(self, stream):
        value = self("cudaStreamIsCapturing", stream, quiet=True)
        self.codes.append("status={}".format(getattr(value, "name", str(value)).replace("cudaStreamCaptureStatus", "")))

    def exec(self, graph, flags=0):
        self._execs.append(self.need("cudaGraphInstantiate", graph, flags))
        return self._execs[-1]

    def last(self):
        self("cudaGetLastError")

    def say(self, label, value):
        self.values.append(f"{label}={value}")

    def close(self):
        rt = self.rt
        for stream in self._streams:  # whatever capture a probe left behind
            try:
                rt.cudaStreamEndCapture(stream)
            except Exception:
                pass
        final = rt.cudaDeviceSynchronize()[0]
        for items, name in (
            (self._execs, "cudaGraphExecDestroy"),
            (self._graphs, "cudaGraphDestroy"),
            (self._events, "cudaEventDestroy"),
            (self._streams, "cudaStreamDestroy"),
            (self._device, "cudaFree"),
            (self._pinned, "cudaFreeHost"),
        ):
            for item in items:
                try:
                    getattr(rt, name)(item)
                except Exception:
                    pass
        rt.cudaGetLastError()
        return final.name


# -- device and errors


@probe
def device_get_set(p):
    p.say("device", p("cudaGetDevice"))
    p("cudaSetDevice", 0)
    p.say("some", (p("cudaGetDeviceCount") or 0) >= 1)


@probe
def device_set_out_of_range(p):
    p("cudaSetDevice", 99)
    p("cudaPeekAtLastError")
    p("cudaPeekAtLastError")
    p("cudaGetLastError")
    p("cudaGetLastError")


@probe
def device_set_negative(p):
    p("cudaSetDevice", -1)
    p.last()


@probe
def device_properties_out_of_range(p):
    p("cudaGetDeviceProperties", 99)
    p.last()


@probe
def device_attribute(p):
    enum = getattr(p.rt, "cudaDeviceAttr", None)
    p("cudaDeviceGetAttribute", enum.cudaDevAttrAsyncEngineCount if enum else 40, 0)


@probe
def device_flags_and_limits(p):
    p("cudaGetDeviceFlags")
    p("cudaDeviceGetStreamPriorityRange")
    p("cudaDriverGetVersion")
    p("cudaRuntimeGetVersion")


@probe
def error_texts(p):
    for code in (0, 1, 2, 101, 400, 600, 700, 801, 900, 901, 902, 903, 904, 905, 906, 907, 908, 999):
        error = p.rt.cudaError_t(code)
        p.say(code, (p.rt.cudaGetErrorName(error)[1], p.rt.cudaGetErrorString(error)[1]))


@probe
def error_texts_other(p):
    for code in (3, 4, 35, 46, 98, 100, 209, 401, 712, 713, 719, 720, 909, 910):
        try:
            error = p.rt.cudaError_t(code)
            p.say(code, (p.rt.cudaGetErrorName(error)[1], p.rt.cudaGetErrorString(error)[1]))
        except Exception as failure:
            p.say(code, "raised:" + type(failure).__name__)


@probe
def error_survives_success(p):
    p("cudaSetDevice", 99)
    p("cudaGetDevice")
    p("cudaPeekAtLastError")
    p("cudaFree", 1 << 45, label="Free(unknown)")
    p("cudaGetLastError")
    p("cudaGetLastError")


@probe
def error_not_ready_is_remembered_or_not(p):
    stream, event = p.stream(), p.event(2)
    p.busy(stream)
    p.need("cudaEventRecord", event, stream)
    p("cudaStreamQuery", stream)
    p("cudaPeekAtLastError")
    p("cudaEventQuery", event)
    p("cudaGetLastError")
    p("cudaStreamSynchronize", stream)


@probe
def error_during_capture_is_remembered(p):
    stream = p.stream()
    p.begin(stream)
    p("cudaStreamSynchronize", stream)
    p("cudaPeekAtLastError")
    p.end(stream)
    p("cudaGetLastError")
    p("cudaGetLastError")


@probe
def error_is_per_thread(p):
    p("cudaSetDevice", 99)
    found = []
    thread = threading.Thread(target=lambda: found.append(p.rt.cudaPeekAtLastError()[0].name))
    thread.start(), thread.join()
    p.say("other", found)
    p.last()


# -- streams


@probe
def stream_query_idle_busy_done(p):
    stream = p.stream()
    p("cudaStreamQuery", stream)
    p.busy(stream)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)
    p("cudaStreamQuery", stream)


@probe
def stream_bad_flags(p):
    value = p("cudaStreamCreateWithFlags", 0x7)
    p.say("handle", value is None)
    p("cudaStreamCreateWithPriority", 0x7, 0)
    p.last()


@probe
def stream_priority_out_of_range(p):
    stream = p("cudaStreamCreateWithPriority", 1, -100)
    if stream is not None:
        p._streams.append(stream)
    p.say("priority", p("cudaStreamGetPriority", stream) if stream is not None else None)


@probe
def stream_flags(p):
    p.say("nonblocking", p("cudaStreamGetFlags", p.stream(1)))
    p.say("blocking", p("cudaStreamGetFlags", p.stream(0)))


@probe
def stream_destroy_default(p):
    p("cudaStreamDestroy", 0)
    p.last()


@probe
def stream_default_handles(p):
    device = p.device()
    for handle in (0, 1, 2):
        p("cudaMemsetAsync", device, 1, 1 << 20, handle, label="MemsetAsync(%d)" % handle)
        p("cudaStreamQuery", handle, label="StreamQuery(%d)" % handle, quiet=True)
        p("cudaStreamSynchronize", handle, label="StreamSynchronize(%d)" % handle)
    p("cudaStreamSynchronize", p.rt.cudaStream_t(0), label="StreamSynchronize(cudaStream_t(0))")


@probe
def stream_destroy_busy_finishes(p):
    stream = p.need("cudaStreamCreateWithFlags", 1)
    device, host, back = p.device(), p.pinned(), p.pinned()
    host[:], back[:] = 9, 0
    p.busy(stream)
    p.need("cudaMemcpyAsync", device, host.ctypes.data, 1 << 20, p.h2d, stream)
    p.need("cudaMemcpyAsync", back.ctypes.data, device, 1 << 20, p.d2h, stream)
    p("cudaStreamDestroy", stream)
    p.say("before", bool((back == 9).all()))
    p("cudaDeviceSynchronize")
    p.say("after", bool((back == 9).all()))


@probe
def stream_wait_bad_flags(p):
    stream, event = p.stream(), p.event()
    p("cudaStreamWaitEvent", stream, event, 5)
    p.last()


@probe
def stream_wait_external_outside_capture(p):
    stream, event = p.stream(), p.event()
    p("cudaStreamWaitEvent", stream, event, 1)
    p.last()


@probe
def stream_wait_null_event(p):
    p("cudaStreamWaitEvent", p.stream(), 0, 0)
    p.last()


@probe
def legacy_synchronize_waits_for_blocking(p):
    stream = p.stream(0)
    p.busy(stream)
    p("cudaStreamQuery", 0, label="StreamQuery(0)")
    p("cudaStreamSynchronize", 0)
    p("cudaStreamQuery", stream)


@probe
def legacy_synchronize_ignores_nonblocking(p):
    stream = p.stream(1)
    p.busy(stream)
    p("cudaStreamQuery", 0, label="StreamQuery(0)")
    p("cudaStreamSynchronize", 0)
    p("cudaStreamQuery", stream)


@probe
def legacy_event_waits_for_blocking(p):
    stream, event = p.stream(0), p.event(2)
    p.busy(stream)
    p("cudaEventRecord", event, 0)
    p("cudaEventQuery", event)
    p("cudaEventSynchronize", event)
    p("cudaStreamQuery", stream)


@probe
def blocking_query_while_legacy_is_busy(p):
    stream, _event = p.stream(0), p.event(2)
    p.busy(0)
    p("cudaStreamQuery", stream, label="StreamQuery(blocking)")
    p("cudaStreamSynchronize", stream)
    p("cudaStreamQuery", 0, label="StreamQuery(0)")
    p("cudaDeviceSynchronize")


@probe
def blocking_event_while_legacy_is_busy(p):
    stream, event = p.stream(0), p.event(2)
    p.busy(0)
    p("cudaEventRecord", event, stream)
    p("cudaEventQuery", event)
    p("cudaDeviceSynchronize")


@probe
def nonblocking_query_while_legacy_is_busy(p):
    stream = p.stream(1)
    p.busy(0)
    p("cudaStreamQuery", stream)
    p("cudaDeviceSynchronize")


@probe
def legacy_wait_holds_blocking_streams(p):
    """cudaStreamWaitEvent on the legacy stream: blocking streams then wait for the legacy stream, and so for the event."""
    slow, other, event = p.stream(1), p.stream(0), p.event(2)
    device, host, back = p.device(), p.pinned(), p.pinned()
    host[:], back[:] = 7, 0
    p.need("cudaMemset", device, 1, 1 << 20)
    p.need("cudaDeviceSynchronize")
    p.busy(slow)
    p.need("cudaMemcpyAsync", device, host.ctypes.data, 1 << 20, p.h2d, slow)
    p.need("cudaEventRecord", event, slow)
    p("cudaStreamWaitEvent", 0, event, 0)
    p.need("cudaMemcpyAsync", back.ctypes.data, device, 1 << 20, p.d2h, other)
    p("cudaStreamSynchronize", other)
    p.say("value", int(back[0]))


@probe
def sync_copy_waits_for_blocking(p):
    stream = p.stream(0)
    device, host = p.device(), p.pinned()
    p.busy(stream)
    p("cudaMemcpy", device, host.ctypes.data, 1 << 20, p.h2d)
    p("cudaStreamQuery", stream)


@probe
def sync_memset_is_asynchronous(p):
    stream, device = p.stream(0), p.device()
    p.busy(stream)
    p("cudaMemset", device, 1, 1 << 20)
    p("cudaStreamQuery", stream)
    p("cudaDeviceSynchronize")


@probe
def sync_device_to_device_copy_is_asynchronous(p):
    stream, one, two = p.stream(0), p.device(), p.device()
    p.busy(stream)
    p("cudaMemcpy", one, two, 1 << 20, p.d2d)
    p("cudaStreamQuery", stream)
    p("cudaDeviceSynchronize")


# -- events


@probe
def event_unrecorded(p):
    event, stream = p.event(), p.stream()
    p("cudaStreamWaitEvent", stream, event, 0)
    p("cudaEventSynchronize", event)
    p("cudaEventQuery", event)


@probe
def event_query_before_and_after(p):
    event, stream = p.event(2), p.stream()
    p.busy(stream)
    p("cudaEventRecord", event, stream)
    p("cudaEventQuery", event)
    p("cudaEventSynchronize", event)
    p("cudaEventQuery", event)
    p("cudaStreamQuery", stream)


@probe
def event_bad_flags(p):
    p("cudaEventCreateWithFlags", 0x40)
    p("cudaEventCreateWithFlags", 4, label="EventCreateWithFlags(interprocess,timing)")
    p.last()


@probe
def event_elapsed_unrecorded(p):
    stream, one, two = p.stream(), p.event(), p.event()
    p("cudaEventElapsedTime", one, two)
    p.need("cudaEventRecord", one, stream)
    p.need("cudaStreamSynchronize", stream)
    p("cudaEventElapsedTime", one, two)
    p("cudaEventElapsedTime", two, one)
    p.last()


@probe
def event_elapsed_without_timing(p):
    stream, one, two = p.stream(), p.event(), p.event(2)
    p.need("cudaEventRecord", one, stream)
    p.need("cudaEventRecord", two, stream)
    p.need("cudaStreamSynchronize", stream)
    p("cudaEventElapsedTime", one, two)
    p("cudaEventElapsedTime", two, one)
    p.last()


@probe
def event_elapsed_pending_and_done(p):
    stream, one, two = p.stream(), p.event(), p.event()
    p.need("cudaEventRecord", one, stream)
    p.busy(stream)
    p.need("cudaEventRecord", two, stream)
    p("cudaEventElapsedTime", one, two)
    p("cudaPeekAtLastError")
    p("cudaStreamSynchronize", stream)
    forth = p("cudaEventElapsedTime", one, two)
    back = p("cudaEventElapsedTime", two, one)
    same = p("cudaEventElapsedTime", one, one)
    p.say("signs", (forth is not None and forth > 0, back is not None and back < 0, same == 0.0))


@probe
def event_null(p):
    stream = p.stream()
    p("cudaEventRecord", 0, stream)
    p("cudaEventSynchronize", 0)
    p("cudaEventQuery", 0)
    p("cudaEventDestroy", 0)
    p("cudaEventElapsedTime", 0, 0)
    p.last()


@probe
def event_rerecorded(p):
    """A wait is for the record before it."""
    slow, other, event = p.stream(), p.stream(), p.event(2)
    p.need("cudaEventRecord", event, other)
    p.need("cudaStreamWaitEvent", other, event, 0)
    p.busy(slow)
    p.need("cudaEventRecord", event, slow)
    p("cudaStreamSynchronize", other)
    p("cudaEventQuery", event)
    p("cudaStreamSynchronize", slow)


@probe
def event_rerecorded_idle_stream(p):
    """Recorded on a busy stream, then on an idle one: the event stands for the second."""
    slow, idle, event = p.stream(), p.stream(), p.event(2)
    p.busy(slow)
    p.need("cudaEventRecord", event, slow)
    p.need("cudaEventRecord", event, idle)
    p("cudaEventSynchronize", event)
    p("cudaEventQuery", event)
    p("cudaStreamQuery", slow)


@probe
def event_record_with_flags(p):
    stream, event = p.stream(), p.event()
    p("cudaEventRecordWithFlags", event, stream, 0)
    p("cudaEventRecordWithFlags", event, stream, 9)
    p.last()


@probe
def event_destroyed_while_waited_for(p):
    slow, other = p.stream(), p.stream()
    device, host, back = p.device(), p.pinned(), p.pinned()
    host[:], back[:] = 5, 0
    event = p.need("cudaEventCreateWithFlags", 2)
    p.busy(slow)
    p.need("cudaMemcpyAsync", device, host.ctypes.data, 1 << 20, p.h2d, slow)
    p.need("cudaEventRecord", event, slow)
    p.need("cudaStreamWaitEvent", other, event, 0)
    p("cudaEventDestroy", event)
    p.need("cudaMemcpyAsync", back.ctypes.data, device, 1 << 20, p.d2h, other)
    p("cudaStreamSynchronize", other)
    p.say("value", int(back[0]))


# -- memory


@probe
def malloc_zero(p):
    p.say("null", int(p("cudaMalloc", 0) or 0) == 0)
    value = p("cudaMallocHost", 0)
    p.say("host_null", int(value or 0) == 0)
    if value:
        p("cudaFreeHost", value)


@probe
def malloc_too_much(p):
    p("cudaMalloc", 1 << 50)
    p("cudaPeekAtLastError")
    p.last()


@probe
def malloc_host_too_much(p):
    p("cudaMallocHost", 1 << 50)
    p.last()


@probe
def host_alloc_flags(p):
    for flags in (1, 2, 4, 7, 0x100):
        value = p("cudaHostAlloc", 4096, flags, label="HostAlloc(%d)" % flags)
        if value:
            p._pinned.append(int(value))
    p.last()


@probe
def free_null(p):
    p("cudaFree", 0)
    p("cudaFreeHost", 0)
    p.last()


@probe
def free_none(p):
    p("cudaFree", None)


@probe
def free_twice(p):
    device = p.need("cudaMalloc", 1 << 20)
    p("cudaFree", device)
    p("cudaFree", device)
    host = p.need("cudaMallocHost", 1 << 20)
    p("cudaFreeHost", host)
    p("cudaFreeHost", host)
    p.last()


@probe
def free_wrong_kind(p):
    device, pinned, pageable = p.device(), p.pinned(), p.pageable()
    p("cudaFreeHost", device, label="FreeHost(device)")
    p("cudaFree", int(pinned.ctypes.data), label="Free(pinned)")
    p("cudaFree", int(pageable.ctypes.data), label="Free(pageable)")
    p("cudaFreeHost", int(pageable.ctypes.data), label="FreeHost(pageable)")
    p.last()


@probe
def free_interior(p):
    device = p.device()
    p("cudaFree", device + 512)
    p.last()


@probe
def host_register(p):
    array = np.zeros((1 << 20) + 8192, np.uint8)
    address = -(-array.ctypes.data // 4096) * 4096
    p("cudaHostRegister", address, 1 << 20, 0)
    p("cudaHostRegister", address, 1 << 20, 0)
    p("cudaHostUnregister", address)
    p("cudaHostUnregister", address)
    p("cudaHostRegister", 0, 1 << 20, 0)
    p("cudaHostRegister", address, 0, 0)
    p.last()


@probe
def pointer_attributes(p):
    array = p.pageable()
    for label, address in (
        ("device", p.device()),
        ("device+1000", p.device() + 1000),
        ("pinned", int(p.pinned().ctypes.data)),
        ("pageable", int(array.ctypes.data)),
        ("null", 0),
    ):
        value = p("cudaPointerGetAttributes", address, label=f"PointerGetAttributes({label})")
        if value is not None:
            p.say(label, getattr(value.type, "name", str(value.type)))
    p.last()


@probe
def host_device_pointer(p):
    pinned, pageable = p.pinned(), p.pageable()
    value = p("cudaHostGetDevicePointer", int(pinned.ctypes.data), 0)
    if value is not None:
        p.say("same", int(value) == int(pinned.ctypes.data))
    p("cudaHostGetDevicePointer", int(pageable.ctypes.data), 0)
    p.last()


@probe
def copy_zero_bytes(p):
    stream, device, host = p.stream(), p.device(), p.pinned()
    p("cudaMemcpy", device, int(host.ctypes.data), 0, p.h2d)
    p("cudaMemcpyAsync", device, int(host.ctypes.data), 0, p.h2d, stream)
    p("cudaMemcpyAsync", 0, 0, 0, p.h2d, stream, label="MemcpyAsync(null,null,0)")
    p("cudaMemcpyAsync", device, 0, 0, p.h2d, stream, label="MemcpyAsync(dev,null,0)")
    p("cudaMemcpyAsync", 0, device, 0, p.d2h, stream, label="MemcpyAsync(null,dev,0,d2h)")
    p("cudaMemset", device, 0, 0)
    p("cudaMemsetAsync", device, 0, 0, stream)
    p("cudaMemset", 0, 0, 0, label="Memset(null,0)")
    p.last()


@probe
def copy_null_device_pointer(p):
    stream, host = p.stream(), p.pinned()
    p("cudaMemcpy", 0, int(host.ctypes.data), 4096, p.h2d, label="Memcpy(null<-pinned)")
    p("cudaMemcpy", int(host.ctypes.data), 0, 4096, p.d2h, label="Memcpy(pinned<-null)")
    p("cudaMemcpyAsync", 0, int(host.ctypes.data), 4096, p.h2d, stream)
    p("cudaMemset", 0, 0, 4096, label="Memset(null)")
    p.last()


@probe
def copy_out_of_range(p):
    stream, device, host, pageable = p.stream(), p.device(2 << 20), p.pinned(8 << 20), p.pageable(8 << 20)
    p("cudaMemcpy", device, int(pageable.ctypes.data), 8 << 20, p.h2d, label="Memcpy(pageable)")
    p("cudaMemcpy", device, int(host.ctypes.data), 8 << 20, p.h2d, label="Memcpy(pinned)")
    p("cudaMemcpyAsync", device, int(host.ctypes.data), 8 << 20, p.h2d, stream)
    p("cudaMemcpyAsync", int(host.ctypes.data), device, 8 << 20, p.d2h, stream)
    p.last()


@probe
def copy_of_freed(p):
    device, host = p.need("cudaMalloc", 4 << 20), p.pinned()
    p.need("cudaFree", device)
    p("cudaMemcpy", int(host.ctypes.data), device, 1 << 20, p.d2h)
    p.last()


@probe
def copy_against_direction_pageable(p):
    device, host = p.device(), p.pageable()
    p("cudaMemcpy", device, int(host.ctypes.data), 4096, p.d2h, label="dev<-pageable as d2h")
    p("cudaMemcpy", device, int(host.ctypes.data), 4096, p.d2d, label="dev<-pageable as d2d")
    p("cudaMemcpy", int(host.ctypes.data), device, 4096, p.h2d, label="pageable<-dev as h2d")
    p("cudaMemcpy", int(host.ctypes.data), device, 4096, p.d2d, label="pageable<-dev as d2d")
    p.last()


@probe
def copy_against_direction_pinned(p):
    device, other, host = p.device(), p.device(), p.pinned()
    host[:] = 3
    for label, kind in (("d2h", p.d2h), ("d2d", p.d2d), ("default", p.default)):
        p("cudaMemcpy", device, int(host.ctypes.data), 4096, kind, label="dev<-pinned as " + label)
    for label, kind in (("h2d", p.h2d), ("d2h", p.d2h)):
        p("cudaMemcpy", device, other, 4096, kind, label="dev<-dev as " + label)
    p.last()


@probe
def copy_kind_as_integer(p):
    device, host = p.device(), p.pinned()
    p("cudaMemcpy", device, int(host.ctypes.data), 4096, 1)
    p.last()


@probe
def copy_numpy_array_as_pointer(p):
    device, host = p.device(), np.zeros(4096, np.uint8)
    p("cudaMemcpy", device, host, 4096, p.h2d)
    p("cudaMemcpy", device, host.ctypes, 4096, p.h2d, label="Memcpy(.ctypes)")
    p("cudaMemcpy", device, bytes(4096), 4096, p.h2d, label="Memcpy(bytes)")
    p.last()


@probe
def copy_host_to_host(p):
    stream, one, two, three = p.stream(), p.pinned(), p.pinned(), p.pageable()
    one[:], two[:] = 4, 0
    p.busy(stream)
    p("cudaMemcpyAsync", int(two.ctypes.data), int(one.ctypes.data), 1 << 20, p.h2h, stream)
    p("cudaStreamQuery", stream)
    p.say("there", bool((two == 4).all()))
    p("cudaStreamSynchronize", stream)
    p.say("then", bool((two == 4).all()))
    p("cudaMemcpy", int(three.ctypes.data), int(one.ctypes.data), 1 << 20, p.h2h, label="Memcpy(pageable<-pinned)")
    p.say("sync", bool((three == 4).all()))


@probe
def pageable_copy_to_device_returns_early(p):
    """From pageable memory: staged when the call returns; on a busy stream the call may or may not wait."""
    stream, device, host = p.stream(), p.device(), p.pageable(4096)
    p.busy(stream)
    p("cudaMemcpyAsync", device, int(host.ctypes.data), 4096, p.h2d, stream)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)


@probe
def pageable_copy_to_device_large_returns_early(p):
    stream, device, host = p.stream(), p.device(8 << 20), p.pageable(8 << 20)
    p.busy(stream)
    p("cudaMemcpyAsync", device, int(host.ctypes.data), 8 << 20, p.h2d, stream)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)


@probe
def pageable_copy_to_host_waits(p):
    stream, device, host = p.stream(), p.device(), p.pageable(4096)
    p.busy(stream)
    p("cudaMemcpyAsync", int(host.ctypes.data), device, 4096, p.d2h, stream)
    p("cudaStreamQuery", stream)


@probe
def memset_page_locked(p):
    host = p.pinned()
    host[:] = 0
    p("cudaMemset", int(host.ctypes.data), 6, 1 << 20)
    p("cudaDeviceSynchronize")
    p.say("value", int(host[0]))
    p.last()


@probe
def memset_large_value(p):
    device, host = p.device(), p.pinned()
    p("cudaMemset", device, 0x1234, 1 << 20)
    p("cudaMemcpy", int(host.ctypes.data), device, 1 << 20, p.d2h)
    p.say("value", int(host[0]))
    p("cudaMemset", device, -1, 1 << 20, label="Memset(-1)")
    p("cudaMemcpy", int(host.ctypes.data), device, 1 << 20, p.d2h)
    p.say("value", int(host[0]))


@probe
def memset_unaligned(p):
    device, host = p.device(), p.pinned()
    p("cudaMemset", device, 0, 1 << 20)
    p("cudaMemset", device + 3, 1, 1001)
    p("cudaMemcpy", int(host.ctypes.data), device, 1 << 20, p.d2h)
    p.say("sum", int(host.sum()))


@probe
def memory_info_counts(p):
    before = p("cudaMemGetInfo")
    p.device(64 << 20)
    after = p("cudaMemGetInfo")
    p.say("less", before is not None and before[0] - after[0] >= 64 << 20)
    p.say("total", before is not None and before[1] == after[1])


@probe
def other_allocators(p):
    stream = p.stream()
    value = p("cudaMallocAsync", 1 << 20, stream)
    if value:
        p("cudaFreeAsync", value, stream)
    value = p("cudaMallocPitch", 100, 10)
    if value:
        p("cudaFree", value[0])


@probe
def copy_2d(p):
    stream, device, host = p.stream(), p.device(), p.pinned()
    p("cudaMemcpy2DAsync", device, 512, int(host.ctypes.data), 100, 100, 10, p.h2d, stream)
    p("cudaStreamSynchronize", stream)


@probe
def freeing_waits(p):
    stream, device = p.stream(), p.need("cudaMalloc", 4096)
    p.busy(stream)
    p("cudaFree", device)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)


@probe
def freeing_host_waits(p):
    stream, host = p.stream(), p.need("cudaMallocHost", 4096)
    p.busy(stream)
    p("cudaFreeHost", host)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)


@probe
def freeing_null_waits(p):
    stream = p.stream()
    p.busy(stream)
    p("cudaFree", 0)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)


@probe
def allocating_waits(p):
    stream = p.stream()
    p.busy(stream)
    p.device(1 << 20)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)


@probe
def allocating_host_waits(p):
    stream = p.stream()
    p.busy(stream)
    p.pinned(1 << 20)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)


# -- capture


@per_mode
def capture_synchronize_stream(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    p("cudaStreamSynchronize", stream)
    p.status(stream)
    p.end(stream)
    p.status(stream)
    p.last()


@per_mode
def capture_query_stream(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    p("cudaStreamQuery", stream)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_synchronize_other_stream(p, mode):
    stream, other = p.stream(), p.stream()
    p.begin(stream, mode)
    p("cudaStreamSynchronize", other)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_query_other_stream(p, mode):
    stream, other = p.stream(), p.stream()
    p.begin(stream, mode)
    p("cudaStreamQuery", other)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_synchronize_legacy_nonblocking(p, mode):
    stream = p.stream(1)
    p.begin(stream, mode)
    p("cudaStreamSynchronize", 0)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_synchronize_legacy_blocking(p, mode):
    stream = p.stream(0)
    p.begin(stream, mode)
    p("cudaStreamSynchronize", 0)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_query_legacy_blocking(p, mode):
    stream = p.stream(0)
    p.begin(stream, mode)
    p("cudaStreamQuery", 0)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_synchronize_device(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    p("cudaDeviceSynchronize")
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_malloc(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    value = p("cudaMalloc", 1 << 20)
    p.status(stream)
    p.end(stream)
    if value:
        p._device.append(int(value))
    p.last()


@per_mode
def capture_malloc_host(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    value = p("cudaMallocHost", 1 << 20)
    p.status(stream)
    p.end(stream)
    if value:
        p._pinned.append(int(value))
    p.last()


@per_mode
def capture_free(p, mode):
    stream, device = p.stream(), p.need("cudaMalloc", 1 << 20)
    p.begin(stream, mode)
    p("cudaFree", device)
    p.status(stream)
    p.end(stream)
    p("cudaFree", device, label="Free(again)")
    p.last()


@per_mode
def capture_free_null(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    p("cudaFree", 0)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_free_host(p, mode):
    stream, host = p.stream(), p.need("cudaMallocHost", 1 << 20)
    p.begin(stream, mode)
    p("cudaFreeHost", host)
    p.status(stream)
    p.end(stream)
    p("cudaFreeHost", host, label="FreeHost(again)")
    p.last()


@per_mode
def capture_sync_memcpy_nonblocking(p, mode):
    stream, device, host = p.stream(1), p.device(), p.pinned()
    p.begin(stream, mode)
    p("cudaMemcpy", device, int(host.ctypes.data), 4096, p.h2d)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_sync_memcpy_blocking(p, mode):
    stream, device, host = p.stream(0), p.device(), p.pinned()
    p.begin(stream, mode)
    p("cudaMemcpy", device, int(host.ctypes.data), 4096, p.h2d)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_sync_memset_nonblocking(p, mode):
    stream, device = p.stream(1), p.device()
    p.begin(stream, mode)
    p("cudaMemset", device, 0, 4096)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_legacy_async_nonblocking(p, mode):
    stream, device = p.stream(1), p.device()
    p.begin(stream, mode)
    p("cudaMemsetAsync", device, 0, 4096, 0)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_legacy_async_blocking(p, mode):
    stream, device = p.stream(0), p.device()
    p.begin(stream, mode)
    p("cudaMemsetAsync", device, 0, 4096, 0)
    p.status(stream)
    p.end(stream)
    p.last()


@probe
def capture_legacy_record_and_wait_blocking(p):
    for call in ("record", "wait"):
        stream, event = p.stream(0), p.event(2)
        p.begin(stream)
        if call == "record":
            p("cudaEventRecord", event, 0)
        else:
            p("cudaStreamWaitEvent", 0, event, 0)
        p.status(stream)
        p.end(stream)
    p.last()


@per_mode
def capture_create_and_destroy(p, mode):
    stream = p.stream()
    spare_stream, spare_event = p.need("cudaStreamCreateWithFlags", 1), p.need("cudaEventCreateWithFlags", 2)
    p.begin(stream, mode)
    new = p("cudaEventCreateWithFlags", 2)
    if new is not None:
        p._events.append(new)
    new = p("cudaStreamCreateWithFlags", 1)
    if new is not None:
        p._streams.append(new)
    p("cudaEventDestroy", spare_event)
    p("cudaStreamDestroy", spare_stream)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_host_waits_for_captured_event(p, mode):
    for call in ("cudaEventSynchronize", "cudaEventQuery"):
        stream, event = p.stream(), p.event(2)
        p.begin(stream, mode)
        p("cudaEventRecord", event, stream)
        p(call, event)
        p.status(stream)
        p.end(stream)
    p.last()


@per_mode
def capture_host_waits_for_other_event(p, mode):
    for call in ("cudaEventSynchronize", "cudaEventQuery"):
        stream, other, event = p.stream(), p.stream(), p.event(2)
        p.need("cudaEventRecord", event, other)
        p.need("cudaStreamSynchronize", other)
        p.begin(stream, mode)
        p(call, event)
        p.status(stream)
        p.end(stream)
    p.last()


@probe
def capture_elapsed_time_of_other_events(p):
    stream, other, one, two = p.stream(), p.stream(), p.event(), p.event()
    p.need("cudaEventRecord", one, other)
    p.need("cudaEventRecord", two, other)
    p.need("cudaStreamSynchronize", other)
    p.begin(stream, 0)
    p("cudaEventElapsedTime", one, two)
    p.status(stream)
    p.end(stream)
    p.last()


@probe
def capture_queries_of_state(p):
    stream = p.stream()
    p.begin(stream, 0)
    p("cudaGetDevice")
    p("cudaMemGetInfo")
    p("cudaGetDeviceProperties", 0)
    p("cudaSetDevice", 0)
    p("cudaPeekAtLastError")
    p.status(stream)
    p.end(stream)


@probe
def capture_elapsed_time_of_captured_events(p):
    stream, one, two = p.stream(), p.event(), p.event()
    p.begin(stream)
    p.need("cudaEventRecord", one, stream)
    p.need("cudaEventRecord", two, stream)
    p("cudaEventElapsedTime", one, two)
    p.status(stream)
    p.end(stream)
    p("cudaEventElapsedTime", one, two, label="EventElapsedTime(after)")
    p.last()


@probe
def capture_begin_on_default(p):
    p("cudaStreamBeginCapture", 0, p.be.modes[1])
    p.last()


@probe
def capture_begin_twice(p):
    stream = p.stream()
    p.begin(stream)
    p("cudaStreamBeginCapture", stream, p.be.modes[1])
    p.status(stream)
    p.end(stream)
    p.last()


@probe
def capture_end_not_begun(p):
    p.end(p.stream())
    p.last()


@probe
def capture_end_default(p):
    p.end(0)
    p.last()


@probe
def capture_end_on_forked_stream(p):
    stream, other, event, device = p.stream(), p.stream(), p.event(2), p.device()
    p.begin(stream)
    p("cudaMemsetAsync", device, 0, 4096, stream)
    p("cudaEventRecord", event, stream)
    p("cudaStreamWaitEvent", other, event, 0)
    p.end(other, label="EndCapture(forked)")
    p.status(stream)
    p.status(other)
    p.end(stream)
    p.status(other)
    p.last()


@probe
def capture_unjoined_with_work(p):
    stream, other, event, device = p.stream(), p.stream(), p.event(2), p.device()
    p.begin(stream)
    p("cudaEventRecord", event, stream)
    p("cudaStreamWaitEvent", other, event, 0)
    p("cudaMemsetAsync", device, 0, 4096, other)
    p.end(stream)
    p.status(stream)
    p.status(other)
    p("cudaMemsetAsync", device, 0, 4096, other, label="MemsetAsync(other, after)")
    p.last()


@probe
def capture_unjoined_without_work(p):
    stream, other, event, device = p.stream(), p.stream(), p.event(2), p.device()
    p.begin(stream)
    p("cudaMemsetAsync", device, 0, 4096, stream)
    p("cudaEventRecord", event, stream)
    p("cudaStreamWaitEvent", other, event, 0)
    p.end(stream)
    p.status(other)
    p.last()


@probe
def capture_wait_on_outside_event(p):
    stream, other, event, device = p.stream(), p.stream(), p.event(2), p.device()
    p.need("cudaMemsetAsync", device, 0, 4096, other)
    p.need("cudaEventRecord", event, other)
    p.need("cudaStreamSynchronize", other)
    p.begin(stream)
    p("cudaStreamWaitEvent", stream, event, 0)
    p.status(stream)
    p.end(stream)
    p.last()


@probe
def capture_wait_on_unrecorded_event(p):
    stream, event = p.stream(), p.event(2)
    p.begin(stream)
    p("cudaStreamWaitEvent", stream, event, 0)
    p.status(stream)
    p.end(stream)
    p.last()


@probe
def capture_merge(p):
    one, two, event, device = p.stream(), p.stream(), p.event(2), p.device()
    p.begin(one)
    p.begin(two)
    p("cudaMemsetAsync", device, 0, 4096, one)
    p("cudaEventRecord", event, one)
    p("cudaStreamWaitEvent", two, event, 0)
    p.status(one)
    p.status(two)
    p.end(one)
    p.end(two)
    p.last()


@probe
def capture_work_after_invalidation(p):
    stream, _other, event, device = p.stream(), p.stream(), p.event(2), p.device()
    p.begin(stream)
    p("cudaStreamSynchronize", stream)
    p("cudaMemsetAsync", device, 0, 4096, stream)
    p("cudaEventRecord", event, stream)
    p("cudaStreamWaitEvent", stream, event, 0)
    p("cudaStreamQuery", stream)
    p("cudaStreamBeginCapture", stream, p.be.modes[1])
    p.end(stream)
    p("cudaMemsetAsync", device, 0, 4096, stream, label="MemsetAsync(after)")
    p("cudaStreamSynchronize", stream)
    p.last()


@probe
def capture_event_after_the_capture(p):
    stream, other, event, device = p.stream(), p.stream(), p.event(2), p.device()
    p.begin(stream)
    p.need("cudaMemsetAsync", device, 0, 4096, stream)
    p.need("cudaEventRecord", event, stream)
    p.end(stream)
    p("cudaStreamWaitEvent", other, event, 0)
    p("cudaEventSynchronize", event)
    p("cudaEventQuery", event)
    p("cudaEventRecord", event, other)
    p("cudaEventSynchronize", event, label="EventSynchronize(recorded anew)")
    p.last()


@probe
def capture_event_rerecorded_outside(p):
    """An event recorded in a capture and then in a stream outside is an ordinary event again."""
    stream, other, third, event = p.stream(), p.stream(), p.stream(), p.event(2)
    p.begin(stream)
    p("cudaEventRecord", event, stream)
    p("cudaEventRecord", event, other)
    p("cudaEventQuery", event, quiet=True)
    p("cudaStreamWaitEvent", third, event, 0)
    p.status(third)
    p.end(stream)
    p.last()


@probe
def capture_empty(p):
    stream = p.stream()
    p.begin(stream)
    graph = p.end(stream)
    if graph is not None:
        x = p.exec(graph)
        p("cudaGraphLaunch", x, stream)
        p("cudaStreamSynchronize", stream)


@probe
def capture_pageable_to_device(p):
    stream, device, host, back = p.stream(), p.device(), p.pageable(), p.pinned()
    host[:] = 1
    p.need("cudaMemset", device, 0, 1 << 20)
    p.need("cudaDeviceSynchronize")
    p.begin(stream)
    p("cudaMemcpyAsync", device, int(host.ctypes.data), 1 << 20, p.h2d, stream)
    graph = p.end(stream)
    if graph is not None and int(graph):
        x = p.exec(graph)
        host[:] = 2
        p("cudaGraphLaunch", x, stream)
        p("cudaStreamSynchronize", stream)
        p("cudaMemcpy", int(back.ctypes.data), device, 1 << 20, p.d2h)
        p.say("value", int(back[0]))
    p.last()


@probe
def capture_device_to_pageable(p):
    stream, device, host = p.stream(), p.device(), p.pageable()
    p.need("cudaMemset", device, 8, 1 << 20)
    p.need("cudaDeviceSynchronize")
    p.begin(stream)
    p("cudaMemcpyAsync", int(host.ctypes.data), device, 1 << 20, p.d2h, stream)
    graph = p.end(stream)
    p.say("before", int(host[0]))
    if graph is not None and int(graph):
        x = p.exec(graph)
        p("cudaGraphLaunch", x, stream)
        p("cudaStreamSynchronize", stream)
        p.say("value", int(host[0]))
    p.last()


@probe
def capture_bad_arguments(p):
    stream, host = p.stream(), p.pinned()
    p.begin(stream)
    p("cudaMemcpyAsync", 0, int(host.ctypes.data), 4096, p.h2d, stream)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_other_thread_allocates(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    found = []

    def work():
        result = p.rt.cudaMalloc(1 << 20)
        found.append(result[0].name)
        if int(result[0]) == 0:
            p._device.append(int(result[1]))

    thread = threading.Thread(target=work)
    thread.start(), thread.join()
    p.say("other", found)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_other_thread_synchronizes_other_stream(p, mode):
    stream, other = p.stream(), p.stream()
    p.begin(stream, mode)
    found = []
    thread = threading.Thread(target=lambda: found.append(p.rt.cudaStreamSynchronize(other)[0].name))
    thread.start(), thread.join()
    p.say("other", found)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_other_thread_synchronizes_event(p, mode):
    stream, other, event = p.stream(), p.stream(), p.event(2)
    p.need("cudaEventRecord", event, other)
    p.need("cudaStreamSynchronize", other)
    p.begin(stream, mode)
    found = []
    thread = threading.Thread(target=lambda: found.append(p.rt.cudaEventSynchronize(event)[0].name))
    thread.start(), thread.join()
    p.say("other", found)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_other_thread_synchronizes_device(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    found = []
    thread = threading.Thread(target=lambda: found.append(p.rt.cudaDeviceSynchronize()[0].name))
    thread.start(), thread.join()
    p.say("other", found)
    p.status(stream)
    p.end(stream)
    p.last()


@per_mode
def capture_ended_by_other_thread(p, mode):
    stream = p.stream()
    p.begin(stream, mode)
    found = []

    def work():
        result = p.rt.cudaStreamEndCapture(stream)
        found.append(result[0].name)

    thread = threading.Thread(target=work)
    thread.start(), thread.join()
    p.say("other", found)
    p.status(stream)
    p.end(stream)
    p.last()


@probe
def capture_status_of_default(p):
    stream = p.stream(0)
    p("cudaStreamIsCapturing", 0)
    p.begin(stream)
    p("cudaStreamIsCapturing", 0, label="IsCapturing(0, blocking captures)")
    p.status(stream)
    p.end(stream)
    p.last()


@probe
def capture_exchange_mode(p):
    p("cudaThreadExchangeStreamCaptureMode", p.be.modes[2])
    stream = p.stream()
    p.begin(stream, 0)
    value = p("cudaMalloc", 4096)
    p.end(stream)
    if value:
        p._device.append(int(value))
    p("cudaThreadExchangeStreamCaptureMode", p.be.modes[0])
    p.last()


@probe
def capture_reuses_fork_stream(p):
    """A forked stream does ordinary work again after the capture."""
    stream, other, fork, join, device, back = p.stream(), p.stream(), p.event(2), p.event(2), p.device(), p.pinned()
    p.need("cudaMemset", device, 0, 1 << 20)
    p.need("cudaDeviceSynchronize")
    p.begin(stream)
    p.need("cudaEventRecord", fork, stream)
    p.need("cudaStreamWaitEvent", other, fork, 0)
    p.need("cudaMemsetAsync", device, 3, 1 << 20, other)
    p.need("cudaEventRecord", join, other)
    p.need("cudaStreamWaitEvent", stream, join, 0)
    graph = p.end(stream)
    p.status(other)
    p("cudaMemcpyAsync", int(back.ctypes.data), device, 1 << 20, p.d2h, other)
    p("cudaStreamSynchronize", other)
    p.say("value", int(back[0]))
    p("cudaGraphLaunch", p.exec(graph), other)
    p("cudaMemcpyAsync", int(back.ctypes.data), device, 1 << 20, p.d2h, other)
    p("cudaStreamSynchronize", other)
    p.say("value", int(back[0]))


# -- graphs


def small_graph(p, value=5):
    stream, device = p.stream(), p.device()
    p.need("cudaMemset", device, 0, 1 << 20)
    p.need("cudaDeviceSynchronize")
    p.begin(stream)
    p.need("cudaMemsetAsync", device, value, 1 << 20, stream)
    return stream, device, p.end(stream)


@probe
def graph_instantiated_twice(p):
    stream, _device, graph = small_graph(p)
    one, two = p.exec(graph), p.exec(graph)
    p("cudaGraphLaunch", one, stream)
    p("cudaGraphLaunch", two, stream)
    p("cudaStreamSynchronize", stream)


@probe
def graph_destroyed_before_launch(p):
    stream, _device, graph = small_graph(p)
    x = p.exec(graph)
    p("cudaGraphDestroy", p._graphs.pop())
    p("cudaGraphLaunch", x, stream)
    p("cudaStreamSynchronize", stream)


@probe
def graph_bad_flags(p):
    _stream, _device, graph = small_graph(p)
    value = p("cudaGraphInstantiate", graph, 1 << 20)
    if value is not None:
        p._execs.append(value)
    p.last()


@probe
def graph_null(p):
    stream = p.stream()
    p("cudaGraphLaunch", 0, stream)
    p("cudaGraphInstantiate", 0, 0)
    p.last()


@probe
def graph_upload(p):
    stream, _device, graph = small_graph(p)
    x = p.exec(graph)
    p("cudaGraphUpload", x, stream)
    p("cudaGraphLaunch", x, stream)
    p("cudaStreamSynchronize", stream)


@probe
def graph_launch_on_default(p):
    _stream, device, graph = small_graph(p)
    x, back = p.exec(graph), p.pinned()
    p("cudaGraphLaunch", x, 0)
    p("cudaMemcpy", int(back.ctypes.data), device, 1 << 20, p.d2h)
    p.say("value", int(back[0]))


@probe
def graph_launched_into_a_capture(p):
    stream, device, graph = small_graph(p)
    x, outer, back = p.exec(graph), p.stream(), p.pinned()
    p.begin(outer)
    p("cudaGraphLaunch", x, outer)
    p.status(outer)
    nested = p.end(outer)
    if nested is not None and int(nested):
        p("cudaGraphLaunch", p.exec(nested), stream)
        p("cudaStreamSynchronize", stream)
        p("cudaMemcpy", int(back.ctypes.data), device, 1 << 20, p.d2h)
        p.say("value", int(back[0]))
    p.last()


@probe
def graph_launches_of_one_exec_are_ordered(p):
    """The second launch, in an idle stream, comes after the first one, in a busy stream."""
    slow, idle, device, host, back = p.stream(), p.stream(), p.device(), p.pinned(), p.pinned()
    host[:], back[:] = 1, 0
    p.need("cudaMemset", device, 9, 1 << 20)
    p.need("cudaDeviceSynchronize")
    p.begin(slow)
    p.need("cudaMemcpyAsync", back.ctypes.data, device, 1 << 20, p.d2h, slow)
    p.need("cudaMemcpyAsync", device, host.ctypes.data, 1 << 20, p.h2d, slow)
    graph = p.end(slow)
    x = p.exec(graph)
    p.busy(slow)
    p("cudaGraphLaunch", x, slow)
    p("cudaGraphLaunch", x, idle)
    p("cudaStreamSynchronize", idle)
    p("cudaStreamQuery", slow)
    p.say("value", int(back[0]))


@probe
def graph_nodes(p):
    _stream, _device, graph = small_graph(p)
    value = p("cudaGraphGetNodes", graph, 16)
    if value is not None:
        p.say("count", value[-1] if isinstance(value, (tuple, list)) else value)


@probe
def graph_update(p):
    _stream, _device, graph = small_graph(p)
    x = p.exec(graph)
    p("cudaGraphExecUpdate", x, graph)


@probe
def graph_reads_memory_at_launch(p):
    stream, device, host, back = p.stream(), p.device(), p.pinned(), p.pinned()
    host[:], back[:] = 1, 0
    p.begin(stream)
    p.need("cudaMemcpyAsync", device, host.ctypes.data, 1 << 20, p.h2d, stream)
    p.need("cudaMemcpyAsync", back.ctypes.data, device, 1 << 20, p.d2h, stream)
    x = p.exec(p.end(stream))
    for value in (2, 3):
        host[:] = value
        p("cudaGraphLaunch", x, stream)
        p("cudaStreamSynchronize", stream)
        p.say("value", int(back[0]))


@probe
def graph_query_after_launch(p):
    stream, device, host = p.stream(), p.device(64 << 20), p.pinned(64 << 20)
    p.begin(stream)
    for _ in range(6):
        p.need("cudaMemcpyAsync", device, host.ctypes.data, 64 << 20, p.h2d, stream)
    x = p.exec(p.end(stream))
    p("cudaStreamQuery", stream)
    p("cudaGraphLaunch", x, stream)
    p("cudaStreamQuery", stream)
    p("cudaStreamSynchronize", stream)
    p("cudaStreamQuery", stream)


@probe
def callbacks_exist(p):
    for name in (
        "cudaLaunchHostFunc",
        "cudaStreamAddCallback",
        "cudaMemcpy2D",
        "cudaMemcpyPeerAsync",
        "cudaMemPrefetchAsync",
        "cudaHostRegister",
        "cudaDeviceGetAttribute",
        "cudaDeviceReset",
        "cudaProfilerStart",
        "cudaProfilerStop",
        "cudaStreamGetCaptureInfo",
        "cudaStreamGetId",
        "cudaGraphCreate",
        "cudaGraphDebugDotPrint",
        "cudaGraphExecUpdate",
        "cudaEventRecordWithFlags",
        "cudaMallocAsync",
        "cudaFreeAsync",
        "cudaMallocManaged",
        "cudaPointerGetAttributes",
        "cudaDeviceGetStreamPriorityRange",
        "cudaStreamGetPriority",
        "cudaSetDeviceFlags",
        "cudaFuncGetAttributes",
        "cudaGraphInstantiateWithFlags",
        "cudaCtxResetPersistingL2Cache",
        "cudaDeviceSetLimit",
    ):
        p.say(name[4:], hasattr(p.rt, name))


def run_probe(be, item):
    ident, function, args = item
    be.fresh()
    p = P(be)
    error = None
    try:
        function(p, *args)
    except Exception as failure:
        error = f"{type(failure).__name__}: {str(failure)[:200]}"
    final = p.close()
    return {
        "id": ident,
        "kind": "probe",
        "ok": error is None and final == "cudaSuccess",
        "codes": p.codes,
        "values": [str(v) for v in p.values],
        "error": error,
        "final": final,
        "hash": hashlib.sha256(repr((p.codes, p.values)).encode()).hexdigest()[:16],
    }


# ---------------------------------------------------------------------------------------------- driver


def items(options):
    found = []
    if not options.no_probes:
        found += [item[0] for item in PROBES]
    found += ["prog-%d-%d" % (options.seed, index) for index in range(options.count)]
    if options.only:
        found = [ident for ident in found if options.only in ident]
    return found


def child(options):
    be = Backend(options.backend, options.project, options.device)
    print(be.info, file=sys.stderr, flush=True)
    probes = {item[0]: item for item in PROBES}
    for position, ident in enumerate(items(options)):
        if position < options.start:
            continue
        if ident in probes:
            line = run_probe(be, probes[ident])
        else:
            try:
                line = run_program(be, options.seed, int(ident.rsplit("-", 1)[1]))
            except Exception as failure:
                line = {
                    "id": ident,
                    "kind": "program",
                    "ok": False,
                    "codes": [f"raised:{type(failure).__name__}: {failure}"],
                    "hash": "",
                }
        print(json.dumps(line), flush=True)
        if line.get("final") not in (None, "cudaSuccess"):
            os._exit(97)  # the context is poisoned: the parent goes on with a new process
    sys.stdout.flush()
    os._exit(0)


def supervise(options, argv):
    todo, done, began = items(options), 0, time.time()
    bad = 0
    while done < len(todo):
        process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), *argv, "--child", "--start", str(done)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if options.quiet else None,
            text=True,
        )
        timer = [None]

        def rearm():
            if timer[0]:
                timer[0].cancel()
            timer[0] = threading.Timer(120, process.kill)
            timer[0].daemon = True
            timer[0].start()

        rearm()
        first = done
        for text in process.stdout:
            rearm()
            print(text, end="", flush=True)
            bad += '"ok": false' in text
            done += 1
        code = process.wait()
        timer[0].cancel()
        if code == 3:
            return 3
        if done < len(todo) and code != 97:
            print(
                json.dumps(
                    {"id": todo[done], "kind": "crash", "ok": False, "codes": ["process ended with %d" % code], "hash": ""}
                ),
                flush=True,
            )
            bad += 1
            done += 1
            if done == first + 1 and first == 0:
                return print("the backend does not start", file=sys.stderr) or 3
    print("%d items, %d not ok, %.1f s" % (len(todo), bad, time.time() - began), file=sys.stderr)
    return 0


def compare(one, two):
    def load(path):
        with open(path) as lines:
            return {line["id"]: line for line in map(json.loads, lines)}

    a, b = load(one), load(two)
    same = 0
    for ident in [*a, *(i for i in b if i not in a)]:
        x, y = a.get(ident), b.get(ident)
        if x is None or y is None:
            print(f"{ident}: only in {one if y is None else two}")
        elif (x["codes"], x.get("values"), x["hash"] if x["kind"] == "program" else "", x["ok"]) != (
            y["codes"],
            y.get("values"),
            y["hash"] if y["kind"] == "program" else "",
            y["ok"],
        ):
            print(f"{ident}:")
            for key in ("ok", "codes", "values", "error", "wrong"):
                if x.get(key) != y.get(key):
                    print("    %-7s %s\n            %s" % (key, x.get(key), y.get(key)))
        else:
            same += 1
    print("%d the same" % same)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("sim", "real"), default="sim")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--project", default=".")
    parser.add_argument("--device", default="h200", help="the simulated device")
    parser.add_argument("--only", help="items whose id contains this")
    parser.add_argument("--no-probes", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--dump", type=int, help="print program number DUMP")
    parser.add_argument("--shrink", type=int, help="shrink program number SHRINK")
    parser.add_argument("--compare", nargs=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        compare(*options.compare)
        return 0
    if options.dump is not None:
        gen = Generator(options.seed, options.dump)
        print(gen.hdr)
        for index, ins in enumerate(gen.out):
            print(index, ins)
        return 0
    if options.shrink is not None:
        found = shrink(Backend(options.backend, options.project, options.device), options.seed, options.shrink)
        if found is None:
            print("it does not fail")
            return 0
        print(found[0])
        for ins in found[1]:
            print(ins)
        return 0
    if options.child:
        return child(options)
    return supervise(options, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
