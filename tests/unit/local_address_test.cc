#include "common/local_address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dd2 {
namespace {

using testing::HasSubstr;

LocalAddress On(const char* interface, const char* address, bool usable = true) {
  return {interface, address, std::string(address).find(':') != std::string::npos, usable};
}

const std::vector<LocalAddress> kNode = {
    On("lo", "127.0.0.1", false), On("docker0", "172.17.0.1"), On("eth0", "192.168.1.5"),
    On("ib0", "10.1.2.3"),        On("eth1", "203.0.113.9"),   On("ib0", "fd00::3"),
};

TEST(LocalAddress, ByRule) {
  EXPECT_EQ(*ChooseAddress("auto", kNode, {{"127.0.1.1", "10.1.2.3"}, "eth0"}), "10.1.2.3");
  EXPECT_EQ(*ChooseAddress("auto", kNode, {{"127.0.1.1"}, "eth1"}), "203.0.113.9");
  EXPECT_EQ(*ChooseAddress("auto", kNode, {{"172.17.0.1"}, "docker0"}), "192.168.1.5")
      << "nobody reaches a bridge for containers";
  EXPECT_EQ(*ChooseAddress("auto", {On("lo", "127.0.0.1", false), On("eth0", "fd00::1")}, {}),
            "fd00::1");
  const auto none = ChooseAddress("auto", {On("lo", "127.0.0.1", false)}, {{"127.0.0.1"}, ""});
  ASSERT_FALSE(none);
  EXPECT_THAT(none.error().message(), HasSubstr("This machine has none but loopback"));
}

TEST(LocalAddress, AsTyped) {
  EXPECT_EQ(*ChooseAddress("127.0.0.1", kNode, {}), "127.0.0.1");
  EXPECT_EQ(*ChooseAddress("198.51.100.1", kNode, {}), "198.51.100.1") << "bind will say";
  EXPECT_EQ(*ChooseAddress("ib0", kNode, {}), "10.1.2.3");
  EXPECT_EQ(*ChooseAddress("lo", kNode, {}), "127.0.0.1");
  EXPECT_EQ(*ChooseAddress("10.1.0.0/16", kNode, {}), "10.1.2.3");
  EXPECT_EQ(*ChooseAddress("203.0.113.8/29", kNode, {}), "203.0.113.9");
  EXPECT_EQ(*ChooseAddress("fd00::/8", kNode, {}), "fd00::3");
  for (const char* wanted : {"ib1", "10.2.0.0/16", "10.1.0.0/33", "10.1.0.0/x", "node-1", ""}) {
    const auto chosen = ChooseAddress(wanted, kNode, {});
    ASSERT_FALSE(chosen) << wanted;
    EXPECT_THAT(chosen.error().message(), HasSubstr("eth0 192.168.1.5"));
  }
}

TEST(LocalAddress, OfThisMachine) {
  EXPECT_EQ(*ResolveListenAddress("lo"), "127.0.0.1");
  EXPECT_TRUE(IsLoopback("127.0.0.1"));
  EXPECT_TRUE(IsLoopback("::1"));
  EXPECT_FALSE(IsLoopback("10.1.2.3"));
}

}  // namespace
}  // namespace dd2
