#include "worker/distill/score.h"

#include "common/check.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

void CheckShapes(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                 const at::Tensor& codebook) {
  DD2_CHECK(x.is_contiguous() && t.is_contiguous() && logp.is_contiguous() &&
            codebook.is_contiguous());
  DD2_CHECK(t.numel() * x.size(-1) == x.numel() && codebook.size(1) == x.size(-1));
}

ScoreProblem<float> ProblemOf(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                              const at::Tensor& codebook) {
  CheckShapes(x, t, logp, codebook);
  const std::int64_t channels = x.size(-1);
  return ScoreProblem<float>{.rows = x.numel() / channels,
                             .codes = codebook.size(0),
                             .channels = channels,
                             .codebook = codebook.const_data_ptr<float>(),
                             .logp = logp.const_data_ptr<float>(),
                             .logp_rows = logp.numel() / codebook.size(0),
                             .t = t.const_data_ptr<float>(),
                             .x = x.const_data_ptr<float>()};
}

// mu, and where `u` is defined J^T u, by the kernel of a GPU.
void ScoreOnDevice(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                   const at::Tensor& codebook, const at::Tensor& mu, const at::Tensor& u = {},
                   const at::Tensor& jtu = {}) {
  CheckShapes(x, t, logp, codebook);
  Dd2ScoreProblem problem{};
  problem.codes = codebook.size(0);
  problem.channels = x.size(-1);
  problem.logp_rows = logp.numel() / problem.codes;
  problem.draws = t.numel() / problem.logp_rows;
  DD2_CHECK(problem.draws * problem.logp_rows == t.numel());
  problem.d_codebook = codebook.const_data_ptr<float>();
  problem.d_logp = logp.const_data_ptr<float>();
  problem.logp_type = DD2_DEVICE_FP32;
  problem.d_t = t.const_data_ptr<float>();
  problem.d_x = x.const_data_ptr<float>();
  problem.d_mu = mu.mutable_data_ptr<float>();
  if (u.defined()) {
    problem.d_u = u.const_data_ptr<float>();
    problem.d_jtu = jtu.mutable_data_ptr<float>();
  }
  CheckKernel(DeviceKernels().score(&problem, nullptr));
}

class PosteriorMeanFunction : public torch::autograd::Function<PosteriorMeanFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& t, const at::Tensor& logp,
                            const at::Tensor& codebook) {
    context->save_for_backward({x, t, logp, codebook});
    at::Tensor mu = at::empty_like(x);
    if (x.is_cpu()) {
      PosteriorMean(ProblemOf(x, t, logp, codebook), mu.data_ptr<float>());
    } else {
      ScoreOnDevice(x, t, logp, codebook, mu);
    }
    return mu;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 torch::autograd::variable_list gradients) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const at::Tensor u = gradients[0].contiguous();
    at::Tensor jtu = TeacherPosteriorVjp(saved[0], saved[1], saved[2], saved[3], u);
    return {jtu, at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor TeacherPosteriorVjp(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                               const at::Tensor& codebook, const at::Tensor& u) {
  at::Tensor mu = at::empty_like(x);
  at::Tensor jtu = at::empty_like(x);
  if (x.is_cpu()) {
    PosteriorMeanAndVjp(ProblemOf(x, t, logp, codebook), u.const_data_ptr<float>(),
                        mu.data_ptr<float>(), jtu.data_ptr<float>());
  } else {
    ScoreOnDevice(x, t, logp, codebook, mu, u, jtu);
  }
  return jtu;
}

at::Tensor TeacherPosteriorMean(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                                const at::Tensor& codebook) {
  return PosteriorMeanFunction::apply(x.contiguous(), t.contiguous(), logp.contiguous(),
                                      codebook.contiguous());
}

}  // namespace dd2
