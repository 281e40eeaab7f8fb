#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace dd2 {

// What a random number is used for; part of its position. Never renumber: runs would change.
enum class RngUse : std::uint32_t {
  kParameterInit = 1,   // sample = parameter index
  kLabel = 2,           // class label of a generated sample
  kGeneratorNoise = 3,  // eps fed to the generator
  kTime = 4,            // t of the forward process
  kForwardNoise = 5,    // eps of the forward process x_t = (1-t) x_0 + t eps
  kDataOrder = 6,       // which stored sequence a batch position takes
  kTeacherToken = 7,    // token drawn from the teacher
  kLabelDrop = 8,       // classifier-free guidance label dropout
  kInputNoise = 9,      // noise on the teacher's inputs while it is trained
  kAugment = 10,        // data augmentation (flip)
  kDropout = 11,
  kCodebookRestart = 12,
  kEvalNoise = 13,
  kValidationTime = 14,   // t of held-out sequences; sample = their index
  kValidationNoise = 15,  // eps of held-out sequences
  kTrajectoryNoise = 16,  // where the flow of a stored teacher sequence began; sample = its index
};

// A position in the random field of a run: randomness comes from where a number is used, never from
// a stream that somebody advances, so it does not matter who computes it (design 4, rule 1).
struct RngKey {
  std::uint64_t seed = 0;   // of the run
  std::uint32_t phase = 0;  // index of the phase in the configuration
  RngUse use = RngUse::kLabel;
  std::uint64_t update = 0;  // attempted update inside the phase, < 2^32
  std::uint64_t sample = 0;  // global sample index inside the batch (or data set), < 2^32
};

// One block of Philox4x32-10 (Salmon et al., SC'11): 128 random bits for (key, counter).
std::array<std::uint32_t, 4> Philox4x32(std::array<std::uint32_t, 4> counter,
                                        std::array<std::uint32_t, 2> key);

// Fills `out` with uniforms in [0, 1): multiples of 2^-24. out[i] depends on (key, first + i) only.
void FillUniform(const RngKey& key, std::span<float> out);

// Fills `out` with N(0, 1) (Box-Muller in double precision, rounded once to float).
void FillNormal(const RngKey& key, std::span<float> out);

// A uniform integer in [0, bound), bound >= 1 (by multiplication; bias < bound * 2^-64).
std::uint64_t UniformInt(const RngKey& key, std::uint64_t bound);

}  // namespace dd2
