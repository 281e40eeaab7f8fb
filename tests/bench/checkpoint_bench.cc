// Our side of `scripts/bench checkpoint`: the worker's own saving and loading, on networks that are
// only as large as real ones. Commands come on standard input, one a line; each is answered with
// one line of JSON. tests/bench/checkpoint.py drives it.
//
//   dd2-bench-checkpoint FOLDER WIDTH LAYERS LOCAL_RANK LOCAL_SIZE
//   save          the stall of a save, and the time until its part was on the disk; nothing is
//                 computed meanwhile
//   save-ahead    the same with the guidance network's half staged before
//   beside N      the same while a step computes N matrix products before the state may change
//   step N        that step alone
//   memcpy        the same bytes into memory that was touched before
//   part ID       this rank's part of checkpoint ID (of 4 ranks: by 4 processes in turn)
//   publish ID N  makes it a checkpoint of the N parts that were written
//   load ID       into this rank's state, which was touched before

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <iostream>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "common/clock.h"
#include "common/file.h"
#include "common/json.h"
#include "proto/control.pb.h"
#include "storage/checkpoint_store.h"
#include "worker/engine/checkpoint_saver.h"
#include "worker/engine/phase_steps.h"
#include "worker/engine/training_state.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;

double Now() { return SecondsBetween(TimePoint(), SystemClock().Now()); }

NetworkSpec SpecOf(std::int64_t width, std::int64_t layers) {
  NetworkSpec spec;
  spec.backbone = {.channels = 32,
                   .width = width,
                   .layers = layers,
                   .heads = width / 64,
                   .tokens = 256,
                   .classes = 1000};
  spec.head = {
      .channels = 32, .condition = width, .width = width, .depth = 3, .time_features = 256};
  return spec;
}

// The coordinator of one rank: hears of parts.
class Listener final : public CommitChannel {
 public:
  void SendPart(std::uint64_t, proto::Envelope envelope) override {
    part_.set_value(std::move(envelope));
  }
  void Send(proto::CheckpointHeld) override {}
  void SetWaitsForDisk(bool) override {}
  Result<bool> WaitForCheckpoint(const std::string&, std::int32_t,
                                 std::chrono::milliseconds) override {
    return true;
  }
  proto::Envelope Part() { return part_.get_future().get(); }
  void Reset() { part_ = {}; }  // when nobody is about to say anything

 private:
  std::promise<proto::Envelope> part_;
};

class Bench {
 public:
  Bench(fs::path folder, const NetworkSpec& spec, int local_rank, int local_size)
      : folder_(std::move(folder)),
        ranks_(OneDomain(local_rank, local_size)),
        state_(MakeTrainingState(Network::Layout(spec), local_rank, local_size)) {
    const at::NoGradGuard no_grad;
    for (NetworkState* network : {&state_.generator, &state_.guidance}) {
      network->params.flat().normal_();
      for (at::Tensor* slice : {&network->adam_m, &network->adam_v, &network->ema})
        slice->normal_();
    }
    for (const PieceToWrite& piece : PiecesOf(state_, ranks_)) bytes_ += piece.data.size_bytes();
  }

  Status Do(const std::string& line) {
    std::istringstream words(line);
    std::string command;
    std::string id;
    int count = 0;
    words >> command >> id >> count;
    if (command == "save") return Save(false, 0);
    if (command == "save-ahead") return Save(true, 0);
    if (command == "beside") return Save(false, std::stoi(id));
    if (command == "step") return Step(std::stoi(id));
    if (command == "memcpy") return Copy();
    if (command == "shapes") return Shapes();
    if (command == "part") return WritePart(id);
    if (command == "publish") return Publish(id, count);
    if (command == "load") return Load(id);
    return Error(Code::kInvalidArgument, "no command: " + line);
  }

 private:
  // On one thread; the other core is free for the copy. Seconds.
  double Compute(int products) {
    const double start = Now();
    for (int i = 0; i < products; ++i) at::mm_out(product_, factor_, factor_);
    return Now() - start;
  }

  Status Step(int products) {
    std::printf("{\"seconds\": %.6f}\n", Compute(products));
    return {};
  }

