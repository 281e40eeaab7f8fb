#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace dd2 {

// Settings of `dd2 teacher train`: how tokenizer, teacher and evaluation classifier are made
// (configs/teachers/*.yaml, keys = field names). Defaults are the Fashion-MNIST recipe. What a
// field does not name is fixed by the recipe: network shapes, Adam epsilon.

// The evaluation CNN: Adam, rate falls linearly from `learning_rate` to 1e-5.
struct ClassifierTraining {
  int epochs = 3;
  int batch = 128;  // images per step (divisible by shards)
  double learning_rate = 2e-3;
  double dropout = 0.3;  // on the 64 features
};

// The VQ tokenizer: Adam, rate flat for half of the steps, then linear to 1e-5. In raster order an
// EMA codebook; by scales one that is trained by its gradient, for 0.8 of the steps with restarts
// (recipe 7).
struct TokenizerTraining {
  int codes = 128;   // V
  int channels = 4;  // C
  int steps = 2600;
  int batch = 128;
  double learning_rate = 1e-3;
  std::string scales;             // "1,2,3,4,5,7": multi-scale residual; empty: raster order
  int phis = 3;                   // convolutions that smooth the scales
  double commitment = 0.25;       // weight of mean |z - code|^2
  double decoder_noise = 0.05;    // on the decoder's input, in standard deviations of the codes
  double codebook_decay = 0.99;   // EMA of code counts and (raster order) sums
  double dead_code_ratio = 0.03;  // codes used less than this share of the mean are restarted
};

// The sides in TokenizerTraining::scales; empty: raster order, or not a list of 2 to 16 growing
// numbers that ends with the side of the latent, 7.
std::vector<std::int64_t> ParseScales(const std::string& text);

// The AR teacher, a raster transformer or VAR's after the tokenizer: AdamW with linear warm-up,
// then cosine to final_ratio of the peak.
struct PriorTraining {
  int width = 128;
  int layers = 4;
  int heads = 4;
  int steps = 3600;
  int batch = 128;
  double learning_rate = 1.5e-3;
  int warmup = 100;  // steps
  double final_ratio = 0.02;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double weight_decay = 0.02;  // on matrices, decoupled
  double clip_norm = 1.0;
  double input_noise = 0.1;  // on the teacher-forced (standardised) codes
  double label_drop = 0.1;   // share of labels replaced by the null class
};

struct TeacherTrainConfig {
  std::string name = "fashion-mnist";
  std::uint64_t seed = 1;
  std::string output = "configs/teachers/fashion-mnist";  // folder of the four files
  std::string dataset = "/usr/share/datasets/fashion-mnist";
  int threads = 2;        // do not change the bits; at most `shards` are used
  int shards = 4;         // virtual shards of every batch; change the bits
  int train_images = 0;   // first n images of the train split; 0: all
  int save_every = 200;   // steps between resumable states under output/.training
  int report_every = 50;  // steps between progress lines
  ClassifierTraining classifier;
  TokenizerTraining tokenizer;
  PriorTraining teacher;
};

}  // namespace dd2
