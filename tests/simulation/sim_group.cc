#include "tests/simulation/sim_group.h"

#include <utility>

namespace dd2::simulation {

void SimGroup::Enter(std::int32_t rank, const proto::Desired& wish, Outcome done) {
  if (broken_) {
    world_.After(world_.Between(0, 30), [done = std::move(done)] { done(false); });
    return;
  }
  if (wish.version() > newest_.version()) newest_ = wish;
  waiting_[rank] = std::move(done);
  if (static_cast<std::int32_t>(waiting_.size()) < size_) return;
  agreed_ = newest_;
  for (auto& [member, outcome] : waiting_) {
    world_.After(world_.Between(0, 20),
                 [this, outcome = std::move(outcome)] { outcome(!broken_ || world_.Chance(50)); });
  }
  waiting_.clear();
}

void SimGroup::Break() {
  broken_ = true;
  for (auto& [member, outcome] : waiting_) {
    world_.After(world_.Between(0, 30), [outcome = std::move(outcome)] { outcome(false); });
  }
  waiting_.clear();
}

}  // namespace dd2::simulation
