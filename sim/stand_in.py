"""The drop-ins under the vendors' names, for scripts that know nothing of this project, and the names of older TensorRTs."""

from __future__ import annotations

import sys
import time
from types import ModuleType
from typing import Any

from sim import cudart, nvtx, tensorrt
from sim.enums import TensorIOMode
from sim.names import Enumeration
from sim.simulator import simulator
from sim.sites import site


def install() -> None:
    """Put the drop-ins behind the vendors' module names, parent packages included."""
    cuda, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    driver, nvrtc = _errors_only("driver", "CUresult", "CUDA_SUCCESS"), _errors_only("nvrtc", "nvrtcResult", "NVRTC_SUCCESS")
    vars(cuda).update(__path__=[], bindings=bindings, cudart=cudart, cuda=driver, nvrtc=nvrtc, __version__="13.0+simulated")
    vars(bindings).update(__path__=[], runtime=cudart, driver=driver, nvrtc=nvrtc, __version__="13.0+simulated")
    modules = {"cuda": cuda, "cuda.bindings": bindings, "cuda.cudart": cudart, "cuda.cuda": driver, "cuda.nvrtc": nvrtc}
    modules |= {f"cuda.bindings.{name}": getattr(bindings, name) for name in ("runtime", "driver", "nvrtc")}
    sys.modules.update({**modules, "tensorrt": tensorrt, "nvtx": nvtx})
    _older_names()
    _modelled_clocks()


READING_NS = 1000  # a reading takes time, or a script that waits in a loop for the clock would wait for ever


def _modelled_clocks() -> None:
    """What a script measures is modelled time, and its sleep takes none of ours."""
    now = time.time()
    readings: dict[Any, tuple[int, str]] = {}  # by thread: how much had been submitted at its latest, and where it was

    def read() -> int:
        sim = simulator()
        with sim.clock.turn() as thread:
            count, here = sim.gpu.submitted, site()
            before, there = readings.get(thread, (count, here))
            if count > before and sim.gpu.all.end > thread.now:
                sim.remark(f"timed too early: at {here} the work is still on the GPU that was submitted since {there}")
            readings[thread] = count, here
            thread.now += READING_NS
            return thread.now

    def sleep(seconds: float) -> None:
        with simulator().clock.turn() as thread:
            thread.now += round(seconds * 1e9)

    time.perf_counter, time.time = lambda: read() / 1e9, lambda: now + read() / 1e9
    time.perf_counter_ns, time.sleep = read, sleep  # type: ignore[assignment]


def _errors_only(name: str, results: str, success: str) -> ModuleType:
    """A module of which scripts know the type of its errors, to tell them from the runtime's."""
    module = ModuleType(f"cuda.bindings.{name}")

    def missing(attribute: str) -> Any:
        raise AttributeError(f"the simulated CUDA has the runtime's calls only, not cuda.bindings.{name}.{attribute}")

    vars(module).update({results: Enumeration(results, {success: 0}), "__getattr__": missing})
    return module


def _older_names() -> None:
    """What TensorRT 8.6 and 10 have and 11 has not: numbers for tensors, flags that are the default now, ``with`` for all."""
    trt: Any = tensorrt
    enum: Any = Enumeration
    trt.NetworkDefinitionCreationFlag = enum("NetworkDefinitionCreationFlag", {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1})
    trt.BuilderFlag = enum("BuilderFlag", {"FP16": 0, "INT8": 1, "TF32": 6})
    trt.PreviewFeature = enum("PreviewFeature", {"PROFILE_SHARING_0806": 2})
    trt.init_libnvinfer_plugins = lambda logger=None, namespace="": True
    trt.Dims = tuple
    builder, engine, context = trt.Builder, trt.ICudaEngine, trt.IExecutionContext
    for thing in (builder, engine, context, trt.INetworkDefinition, trt.OnnxParser, trt.IBuilderConfig, trt.Runtime):
        thing.__enter__, thing.__exit__ = lambda self: self, lambda self, *exception: None
    builder.platform_has_fast_fp16 = builder.platform_has_fast_int8 = True
    builder.build_engine = lambda self, network, config: trt.Runtime(self.logger).deserialize_cuda_engine(
        self.build_serialized_network(network, config)
    )
    trt.IBuilderConfig.set_preview_feature = lambda self, feature, enable: None
    engine.has_implicit_batch_dimension, engine.max_batch_size = False, 1
    engine.num_bindings = property(lambda self: self.num_io_tensors * self.num_optimization_profiles)
    engine.device_memory_size = property(lambda self: self.device_memory_size_v2)
    engine.__len__ = lambda self: self.num_io_tensors
    engine.__iter__ = lambda self: iter([self.get_tensor_name(index) for index in range(self.num_io_tensors)])
    engine.get_binding_name = _name
    engine.get_binding_index = lambda self, name: list(self).index(name)
    engine.binding_is_input = lambda self, binding: self.get_tensor_mode(_name(self, binding)) == TensorIOMode.INPUT
    engine.get_binding_shape = lambda self, binding: self.get_tensor_shape(_name(self, binding))
    engine.get_binding_dtype = lambda self, binding: self.get_tensor_dtype(_name(self, binding))
    engine.get_profile_shape = lambda self, profile, binding: self.get_tensor_profile_shape(_name(self, binding), profile)
    context.all_shape_inputs_specified = True
    context.all_binding_shapes_specified = property(lambda self: not self.infer_shapes())
    context.set_binding_shape = lambda self, binding, shape: self.set_input_shape(_name(self.engine, binding), shape)
    context.get_binding_shape = lambda self, binding: self.get_tensor_shape(_name(self.engine, binding))
    context.execute_async_v2 = _execute_async_v2
    synchronize: Any = vars(cudart)["cudaStreamSynchronize"]
    make: Any = vars(cudart)["cudaGraphInstantiate"]  # for CUDA 11 a log's buffer and its size come after the graph
    vars(cudart)["cudaGraphInstantiate"] = lambda graph, flags, *size: make(graph, 0 if size else flags) + (None,) * len(size)
    context.execute_v2 = lambda self, bindings: _execute_async_v2(self, bindings, 0) and not synchronize(0)[0]


def _name(engine: Any, binding: int | str) -> str:
    return binding if isinstance(binding, str) else engine.get_tensor_name(binding % engine.num_io_tensors)


def _execute_async_v2(self: Any, bindings: Any, stream_handle: int, input_consumed: int = 0) -> bool:
    first = self.active_optimization_profile * self.engine.num_io_tensors  # each profile had bindings of its own
    for index, address in enumerate(bindings[first : first + self.engine.num_io_tensors]):
        self.set_tensor_address(_name(self.engine, index), int(address))
    return self.execute_async_v3(stream_handle)
