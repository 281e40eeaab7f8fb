#include "worker/engine/checkpoint_saver.h"

#include <cmath>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "common/clock.h"
#include "common/log.h"
#include "common/timeouts.h"
#include "worker/kernels/torch_device.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;

// Parts of several domains are smaller, but their heads may say more: pieces that are cut at both
// ends, longer numbers.
constexpr std::size_t kHeadMargin = std::size_t{64} << 10;
// A shorter wait for the save before is none to speak of.
constexpr double kWaitWorthALine = 0.05;
// Of a checkpoint that must be committed; together less than timeouts::kDiskStall.
constexpr milliseconds kBetweenTries = milliseconds(500);
constexpr int kTriesMax = 240;

// A GPU writes into pinned memory by itself, and several times as fast as into other.
Result<StagingMemory> Pinned(std::size_t bytes) {
  const Dd2DeviceApi& api = DeviceKernels();
  void* memory = nullptr;
  if (const Status pinned = DeviceStatus(api, api.allocate_pinned(bytes, &memory)); !pinned) {
    return pinned.error().Wrap("no " + std::to_string(bytes) +
                               " bytes of pinned memory to stage a checkpoint; use more ranks, or "
                               "a machine with more memory");
  }
  return StagingMemory({static_cast<std::byte*>(memory), bytes},
                       [&api, memory] { api.release_pinned(memory); });
}

}  // namespace

Result<StagingMemory> CheckpointSaver::Allocate(const TrainingState& state) {
  const NetworkState& network = state.guidance;
  const RankLayout alone =
      OneDomain(static_cast<int>(network.begin / network.slice),
                static_cast<int>(network.params.flat().numel() / network.slice));
  DD2_TRY_ASSIGN(
      const std::size_t bytes,
      AsyncCheckpointWriter::BytesFor(
          {.id = "", .rank = alone.rank, .world_size = alone.world_size, .generation = 0},
          PiecesOf(state, alone)));
  const std::size_t wanted = bytes + kHeadMargin;
  return ComputeDevice().is_cpu() ? StagingMemory::Allocate(wanted) : Pinned(wanted);
}

CheckpointSaver::CheckpointSaver(FileSystem& files, std::filesystem::path checkpoints,
                                 StagingMemory memory, const TrainingState& state,
                                 CheckpointIdentity identity, CommitChannel& channel,
                                 std::chrono::milliseconds patience)
    : state_(state),
      identity_(std::move(identity)),
      channel_(channel),
      patience_(patience),
      writer_(files, std::move(checkpoints), std::move(memory), CopyMemory) {}

void CheckpointSaver::StartGeneration(std::uint64_t generation, const RankLayout& ranks,
                                      const std::string& committed) {
  writer_.DropStaged();
  being_copied_.reset();
  generation_ = generation;
  ranks_ = ranks;
  begun_ = committed;
  attempt_ = 0;
}

PartName CheckpointSaver::NameOf(const std::string& id) const {
  return {
      .id = id, .rank = ranks_.rank, .world_size = ranks_.world_size, .generation = generation_};
}

void CheckpointSaver::StageAhead(NetworkRole frozen, std::int64_t step) {
  if (!WaitForCompute()) return;  // what comes next says why
  const std::vector<PieceToWrite> pieces = PiecesOf(state_, ranks_);
  const std::size_t half = pieces.size() / 2;
  const std::size_t first = frozen == NetworkRole::kGenerator ? 0 : half;
  // What it cannot take now, Begin copies or refuses.
  static_cast<void>(
      writer_.StageAhead(NameOf(CheckpointId(state_.phase, step)), pieces, first, half));
}

Result<bool> CheckpointSaver::WaitForDecision() {
  Result<bool> committed = channel_.WaitForCheckpoint(begun_, attempt_, patience_);
  if (committed || committed.error().code() != Code::kDeadlineExceeded) return committed;
  LogWarning(committed.error().message() + "; training goes on without it");
  return false;
}

