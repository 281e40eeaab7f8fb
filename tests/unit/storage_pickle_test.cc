#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "storage/pickle.h"

namespace dd2 {
namespace {

using namespace std::string_literals;
using testing::HasSubstr;

constexpr std::string_view kGlobals[] = {"collections.OrderedDict", "some.function", "some.Class"};
constexpr std::string_view kObjects[] = {"some.Class"};

Result<Pickle> Read(const std::string& program) {
  return ReadPickle(std::as_bytes(std::span(program)), kGlobals, kObjects);
}

Pickle Good(const std::string& program) {
  auto pickle = Read("\x80\x02"s + program + ".");
  EXPECT_TRUE(pickle) << pickle.error().message();
  return pickle ? *std::move(pickle) : Pickle{.nodes = {{}}};
}

std::string Why(const std::string& program) {
  const auto pickle = Read("\x80\x02"s + program);
  EXPECT_FALSE(pickle);
  if (pickle) return "";
  EXPECT_EQ(pickle.error().code(), Code::kCorruption);
  return pickle.error().message();
}

std::int64_t IntOf(const std::string& program) {
  const Pickle pickle = Good(program);
  EXPECT_EQ(pickle[pickle.root].kind, PickleKind::kInt);
  return pickle[pickle.root].integer;
}

TEST(PickleTest, Numbers) {
  EXPECT_EQ(IntOf("K\xff"), 255);
  EXPECT_EQ(IntOf("M\xff\xff"), 65535);
  EXPECT_EQ(IntOf("J\xfe\xff\xff\xff"), -2);
  EXPECT_EQ(IntOf("\x8a\x00"s), 0);
  EXPECT_EQ(IntOf("\x8a\x01\xff"), -1);
  EXPECT_EQ(IntOf("\x8a\x02\xff\x00"s), 255);
  EXPECT_EQ(IntOf("\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80"s), INT64_MIN);
  const Pickle big = Good("\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01"s);
  EXPECT_EQ(big[big.root].kind, PickleKind::kBigInt);
  const Pickle real = Good("G\xc0\x04\x00\x00\x00\x00\x00\x00"s);
  EXPECT_EQ(real[real.root].real, -2.5);
}

TEST(PickleTest, ContainersKeepOrderAndShare) {
  // [1, {"k": shared}, (shared, True, None)] with shared = [].
  const Pickle p = Good(
      "](K\x01}X\x01\x00\x00\x00k]q\x07sh\x07\x88N\x87"
      "e"s);
  const auto& list = p[p.root].items;
  ASSERT_EQ(list.size(), 3U);
  EXPECT_EQ(p[list[0]].integer, 1);
  ASSERT_EQ(p[list[1]].items.size(), 2U);
  EXPECT_EQ(p[p[list[1]].items[0]].text, "k");
  ASSERT_EQ(p[list[2]].items.size(), 3U);
  EXPECT_EQ(p[list[2]].items[0], p[list[1]].items[1]);
  EXPECT_EQ(p[p[list[2]].items[1]].kind, PickleKind::kBool);
  EXPECT_EQ(p[p[list[2]].items[2]].kind, PickleKind::kNone);
}

TEST(PickleTest, CallsAreKeptAndObjectsEmptied) {
  const Pickle call = Good("csome\nfunction\nK\x05\x85R");
  ASSERT_EQ(call[call.root].kind, PickleKind::kCall);
  EXPECT_EQ(call[call[call.root].items[0]].text, "some.function");
  EXPECT_EQ(call[call[call[call.root].items[1]].items[0]].integer, 5);
  const Pickle object = Good("csome\nClass\n)\x81}X\x01\x00\x00\x00kK\x01sb"s);
  EXPECT_EQ(object[object.root].kind, PickleKind::kObject);
  EXPECT_EQ(object[object.root].items.size(), 1U);
  const Pickle dict = Good("ccollections\nOrderedDict\n)RK\x01K\x02s}b");
  EXPECT_EQ(dict[dict.root].kind, PickleKind::kDict);
  EXPECT_EQ(dict[dict.root].items.size(), 2U);
}

TEST(PickleTest, OtherNamesAreRefusedWhereverTheyStand) {
  EXPECT_THAT(Why("cos\nsystem\n."), HasSubstr("os.system"));
  // In what is dropped, as an argument, as a key.
  EXPECT_THAT(Why("csome\nClass\n)\x81}cos\nsystem\nK\x01sb."), HasSubstr("os.system"));
  EXPECT_THAT(Why("csome\nfunction\ncos\nsystem\n\x85R."), HasSubstr("os.system"));
  EXPECT_THAT(Why("csome\nfunction\n)\x81."), HasSubstr("some.function"));
  EXPECT_THAT(Why("csome\nfun\x1b[2Jction\n."), HasSubstr("unreadable name"));
  EXPECT_THAT(Why("c" + std::string(1000, 'x')), HasSubstr("no end of line"));
}

TEST(PickleTest, ProgramsThatMakeNoSense) {
  for (const char* program :
       {".", "K\x01K\x02.", "(.", "(K\x01.", "K\x01\x86.",
        "K\x01"
        "e.",
        "t.", "a.", "]a.", "(a.",
        "K\x01K\x01"
        "a.",
        "}K\x01s.", "}(K\x01u.", "]K\x01K\x02s.", "h\x01.", "q\x01.", "(q\x01.", "R.", "K\x01)R.",
        "csome\nfunction\nK\x01R.", "b.", "K\x01}b.", "]K\x01(b.", "Q.", "(Q.",
        // A mark is no value, and what lies below it is out of reach.
        "K\x01(\x85.", "](K\x01q\x01(a."}) {
    EXPECT_THAT(Why(program), HasSubstr("the pickle")) << program;
  }
  // Instructions that torch.save never writes: INST, STACK_GLOBAL, EXT1, POP, FRAME.
  for (const char* program : {"(ios\nsystem\n.", "\x93.", "\x82\x01.",
                              "K\x01"
                              "0.",
                              "\x95."}) {
    EXPECT_THAT(Why(program), HasSubstr("none that torch.save writes"));
  }
  EXPECT_FALSE(Read("\x80\x04N."));
  EXPECT_FALSE(Read(""));
}

TEST(PickleTest, EveryTruncationIsRefused) {
  const std::string whole =
      "\x80\x02]("
      "K\x01M\x01\x01J\x01\x01\x01\x01\x8a\x01\x01G\x01\x01\x01\x01\x01\x01\x01\x01X\x02\x00\x00"
      "\x00kk"
      "q\x01r\x01\x01\x01\x01h\x01j\x01\x01\x01\x01"
      "csome\nfunction\n)Re."s;
  ASSERT_TRUE(Read(whole));
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(Read(whole.substr(0, size))) << size;
  }
  const auto more = Read(whole + "tail");
  ASSERT_TRUE(more);
  EXPECT_EQ(more->bytes, whole.size());
}

TEST(PickleTest, LimitsHold) {
  EXPECT_THAT(Why("X\xff\xff\xff\xffx"), HasSubstr("too long a text"));
  EXPECT_THAT(Why(std::string(kPickleNodesMax + 1, ']')), HasSubstr("too many values"));
  EXPECT_THAT(Why(std::string(kPickleStackMax + 1, '(')), HasSubstr("too many values"));
  std::string gets = "]q\x01(";
  for (std::size_t i = 0; i < kPickleStackMax; ++i) gets += "h\x01";
  EXPECT_THAT(Why(gets), HasSubstr("too many values"));
  // As deep as one likes: nothing here calls itself.
  EXPECT_TRUE(Read("\x80\x02" + std::string(100'000, ']') + std::string(99'999, 'a') + "."));
}

}  // namespace
}  // namespace dd2
