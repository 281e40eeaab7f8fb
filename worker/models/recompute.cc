#include "worker/models/recompute.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "common/check.h"

namespace dd2 {
namespace {

class Recomputation : public torch::autograd::Node {
 public:
  Recomputation(BlockFunction block, std::vector<at::Tensor> inputs)
      : block_(std::move(block)), inputs_(std::move(inputs)) {}

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    DD2_CHECK(!inputs_.empty());  // a graph is walked once
    const at::AutoGradMode with_graph(true);
    std::vector<at::Tensor> leaves;
    for (std::size_t i = 0; i < inputs_.size(); ++i) {
      leaves.push_back(inputs_[i].detach().set_requires_grad(task_should_compute_output(i)));
    }
    const at::Tensor out = block_(leaves);
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
};

}  // namespace

at::Tensor RunBlock(const BlockFunction& block, const std::vector<at::Tensor>& inputs,
                    Activations activations) {
  const bool wants_grad =
      at::GradMode::is_enabled() &&
      std::ranges::any_of(inputs, [](const at::Tensor& input) { return input.requires_grad(); });
  if (activations == Activations::kKeep || !wants_grad) return block(inputs);
  at::Tensor out;
  {
    const at::NoGradGuard no_grad;
    out = block(inputs);
  }
  const auto node =
      std::shared_ptr<Recomputation>(new Recomputation(block, inputs), torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  torch::autograd::set_history(out, node);
  return out;
}

}  // namespace dd2
