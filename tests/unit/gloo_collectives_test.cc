#include "worker/parallel/gloo_collectives.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

#include "tests/support/store_server.h"
#include "worker/parallel/exact_update.h"
#include "worker/parallel/generation_collectives.h"
#include "worker/parallel/gloo_store.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

StoreAddress Address(const StoreServer& server) {
  return {.host = "127.0.0.1",
          .port = server.port(),
          .run_id = "run-1",
          .generation = 3,
          .secret = "s3cret"};
}

GlooOptions Options(const StoreServer& server, int rank, int world_size,
                    milliseconds timeout = milliseconds(20000)) {
  GlooOptions options;
  options.store = Address(server);
  options.prefix = "g3/";
  options.rank = rank;
  options.world_size = world_size;
  options.timeout = timeout;
  options.connect_timeout = timeout;
  return options;
}

// Forks a process per rank (before this process has threads), runs body(rank) there, and returns
// the exit statuses: 0 is success, -signal when it was killed, -1000 when it hung.
std::vector<int> RunProcesses(StoreServer& server, int world_size,
                              const std::function<int(int)>& body) {
  std::vector<pid_t> children;
  for (int rank = 0; rank < world_size; ++rank) {
    const pid_t child = fork();
    if (child == 0) _exit(body(rank));
    children.push_back(child);
  }
  server.Start();
  std::vector<int> exits(world_size, -1000);
  const auto deadline = steady_clock::now() + std::chrono::seconds(60);
  for (int rank = 0; rank < world_size; ++rank) {
    int status = 0;
    while (waitpid(children[rank], &status, WNOHANG) == 0) {
      if (steady_clock::now() > deadline) {
        kill(children[rank], SIGKILL);
        waitpid(children[rank], &status, 0);
        status = -1;
        break;
      }
      std::this_thread::sleep_for(milliseconds(5));
    }
    if (status != -1) exits[rank] = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }
  return exits;
}

#define CHILD_EXPECT(condition, status)                                    \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "rank %d: %s is not true\n", rank, #condition); \
      return status;                                                       \
    }                                                                      \
  } while (false)

// Rank r sends r + 1 + to floats to rank `to`, none when (r + to) % 3 == 2.
std::int64_t CountBetween(int from, int to) { return (from + to) % 3 == 2 ? 0 : from + 1 + to; }

int ExchangeOnce(const GlooOptions& options) {
  const int rank = options.rank;
  Result<std::unique_ptr<Collectives>> connected = ConnectGloo(options);
  if (!connected) std::fprintf(stderr, "%s\n", connected.error().message().c_str());
  CHILD_EXPECT(connected, 10);
  Collectives& collectives = **connected;
  CHILD_EXPECT(collectives.rank() == rank, 11);
  CHILD_EXPECT(collectives.world_size() == options.world_size, 12);
  std::vector<std::int64_t> send_counts, receive_counts;
  std::vector<float> send, expected;
  for (int other = 0; other < options.world_size; ++other) {
    send_counts.push_back(CountBetween(rank, other));
    receive_counts.push_back(CountBetween(other, rank));
    for (int i = 0; i < send_counts.back(); ++i) {
      send.push_back(static_cast<float>(100 * rank + 10 * other + i));
    }
    for (int i = 0; i < receive_counts.back(); ++i) {
      expected.push_back(static_cast<float>(100 * other + 10 * rank + i));
    }
  }
  std::vector<float> received(expected.size(), -1.0F);
  CHILD_EXPECT(collectives.AllToAll(send, send_counts, received, receive_counts), 13);
  CHILD_EXPECT(received == expected, 14);
  std::vector<std::byte> mine(13, static_cast<std::byte>(rank + 1));
  std::vector<std::byte> all(mine.size() * static_cast<std::size_t>(options.world_size));
  CHILD_EXPECT(collectives.AllGather(mine, all), 15);
  for (std::size_t i = 0; i < all.size(); ++i) {
    CHILD_EXPECT(all[i] == static_cast<std::byte>(i / mine.size() + 1), 16);
  }
  return 0;
}

class GlooCollectivesTest : public ::testing::TestWithParam<int> {};

