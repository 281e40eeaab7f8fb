// Our side of `scripts/bench score`: the closed-form teacher score on one thread. Commands come on
// standard input, one a line; each is answered with one line of JSON. tests/bench/score.py drives
// it.
//
//   case V C ROWS KEPT FILE   makes input: 4 draws of ROWS rows of logits over V codes of C
//   channels,
//                             KEPT of 1000 codes possible; writes it and what we make of it to FILE
//   mean                      CPU seconds of the posterior mean
//   vjp                       of the mean and the vector-Jacobian product

#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>

#include "common/json.h"
#include "tests/gpu/random_input.h"
#include "worker/distill/score_kernel.h"

namespace dd2 {
namespace {

constexpr std::int64_t kDraws = 4;
constexpr float kTimeMin = 0.02F;

double CpuSeconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

class Bench {
 public:
  void MakeCase(std::istream& words) {
    std::int64_t codes = 0, channels = 0, rows = 0;
    int kept = 0;
    std::string file;
    words >> codes >> channels >> rows >> kept >> file;
    input_ = RandomScore(kDraws, rows, codes, channels, kept, kTimeMin);
    mu_.resize(input_.x.size());
    jtu_.resize(input_.x.size());
    Run(true);
    std::ofstream out(file, std::ios::binary);
    for (const std::vector<float>* values :
         {&input_.codebook, &input_.logp, &input_.t, &input_.x, &input_.u, &mu_, &jtu_}) {
      out.write(reinterpret_cast<const char*>(values->data()),
                static_cast<std::streamsize>(values->size() * sizeof(float)));
    }
  }

  double Run(bool with_vjp) {
    const ScoreProblem<float> problem{.rows = input_.rows(),
                                      .codes = input_.codes,
                                      .channels = input_.channels,
                                      .codebook = input_.codebook.data(),
                                      .logp = input_.logp.data(),
                                      .logp_rows = input_.logp_rows,
                                      .t = input_.t.data(),
                                      .x = input_.x.data()};
    const double begin = CpuSeconds();
    if (with_vjp) {
      PosteriorMeanAndVjp(problem, input_.u.data(), mu_.data(), jtu_.data());
    } else {
      PosteriorMean(problem, mu_.data());
    }
    return CpuSeconds() - begin;
  }

 private:
  ScoreInput input_;
  std::vector<float> mu_, jtu_;
};

}  // namespace
}  // namespace dd2

int main() {
  dd2::Bench bench;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    double seconds = 0;
    if (command == "case") {
      bench.MakeCase(words);
    } else if (command == "mean" || command == "vjp") {
      seconds = bench.Run(command == "vjp");
    } else {
      std::fprintf(stderr, "dd2-bench-score: no command '%s'\n", command.c_str());
      return 2;
    }
    const boost::json::object answer{{"seconds", seconds}};
    std::cout << boost::json::serialize(answer) << std::endl;
  }
  return 0;
}
