#include "proto/position.h"

#include <algorithm>
#include <cstddef>
#include <tuple>

namespace dd2 {
namespace {

auto Key(const proto::Position& position) {
  return std::make_tuple(position.phase(), position.step(), position.updates());
}

}  // namespace

std::int32_t UpdatesOfStep(const PhaseConfig& phase) {
  switch (phase.kind) {
    case PhaseKind::kCsd: return phase.guidance_updates + 1;
    case PhaseKind::kGts:
    case PhaseKind::kRegress:
    case PhaseKind::kAlign: return 1;
    case PhaseKind::kTeacherCheck:
    case PhaseKind::kSample:
    case PhaseKind::kEval:
    case PhaseKind::kExport: return 0;
  }
  return 0;
}

bool Before(const proto::Position& a, const proto::Position& b) { return Key(a) < Key(b); }

proto::Position Normalised(const proto::Position& position,
                           const std::vector<PhaseConfig>& phases) {
  proto::Position normal = position;
  const auto index = static_cast<std::size_t>(std::max(0, position.phase()));
  if (index >= phases.size()) return normal;
  const std::int32_t updates = UpdatesOfStep(phases[index]);
  if (updates > 0 && normal.updates() >= updates) {
    normal.set_step(normal.step() + 1);
    normal.set_updates(0);
  }
  if (normal.updates() == 0 && normal.step() >= phases[index].steps) {
    normal.set_phase(normal.phase() + 1);
    normal.set_step(0);
  }
  return normal;
}

bool Same(const proto::Position& a, const proto::Position& b) { return Key(a) == Key(b); }

proto::Position RecordedBefore(const proto::Position& position, const proto::Progress* first_kept) {
  // Updates of a step that is not finished have no progress yet, even if they are all of it.
  proto::Position recorded;
  recorded.set_phase(first_kept == nullptr ? position.phase() : first_kept->phase());
  recorded.set_step(first_kept == nullptr ? position.step() : first_kept->step() - 1);
  return recorded;
}

}  // namespace dd2