TEST_P(GlooCollectivesTest, ExchangesBetweenProcesses) {
  const int world_size = GetParam();
  StoreServer server("run-1", 3, "s3cret");
  const std::vector<int> exits = RunProcesses(server, world_size, [&](int rank) {
    return ExchangeOnce(Options(server, rank, world_size));
  });
  EXPECT_EQ(exits, std::vector<int>(world_size, 0));
}

// More ranks than shards: rank 2 sends nothing in the all-to-all.
TEST_P(GlooCollectivesTest, CarriesExactUpdates) {
  const int world_size = GetParam();
  StoreServer server("run-1", 3, "s3cret");
  const auto body = [&](int rank) {
    Result<std::unique_ptr<Collectives>> connected = ConnectGloo(Options(server, rank, world_size));
    CHILD_EXPECT(connected, 10);
    ParamLayout layout;
    layout.Add("a", {3 * kParamChunk - 5});
    NetworkState state = MakeNetworkState(layout, rank, world_size, false);
    const ShardPlan plan = MakeShardPlan(2, world_size);
    ExactUpdater updater(**connected, OneDomain(rank, world_size), 2, state.params.flat().numel());
    for (int i = 0; i < plan.first[rank + 1] - plan.first[rank]; ++i) {
      updater.GradientOfShard(i)
          .narrow(0, 0, 3 * kParamChunk - 5)
          .fill_(2.0 + plan.first[rank] + i);
    }
    AdamStep step;
    step.learning_rate = 0.5;
    Result<UpdateResult> result = updater.Apply(state, step, {});
    CHILD_EXPECT(result && result->applied, 11);
    CHILD_EXPECT(updater.Spread(state), 14);
    const at::Tensor params = state.params.flat().narrow(0, 0, 3 * kParamChunk - 5);
    CHILD_EXPECT(params.max().item<float>() < -0.499F, 12);
    CHILD_EXPECT(params.min().item<float>() > -0.501F, 13);
    return 0;
  };
  EXPECT_EQ(RunProcesses(server, world_size, body), std::vector<int>(world_size, 0));
}

INSTANTIATE_TEST_SUITE_P(Ranks, GlooCollectivesTest, ::testing::Values(1, 2, 3));

// Exchanges until an error comes: 0 when it is `wanted` and came within `limit`.
int ExchangeUntilError(const GlooOptions& options, int fatal_rank, int fatal_signal, Code wanted,
                       milliseconds limit) {
  const int rank = options.rank;
  Result<std::unique_ptr<Collectives>> connected = ConnectGloo(options);
  CHILD_EXPECT(connected, 10);
  std::vector<std::byte> mine(1 << 20), all(mine.size() * options.world_size);
  for (int round = 0;; ++round) {
    if (round == 5 && rank == fatal_rank) raise(fatal_signal);
    const auto begin = steady_clock::now();
    const Status status = (*connected)->AllGather(mine, all);
    if (status) continue;
    std::fprintf(stderr, "rank %d: %s\n", rank, status.error().message().c_str());
    CHILD_EXPECT(round >= 4, 11);
    CHILD_EXPECT(status.error().code() == wanted, 12);
    CHILD_EXPECT(steady_clock::now() - begin < limit, 13);
    connected->reset();  // must not hang
    return 0;
  }
}

TEST(GlooCollectivesFaultTest, KilledRankAbortsTheOthersAtOnce) {
  StoreServer server("run-1", 3, "s3cret");
  const std::vector<int> exits = RunProcesses(server, 3, [&](int rank) {
    return ExchangeUntilError(Options(server, rank, 3), 1, SIGKILL, Code::kAborted,
                              milliseconds(5000));
  });
  EXPECT_EQ(exits, (std::vector<int>{0, -SIGKILL, 0}));
}

