#!/usr/bin/env bash
# Makes a folder in which ONNX Runtime's TensorRT provider runs beside TensorRT 8.6: for Python 3.9, to be first on PYTHONPATH.
#
#   onnxruntime_tensorrt.sh FOLDER WHEEL ...     wheels: onnxruntime-gpu 1.17 (the last that is made for TensorRT 8.6), what it
#                                                imports, numpy<2, nvidia-cuda-runtime-cu11; needs gcc, readelf and patchelf
#
# The provider is linked with cuBLAS 11, cuDNN 8, cuFFT and cuRAND (3 GB), and makes no more of them than handles, because
# TensorRT computes all that it is given. Empty libraries stand in for them, whose functions do nothing and answer 0. cuDNN's has
# a name of its own, or TensorRT 8.6 would find it and take it for cuDNN. So the folder's CUDA provider must not be used.
set -euo pipefail
folder=$1; shift
mkdir -p "$folder"
for wheel in "$@"; do python3 -m zipfile -e "$wheel" "$folder"; done
libraries=$folder/standins; mkdir -p "$libraries"
cp "$folder"/nvidia/cuda_runtime/lib/libcudart.so.11.0 "$libraries/"
providers=("$folder"/onnxruntime/capi/libonnxruntime_providers_{cuda,tensorrt}.so)
for name in libcublas.so.11 libcublasLt.so.11 libcudnn.so.8 libcufft.so.10 libcurand.so.10; do
  called=$name; [ "$name" != libcudnn.so.8 ] || called=libno_cudnn.so.8
  functions=$(readelf --dyn-syms -W "${providers[@]}" | sed -nE "s/.* UND ([A-Za-z0-9_]+)@$name( .*)?$/\1/p" | sort -u)
  { printf '%s {\nglobal: *;\n};\n' "$name"; } > "$libraries/versions"
  for function in $functions; do echo "int $function(void) { return 0; }"; done > "$libraries/standin.c"
  gcc -shared -fPIC -nostdlib -fno-builtin -Wl,-soname,"$called" -Wl,--version-script="$libraries/versions" -o "$libraries/$called" "$libraries/standin.c"
done
rm "$libraries/versions" "$libraries/standin.c"
patchelf --replace-needed libcudnn.so.8 libno_cudnn.so.8 "${providers[@]}"
