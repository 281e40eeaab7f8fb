#include "common/run_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <system_error>

#include "common/check.h"

namespace dd2 {
namespace {

PhaseConfig DefaultCsd() {
  PhaseConfig phase;
  phase.steps = 220;
  phase.generator = {.peak = 2e-4, .warmup = 30, .final_ratio = 0.1};
  phase.guidance = {.peak = 8e-4, .warmup = 30, .final_ratio = 1.0};
  return phase;
}

PhaseConfig DefaultGts() {
  PhaseConfig phase;
  phase.steps = 400;
  phase.batch = 64;
  phase.draws = 4;
  phase.head_lr_ratio = 2.0;
  phase.guidance = {.peak = 6e-4, .warmup = 50, .final_ratio = 0.1};
  return phase;
}

PhaseConfig DefaultRegress() {
  PhaseConfig phase;
  phase.steps = 400;
  phase.batch = 64;
  phase.head_lr_ratio = 2.0;
  phase.generator = {.peak = 5e-4, .warmup = 50, .final_ratio = 0.1};
  phase.guidance.warmup = phase.generator.warmup;  // one setting for both
  return phase;
}

PhaseConfig DefaultAlign() {
  PhaseConfig phase;
  phase.steps = 120;
  phase.guidance = {.peak = 8e-4, .warmup = 0, .final_ratio = 1.0};
  return phase;
}

PhaseConfig DefaultSample() {
  PhaseConfig phase;
  phase.sequences = 4000;
  phase.steps = phase.sequences / phase.block;
  return phase;
}

}  // namespace

std::optional<CheckpointInterval> ParseCheckpointInterval(std::string_view text) {
  CheckpointInterval interval;
  if (text == "auto") return interval;
  if (text == "off") {
    interval.kind = CheckpointInterval::Kind::kOff;
    return interval;
  }
  interval.kind = CheckpointInterval::Kind::kFixed;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, interval.seconds);
  const bool number = parsed.ec == std::errc() && parsed.ptr == end;
  if (!number || !(interval.seconds >= 1) || !(interval.seconds <= 1e9)) return std::nullopt;
  return interval;
}

const char* PhaseKindName(PhaseKind kind) {
  switch (kind) {
    case PhaseKind::kTeacherCheck: return "teacher_check";
    case PhaseKind::kSample: return "sample";
    case PhaseKind::kGts: return "gts";
    case PhaseKind::kCsd: return "csd";
    case PhaseKind::kAlign: return "align";
    case PhaseKind::kEval: return "eval";
    case PhaseKind::kExport: return "export";
    case PhaseKind::kRegress: return "regress";
  }
  DD2_CHECK_MSG(false, "phase kind out of range");
  return "";
}

std::optional<PhaseKind> ParsePhaseKind(std::string_view name) {
  for (const PhaseKind kind : kPhaseKinds) {
    if (name == PhaseKindName(kind)) return kind;
  }
  return std::nullopt;
}

bool IsDomainName(std::string_view name) {
  return !name.empty() && name.size() <= 64 && name.front() != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                  c == '-' || c == '_' || c == '.';
         });
}

PhaseConfig DefaultPhase(PhaseKind kind) {
  PhaseConfig phase;
  if (kind == PhaseKind::kSample) phase = DefaultSample();
  if (kind == PhaseKind::kGts) phase = DefaultGts();
  if (kind == PhaseKind::kCsd) phase = DefaultCsd();
  if (kind == PhaseKind::kAlign) phase = DefaultAlign();
  if (kind == PhaseKind::kRegress) phase = DefaultRegress();
  phase.kind = kind;
  return phase;
}

}  // namespace dd2
