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

// Pieces are copied together up to here: between two copies the training may take them back.
constexpr std::size_t kRunMax = std::size_t{16} << 20;

// Two memories may follow each other by chance, and no copy goes over their border.
bool SameGroup(const std::string& a, const std::string& b) {
  const std::size_t length = a.find('/');
  return length == b.find('/') && a.compare(0, length, b, 0, length) == 0;
}

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
  if (bytes == 0) return StagingMemory({}, nullptr);
  void* mapping =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) {
    return Error(Code::kResourceExhausted, "no " + std::to_string(bytes) +
                                               " bytes of memory to stage a checkpoint: " +
                                               std::generic_category().message(errno) +
                                               "; use more ranks, or a machine with more memory");
  }
  // Fewer page faults and TLB misses; where the system has no huge pages, small ones do.
  static_cast<void>(::madvise(mapping, bytes, MADV_HUGEPAGE));
  std::memset(mapping, 0, bytes);
  return StagingMemory({static_cast<std::byte*>(mapping), bytes},
                       [mapping, bytes] { ::munmap(mapping, bytes); });
}

StagingMemory::StagingMemory(std::span<std::byte> memory, std::function<void()> release)
    : bytes_(memory), release_(std::move(release)) {}

StagingMemory::StagingMemory(StagingMemory&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})), release_(std::exchange(other.release_, nullptr)) {}

StagingMemory& StagingMemory::operator=(StagingMemory&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  std::swap(release_, other.release_);
  return *this;
}

StagingMemory::~StagingMemory() {
  if (release_) release_();
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
                                             StagingMemory memory, CopyBytes copy)
    : files_(files),
      checkpoints_(std::move(checkpoints)),
      memory_(std::move(memory)),
      copy_(std::move(copy)) {
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

// The end of the pieces from `first` on, before `end`, that one copy takes: of one group, none
// staged, and each begins in memory and in the file where the one before it ends.
std::size_t AsyncCheckpointWriter::RunFrom(const Plan& plan, std::size_t first,
                                           std::size_t end) const {
  std::size_t next = first + 1;
  std::size_t bytes = pieces_[first].data.size_bytes();
  for (; next < end && !plan.staged[next]; ++next) {
    const std::span<const float> last = pieces_[next - 1].data;
    const std::span<const float> data = pieces_[next].data;
    bytes += data.size_bytes();
    if (bytes > kRunMax || data.data() != last.data() + last.size() ||
        plan.layout.offsets[next] != plan.layout.offsets[next - 1] + last.size_bytes() ||
        !SameGroup(pieces_[next].tensor, pieces_[first].tensor)) {
      break;
    }
  }
  return next;
}

// Copies a run and zeroes the gap after it, which a save of another layout may have filled.
Status AsyncCheckpointWriter::CopyRun(Plan& plan, std::size_t first, std::size_t end) {
  const std::vector<std::uint64_t>& offsets = plan.layout.offsets;
  const std::uint64_t begin = offsets[first];
  const std::uint64_t data_end = offsets[end - 1] + pieces_[end - 1].data.size_bytes();
  const std::uint64_t next = end < pieces_.size() ? offsets[end] : plan.layout.file_bytes;
  std::byte* const to = memory_.bytes().data();
  if (data_end > begin) DD2_TRY(copy_(to + begin, pieces_[first].data.data(), data_end - begin));
  std::memset(to + data_end, 0, next - data_end);
  std::fill(plan.staged.begin() + static_cast<std::ptrdiff_t>(first),
            plan.staged.begin() + static_cast<std::ptrdiff_t>(end), true);
  return {};
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
  const std::size_t end = stage_first_ + stage_count_;
  for (std::size_t i = stage_first_; i < end;) {
    {
      const std::lock_guard lock(mutex_);
      if (drop_) break;
    }
    const std::size_t run_end = RunFrom(*plan_, i, end);
    if (!CopyRun(*plan_, i, run_end)) break;  // the save copies it, or says why not
    i = run_end;
  }
  SetState(State::kIdle);
}

Status AsyncCheckpointWriter::CopyAll(Plan& plan) {
  std::memcpy(memory_.bytes().data(), plan.layout.head.data(), plan.layout.head.size());
  for (std::size_t i = 0; i < pieces_.size();) {
    std::size_t end = i + 1;
    std::int64_t& bytes = plan.staged[i] ? stall_.ahead_bytes : stall_.copied_bytes;
    if (!plan.staged[i]) {
      end = RunFrom(plan, i, pieces_.size());
      if (const Status copied = CopyRun(plan, i, end); !copied) {
        return copied.error().Wrap("checkpoint " + plan.name.id +
                                   " was not written, its values could not be copied");
      }
    }
    for (; i < end; ++i) bytes += static_cast<std::int64_t>(pieces_[i].data.size_bytes());
  }
  return {};
}

void AsyncCheckpointWriter::Save() {
  const Status copied = CopyAll(*plan_);
  SetState(State::kWriting);
  if (copied) {
    Result<proto::CheckpointPart> part = Write(*plan_);
    if (!part) part = Explain(part.error(), plan_->name.id, checkpoints_);
    done_(std::move(part));
  } else {
    done_(copied.error());
  }
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
