#pragma once

#include <cstdint>

#include "common/result.h"
#include "worker/models/networks.h"
#include "worker/models/teacher.h"

namespace dd2 {

// Medians in milliseconds of sampling one batch of codes on one thread, or one GPU.
struct LatencyPoint {
  std::int64_t batch = 0;
  double teacher_ms = 0;   // AR sampling with KV cache and the config's CFG and filters
  double one_step_ms = 0;  // noise to codes in one pass
  double decode_ms = 0;    // codes to images, the same for both
  // Codes only; and with the decoder on both sides (what somebody who waits for an image sees).
  double speedup() const { return teacher_ms / one_step_ms; }
  double speedup_with_decode() const {
    return (teacher_ms + decode_ms) / (one_step_ms + decode_ms);
  }
};

// Times teacher and one-step network alternately, `repeats` (>= 1) times after one warm-up each, so
// that a busy moment of the machine hits both. Sets one intra-op thread and restores the old
// number.
LatencyPoint MeasureLatency(const TeacherBundle& bundle, const Network& network,
                            const TeacherConfig& config, std::int64_t batch, int repeats);

}  // namespace dd2
