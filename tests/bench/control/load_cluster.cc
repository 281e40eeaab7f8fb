#include "tests/bench/control/load_cluster.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "common/file.h"
#include "storage/checkpoint_store.h"

namespace dd2::load {

namespace {

using std::chrono::milliseconds;

// Members say that they live one after the other, not all at once: they were started at different
// times.
constexpr milliseconds kBeatSlot{10};
constexpr std::int64_t kElementsOfPart = 4;

// One rank's part of a checkpoint of one small tensor, on the disk.
Result<proto::PartReport> WritePart(const std::filesystem::path& folder, const std::string& id,
                                    std::int32_t rank, std::int32_t world_size,
                                    const proto::Position& position) {
  const std::vector<float> values(kElementsOfPart, static_cast<float>(rank));
  PieceToWrite piece;
  piece.tensor = "generator.param/w";
  piece.shape = {kElementsOfPart * world_size};
  piece.begin = kElementsOfPart * rank;
  piece.end = piece.begin + kElementsOfPart;
  piece.data = values;
  proto::PartReport report;
  DD2_TRY_ASSIGN(*report.mutable_part(), WriteCheckpointPart(RealFileSystem(), folder / id, rank,
                                                             world_size, std::span(&piece, 1)));
  report.set_checkpoint_id(id);
  report.set_rank(rank);
  report.set_attempt(1);
  proto::CheckpointHeader& header = *report.mutable_header();
  header.set_phase(position.phase());
  header.set_step(position.step());
  header.set_world_size(world_size);
  proto::LogicalTensor& tensor = *header.add_tensors();
  tensor.set_name(piece.tensor);
  tensor.add_shape(piece.shape.front());
  return report;
}

}  // namespace

Cluster::Cluster(asio::io_context& context, std::uint16_t port, ClusterOptions options)
    : options_(std::move(options)),
      context_(context),
      tasks_(context.get_executor()),
      links_{.executor = context.get_executor(), .port = port, .tasks = tasks_, .traffic = {}} {
  for (std::int32_t i = 0; i < options_.domains; ++i) {
    domains_.push_back(std::make_unique<Domain>(*this, i));
  }
}

void Cluster::Start() {
  for (const auto& domain : domains_) domain->Start();
  tasks_.Spawn("beats", BeatLoop());
  tasks_.Spawn("steps", StepLoop());
}

Task<void> Cluster::Stop() {
  stopping_ = true;
  if (part_writer_.joinable()) part_writer_.join();
  for (const auto& domain : domains_) domain->Crash();
  tasks_.Cancel();
  co_await tasks_.Wait();
}

void Cluster::Crash(std::int32_t index) {
  domain(index).Crash();
  for (const auto& other : domains_) {
    for (const auto& worker : other->workers()) worker->ReportTrouble();
  }
}

Task<void> Cluster::BeatLoop() {
  const milliseconds interval = options_.config.timeouts.heartbeat_interval;
  const auto slots = static_cast<std::size_t>(interval / kBeatSlot);
  asio::steady_timer timer(links_.executor, SystemClock().Now());
  error_code code;
  for (std::size_t slot = 0; !stopping_; slot = (slot + 1) % slots) {
    timer.expires_at(timer.expiry() + kBeatSlot);
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if (code) co_return;
    std::size_t member = 0;
    for (const auto& domain : domains_) {
      if (member++ % slots == slot) domain->Beat();
      for (const auto& worker : domain->workers()) {
        if (member++ % slots == slot) worker->Beat();
      }
    }
  }
}

Task<void> Cluster::StepLoop() {
  asio::steady_timer timer(links_.executor, SystemClock().Now());
  error_code code;
  while (!stopping_) {
    timer.expires_at(std::max(timer.expiry() + options_.pace, SystemClock().Now()));
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, code));
    if (code) co_return;
    Step();
  }
}

bool Cluster::CanStep() {
  if (!Formed()) return false;
  const std::uint64_t newest = generation();
  return std::all_of(ranks_.begin(), ranks_.end(), [newest](Worker* worker) {
    return worker->assigned() && worker->generation() == newest && !worker->silent() &&
           worker->HasLease();
  });
}

void Cluster::Step() {
  if (!CanStep()) return;
  const auto phase = static_cast<std::size_t>(ranks_.front()->position().phase());
  std::uint64_t requests = ranks_.front()->desired().checkpoint_requests();
  for (Worker* worker : ranks_) {
    worker->FinishStep(options_.config.phases.at(phase).steps);
    requests = std::min(requests, worker->desired().checkpoint_requests());
  }
  ++steps_;
  if (requests <= requests_served_) return;
  requests_served_ = requests;
  BeginCheckpoint();
}

// Beside the training, as real ranks do it.
void Cluster::BeginCheckpoint() {
  const proto::Position position = ranks_.front()->position();
  checkpoint_ = CheckpointTimes();
  checkpoint_.id = CheckpointId(position.phase(), position.step());
  if (part_writer_.joinable()) part_writer_.join();
  part_writer_ = std::thread(
      [this, position, id = checkpoint_.id, world_size = static_cast<std::int32_t>(ranks_.size())] {
        auto parts = std::make_shared<std::vector<proto::PartReport>>();
        for (std::int32_t rank = 0; rank < world_size; ++rank) {
          Result<proto::PartReport> part =
              WritePart(options_.run_folder / "checkpoints", id, rank, world_size, position);
          if (!part) {
            asio::post(context_, [this, error = part.error()] { Problem(error.message()); });
            return;
          }
          parts->push_back(std::move(*part));
        }
        asio::post(context_, [this, parts] { ReportParts(*parts); });
      });
}

void Cluster::ReportParts(const std::vector<proto::PartReport>& parts) {
  checkpoint_.first_part = SystemClock().Now();
  for (Worker* worker : ranks_)
    worker->ReportPart(parts.at(static_cast<std::size_t>(worker->rank())));
  checkpoint_.last_part = SystemClock().Now();
}

void Cluster::OnRegroup(std::uint64_t generation) {
  GenerationTimes& times = generations_[generation];
  times.last_regroup = SystemClock().Now();
  if (times.regroups++ == 0) times.first_regroup = times.last_regroup;
}

void Cluster::OnAssignment(Worker& worker) {
  GenerationTimes& times = generations_[worker.generation()];
  times.last_assignment = SystemClock().Now();
  if (times.assignments++ == 0) {
    times.first_assignment = times.last_assignment;
    ranks_.clear();
  }
  times.world_size = worker.world_size();
  ranks_.push_back(&worker);
}

void Cluster::OnCommitted(const std::string& id) {
  if (id != checkpoint_.id) return;
  checkpoint_.last_committed = SystemClock().Now();
  ++checkpoint_.committed;
}

void Cluster::Problem(const std::string& what) {
  if (problem_.empty() && !stopping_) problem_ = what;
}

}  // namespace dd2::load