TEST(GlooCollectivesFaultTest, SilentRankEndsAtTheTimeout) {
  StoreServer server("run-1", 3, "s3cret");
  const std::vector<int> exits = RunProcesses(server, 2, [&](int rank) {
    if (rank == 0) {
      return ExchangeUntilError(Options(server, 0, 2, milliseconds(2000)), -1, 0,
                                Code::kDeadlineExceeded, milliseconds(8000));
    }
    Result<std::unique_ptr<Collectives>> connected =
        ConnectGloo(Options(server, 1, 2, milliseconds(2000)));
    CHILD_EXPECT(connected, 10);
    std::vector<std::byte> mine(1 << 20), all(2 << 20);
    for (int round = 0; round < 5; ++round) CHILD_EXPECT((*connected)->AllGather(mine, all), 11);
    std::this_thread::sleep_for(std::chrono::seconds(5));
    return 0;
  });
  EXPECT_EQ(exits, (std::vector<int>{0, 0}));
}

// Abort from another thread ends an exchange whose peer is silent, and those after it.
TEST(GlooCollectivesFaultTest, AbortEndsABlockedExchange) {
  StoreServer server("run-1", 3, "s3cret");
  const std::vector<int> exits = RunProcesses(server, 2, [&](int rank) {
    Result<std::unique_ptr<Collectives>> connected = ConnectGloo(Options(server, rank, 2));
    CHILD_EXPECT(connected, 10);
    if (rank == 1) {
      std::this_thread::sleep_for(milliseconds(4000));
      return 0;
    }
    Collectives& collectives = **connected;
    std::jthread aborter([&] {
      std::this_thread::sleep_for(milliseconds(300));
      collectives.Abort();
    });
    std::vector<std::byte> mine(1 << 20), all(2 << 20);
    const auto begin = steady_clock::now();
    const Status status = collectives.AllGather(mine, all);
    CHILD_EXPECT(!status && status.error().code() == Code::kAborted, 11);
    const Status later = collectives.AllGather(mine, all);
    CHILD_EXPECT(!later && later.error().code() == Code::kAborted, 12);
    CHILD_EXPECT(steady_clock::now() - begin < milliseconds(2500), 13);
    connected->reset();
    return 0;
  });
  EXPECT_EQ(exits, (std::vector<int>{0, 0}));
}

// The same while a large message is on its way and its receiver stands still: Gloo does not tell
// who waits for one that is half sent that the connection has ended.
TEST(GlooCollectivesFaultTest, AbortEndsAnExchangeThatIsHalfSent) {
  StoreServer server("run-1", 3, "s3cret");
  const std::vector<int> exits = RunProcesses(server, 2, [&](int rank) {
    signal(SIGPIPE, SIG_IGN);  // as dd2-worker does
    const pid_t self = getpid();
    if (rank == 1 && fork() == 0) {
      std::this_thread::sleep_for(milliseconds(8000));
      kill(self, SIGKILL);
      _exit(0);
    }
    Result<std::unique_ptr<Collectives>> connected =
        ConnectGloo(Options(server, rank, 2, milliseconds(50000)));
    CHILD_EXPECT(connected, 10);
    Collectives& collectives = **connected;
    constexpr std::int64_t kLarge = std::int64_t{64} << 20;
    const std::vector<std::int64_t> counts =
        rank == 0 ? std::vector<std::int64_t>{0, kLarge} : std::vector<std::int64_t>{0, 0};
    const std::vector<std::int64_t> in_counts =
        rank == 1 ? std::vector<std::int64_t>{kLarge, 0} : std::vector<std::int64_t>{0, 0};
    std::vector<float> send(rank == 0 ? kLarge : 0), receive(rank == 1 ? kLarge : 0);
    std::vector<std::byte> mine(1), all(2);
    CHILD_EXPECT(collectives.AllGather(mine, all), 12);  // both are ready
    std::jthread disturber([&] {
      std::this_thread::sleep_for(milliseconds(rank == 1 ? 30 : 600));
      if (rank == 1) raise(SIGSTOP);
      collectives.Abort();
    });
    const auto begin = steady_clock::now();
    const Status status = collectives.AllToAll(send, counts, receive, in_counts);
    CHILD_EXPECT(!status && status.error().code() == Code::kAborted, 11);
    CHILD_EXPECT(steady_clock::now() - begin < milliseconds(5000), 13);
    connected->reset();
    return 0;
  });
  EXPECT_EQ(exits, (std::vector<int>{0, -SIGKILL}));
}

