#pragma once

// The one way into LibTorch: ATen and the few autograd headers that flat parameters need. Never
// include it from a header that coordinator, storage, common or cli see.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>
