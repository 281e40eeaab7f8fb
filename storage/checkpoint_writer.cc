#include "storage/checkpoint_writer.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "common/clock.h"
#include "storage/checkpoint_part.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

// What a person should do about it; the code stays.
Error Explain(const Error& error, const std::string& id, const fs::path& checkpoints) {
  std::string advice;
  if (error.code() == Code::kResourceExhausted) {
    advice = ". Free space for " + checkpoints.string() +
             " (dd2 checkpoint prune, checkpoint.keep_last)";
  } else if (error.code() == Code::kUnavailable) {
    advice = ". Look at the disk under " + checkpoints.string() + " (dmesg, mount options)";
  } else {
    return error.Wrap("checkpoint " + id);
  }
  return {error.code(), "checkpoint " + id + " was not written: " + error.message() + advice +
                            "; earlier checkpoints are untouched, the next one is written in full"};
}

}  // namespace

Result<StagingMemory> StagingMemory::Allocate(std::size_t bytes) {
  StagingMemory memory;
  if (bytes == 0) return memory;
  void* mapping =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    return Error(Code::kResourceExhausted, "no " + std::to_string(bytes) +
                                               " bytes of memory to stage a checkpoint: " +
                                               std::generic_category().message(errno) +
                                               "; use more ranks, or a machine with more memory");
  }
  memory.data_ = static_cast<std::byte*>(mapping);
  memory.size_ = bytes;
  // Fewer page faults and TLB misses; where the system has no huge pages, small ones do.
  static_cast<void>(::madvise(mapping, bytes, MADV_HUGEPAGE));
  std::memset(mapping, 0, bytes);
  return memory;
}

StagingMemory::StagingMemory(StagingMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

StagingMemory& StagingMemory::operator=(StagingMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

StagingMemory::~StagingMemory() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

struct AsyncCheckpointWriter::Plan {
  PartName name;
  proto::CheckpointPart part;
  SafetensorsLayout layout;
  std::vector<bool> staged;  // by piece

  // The head names every piece with its range and place.
  bool SameAs(const Plan& other) const {
    return name == other.name && layout.head == other.layout.head;
  }
};

Result<std::size_t> AsyncCheckpointWriter::BytesFor(const PartName& name,
                                                    std::span<const PieceToWrite> pieces) {
  DD2_TRY_ASSIGN(const PlannedPart planned,
                 PlanPart(name.rank, name.world_size, name.generation, pieces));
  DD2_TRY_ASSIGN(const SafetensorsLayout layout,
                 LayOutSafetensors(planned.tensors, planned.metadata));
  return layout.file_bytes;
}

AsyncCheckpointWriter::AsyncCheckpointWriter(FileSystem& files, fs::path checkpoints,
                                             StagingMemory memory)
    : files_(files), checkpoints_(std::move(checkpoints)), memory_(std::move(memory)) {
  thread_ = std::thread([this] { Work(); });
}

AsyncCheckpointWriter::~AsyncCheckpointWriter() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

Result<std::unique_ptr<AsyncCheckpointWriter::Plan>> AsyncCheckpointWriter::MakePlan(
    const PartName& name, std::span<const PieceToWrite> pieces) const {
  auto plan = std::make_unique<Plan>();
  DD2_TRY_ASSIGN(PlannedPart planned,
                 PlanPart(name.rank, name.world_size, name.generation, pieces));
  DD2_TRY_ASSIGN(plan->layout, LayOutSafetensors(planned.tensors, planned.metadata));
  plan->name = name;
  plan->part = std::move(planned.part);
  plan->staged.resize(pieces.size());
  if (plan->layout.file_bytes > memory_.bytes().size()) {
    return Error(Code::kInvalidArgument,
                 "checkpoint " + name.id + ": the part of rank " + std::to_string(name.rank) +
                     " has " + std::to_string(plan->layout.file_bytes) +
                     " bytes, the staging memory " + std::to_string(memory_.bytes().size()));
  }
  return plan;
}

// Copies a piece and zeroes the gap after it, which a save of another layout may have filled.
std::int64_t AsyncCheckpointWriter::CopyPiece(Plan& plan, std::size_t index) {
  const auto data = std::as_bytes(pieces_[index].data);
  const std::uint64_t begin = plan.layout.offsets[index];
  const std::uint64_t end = begin + data.size();
  const std::uint64_t next =
      index + 1 < pieces_.size() ? plan.layout.offsets[index + 1] : plan.layout.file_bytes;
  std::byte* const to = memory_.bytes().data();
  if (!data.empty()) std::memcpy(to + begin, data.data(), data.size());
  std::memset(to + end, 0, next - end);
  plan.staged[index] = true;
  return static_cast<std::int64_t>(data.size());
}

void AsyncCheckpointWriter::SetState(State state) {
  {
    const std::lock_guard lock(mutex_);
    state_ = state;
  }
  changed_.notify_all();
}

Result<bool> AsyncCheckpointWriter::StageAhead(const PartName& name,
                                               std::span<const PieceToWrite> pieces,
                                               std::size_t first, std::size_t count) {
  if (first > pieces.size() || count > pieces.size() - first) {
    return Error(Code::kInvalidArgument, "checkpoint " + name.id + ": pieces " +
                                             std::to_string(first) + " + " + std::to_string(count) +
                                             " of " + std::to_string(pieces.size()));
  }
  DD2_TRY_ASSIGN(std::unique_ptr<Plan> plan, MakePlan(name, pieces));
  {
    const std::lock_guard lock(mutex_);
    if (state_ != State::kIdle) return false;
    state_ = State::kStaging;
    if (plan_ == nullptr || !plan_->SameAs(*plan)) plan_ = std::move(plan);
    pieces_.assign(pieces.begin(), pieces.end());
    stage_first_ = first;
    stage_count_ = count;
    drop_ = false;
  }
  changed_.notify_all();
  return true;
}

void AsyncCheckpointWriter::DropStaged() {
  std::unique_lock lock(mutex_);
  drop_ = true;
  changed_.wait(lock, [this] { return state_ != State::kStaging && state_ != State::kCopying; });
  if (state_ == State::kIdle) plan_.reset();
}

Status AsyncCheckpointWriter::Begin(const PartName& name, std::span<const PieceToWrite> pieces,
                                    Done done) {
  DD2_TRY_ASSIGN(std::unique_ptr<Plan> plan, MakePlan(name, pieces));
  const SystemClock clock;
  const TimePoint start = clock.Now();
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return state_ == State::kIdle; });
    stall_ = {};
    stall_.waited_seconds = SecondsBetween(start, clock.Now());
    if (plan_ == nullptr || !plan_->SameAs(*plan)) plan_ = std::move(plan);
    pieces_.assign(pieces.begin(), pieces.end());
    done_ = std::move(done);
    state_ = State::kCopying;
  }
  changed_.notify_all();
  return {};
}

