"""The simulated TensorRT computes what PyTorch computes, for every model of the ladder, in FP32 and FP16."""

from __future__ import annotations

import numpy as np
import pytest

from common.images import noise_images
from export import models
from export.networks import create_model
from sim import cudart, simulator
from sim import tensorrt as trt

# Operations of one image in units of 10⁹ multiply-adds, as torchvision publishes them for these models.
GIGA_MACS = {"resnet18": 1.814, "resnet50": 4.089, "mobilenet_v2": 0.301, "efficientnet_v2_s": 8.366}


@pytest.fixture(autouse=True)
def finished():
    yield
    simulator.start().close()


class Errors(trt.ILogger):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def log(self, severity, msg) -> None:
        self.messages.append(msg)


def build(path, size, largest=4) -> trt.ICudaEngine:
    logger = Errors()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(path)), parser.get_error(0).desc()
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    profile.set_shape(models.INPUT, *((batch, 3, size, size) for batch in (1, 2, largest)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None, logger.messages
    return trt.Runtime(logger).deserialize_cuda_engine(plan)


def infer(engine, images: np.ndarray) -> np.ndarray:
    context = engine.create_execution_context()
    assert context.set_input_shape(models.INPUT, images.shape)
    output = np.empty(context.get_tensor_shape(models.OUTPUT), np.float32)
    device_input, device_output = cudart.cudaMalloc(images.nbytes)[1], cudart.cudaMalloc(output.nbytes)[1]
    kinds = cudart.cudaMemcpyKind
    assert cudart.cudaMemcpy(device_input, images.ctypes.data, images.nbytes, kinds.cudaMemcpyHostToDevice)[0] == 0
    assert context.set_tensor_address(models.INPUT, device_input) and context.set_tensor_address(models.OUTPUT, device_output)
    assert context.execute_async_v3(0)
    assert cudart.cudaMemcpy(output.ctypes.data, device_output, output.nbytes, kinds.cudaMemcpyDeviceToHost)[0] == 0
    return output


@pytest.mark.slow
@pytest.mark.parametrize("name", models.MODELS)
def test_outputs_and_operations_are_pytorch_s(name, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("torchvision")
    size, images = models.MODELS[name], noise_images(range(3), (3, models.MODELS[name], models.MODELS[name]), 5)
    model, _ = create_model(name, "random", 7)
    paths = {"fp32": tmp_path / "fp32.onnx", "fp16": tmp_path / "fp16.onnx"}
    models.save(models.exported(model, size), paths["fp32"])
    models.convert_to_fp16(paths["fp32"], paths["fp16"])
    with torch.no_grad():
        reference = model(torch.from_numpy(images)).numpy()
    for precision, tolerance in (("fp32", 1e-4), ("fp16", 3e-2)):
        simulator.start()
        engine = build(paths[precision], size)
        assert models.largest_difference(infer(engine, images), reference) < tolerance
        counted = sum(layer.operations for layer in engine._layers if layer.kind in ("Conv", "Gemm")) / 2e9
        assert counted == pytest.approx(GIGA_MACS[name], rel=0.02)


@pytest.mark.parametrize(
    "device, precision, published_ms",
    [("v100-sxm2-32gb", "fp32", 27.230), ("v100-sxm2-32gb", "fp16", 7.957), ("h200", "fp32", 3.052), ("h200", "fp16", 1.343)],
)
def test_the_device_files_give_the_compute_times_that_they_are_derived_from(checkout, device, precision, published_ms):
    sim = simulator.start(device)
    plan = (checkout.plans / f"resnet18-{precision}.simulated.plan").read_bytes()
    engine = trt.Runtime(Errors()).deserialize_cuda_engine(plan)
    assert sum(piece.duration for piece in engine._kernels(128, 0)) / 1e6 == pytest.approx(published_ms, rel=1e-3)
    assert len(engine._kernels(128, 0)) == 25  # as many launches a batch as published
    assert sim.scale == 1


# -- what TensorRT was seen to enforce


@pytest.fixture
def engine(checkout):
    simulator.start()
    return trt.Runtime(Errors()).deserialize_cuda_engine((checkout.plans / "resnet18-fp16.simulated.plan").read_bytes())


def said(engine) -> str:
    return engine._logger.messages[-1]


def bound_context(engine, batch=1):
    context = engine.create_execution_context()
    assert context.set_input_shape(models.INPUT, (batch, 3, 224, 224))
    for name, count in ((models.INPUT, 3 * 224 * 224), (models.OUTPUT, 1000)):
        assert context.set_tensor_address(name, cudart.cudaMalloc(4 * batch * count)[1])
    return context


def test_a_shape_outside_the_profile_is_refused(engine):
    context = engine.create_execution_context()
    assert context.set_input_shape(models.INPUT, (257, 3, 224, 224)) is False
    assert context.set_input_shape(models.INPUT, (1, 3, 224, 223)) is False
    assert "profile" in said(engine)


def test_an_enqueue_without_shape_or_addresses_is_refused(engine):
    context = engine.create_execution_context()
    assert context.execute_async_v3(0) is False and "not set" in said(engine)
    assert context.set_input_shape(models.INPUT, (1, 3, 224, 224))
    assert context.execute_async_v3(0) is False and models.OUTPUT in said(engine)


def test_an_enqueue_with_a_freed_address_is_refused(engine):
    context = bound_context(engine)
    cudart.cudaFree(context.get_tensor_address(models.INPUT))
    assert context.execute_async_v3(0) is False and "illegal memory access" in said(engine)


def test_a_cut_plan_gives_no_engine(checkout):
    simulator.start()
    logger = Errors()
    plan = (checkout.plans / "resnet18-fp16.simulated.plan").read_bytes()
    assert trt.Runtime(logger).deserialize_cuda_engine(plan[:-1]) is None
    assert trt.Runtime(logger).deserialize_cuda_engine(b"something else") is None
    assert len(logger.messages) == 2


def test_capture_on_the_first_enqueue_breaks_and_after_one_works(engine):
    """TensorRT's own error, and CUDA's: what was seen with TensorRT 8.6 on an H200."""
    context, stream = bound_context(engine), cudart.cudaStreamCreateWithFlags(1)[1]
    mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    cudart.cudaStreamBeginCapture(stream, mode)
    assert context.execute_async_v3(stream) is False
    assert "operation not permitted when stream is capturing" in said(engine)
    assert cudart.cudaStreamEndCapture(stream)[0].name == "cudaErrorStreamCaptureInvalidated"
    assert cudart.cudaGetLastError()[0].name == "cudaErrorStreamCaptureInvalidated"
    assert context.execute_async_v3(stream)
    cudart.cudaStreamSynchronize(stream)
    cudart.cudaStreamBeginCapture(stream, mode)
    assert context.execute_async_v3(stream)
    error, graph = cudart.cudaStreamEndCapture(stream)
    assert error == 0 and cudart.cudaGraphInstantiate(graph, 0)[0] == 0


def test_the_consumed_event_is_recorded_only_if_set_before_the_enqueue(engine):
    context, stream = bound_context(engine), cudart.cudaStreamCreateWithFlags(1)[1]
    handle = cudart.cudaEventCreate()[1]
    event = simulator.simulator().lookup(handle, simulator.Event)
    assert context.execute_async_v3(stream)
    assert context.set_input_consumed_event(handle)
    assert event.operation is None  # never recorded: whoever waits for it waits for nothing
    assert context.execute_async_v3(stream)
    consumed, computed = event.operation, simulator.simulator().lookup(stream, simulator.Stream).tail
    assert consumed.end < computed.end


def test_a_context_on_two_streams_at_once_mixes_its_activations_up(engine):
    """Two enqueues that nothing orders share one set of activations: a wrong result, as on a GPU."""
    context = bound_context(engine)
    streams = [cudart.cudaStreamCreateWithFlags(1)[1] for _ in range(2)]
    images = noise_images(range(2), (3, 224, 224), 1)
    outputs = np.empty((2, 1000), np.float32)
    buffers = [[cudart.cudaMalloc(4 * count)[1] for count in (3 * 224 * 224, 1000)] for _ in range(2)]
    for index in range(2):
        cudart.cudaMemcpy(buffers[index][0], images[index].ctypes.data, images[index].nbytes, 1)
        context.set_tensor_address(models.INPUT, buffers[index][0])
        context.set_tensor_address(models.OUTPUT, buffers[index][1])
        assert context.execute_async_v3(streams[index])
    gpu = simulator.simulator().gpu
    for number in (1, 2):  # both read their input before either computes, as a GPU may
        for line in gpu.streams[-2:]:
            gpu.execute({line: number})
    for index in range(2):
        cudart.cudaMemcpy(outputs[index].ctypes.data, buffers[index][1], 4000, 2)
    assert (outputs[0] == outputs[1]).all()
    race = gpu.races.found()[0]
    assert "the activations of the execution context made at test_models.py" in race and "streams[1]" in race
