#pragma once

#include <functional>
#include <vector>

#include "worker/torch.h"

namespace dd2 {

// What a pass with autograd keeps of a transformer block for the backward pass.
enum class Activations {
  kKeep,       // everything
  kRecompute,  // the block's inputs alone; the backward pass runs the block again
};

// How a pass of a transformer computes its blocks.
struct PassMode {
  Activations activations = Activations::kKeep;
  // Matrix products and attention in bf16, from fp32 weights, whose gradients are fp32 again; what
  // a block takes and gives is fp32.
  bool bf16 = false;
};

// A block without randomness: the same inputs give the same bits. It owns what it reads (handles on
// the parameters), for it may run after its network is gone.
using BlockFunction = std::function<at::Tensor(const std::vector<at::Tensor>& inputs)>;

// block(inputs), with the same bits in values and gradients whatever is kept. With kRecompute it is
// one node of autograd's graph, which adds the gradients of the parameters to their .grad itself:
// call backward(), not grad() with respect to parameters. A graph is walked once.
at::Tensor RunBlock(const BlockFunction& block, const std::vector<at::Tensor>& inputs,
                    PassMode mode);

}  // namespace dd2
