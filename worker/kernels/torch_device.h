#pragma once

#include <cstddef>
#include <string>

#include "common/result.h"
#include "worker/kernels/device.h"
#include "worker/torch.h"

namespace dd2 {

// Where the networks of this process and their state lie, and where they are computed: the CPU, or
// the one GPU that it took. LibTorch's side of device.h.

// Loads LibTorch's CUDA part when `device` is a GPU. Before the first backward pass of the process,
// in which LibTorch counts the devices. kFailedPrecondition: its libraries are not there.
Status LoadTorchPart(const Device& device);
// Takes `device` for good, before its first tensor is made: loads that part, and turns off whatever
// makes the bits of a result depend on timing (design 4): TF32, cuDNN's and cuBLAS's choices,
// kernels with atomics, which then throw.
Status UseTorchDevice(const Device& device);

// The CPU unless UseTorchDevice was called. Any thread.
at::Device ComputeDevice();
// Device::Kind() of it; empty: the CPU.
std::string ComputeKind();
// Of tensors on ComputeDevice().
at::TensorOptions OnDevice(at::ScalarType type = at::kFloat);
// The same values there; no copy on the CPU.
at::Tensor ToDevice(const at::Tensor& tensor);

// The kernels of ComputeDevice(), which is a GPU. Networks put all their work on the default
// stream (null), where LibTorch puts its own.
const Dd2DeviceApi& DeviceKernels();
// Throws c10::Error, as LibTorch's operators do, when a kernel could not be begun.
void CheckKernel(Dd2DeviceCode code);

// Copies between host memory and memory of ComputeDevice(), either way; done when it returns. On
// no thread does it wait for what the compute thread has begun: WaitForCompute comes first where
// that may still use the memory.
Status CopyMemory(void* to, const void* from, std::size_t bytes);
// Compute thread: waits until everything it has begun on ComputeDevice() is done.
Status WaitForCompute();

}  // namespace dd2
