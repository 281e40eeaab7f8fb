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

// A block without randomness: the same inputs give the same bits. It owns what it reads (handles on
// the parameters), for it may run after its network is gone.
using BlockFunction = std::function<at::Tensor(const std::vector<at::Tensor>& inputs)>;

// block(inputs), in both cases with the same bits in values and gradients. With kRecompute it is
// one node of autograd's graph, which adds the gradients of the parameters to their .grad itself:
// call backward(), not grad() with respect to parameters. A graph is walked once.
at::Tensor RunBlock(const BlockFunction& block, const std::vector<at::Tensor>& inputs,
                    Activations activations);

}  // namespace dd2
