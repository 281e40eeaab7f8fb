// What dd2-gpu-check does with groups of GPUs, on groups of threads.

#include "tests/gpu/group_checks.h"

#include <gmock/gmock.h>

#include "tests/support/thread_groups.h"
#include "worker/kernels/device.h"

namespace dd2 {
namespace {

Dd2DeviceApi ApiWithGroups() {
  const Result<Device> device = LoadDevice(DD2_FAR_DEVICE);
  EXPECT_TRUE(device);
  return WithThreadGroups(device->api());
}

TEST(GroupChecks, GroupsThatWork) {
  const Dd2DeviceApi api = ApiWithGroups();
  for (int generation = 1; generation <= 3; ++generation) {
    for (const int ranks : {1, 2, 3}) {
      const Status status = CheckGroup(api, ranks, generation);
      EXPECT_TRUE(status) << ranks << " ranks: " << status.error().message();
    }
  }
}

TEST(GroupChecks, NumbersThatDoNotArrive) {
  Dd2DeviceApi api = ApiWithGroups();
  static auto* const all_gather = api.all_gather;
  api.all_gather = [](Dd2Group group, const float* send, float* receive, std::int64_t count,
                      Dd2Stream stream) {
    return all_gather(group, send, receive, count - 1, stream);
  };
  const Status status = CheckGroup(api, 2, 1);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), testing::HasSubstr("all-gather gave other numbers"));
}

TEST(GroupChecks, AnExchangeThatEndsThoughNobodyJoins) {
  Dd2DeviceApi api = ApiWithGroups();
  static auto* const all_gather = api.all_gather;
  // The one of a single number is the one that rank 0 is alone in.
  api.all_gather = [](Dd2Group group, const float* send, float* receive, std::int64_t count,
                      Dd2Stream stream) -> Dd2DeviceCode {
    return count == 1 ? Dd2DeviceCode{DD2_DEVICE_OK}
                      : all_gather(group, send, receive, count, stream);
  };
  const Status status = CheckGroup(api, 2, 1);
  ASSERT_FALSE(status);
  EXPECT_THAT(status.error().message(), testing::HasSubstr("got what nobody sent"));
}

}  // namespace
}  // namespace dd2