  Status Save(bool ahead, int products) {
    if (!saver_) {
      DD2_TRY_ASSIGN(StagingMemory memory, CheckpointSaver::Allocate(state_));
      saver_ = std::make_unique<CheckpointSaver>(RealFileSystem(), folder_, std::move(memory),
                                                 state_, CheckpointIdentity(), listener_,
                                                 std::chrono::minutes(5));
      saver_->StartGeneration(1, ranks_, "");
    }
    ++state_.step;
    if (ahead) {
      saver_->StageAhead(NetworkRole::kGuidance, state_.step);
      std::this_thread::sleep_for(std::chrono::seconds(3));  // the other network trains
    }
    const double start = Now();
    DD2_TRY(saver_->Save(CheckpointSaver::Until::kBegun));
    const double computed = Compute(products);
    saver_->BeforeChange();
    const double changing = Now();
    const proto::Envelope part = listener_.Part();
    const double written = Now();
    saver_->Wait();
    listener_.Reset();
    if (!part.has_part_report()) return Error(Code::kUnavailable, part.part_failed().message());
    std::printf(
        "{\"stall\": %.6f, \"step\": %.6f, \"write\": %.6f, \"bytes\": %lld, "
        "\"file\": \"%s\"}\n",
        changing - start - computed, computed, written - changing, static_cast<long long>(bytes_),
        (folder_ / part.part_report().checkpoint_id() / part.part_report().part().file()).c_str());
    return {};
  }

  Status Copy() {
    if (!copy_) {
      DD2_TRY_ASSIGN(StagingMemory memory, StagingMemory::Allocate(bytes_));
      copy_ = std::make_unique<StagingMemory>(std::move(memory));
    }
    const std::vector<PieceToWrite> pieces = PiecesOf(state_, ranks_);
    const double start = Now();
    std::byte* to = copy_->bytes().data();
    for (const PieceToWrite& piece : pieces) {
      std::memcpy(to, piece.data.data(), piece.data.size_bytes());
      to += piece.data.size_bytes();
    }
    std::printf("{\"seconds\": %.6f}\n", Now() - start);
    return {};
  }

  Status Shapes() const {
    boost::json::object shapes;
    for (const ParamSpec& spec : state_.guidance.params.layout().specs()) {
      shapes[spec.name] = boost::json::array(spec.shape.begin(), spec.shape.end());
    }
    std::printf("%s\n", boost::json::serialize(shapes).c_str());
    return {};
  }

  fs::path Described(int rank) const { return folder_ / ("part-" + std::to_string(rank)); }

  Status WritePart(const std::string& id) {
    DD2_TRY_ASSIGN(const proto::CheckpointPart part,
                   WriteCheckpointPart(RealFileSystem(), folder_ / id, ranks_.rank,
                                       ranks_.world_size, PiecesOf(state_, ranks_)));
    DD2_TRY(
        WriteFileAtomically(RealFileSystem(), Described(ranks_.rank), part.SerializeAsString()));
    std::printf("{\"bytes\": %lld}\n", static_cast<long long>(part.size_bytes()));
    return {};
  }

  Status Publish(const std::string& id, int count) {
    proto::CheckpointManifest manifest;
    manifest.set_format_version(1);
    manifest.set_checkpoint_id(id);
    *manifest.mutable_header() = HeaderOf(state_, CheckpointIdentity(), count);
    for (int rank = 0; rank < count; ++rank) {
      DD2_TRY_ASSIGN(const std::string bytes, RealFileSystem().Read(Described(rank)));
      if (!manifest.add_parts()->ParseFromString(bytes)) {
        return Error(Code::kCorruption, Described(rank).string() + " does not parse");
      }
    }
    DD2_TRY(PublishManifest(RealFileSystem(), folder_, manifest));
    std::printf("{}\n");
    return {};
  }

  Status Load(const std::string& id) {
    const double start = Now();
    DD2_TRY(RestoreState(RealFileSystem(), folder_, id, CheckpointIdentity(), state_));
    std::printf("{\"seconds\": %.6f}\n", Now() - start);
    return {};
  }

  const fs::path folder_;
  const RankLayout ranks_;
  TrainingState state_;
  std::size_t bytes_ = 0;
  const at::Tensor factor_ = at::ones({1024, 1024});
  at::Tensor product_ = at::empty({1024, 1024});
  std::unique_ptr<StagingMemory> copy_;
  Listener listener_;
  std::unique_ptr<CheckpointSaver> saver_;  // last: it uses the others
};

}  // namespace
}  // namespace dd2

int main(int argc, char** argv) {
  if (argc != 6) {
    std::fprintf(stderr, "usage: dd2-bench-checkpoint FOLDER WIDTH LAYERS LOCAL_RANK LOCAL_SIZE\n");
    return 2;
  }
  dd2::SetComputeThreads(1);
  dd2::Bench bench(argv[1], dd2::SpecOf(std::atoll(argv[2]), std::atoll(argv[3])),
                   std::atoi(argv[4]), std::atoi(argv[5]));
  std::printf("{\"ready\": true}\n");
  std::fflush(stdout);
  for (std::string line; std::getline(std::cin, line);) {
    const dd2::Status status = bench.Do(line);
    if (!status) {
      std::fprintf(stderr, "%s\n", status.error().message().c_str());
      return 1;
    }
    std::fflush(stdout);
  }
  return 0;
}
