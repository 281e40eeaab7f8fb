#include "worker/engine/latency.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <vector>

#include "common/check.h"
#include "common/rng.h"
#include "worker/engine/evaluator.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

class OneThread {
 public:
  OneThread() : before_(at::get_num_threads()) { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

// A GPU that fails shows it at the next operator.
template <class Call>
double Milliseconds(const Call& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  static_cast<void>(WaitForCompute());
  const std::chrono::duration<double, std::milli> passed = std::chrono::steady_clock::now() - start;
  return passed.count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace

LatencyPoint MeasureLatency(const TeacherBundle& bundle, const Network& network,
                            const TeacherConfig& config, std::int64_t batch, int repeats) {
  DD2_CHECK(batch >= 1 && repeats >= 1);
  const at::NoGradGuard no_grad;
  const OneThread one_thread;
  const BackboneSpec& spec = network.spec().backbone;
  const at::Tensor labels = ToDevice(StratifiedLabels(batch, spec.classes));
  const at::Tensor noise = ToDevice(EvalNoise(1, 0, batch, spec));
  at::Tensor uniforms = at::empty({batch, spec.tokens}, at::kFloat);
  FillUniform({.seed = 1, .phase = 0, .use = RngUse::kTeacherToken, .update = 0, .sample = 0},
              {uniforms.mutable_data_ptr<float>(), static_cast<std::size_t>(uniforms.numel())});
  at::Tensor codes;
  const auto teacher = [&] {
    SampleTeacher(*bundle.teacher, bundle.tokenizer->codebook(), labels, uniforms, config);
  };
  const auto one_step = [&] { codes = network.Generate(noise, labels); };
  const auto decode = [&] { bundle.tokenizer->Decode(codes); };
  teacher();
  one_step();
  decode();
  std::vector<double> teacher_ms, one_step_ms, decode_ms;
  for (int i = 0; i < repeats; ++i) {
    teacher_ms.push_back(Milliseconds(teacher));
    one_step_ms.push_back(Milliseconds(one_step));
    decode_ms.push_back(Milliseconds(decode));
  }
  return {.batch = batch,
          .teacher_ms = Median(teacher_ms),
          .one_step_ms = Median(one_step_ms),
          .decode_ms = Median(decode_ms)};
}

}  // namespace dd2
