#include <gtest/gtest.h>

#include "tests/gpu/kernel_checks.h"
#include "tests/support/host_device.h"

namespace dd2 {
namespace {

// The kernels' sources on the CPU, thread by thread (cuda_on_host says what that shows and what
// not): the same comparisons that dd2-gpu-check makes on a GPU.
TEST(DeviceKernels, SourcesFollowFp64OnTheCpu) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the thread sanitizer does not know fibers";
#endif
  ResetHostDevice();
  for (const KernelCheck& check : CheckKernels(HostDeviceApi(), false)) {
    EXPECT_TRUE(check.ok()) << check.name << ": " << check.error << " > " << check.limit;
  }
  EXPECT_EQ(TheHostDevice().allocations, 0);
}

}  // namespace
}  // namespace dd2
