#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "tests/simulation/world.h"

namespace dd2::simulation {

// What a rank brings into a generation: the others may take it over.
struct Snapshot {
  std::uint64_t value = 0;
  proto::Position position;
  std::deque<proto::Progress> kept;
  std::uint64_t requests_served = 0;
  std::string begun;
  bool rolls = false;  // its rank does the update after `position` as it begins
};

// The communicators of one generation: a collective ends for each rank at a time of its own, and
// not at all for those that are cut off in between: the window in which some have done an update
// and others not.
class SimGroup {
 public:
  SimGroup(World& world, std::int32_t size) : world_(world), size_(size) {}
  using Outcome = std::function<void(bool ok)>;
  void Enter(std::int32_t rank, const proto::Desired& wish, Outcome done);
  // A member has left: who waits fails, who was about to be served may.
  void Break();
  const proto::Desired& agreed() const { return agreed_; }  // the newest wish of the last one

  std::map<std::int32_t, Snapshot> snapshots;  // by rank, before the first collective

 private:
  World& world_;
  const std::int32_t size_;
  bool broken_ = false;
  std::map<std::int32_t, Outcome> waiting_;
  proto::Desired newest_;
  proto::Desired agreed_;
};
using Groups = std::map<std::uint64_t, std::shared_ptr<SimGroup>>;  // by generation

}  // namespace dd2::simulation
