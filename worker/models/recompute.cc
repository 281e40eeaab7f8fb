#include "worker/models/recompute.h"

#include <ATen/autocast_mode.h>

#include <algorithm>
#include <memory>
#include <utility>

#include "common/check.h"

namespace dd2 {
namespace {

// While it lives, operators of this thread that gain by it take their inputs in bf16 (autocast).
// Backward passes follow what the forward pass did and run outside.
class Bf16Scope {
 public:
  explicit Bf16Scope(at::DeviceType device)
      : device_(device),
        enabled_(at::autocast::is_autocast_enabled(device)),
        type_(at::autocast::get_autocast_dtype(device)) {
    at::autocast::set_autocast_dtype(device, at::kBFloat16);
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::increment_nesting();
  }
  Bf16Scope(const Bf16Scope&) = delete;
  Bf16Scope& operator=(const Bf16Scope&) = delete;
  ~Bf16Scope() {
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device_, enabled_);
    at::autocast::set_autocast_dtype(device_, type_);
  }

 private:
  const at::DeviceType device_;
  const bool enabled_;
  const at::ScalarType type_;
};

at::Tensor Run(const BlockFunction& block, const std::vector<at::Tensor>& inputs, bool bf16) {
  if (!bf16) return block(inputs);
  const Bf16Scope scope(inputs.front().device().type());
  at::Tensor out = block(inputs);
  DD2_CHECK(out.scalar_type() == at::kFloat);  // the residual stream
  return out;
}

class Recomputation : public torch::autograd::Node {
 public:
  Recomputation(BlockFunction block, std::vector<at::Tensor> inputs, bool bf16)
      : block_(std::move(block)), inputs_(std::move(inputs)), bf16_(bf16) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    DD2_CHECK(!inputs_.empty());  // a graph is walked once
    const at::AutoGradMode with_graph(true);
    std::vector<at::Tensor> leaves;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      leaves.push_back(inputs_[i].detach().set_requires_grad(task_should_compute_output(i)));
    }
    const at::Tensor out = Run(block_, leaves, bf16_);
    // A backward pass inside the outer one, on its thread: it ends in the leaves, here and among
    // the parameters.
    torch::autograd::backward({out}, {gradients.at(0)});
    torch::autograd::variable_list of_inputs;
    for (const at::Tensor& leaf : leaves) of_inputs.push_back(leaf.grad());
    return of_inputs;
  }
  void release_variables() override { inputs_.clear(); }

 private:
  const BlockFunction block_;
  std::vector<at::Tensor> inputs_;
  const bool bf16_;
};

}  // namespace

at::Tensor RunBlock(const BlockFunction& block, const std::vector<at::Tensor>& inputs,
                    PassMode mode) {
  const bool wants_grad =
      at::GradMode::is_enabled() &&
      std::ranges::any_of(inputs, [](const at::Tensor& input) { return input.requires_grad(); });
  if (mode.activations == Activations::kKeep || !wants_grad) return Run(block, inputs, mode.bf16);
  at::Tensor out;
  {
    const at::NoGradGuard no_grad;
    out = Run(block, inputs, mode.bf16);
  }
  const auto node = std::shared_ptr<Recomputation>(new Recomputation(block, inputs, mode.bf16),
                                                   torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  torch::autograd::set_history(out, node);
  return out;
}

}  // namespace dd2
