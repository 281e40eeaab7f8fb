#include "worker/kernels/device.h"

#include <gmock/gmock.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "tests/support/host_device.h"

namespace dd2 {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

Error ErrorOf(const std::filesystem::path& library, int number = 0) {
  const Result<Device> device = LoadDevice(library, number);
  return device ? Error(Code::kInternal, "there is one: " + device->Describe()) : device.error();
}

#ifdef DD2_HAS_CUDA
// The real library, in a process that CUDA shows no GPU, whatever the machine has: a driver that is
// missing and one without GPUs are told apart.
TEST(LoadDevice, RealLibraryWithoutAGpuSaysWhatToDo) {
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  const Error error = ErrorOf(DeviceLibrary());
  EXPECT_EQ(error.code(), Code::kFailedPrecondition);
  EXPECT_THAT(error.message(),
              ::testing::AnyOf(AllOf(HasSubstr("no NVIDIA driver here"), HasSubstr("error 35"),
                                     HasSubstr("install driver 580 or newer")),
                               HasSubstr("no GPU that this process may use")));
}
#else
TEST(LoadDevice, BuildWithoutCudaSaysSo) {
  const Error error = ErrorOf(DeviceLibrary());
  EXPECT_EQ(error.code(), Code::kFailedPrecondition);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("no CUDA part"), HasSubstr("BUILDING.md")));
}
#endif

TEST(LoadDevice, MissingLibrary) {
  const Error error = ErrorOf("/nowhere/libdd2_cuda.so");
  EXPECT_EQ(error.code(), Code::kFailedPrecondition);
  EXPECT_THAT(error.message(), HasSubstr("there is no /nowhere/libdd2_cuda.so"));
}

TEST(LoadDevice, OtherVersionOfTheInterface) {
  const Error error = ErrorOf(DD2_OTHER_DEVICE_LIBRARY);
  EXPECT_EQ(error.code(), Code::kFailedPrecondition);
  EXPECT_THAT(error.message(),
              AllOf(HasSubstr("version " + std::to_string(DD2_DEVICE_API_VERSION + 1)),
                    HasSubstr("96 bytes"), HasSubstr("build both from the same sources")));
}

TEST(LoadDevice, FileThatIsNoLibrary) {
  const std::filesystem::path file =
      std::filesystem::path(::testing::TempDir()) / "dd2-not-a-library.so";
  std::ofstream(file) << "text";
  const Error error = ErrorOf(file);
  std::filesystem::remove(file);
  EXPECT_EQ(error.code(), Code::kFailedPrecondition);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("cannot load"), HasSubstr("nvidia-nccl-cu13")));
}

TEST(DeviceStatus, EveryCodeHasItsStatus) {
  const Dd2DeviceApi& api = HostDeviceApi();
  EXPECT_TRUE(DeviceStatus(api, DD2_DEVICE_OK));
  EXPECT_EQ(DeviceStatus(api, DD2_DEVICE_NO_GPU).error().code(), Code::kFailedPrecondition);
  EXPECT_EQ(DeviceStatus(api, DD2_DEVICE_OUT_OF_MEMORY).error().code(), Code::kResourceExhausted);
  EXPECT_EQ(DeviceStatus(api, DD2_DEVICE_BAD_ARGUMENT).error().code(), Code::kInvalidArgument);
  EXPECT_EQ(DeviceStatus(api, DD2_DEVICE_GROUP_FAILED).error().code(), Code::kAborted);
  EXPECT_EQ(DeviceStatus(api, DD2_DEVICE_FAILED).error().code(), Code::kInternal);
}

}  // namespace
}  // namespace dd2