TEST(GlooCollectivesFaultTest, AbortEndsWaitingForTheOthers) {
  StoreServer server("run-1", 3, "s3cret");
  server.Start();
  GenerationCollectives collectives;
  std::jthread aborter([&] {
    std::this_thread::sleep_for(milliseconds(300));
    collectives.AbortBefore(4);
  });
  const auto begin = steady_clock::now();
  const Status status = collectives.Enter(
      3, [&](ConnectAbort& abort) { return ConnectGloo(Options(server, 0, 2), abort); });
  ASSERT_FALSE(status);
  EXPECT_EQ(status.error().code(), Code::kAborted) << status.error().message();
  EXPECT_LT(steady_clock::now() - begin, milliseconds(3000));
  EXPECT_TRUE(collectives.failed());
}

TEST(GlooCollectivesFaultTest, MissingRankIsADeadline) {
  StoreServer server("run-1", 3, "s3cret");
  server.Start();
  const auto begin = steady_clock::now();
  const auto connected = ConnectGloo(Options(server, 0, 2, milliseconds(1000)));
  ASSERT_FALSE(connected);
  EXPECT_EQ(connected.error().code(), Code::kDeadlineExceeded) << connected.error().message();
  EXPECT_LT(steady_clock::now() - begin, milliseconds(6000));
}

TEST(GlooCollectivesFaultTest, NoServerIsUnavailable) {
  StoreServer server("run-1", 3, "s3cret");
  GlooOptions options = Options(server, 0, 2, milliseconds(1000));
  options.store.port = 1;  // nobody listens there
  const auto connected = ConnectGloo(options);
  ASSERT_FALSE(connected);
  EXPECT_EQ(connected.error().code(), Code::kUnavailable) << connected.error().message();
}

TEST(GlooStoreTest, SpeaksEveryOperation) {
  StoreServer server("run-1", 3, "s3cret");
  server.Start();
  auto connected = GlooStore::Connect(Address(server), milliseconds(3000));
  ASSERT_TRUE(connected);
  c10d::Store& store = **connected;
  store.set("a", "one");
  EXPECT_EQ(server.Peek("a"), "one");
  EXPECT_EQ(store.get_to_str("a"), "one");
  EXPECT_EQ(store.add("n", 5), 5);
  EXPECT_EQ(store.add("n", -2), 3);
  EXPECT_TRUE(store.check({"a", "n"}));
  EXPECT_FALSE(store.check({"a", "missing"}));
  EXPECT_EQ(store.getNumKeys(), 2);
  EXPECT_EQ(store.compareSet("a", "wrong", "two"), "one");
  EXPECT_EQ(store.compareSet("a", "one", "two"), "two");
  EXPECT_TRUE(store.deleteKey("a"));
  EXPECT_FALSE(store.deleteKey("a"));
  EXPECT_THROW(store.wait({"a"}, milliseconds(50)), c10::DistStoreError);
  std::jthread setter([other = store.clone()]() mutable {
    // A clone shares the connection, so it cannot set while its twin waits: it sets before.
    other->set("late", "x");
  });
  setter.join();
  store.wait({"late"}, milliseconds(3000));
}

TEST(GlooStoreTest, WrongSecretIsRefused) {
  StoreServer server("run-1", 3, "s3cret");
  server.Start();
  StoreAddress address = Address(server);
  address.secret = "guess";
  auto connected = GlooStore::Connect(address, milliseconds(3000));
  ASSERT_TRUE(connected);
  EXPECT_THROW((*connected)->add("n", 1), c10::DistStoreError);
}

TEST(GlooStoreTest, OldGenerationIsAborted) {
  StoreServer server("run-1", 3, "s3cret");
  server.Start();
  GlooOptions options = Options(server, 0, 2, milliseconds(3000));
  options.store.generation = 2;
  const auto connected = ConnectGloo(options);
  ASSERT_FALSE(connected);
  EXPECT_EQ(connected.error().code(), Code::kAborted) << connected.error().message();
}

}  // namespace
}  // namespace dd2