Status CheckpointSaver::Save(Until until) {
  BeforeChange();
  const std::string id = CheckpointId(state_.phase, state_.step);
  if (id == begun_) {
    writer_.DropStaged();
    // Decided alike on all ranks, so all of them try again or none.
    DD2_TRY_ASSIGN(const bool committed, WaitForDecision());
    if (committed) return {};
  } else {
    begun_ = id;
    attempt_ = 0;
  }
  for (int tries = 1;; ++tries) {
    ++attempt_;
    DD2_TRY_ASSIGN(const bool committed, Try(id, until));
    if (committed || until != Until::kCommitted) return {};
    // Counted, not timed: every rank must stop at the same one.
    if (tries == kTriesMax) {
      return Error(Code::kResourceExhausted,
                   "checkpoint " + id + " cannot be written, and no later one makes up for it");
    }
    channel_.SetWaitsForDisk(true);
    std::this_thread::sleep_for(kBetweenTries);
    channel_.SetWaitsForDisk(false);
  }
}

Result<bool> CheckpointSaver::Try(const std::string& id, Until until) {
  const SystemClock clock;
  const TimePoint start = clock.Now();
  DD2_TRY(Begin(id));
  bool committed = false;
  if (until != Until::kBegun) {
    DD2_TRY_ASSIGN(committed, WaitForDecision());
  }
  proto::CheckpointHeld held;
  held.set_checkpoint_id(id);
  held.set_seconds(SecondsBetween(start, clock.Now()));
  held.set_phase(state_.phase);
  held.set_step(state_.step);
  being_copied_ = std::move(held);
  if (until != Until::kBegun) BeforeChange();
  return committed;
}

void CheckpointSaver::BeforeChange() {
  if (!being_copied_) return;
  proto::CheckpointHeld held = *std::exchange(being_copied_, std::nullopt);
  stall_ = writer_.WaitCopied();
  if (stall_.waited_seconds > kWaitWorthALine) {
    LogInfo("checkpoint " + held.checkpoint_id() + " waited " +
            FormatSeconds(milliseconds(std::llround(stall_.waited_seconds * 1000))) +
            " for the one before it to be written");
  }
  if (ranks_.rank != 0) return;
  held.set_seconds(held.seconds() + stall_.copied_seconds);
  held.set_waited_seconds(stall_.waited_seconds);
  channel_.Send(std::move(held));
}

Status CheckpointSaver::Begin(const std::string& id) {
  proto::PartReport report;
  report.set_checkpoint_id(id);
  report.set_rank(ranks_.rank);
  report.set_attempt(attempt_);
  *report.mutable_header() = HeaderOf(state_, identity_, ranks_.world_size);
  const TimePoint start = SystemClock().Now();
  // On the writer's thread.
  auto done = [&channel = channel_, generation = generation_, start,
               report = std::move(report)](Result<proto::CheckpointPart> part) mutable {
    proto::Envelope envelope;
    if (part) {
      *report.mutable_part() = *std::move(part);
      report.set_seconds(SecondsBetween(start, SystemClock().Now()));
      *envelope.mutable_part_report() = std::move(report);
    } else {
      LogError(part.error().message());
      proto::PartFailed& failed = *envelope.mutable_part_failed();
      failed.set_checkpoint_id(report.checkpoint_id());
      failed.set_rank(report.rank());
      failed.set_attempt(report.attempt());
      failed.set_code(std::string(CodeName(part.error().code())));
      failed.set_message(part.error().message());
    }
    channel.SendPart(generation, std::move(envelope));
  };
  DD2_TRY(WaitForCompute());
  channel_.SetWaitsForDisk(true);
  Status begun = writer_.Begin(NameOf(id), PiecesOf(state_, ranks_), std::move(done));
  channel_.SetWaitsForDisk(false);
  return begun;
}

}  // namespace dd2
