#include "coordinator/rendezvous_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/limits.h"
#include "common/timeouts.h"

namespace dd2 {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using Op = proto::StoreRequest;

class RendezvousStoreTest : public testing::Test {
 protected:
  RendezvousStoreTest() { store_.StartGeneration(Generation(2)); }

  static proto::StoreRequest Request(Op::Op op, const std::string& key,
                                     const std::string& value = "") {
    proto::StoreRequest request;
    request.set_op(op);
    request.set_key(key);
    request.set_value(value);
    return request;
  }
  std::vector<StoreAnswer> Ask(const proto::StoreRequest& request, std::uint64_t generation = 2) {
    return store_.Handle(StoreTicket(++tickets_), Generation(generation), request, now_);
  }
  // The reply of a request that is answered at once.
  proto::StoreReply Call(const proto::StoreRequest& request) {
    const std::vector<StoreAnswer> answers = Ask(request);
    if (answers.empty()) {
      ADD_FAILURE() << "no answer";
      return {};
    }
    EXPECT_EQ(answers.front().ticket, StoreTicket(tickets_));
    return answers.front().reply;
  }
  proto::StoreReply CompareSet(const std::string& expected, const std::string& desired) {
    proto::StoreRequest request = Request(Op::COMPARE_SET, "k", desired);
    request.set_expected(expected);
    return Call(request);
  }
  static proto::StoreRequest Wait(const std::vector<std::string>& keys, std::int64_t ms) {
    proto::StoreRequest request;
    request.set_op(Op::WAIT);
    for (const std::string& key : keys) request.add_keys(key);
    request.set_timeout_ms(ms);
    return request;
  }

  RendezvousStore store_;
  TimePoint now_;
  std::uint64_t tickets_ = 0;
};

TEST_F(RendezvousStoreTest, SetGetCheckDelete) {
  EXPECT_TRUE(Call(Request(Op::SET, "k", "v")).ok());
  EXPECT_EQ(Call(Request(Op::GET, "k")).value(), "v");
  proto::StoreRequest check;
  check.set_op(Op::CHECK);
  check.add_keys("k");
  EXPECT_TRUE(Call(check).ok());
  check.add_keys("other");
  EXPECT_FALSE(Call(check).ok());
  EXPECT_EQ(Call(Request(Op::NUM_KEYS, "")).number(), 1);
  EXPECT_TRUE(Call(Request(Op::DELETE_KEY, "k")).ok());
  EXPECT_FALSE(Call(Request(Op::DELETE_KEY, "k")).ok());
  EXPECT_EQ(Call(Request(Op::NUM_KEYS, "")).number(), 0);
}

TEST_F(RendezvousStoreTest, AddCounts) {
  proto::StoreRequest add = Request(Op::ADD, "n");
  add.set_amount(3);
  EXPECT_EQ(Call(add).number(), 3);
  add.set_amount(-5);
  EXPECT_EQ(Call(add).number(), -2);
  EXPECT_EQ(Call(Request(Op::GET, "n")).value(), "-2") << "c10d reads counters as text";
  EXPECT_TRUE(Call(Request(Op::SET, "n", "abc")).ok());
  EXPECT_FALSE(Call(add).ok());
}

TEST_F(RendezvousStoreTest, CompareSetAsInC10d) {
  // Absent: only an empty expectation sets; otherwise the expectation comes back.
  EXPECT_EQ(CompareSet("x", "y").value(), "x");
  EXPECT_EQ(CompareSet("", "first").value(), "first");
  EXPECT_EQ(CompareSet("", "second").value(), "first");
  EXPECT_EQ(CompareSet("first", "third").value(), "third");
  EXPECT_EQ(Call(Request(Op::GET, "k")).value(), "third");
}

TEST_F(RendezvousStoreTest, GetAndWaitAreAnsweredWhenTheKeysExist) {
  proto::StoreRequest get = Request(Op::GET, "a");
  get.set_timeout_ms(1000);
  EXPECT_THAT(Ask(get), IsEmpty());
  const StoreTicket getter(tickets_);
  EXPECT_THAT(Ask(Wait({"a", "b"}, 1000)), IsEmpty());
  const StoreTicket waiter(tickets_);
  std::vector<StoreAnswer> answers = Ask(Request(Op::SET, "a", "1"));
  ASSERT_THAT(answers, SizeIs(2));
  EXPECT_EQ(answers[1].ticket, getter);
  EXPECT_EQ(answers[1].reply.value(), "1");
  answers = Ask(Request(Op::SET, "b", "2"));
  ASSERT_THAT(answers, SizeIs(2));
  EXPECT_EQ(answers[1].ticket, waiter);
  EXPECT_TRUE(answers[1].reply.ok());
  EXPECT_EQ(store_.waiting(), 0u);
}

TEST_F(RendezvousStoreTest, WaitingEndsAtItsTimeOut) {
  EXPECT_THAT(Ask(Wait({"a"}, 500)), IsEmpty());
  EXPECT_THAT(Ask(Wait({"a"}, 0)), IsEmpty()) << "no time-out named: the default";
  now_ += milliseconds(499);
  EXPECT_THAT(store_.Expire(now_), IsEmpty());
  now_ += milliseconds(1);
  const std::vector<StoreAnswer> answers = store_.Expire(now_);
  ASSERT_THAT(answers, SizeIs(1));
  EXPECT_FALSE(answers[0].reply.ok());
  EXPECT_THAT(answers[0].reply.message(), HasSubstr("timed out"));
  EXPECT_THAT(store_.Expire(now_ + timeouts::kStoreDefault), SizeIs(1));
}

TEST_F(RendezvousStoreTest, GenerationsDoNotSeeEachOther) {
  Ask(Request(Op::SET, "k", "old"));
  EXPECT_THAT(Ask(Wait({"other"}, 1000)), IsEmpty());
  const std::vector<StoreAnswer> over = store_.StartGeneration(Generation(3));
  ASSERT_THAT(over, SizeIs(1));
  EXPECT_FALSE(over[0].reply.ok());
  EXPECT_THAT(over[0].reply.message(), HasSubstr("generation 2 is over"));
  for (const std::uint64_t stale : {0, 2, 4}) {
    const std::vector<StoreAnswer> refused = Ask(Request(Op::SET, "k", "x"), stale);
    ASSERT_THAT(refused, SizeIs(1));
    EXPECT_FALSE(refused[0].reply.ok());
  }
  const std::vector<StoreAnswer> count = Ask(Request(Op::NUM_KEYS, ""), 3);
  EXPECT_EQ(count[0].reply.number(), 0);
}

TEST_F(RendezvousStoreTest, ForgetsWhoIsGoneAndRefusesHugeValues) {
  EXPECT_THAT(Ask(Wait({"a"}, 1000)), IsEmpty());
  store_.Forget(StoreTicket(tickets_));
  EXPECT_THAT(Ask(Request(Op::SET, "a", "1")), SizeIs(1));
  const std::string huge(kStoreValueBytesMax + 1, 'x');
  EXPECT_FALSE(Call(Request(Op::SET, "b", huge)).ok());
}

}  // namespace
}  // namespace dd2
