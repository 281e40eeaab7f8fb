#pragma once

#include <filesystem>
#include <memory>

#include "common/result.h"
#include "storage/teacher_folder.h"
#include "worker/models/teacher.h"
#include "worker/torch.h"

namespace dd2 {

// A released teacher as `dd2 teacher import` left it (storage/FORMAT.md 7), with what its Python
// original computes: for comparing the two. B images of L tokens, V codes.
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

class ReleasedTokenizer {
 public:
  struct Decoded {
    at::Tensor latent;  // VAR: f_hat; LlamaGen: z_q. [B, C, S, S]
    at::Tensor image;   // [B, 3, H, H], about [-1, 1]
  };

  virtual ~ReleasedTokenizer() = default;
  virtual at::Tensor Encode(const at::Tensor& images) const = 0;  // [B, 3, H, H] -> [B, L] int64
  virtual Decoded Decode(const at::Tensor& tokens) const = 0;
  virtual const char* latent_name() const = 0;  // "f_hat", "z_q"
  virtual std::int64_t tokens() const = 0;      // L
  virtual std::int64_t codes() const = 0;       // V
  virtual std::int64_t image_side() const = 0;  // H
};

// kNotFound: no such folder, or it lacks the network (VAR's transformer needs the tokenizer too,
// whose sums it reads). kCorruption, kInvalidArgument: with file and reason.
Result<std::unique_ptr<ReleasedTransformer>> LoadReleasedTransformer(
    const std::filesystem::path& folder);
Result<std::unique_ptr<ReleasedTokenizer>> LoadReleasedTokenizer(
    const std::filesystem::path& folder);

// The same networks for distillation: a teacher that draws scale by scale, on its tokenizer's path.
// kInvalidArgument: a LlamaGen teacher, whose input has to be made continuous first (method 4.3),
// or a VAR without normalised attention.
Result<std::unique_ptr<Tokenizer>> LoadReleasedCodes(const std::filesystem::path& folder);
Result<std::unique_ptr<Teacher>> LoadReleasedTeacher(const std::filesystem::path& folder,
                                                     std::shared_ptr<const CodePath> path);

}  // namespace dd2
