#pragma once

#include <cstdint>
#include <filesystem>

#include "common/result.h"
#include "worker/engine/teacher_stage.h"
#include "worker/torch.h"

namespace dd2 {

// How a LlamaGen is made to take continuous codes (method 4.3; paper E.4).
struct AdaptSettings {
  // First an MLP on the code vector is fitted to the table: the second layer is the one with the
  // smallest sum_i |mlp(c_i) - table_i|^2, the first one random. The paper gives the loss alone.
  //
  // Then all parameters go through LlamaGen's own training: cross entropy of the next token, AdamW
  // (.9, .95), weight decay .05 on matrices, gradients cut to norm 1, a constant rate, a tenth of
  // the labels dropped (models.md 2.2); without its dropout of activations. The paper has 200,000
  // steps and does not say of which batch, LlamaGen has 256.
  std::int64_t steps = 200'000;
  std::int64_t batch = 256;  // sequences
  double learning_rate = 1e-4;

  std::int64_t held_out = 0;  // sequences at the end that measure; 0: a tenth, at most 256
  std::uint64_t seed = 1;
  int threads = 2;  // do not change the bits; at most `shards` are used, on a GPU one
  int shards = 4;   // of every batch; change the bits. Each takes a copy of the gradients
  int save_every = 200;
  int report_every = 50;
};

struct AdaptRequest {
  std::filesystem::path teacher;  // an import of LlamaGen's transformer and tokenizer
  std::filesystem::path out;
  at::Tensor
      tokens;  // [N, n] int64, images as the tokenizer encodes them; undefined: the MLP alone
  at::Tensor labels;  // [N] int64, all classes; both within their ranges and contiguous
  AdaptSettings settings;
  ReportLine report;  // empty: lines to standard output
};

// Writes a teacher folder (storage/FORMAT.md 7) whose transformer has an MLP for its table, and
// card.json: settings, the error of the fit relative to the table's mean square, nats per token of
// held-out sequences with the table, with the fitted MLP and after training.
//
// Interrupted, it goes on from the newest state under out/.adapting; finished, it removes that
// folder. It computes on ComputeDevice(): the same seed, shards, settings, tokens and kind of
// device give the same weights. kInvalidArgument: impossible settings or shapes, no LlamaGen, or
// one that is adapted already. kNotFound: a network is missing. kFailedPrecondition: `out` holds a
// teacher, or a state of other settings. kUnavailable: somebody else adapts into the same folder.
// kResourceExhausted: the memory of a GPU.
Status AdaptTeacher(const AdaptRequest& request);

}  // namespace dd2
