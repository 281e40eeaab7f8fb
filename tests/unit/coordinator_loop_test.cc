// The coordinator's drivers with agent and workers as threads that speak over real sockets.

#include "coordinator/coordinator_loop.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "common/json.h"
#include "coordinator/journal_replay.h"
#include "coordinator/recovery.h"
#include "storage/kv_store.h"
#include "tests/support/fake_domain.h"
#include "tests/unit/storage_testing.h"

namespace dd2 {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::SizeIs;

constexpr const char* kSecret = "only-for-tests";

// The real file system; `before_rename` may look, or fail a rename.
class WatchedFileSystem final : public FileSystem {
 public:
  std::function<Status(const fs::path& to)> before_rename;

  Result<std::unique_ptr<WritableFile>> Create(const fs::path& path) override {
    return RealFileSystem().Create(path);
  }
  Result<std::string> Read(const fs::path& path) override { return RealFileSystem().Read(path); }
  Status Rename(const fs::path& from, const fs::path& to) override {
    if (before_rename) DD2_TRY(before_rename(to));
    return RealFileSystem().Rename(from, to);
  }
  Status Remove(const fs::path& path) override { return RealFileSystem().Remove(path); }
  Status RemoveTree(const fs::path& path) override { return RealFileSystem().RemoveTree(path); }
  Status MakeDirectories(const fs::path& path) override {
    return RealFileSystem().MakeDirectories(path);
  }
  Status SyncDirectory(const fs::path& path) override {
    return RealFileSystem().SyncDirectory(path);
  }
  Result<std::vector<std::string>> List(const fs::path& path) override {
    return RealFileSystem().List(path);
  }
};

// A journal whose disk fills up after some records.
class FullJournal final : public Journal {
 public:
  explicit FullJournal(std::size_t room) : room_(room) {}
  Status Append(std::vector<proto::JournalRecord> records, std::int64_t) override {
    if (records_.size() + records.size() > room_) {
      return Error(Code::kResourceExhausted, "no space left on device");
    }
    for (proto::JournalRecord& record : records) records_.push_back(std::move(record));
    return Status();
  }
  const std::vector<proto::JournalRecord>& records() const override { return records_; }

 private:
  const std::size_t room_;
  std::vector<proto::JournalRecord> records_;
};

class StepCollector final : public RunObserver {
 public:
  void OnChange(const RunState&) override {}
  Status OnStep(const StepRecord& record) override {
    steps.emplace_back(record.phase, record.step);
    return Status();
  }
  Status OnPosition(std::int32_t phase, std::int64_t step) override {
    positions.emplace_back(phase, step);
    return Status();
  }
  std::vector<std::pair<std::int32_t, std::int64_t>> steps;
  std::vector<std::pair<std::int32_t, std::int64_t>> positions;
};

PhaseConfig Phase(PhaseKind kind, std::int64_t steps, int checkpoint_every) {
  PhaseConfig phase;
  phase.kind = kind;
  phase.steps = steps;
  phase.checkpoint_every = checkpoint_every;
  return phase;
}

class CoordinatorLoopTest : public testing::Test {
 protected:
  CoordinatorLoopTest() {
    config_.name = "fake";
    config_.ranks = 2;
    config_.checkpoint.keep_last = 2;
    config_.phases = {Phase(PhaseKind::kTeacherCheck, 1, 0), Phase(PhaseKind::kGts, 20, 8),
                      Phase(PhaseKind::kEval, 1, 0)};
    Result<std::unique_ptr<Journal>> journal = Journal::Open(NewMemStore());
    if (!journal) std::abort();
    memory_journal_ = std::move(*journal);
  }

