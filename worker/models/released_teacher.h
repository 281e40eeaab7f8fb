#pragma once

#include <filesystem>
#include <memory>

#include "common/result.h"
#include "storage/teacher_folder.h"
#include "worker/models/llamagen_gpt.h"
#include "worker/models/teacher.h"
#include "worker/torch.h"

namespace dd2 {

// A released teacher as `dd2 teacher import` left it (storage/FORMAT.md 7), with what its Python
// original computes: for comparing the two. B images of L tokens, V codes. On ComputeDevice().
class ReleasedTransformer {
 public:
  struct Logits {
    at::Tensor cond, uncond, guided;  // [B, L, V]
  };

  virtual ~ReleasedTransformer() = default;
  // Teacher-forced, no label dropped: tokens [B, L], labels [B] int64. `cfg` by the teacher's own
  // convention (models.md 0.3): VAR's ramp, 0 for none; LlamaGen's constant, 1 for none.
  virtual Logits Score(const at::Tensor& tokens, const at::Tensor& labels, double cfg) const = 0;
  virtual std::int64_t tokens() const = 0;      // L
  virtual std::int64_t vocabulary() const = 0;  // V
  virtual std::int64_t classes() const = 0;
  virtual double usual_cfg() const = 0;  // of the published evaluation
};

// kNotFound: no such folder, or it lacks the network (VAR's transformer and an adapted LlamaGen's
// need the tokenizer too). kCorruption, kInvalidArgument: with file and reason.
Result<std::unique_ptr<ReleasedTransformer>> LoadReleasedTransformer(
    const std::filesystem::path& folder);
// Its codes are what they are (method 1.2: noise of unit variance in their space, no rescaling):
// VAR's raw, LlamaGen's of length 1, which is also what its decoder gets (models.md 2.1).
Result<std::unique_ptr<Tokenizer>> LoadReleasedTokenizer(const std::filesystem::path& folder);
// A LlamaGen transformer whose input is a table or, adapted, an MLP.
struct LlamaGenNetwork {
  LlamaGenSpec spec;
  ParamBuffer params;  // by the names of its file
  at::Tensor table;    // [V, d]: what enters for each code
};
Result<LlamaGenNetwork> LoadLlamaGen(const std::filesystem::path& folder);
// The transformer for distillation, on its tokenizer's path if it draws scale by scale.
// kInvalidArgument: a LlamaGen whose input is a table (`dd2 teacher adapt` replaces it, method
// 4.3), or a VAR without normalised attention. `bf16` as of LoadTeacherBundle.
Result<std::unique_ptr<Teacher>> LoadReleasedTeacher(const std::filesystem::path& folder,
                                                     std::shared_ptr<const CodePath> path,
                                                     bool bf16 = false);

}  // namespace dd2
