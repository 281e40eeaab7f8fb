#include "coordinator/membership.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/timeouts.h"

namespace dd2 {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

proto::WorkerHello Hello(std::int32_t local_rank, const std::string& domain = "node",
                         std::int32_t local_size = 2) {
  proto::WorkerHello hello;
  hello.set_secret("s");
  hello.set_domain(domain);
  hello.set_local_rank(local_rank);
  hello.set_local_size(local_size);
  hello.set_numeric_mode("cpu-fp32 threads=1");
  return hello;
}

Status Add(Membership& members, std::uint64_t connection, const proto::WorkerHello& hello,
           std::uint64_t said = 0, TimePoint now = TimePoint()) {
  return members.AddWorker(ConnectionId(connection), "127.0.0.1", hello, Generation(said), now);
}

TEST(Membership, RanksFollowTheGivenOrderOfDomainsNotTheOrderOfArrival) {
  Membership members(2, Generation(3));
  ASSERT_TRUE(Add(members, 10, Hello(1, "b")));
  ASSERT_TRUE(Add(members, 11, Hello(1, "a")));
  EXPECT_FALSE(members.Whole(members.domains().at("a")));
  ASSERT_TRUE(Add(members, 12, Hello(0, "b")));
  ASSERT_TRUE(Add(members, 13, Hello(0, "a"), 3));
  ASSERT_TRUE(members.Whole(members.domains().at("a")));
  members.Form({"b", "a"});
  EXPECT_EQ(members.worker(ConnectionId(12))->rank, Rank(0));
  EXPECT_EQ(members.worker(ConnectionId(10))->rank, Rank(1));
  EXPECT_EQ(members.worker(ConnectionId(13))->rank, Rank(2));
  EXPECT_EQ(members.worker(ConnectionId(11))->rank, Rank(3));
  EXPECT_EQ(members.worker(ConnectionId(10))->hello.secret(), "") << "secrets are not kept";
}

TEST(Membership, RefusesOtherGenerations) {
  Membership members(1, Generation(5));
  EXPECT_EQ(Add(members, 1, Hello(0, "node", 1), 4).error().code(), Code::kAborted);
  EXPECT_EQ(Add(members, 1, Hello(0, "node", 1), 6).error().code(), Code::kAborted);
  EXPECT_FALSE(members.CheckGeneration(Generation(5))) << "it is not formed yet";
  ASSERT_TRUE(Add(members, 1, Hello(0, "node", 1), 5));
  members.Form({"node"});
  EXPECT_TRUE(members.CheckGeneration(Generation(5)));
  EXPECT_EQ(members.CheckGeneration(Generation(4)).error().code(), Code::kAborted);
  EXPECT_EQ(members.CheckGeneration(Generation(0)).error().code(), Code::kAborted);
}

TEST(Membership, ABrokenGenerationsMembersMustReportAndFreshOnesNot) {
  Membership members(1, Generation(5));
  ASSERT_TRUE(Add(members, 1, Hello(0, "old", 1)));
  members.Form({"old"});
  ASSERT_TRUE(Add(members, 2, Hello(0, "new", 1)));
  EXPECT_THAT(members.Break(), ElementsAre(ConnectionId(1)));
  EXPECT_EQ(members.generation(), Generation(6));
  EXPECT_FALSE(members.formed());
  EXPECT_FALSE(members.worker(ConnectionId(1))->ready);
  EXPECT_FALSE(members.worker(ConnectionId(1))->rank);
  EXPECT_TRUE(members.worker(ConnectionId(2))->ready);
}

TEST(Membership, ConnectionsLeadToMembersUntilTheyAreRemoved) {
  Membership members(1, Generation(1));
  proto::AgentHello agent;
  agent.set_domain("a");
  ASSERT_TRUE(members.AddAgent(ConnectionId(1), agent, TimePoint()));
  ASSERT_TRUE(Add(members, 2, Hello(0, "a", 1)));
  ASSERT_TRUE(Add(members, 3, Hello(0, "b", 1)));
  EXPECT_TRUE(members.IsAgent(ConnectionId(1)));
  EXPECT_FALSE(members.IsAgent(ConnectionId(2)));
  EXPECT_EQ(members.DomainOf(ConnectionId(1)), members.DomainOf(ConnectionId(2)));
  EXPECT_EQ(members.DomainOf(ConnectionId(3))->name, "b");
  members.Form({"a", "b"});
  members.Remove(ConnectionId(2));
  EXPECT_EQ(members.worker(ConnectionId(2)), nullptr);
  EXPECT_EQ(members.ranks().size(), 1u) << "the others keep their ranks";
  EXPECT_EQ(members.ranks().front()->rank, Rank(1));
  members.RemoveWorkers(members.domains().at("b"));
  EXPECT_EQ(members.DomainOf(ConnectionId(3)), nullptr);
  EXPECT_EQ(members.worker_count(), 0u);
  members.Remove(ConnectionId(1));
  EXPECT_EQ(members.agent_count(), 0u);
}

TEST(Membership, CountsThoseThatHaveNotSaidWhatTheyBring) {
  Membership members(1, Generation(1));
  for (const char* domain : {"a", "b", "c"}) {
    ASSERT_TRUE(Add(members, static_cast<std::uint64_t>(domain[0]), Hello(0, domain, 1)));
  }
  EXPECT_EQ(members.unready(), 0) << "fresh ones have nothing to say";
  members.Form({"a", "b", "c"});
  members.Break();
  EXPECT_EQ(members.unready(), 3);
  proto::HeldState held;
  held.set_has_state(true);
  members.SetReady(*members.worker(ConnectionId('a')), held);
  members.SetReady(*members.worker(ConnectionId('a')), held);
  EXPECT_EQ(members.unready(), 2) << "it may say it twice";
  members.Remove(ConnectionId('a'));
  EXPECT_EQ(members.unready(), 2);
  members.Remove(ConnectionId('b'));
  EXPECT_EQ(members.unready(), 1);
  members.Break();
  EXPECT_EQ(members.unready(), 1);
}

TEST(Membership, RefusesNumbersThatContradict) {
  Membership members(2, Generation(1));
  EXPECT_EQ(Add(members, 1, Hello(2)).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(Add(members, 1, Hello(0, "node", 3)).error().code(), Code::kInvalidArgument);
  ASSERT_TRUE(Add(members, 1, Hello(0)));
  EXPECT_EQ(Add(members, 2, Hello(0)).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(Add(members, 2, Hello(0, "node", 1)).error().code(), Code::kInvalidArgument);
}

TEST(Membership, RefusesAnotherNumericMode) {
  Membership members(2, Generation(1));
  ASSERT_TRUE(Add(members, 1, Hello(0)));
  proto::WorkerHello other = Hello(1);
  other.set_numeric_mode("cpu-fp32 threads=2");
  const Status refused = Add(members, 2, other);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code(), Code::kFailedPrecondition);
  EXPECT_THAT(refused.error().message(), HasSubstr("threads=2"));
}

TEST(Membership, RefusesTwoRanksOnOneGpu) {
  Membership members(1, Generation(1));
  proto::WorkerHello first = Hello(0, "a", 1), second = Hello(0, "b", 1);
  first.set_device_id("0a");
  second.set_device_id("0a");
  ASSERT_TRUE(Add(members, 1, first));
  const Status refused = Add(members, 2, second);
  ASSERT_FALSE(refused);
  EXPECT_THAT(refused.error().message(),
              testing::AllOf(HasSubstr("domain 'a'"), HasSubstr("--first-device")));
  second.set_device_id("0b");
  EXPECT_TRUE(Add(members, 2, second));
}

TEST(Membership, OneAgentADomain) {
  Membership members(2, Generation(1));
  proto::AgentHello hello;
  hello.set_domain("node");
  ASSERT_TRUE(members.AddAgent(ConnectionId(1), hello, TimePoint()));
  EXPECT_FALSE(members.AddAgent(ConnectionId(2), hello, TimePoint()));
  EXPECT_TRUE(members.IsAgent(ConnectionId(1)));
  members.Remove(ConnectionId(1));
  EXPECT_TRUE(members.AddAgent(ConnectionId(2), hello, TimePoint()));
}

TEST(Membership, SilenceExpiresAndIsForgiven) {
  Membership members(2, Generation(1));
  TimePoint now;
  ASSERT_TRUE(Add(members, 1, Hello(0), 0, now));
  ASSERT_TRUE(Add(members, 2, Hello(1), 0, now));
  const std::chrono::milliseconds expiry = std::chrono::seconds(10);
  now += expiry - timeouts::kTick;
  members.Seen(ConnectionId(2), now);
  EXPECT_THAT(members.Expired(now, expiry), IsEmpty());
  now += timeouts::kTick;
  EXPECT_THAT(members.Expired(now, expiry), ElementsAre(ConnectionId(1)));
  members.ForgiveSilence(now);
  EXPECT_THAT(members.Expired(now, expiry), IsEmpty());
}

}  // namespace
}  // namespace dd2