  // One life of the coordinator. `play` runs beside it, on a thread of its own, with the loop's
  // port; what it needs done on the control thread it posts.
  struct Life {
    ExitCode exit_code = kExitInternal;
    RunState state;
    StepCollector collector;
  };
  Life Live(const std::function<void(std::uint16_t port)>& play) {
    Life life;
    asio::io_context context(1);
    context_ = &context;
    Result<CoreStart> start = RecoverRun(files_, folder_.path(), journal(), clock_.UnixMs());
    if (!start) {
      ADD_FAILURE() << start.error().message();
      return life;
    }
    CoreOptions core;
    core.config = config_;
    core.run_id = "run-1";
    core.run_folder = folder_.path().string();
    core.code_version = "test";
    LoopOptions options;
    options.run_folder = folder_.path();
    options.secret = kSecret;
    CoordinatorLoop loop(context, files_, clock_, journal(), core, std::move(*start), options);
    loop_ = &loop;
    loop.AddObserver(life.collector);
    const Result<std::uint16_t> port = loop.Listen();
    if (!port) {
      ADD_FAILURE() << port.error().message();
      return life;
    }
    bool done = false;
    asio::co_spawn(context, loop.Run(), [&](std::exception_ptr thrown, ExitCode exit_code) {
      EXPECT_FALSE(thrown);
      life.exit_code = exit_code;
      done = true;
    });
    std::thread player([&play, number = *port] { play(number); });
    context.run_for(std::chrono::seconds(60));
    EXPECT_TRUE(done) << "the coordinator did not end";
    player.join();
    life.state = loop.state();
    return life;
  }
  FakeSettings Settings(std::uint16_t port) const {
    FakeSettings settings;
    settings.config = config_;
    settings.run_folder = folder_.path();
    settings.port = port;
    settings.secret = kSecret;
    return settings;
  }
  // A life in which nothing special happens; the workers' steps are in `steps_`.
  Life LiveNormally() {
    return Live([this](std::uint16_t port) {
      FakeDomain domain(Settings(port));
      domain.Join();
      steps_ = domain.worker(1).steps;
      restored_ = domain.worker(0).assignment.restore_checkpoint();
    });
  }
  // Runs `what` on the control thread and waits for it.
  void OnControlThread(std::function<void(CoordinatorLoop&)> what) {
    std::promise<void> done;
    asio::post(*context_, [&] {
      what(*loop_);
      done.set_value();
    });
    done.get_future().wait();
  }
  // A life that ends by a stop after step 11 of gts.
  Life LiveAndStop() {
    return Live([this](std::uint16_t port) {
      FakeSettings settings = Settings(port);
      settings.after_step = [this](std::int32_t rank, std::int32_t phase, std::int64_t step) {
        if (rank == 0 && phase == 1 && step == 11) {
          OnControlThread([](CoordinatorLoop& loop) { loop.OnSignal("SIGTERM"); });
        }
        return true;
      };
      FakeDomain domain(settings);
      domain.Join();
      EXPECT_TRUE(domain.told_to_stop());
      steps_ = domain.worker(0).steps;
      EXPECT_EQ(domain.worker(1).steps, steps_) << "both ranks stop at the same step";
    });
  }
  Journal& journal() { return full_journal_ ? *full_journal_ : *memory_journal_; }
  std::vector<std::string> Manifests() {
    auto ids = ListCheckpoints(RealFileSystem(), folder_.path() / "checkpoints");
    return ids ? *ids : std::vector<std::string>();
  }
  bool Journalled(const std::string& checkpoint) {
    const std::vector<proto::JournalRecord>& records = journal().records();
    return std::any_of(records.begin(), records.end(), [&](const proto::JournalRecord& record) {
      return record.checkpoint_committed().checkpoint_id() == checkpoint;
    });
  }

