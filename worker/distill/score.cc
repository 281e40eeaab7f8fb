#include "worker/distill/score.h"

#include "common/check.h"

namespace dd2 {
namespace {

ScoreProblem<float> ProblemOf(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                              const at::Tensor& codebook) {
  DD2_CHECK(x.is_contiguous() && t.is_contiguous() && logp.is_contiguous() &&
            codebook.is_contiguous());
  const std::int64_t channels = x.size(-1);
  DD2_CHECK(t.numel() * channels == x.numel() && codebook.size(1) == channels);
  return ScoreProblem<float>{.rows = x.numel() / channels,
                             .codes = codebook.size(0),
                             .channels = channels,
                             .codebook = codebook.const_data_ptr<float>(),
                             .logp = logp.const_data_ptr<float>(),
                             .logp_rows = logp.numel() / codebook.size(0),
                             .t = t.const_data_ptr<float>(),
                             .x = x.const_data_ptr<float>()};
}

class PosteriorMeanFunction : public torch::autograd::Function<PosteriorMeanFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& t, const at::Tensor& logp,
                            const at::Tensor& codebook) {
    context->save_for_backward({x, t, logp, codebook});
    at::Tensor mu = at::empty_like(x);
    PosteriorMean(ProblemOf(x, t, logp, codebook), mu.data_ptr<float>());
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
  PosteriorMeanAndVjp(ProblemOf(x, t, logp, codebook), u.const_data_ptr<float>(),
                      mu.data_ptr<float>(), jtu.data_ptr<float>());
  return jtu;
}

at::Tensor TeacherPosteriorMean(const at::Tensor& x, const at::Tensor& t, const at::Tensor& logp,
                                const at::Tensor& codebook) {
  return PosteriorMeanFunction::apply(x.contiguous(), t.contiguous(), logp.contiguous(),
                                      codebook.contiguous());
}

}  // namespace dd2