SaveStall AsyncCheckpointWriter::WaitCopied() {
  const SystemClock clock;
  const TimePoint start = clock.Now();
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return state_ != State::kCopying; });
  stall_.copied_seconds += SecondsBetween(start, clock.Now());
  return stall_;
}

void AsyncCheckpointWriter::Wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return state_ == State::kIdle; });
}

void AsyncCheckpointWriter::Work() {
  while (true) {
    State state = State::kIdle;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return state_ != State::kIdle || ending_; });
      state = state_;
    }
    if (state == State::kIdle) return;
    if (state == State::kStaging) {
      Stage();
    } else {
      Save();
    }
  }
}

void AsyncCheckpointWriter::Stage() {
  for (std::size_t i = stage_first_; i < stage_first_ + stage_count_; ++i) {
    {
      const std::lock_guard lock(mutex_);
      if (drop_) break;
    }
    CopyPiece(*plan_, i);
  }
  SetState(State::kIdle);
}

void AsyncCheckpointWriter::Save() {
  std::memcpy(memory_.bytes().data(), plan_->layout.head.data(), plan_->layout.head.size());
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    if (plan_->staged[i]) {
      stall_.ahead_bytes += static_cast<std::int64_t>(pieces_[i].data.size_bytes());
    } else {
      stall_.copied_bytes += CopyPiece(*plan_, i);
    }
  }
  SetState(State::kWriting);
  Result<proto::CheckpointPart> part = Write(*plan_);
  if (!part) part = Explain(part.error(), plan_->name.id, checkpoints_);
  done_(std::move(part));
  done_ = nullptr;
  plan_.reset();
  SetState(State::kIdle);
}

Result<proto::CheckpointPart> AsyncCheckpointWriter::Write(Plan& plan) {
  const fs::path folder = checkpoints_ / plan.name.id;
  DD2_TRY(OpenForParts(files_, folder));
  const auto image = memory_.bytes().first(plan.layout.file_bytes);
  DD2_TRY_ASSIGN(const WrittenFile written,
                 WriteSafetensorsImage(files_, folder / plan.part.file(), image));
  return FinishPart(files_, folder, std::move(plan.part), written);
}

}  // namespace dd2