  TemporaryFolder folder_;
  WatchedFileSystem files_;
  SystemClock clock_;
  RunConfig config_;
  std::unique_ptr<Journal> memory_journal_;
  std::unique_ptr<Journal> full_journal_;
  asio::io_context* context_ = nullptr;  // of the current life
  CoordinatorLoop* loop_ = nullptr;
  std::vector<std::pair<std::int32_t, std::int64_t>> steps_;
  std::string restored_;
};

TEST_F(CoordinatorLoopTest, RunsEveryPhaseToTheResult) {
  int manifests = 0;
  files_.before_rename = [&](const fs::path& to) {
    if (to.filename() == "manifest.json") {
      ++manifests;
      EXPECT_TRUE(Journalled(to.parent_path().filename().string()))
          << "a manifest was published before it was journalled";
    }
    return Status();
  };
  const Life life = LiveNormally();
  EXPECT_EQ(life.exit_code, kExitOk);
  EXPECT_EQ(life.state.word, RunWord::kFinished);
  EXPECT_THAT(steps_, SizeIs(22));
  EXPECT_EQ(life.collector.steps, steps_);
  EXPECT_EQ(manifests, 5);  // p0 s1, p1 s8 s16 s20, p2 s1
  EXPECT_THAT(Manifests(), ElementsAre(CheckpointId(1, 20), CheckpointId(2, 1)));
  const auto result = boost::json::parse(ReadAll(folder_.path() / "result.json")).as_object();
  EXPECT_EQ(result.at("fdr_end").as_double(), 4.5);
  EXPECT_TRUE(result.at("seconds").as_object().contains("gts"));
  const auto& checkpoints = result.at("checkpoints").as_object();
  EXPECT_EQ(checkpoints.at("count").as_int64(), 5);
  // 0.5 s each; the last one is committed when the workers are released already.
  EXPECT_EQ(checkpoints.at("stall_seconds").as_double(), 2.0);
  EXPECT_EQ(ReplayJournal(journal().records()).outcome, "finished");
}

TEST_F(CoordinatorLoopTest, StopsWithACheckpointAndGoesOnFromIt) {
  const Life first = LiveAndStop();
  EXPECT_EQ(first.exit_code, kExitStopped);
  ASSERT_THAT(steps_, Not(IsEmpty()));
  const auto last = steps_.back();
  EXPECT_GE(last, std::make_pair(1, std::int64_t{12}));
  EXPECT_EQ(Manifests().back(), CheckpointId(last.first, last.second));
  std::vector<std::pair<std::int32_t, std::int64_t>> all = steps_;

  const Life second = LiveNormally();
  EXPECT_EQ(second.exit_code, kExitOk);
  EXPECT_EQ(restored_, CheckpointId(last.first, last.second));
  EXPECT_THAT(second.collector.positions, ElementsAre(last));
  EXPECT_EQ(second.state.generation, 2u);
  all.insert(all.end(), steps_.begin(), steps_.end());
  EXPECT_THAT(all, SizeIs(22)) << "every step once";
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
}

TEST_F(CoordinatorLoopTest, ALostDomainIsStartedAgainAndRepeatsItsStepsSinceTheCheckpoint) {
  std::atomic<bool> died{false};
  const Life life = Live([&](std::uint16_t port) {
    FakeSettings settings = Settings(port);
    settings.after_step = [&died](std::int32_t rank, std::int32_t phase, std::int64_t step) {
      return rank != 1 || phase != 1 || step != 13 || died.exchange(true);
    };
    FakeDomain domain(settings);
    domain.Join();
    steps_ = domain.worker(1).steps;
    restored_ = domain.worker(0).assignment.restore_checkpoint();
  });
  EXPECT_EQ(life.exit_code, kExitOk);
  EXPECT_EQ(restored_, CheckpointId(1, 8));
  EXPECT_EQ(steps_.front(), std::make_pair(1, std::int64_t{9}));
  ASSERT_THAT(life.state.incidents, SizeIs(1));
  EXPECT_GE(life.state.incidents[0].steps_lost, 4);
  EXPECT_EQ(life.state.incidents[0].domain, "fake");
}

TEST_F(CoordinatorLoopTest, AJournalledCheckpointWithoutManifestIsPublishedAtTheNextStart) {
  files_.before_rename = [](const fs::path& to) {
    const bool fails =
        to.filename() == "manifest.json" && to.parent_path().filename() == CheckpointId(1, 16);
    return fails ? Status(Error(Code::kResourceExhausted, "no space left on device")) : Status();
  };
  const Life first = LiveNormally();
  EXPECT_EQ(first.exit_code, kExitDiskFull);
  EXPECT_THAT(first.state.message, HasSubstr("no space left on device"));
  EXPECT_EQ(Manifests().back(), CheckpointId(1, 8));
  EXPECT_TRUE(Journalled(CheckpointId(1, 16)));

  files_.before_rename = nullptr;
  const Life second = LiveNormally();
  EXPECT_EQ(second.exit_code, kExitOk);
  EXPECT_EQ(restored_, CheckpointId(1, 16));
  EXPECT_EQ(steps_.front(), std::make_pair(1, std::int64_t{17}));
}

TEST_F(CoordinatorLoopTest, ADamagedCheckpointIsQuarantinedAndTheOneBeforeItUsed) {
  LiveAndStop();
  const std::vector<std::string> before = Manifests();
  ASSERT_THAT(before, SizeIs(2));
  const fs::path part = folder_.path() / "checkpoints" / before.back() / "rank-1-of-2.safetensors";
  std::string bytes = ReadAll(part);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  WriteAll(part, bytes);
  // Parts that never got a manifest.
  const fs::path litter = folder_.path() / "checkpoints" / CheckpointId(1, 19);
  fs::create_directories(litter);
  WriteAll(litter / "rank-0-of-2.safetensors", "half");

  const Life second = LiveNormally();
  EXPECT_EQ(second.exit_code, kExitOk);
  EXPECT_EQ(restored_, before.front());
  EXPECT_FALSE(fs::exists(litter));
  const auto& quarantined = second.state.checkpoints;
  EXPECT_TRUE(std::any_of(quarantined.begin(), quarantined.end(), [&](const auto& checkpoint) {
    return checkpoint.id == before.back() && checkpoint.word == CheckpointWord::kQuarantined;
  }));
  const auto kept = RealFileSystem().List(folder_.path() / "quarantine");
  ASSERT_TRUE(kept);
  ASSERT_THAT(*kept, SizeIs(1));
  EXPECT_THAT(ReadAll(folder_.path() / "quarantine" / kept->front() / "reason.txt"),
              HasSubstr("rank-1-of-2.safetensors"));
}

TEST_F(CoordinatorLoopTest, AFullJournalStopsEverythingBehindIt) {
  // Room for the start and the first generation with its lease, not for the end of the first phase.
  full_journal_ = std::make_unique<FullJournal>(4);
  const Life life = Live([this](std::uint16_t port) {
    FakeDomain domain(Settings(port));
    domain.Join();
    steps_ = domain.worker(0).steps;
  });
  EXPECT_EQ(life.exit_code, kExitDiskFull);
  EXPECT_THAT(life.state.message, HasSubstr("the journal: no space left on device"));
  EXPECT_THAT(steps_, ElementsAre(std::make_pair(0, std::int64_t{1})))
      << "a lease was handed out that is not in the journal";
  EXPECT_THAT(Manifests(), IsEmpty());
}

TEST_F(CoordinatorLoopTest, AWishThatIsNotInTheJournalIsNotAgreedTo) {
  full_journal_ = std::make_unique<FullJournal>(1);  // the start
  Status answer;
  const Life life =
      Live([&](std::uint16_t) { asio::post(*context_, [&] { answer = loop_->Pause("a test"); }); });
  ASSERT_FALSE(answer);
  EXPECT_EQ(answer.error().code(), Code::kResourceExhausted);
}

// Sends one message as the first of a connection; the first answer.
proto::Envelope Ask(std::uint16_t port, const proto::Envelope& envelope) {
  proto::Envelope answer;
  Result<BlockingChannel> channel = BlockingChannel::Connect("127.0.0.1", port, kFakePatience);
  if (!channel || !channel->Send(envelope.SerializeAsString(), kFakePatience)) return answer;
  const Result<std::string> frame = channel->Receive(kFakePatience);
  if (frame) answer.ParseFromString(*frame);
  return answer;
}

TEST_F(CoordinatorLoopTest, TurnsStrangersAway) {
  const Life life = Live([this](std::uint16_t port) {
    proto::Envelope envelope;
    envelope.mutable_worker_hello()->set_secret("guess");
    EXPECT_THAT(Ask(port, envelope).refused().message(), HasSubstr("wrong secret"));
    envelope.mutable_worker_hello()->set_secret("");
    EXPECT_THAT(Ask(port, envelope).refused().message(), HasSubstr("wrong secret"));
    envelope.mutable_worker_hello()->set_secret(kSecret);
    envelope.set_run_id("run-2");
    EXPECT_THAT(Ask(port, envelope).refused().message(), HasSubstr("this is run run-1"));
    envelope.set_run_id("run-1");
    envelope.set_generation(9);
    EXPECT_EQ(Ask(port, envelope).refused().code(), "aborted");
    envelope.mutable_heartbeat();
    EXPECT_THAT(Ask(port, envelope).refused().message(), HasSubstr("must be a hello"));
    FakeDomain domain(Settings(port));
    domain.Join();
  });
  EXPECT_EQ(life.exit_code, kExitOk) << life.state.message;
}

// A client of the rendezvous store.
class StoreClient {
 public:
  StoreClient(std::uint16_t port, std::uint64_t generation) : generation_(generation) {
    auto channel = BlockingChannel::Connect("127.0.0.1", port, kFakePatience);
    if (!channel) std::abort();
    channel_.emplace(std::move(*channel));
    proto::Envelope hello;
    hello.set_run_id("run-1");
    hello.mutable_store_hello()->set_secret(kSecret);
    if (!channel_->Send(hello.SerializeAsString(), kFakePatience)) std::abort();
  }
  proto::StoreReply Call(proto::StoreRequest::Op op, const std::string& key,
                         const std::string& value, std::int64_t timeout_ms) {
    proto::Envelope envelope;
    envelope.set_run_id("run-1");
    envelope.set_generation(generation_);
    proto::StoreRequest& request = *envelope.mutable_store_request();
    request.set_op(op);
    request.set_key(key);
    request.set_value(value);
    request.set_timeout_ms(timeout_ms);
    proto::Envelope answer;
    if (!channel_->Send(envelope.SerializeAsString(), kFakePatience)) return {};
    const Result<std::string> frame = channel_->Receive(kFakePatience);
    if (!frame || !answer.ParseFromString(*frame)) return {};
    return answer.store_reply();
  }

