#include "coordinator/journal_replay.h"

#include <gtest/gtest.h>

namespace dd2 {
namespace {

proto::JournalRecord Finished(std::int32_t phase) {
  proto::JournalRecord record;
  record.mutable_phase_finished()->set_phase(phase);
  return record;
}

// The phases that count as finished after going back to (1, 5).
std::vector<std::int32_t> FinishedAfterGoingBack(bool at_end) {
  std::vector<proto::JournalRecord> records = {Finished(0), Finished(1), Finished(2)};
  proto::JournalRecord& back = records.emplace_back();
  back.mutable_rolled_back()->set_phase(1);
  back.mutable_rolled_back()->set_step(5);
  back.mutable_rolled_back()->set_at_end(at_end);
  std::vector<std::int32_t> phases;
  for (const FinishedPhase& finished : ReplayJournal(records).finished) {
    phases.push_back(finished.phase);
  }
  return phases;
}

TEST(JournalReplay, APhaseThatIsGoneBackIntoIsNotFinishedAnyMore) {
  EXPECT_EQ(FinishedAfterGoingBack(false), std::vector<std::int32_t>{0});
  EXPECT_EQ(FinishedAfterGoingBack(true), (std::vector<std::int32_t>{0, 1}));
}

}  // namespace
}  // namespace dd2