 private:
  const std::uint64_t generation_;
  std::optional<BlockingChannel> channel_;
};

TEST_F(CoordinatorLoopTest, ServesTheRendezvousStoreOfTheCurrentGeneration) {
  std::atomic<bool> checked{false};
  const Life life = Live([&](std::uint16_t port) {
    FakeSettings settings = Settings(port);
    settings.after_step = [&](std::int32_t rank, std::int32_t phase, std::int64_t) {
      if (rank != 0 || phase != 0) return true;
      auto getter = std::async(std::launch::async, [port] {
        StoreClient client(port, 1);
        return client.Call(proto::StoreRequest::GET, "address", "", 20'000).value();
      });
      StoreClient client(port, 1);
      EXPECT_FALSE(client.Call(proto::StoreRequest::GET, "nothing", "", 300).ok());
      EXPECT_TRUE(client.Call(proto::StoreRequest::SET, "address", "here", 0).ok());
      EXPECT_EQ(getter.get(), "here");
      StoreClient stale(port, 0);
      EXPECT_THAT(stale.Call(proto::StoreRequest::SET, "k", "v", 0).message(),
                  HasSubstr("not the current one"));
      checked = true;
      return true;
    };
    FakeDomain domain(settings);
    domain.Join();
  });
  EXPECT_EQ(life.exit_code, kExitOk);
  EXPECT_TRUE(checked);
}

TEST_F(CoordinatorLoopTest, ACheckpointOnRequestIsCommittedWhileTheRunGoesOn) {
  const Life life = Live([this](std::uint16_t port) {
    FakeSettings settings = Settings(port);
    settings.after_step = [this](std::int32_t rank, std::int32_t phase, std::int64_t step) {
      if (rank == 0 && phase == 1 && step == 2) {
        OnControlThread(
            [](CoordinatorLoop& loop) { EXPECT_TRUE(loop.RequestCheckpoint("a test")); });
      }
      return true;
    };
    FakeDomain domain(settings);
    domain.Join();
  });
  EXPECT_EQ(life.exit_code, kExitOk);
  int extra = 0;
  for (const CheckpointState& checkpoint : life.state.checkpoints) {
    if (checkpoint.phase == 1 && checkpoint.step > 2 && checkpoint.step < 8) ++extra;
  }
  EXPECT_EQ(extra, 1);
}

}  // namespace
}  // namespace dd2
