#include <gmock/gmock.h>

#include <cstring>
#include <vector>

#include "tests/support/host_device.h"
#include "worker/kernels/snapshot.h"

// The states of the places and the order of streams, on a device that is a queue.
namespace dd2 {
namespace {

std::vector<std::byte> Bytes(std::size_t size, int value) {
  return std::vector<std::byte>(size, static_cast<std::byte>(value));
}

class DeviceSnapshotTest : public ::testing::Test {
 protected:
  DeviceSnapshotTest() {
    ResetHostDevice();
    snapshots_ = *DeviceSnapshots::Create(HostDeviceApi(), 100);
    HostDeviceApi().make_stream(&compute_);
  }
  ~DeviceSnapshotTest() override {
    snapshots_.reset();
    HostDeviceApi().end_stream(compute_);
    EXPECT_EQ(TheHostDevice().allocations, 0);
    EXPECT_EQ(TheHostDevice().events, 0);
    EXPECT_EQ(TheHostDevice().streams, 0);
  }
  Result<int> Begin() {
    const DevicePiece pieces[] = {{first_.data(), first_.size()}, {second_.data(), second_.size()}};
    return snapshots_->Begin(pieces, compute_);
  }
  // Work of the training that changes the state.
  void Change(const std::vector<std::byte>& to) {
    HostDeviceApi().copy(first_.data(), to.data(), to.size(), compute_);
  }

  std::unique_ptr<DeviceSnapshots> snapshots_;
  Dd2Stream compute_ = nullptr;
  std::vector<std::byte> first_ = Bytes(30, 1), second_ = Bytes(50, 2);
};

TEST_F(DeviceSnapshotTest, CopiesAndHashesThePiecesInTheirOrder) {
  const Result<int> place = Begin();
  ASSERT_TRUE(place);
  const Result<DeviceSnapshots::Copy> copy = snapshots_->Take(*place);
  ASSERT_TRUE(copy);
  std::vector<std::byte> wanted = first_;
  wanted.insert(wanted.end(), second_.begin(), second_.end());
  EXPECT_THAT(copy->bytes, ::testing::ElementsAreArray(wanted));
  EXPECT_EQ(copy->hash, Hash128(std::span<const std::byte>(wanted)));
  snapshots_->Release(*place);
}

// The snapshot is of the state between two updates: the one before it was given to `compute` and
// not done yet, the one behind it waits for the copy, and the host for neither.
TEST_F(DeviceSnapshotTest, IsOfTheMomentAtWhichItWasBegun) {
  TheHostDevice().held = true;
  const std::vector<std::byte> before = Bytes(30, 7), behind = Bytes(30, 9);
  Change(before);
  const Result<int> place = Begin();
  ASSERT_TRUE(place);
  ASSERT_TRUE(snapshots_->HoldUntilCopied(compute_));
  Change(behind);
  EXPECT_FALSE(*snapshots_->Copied(*place));
  TheHostDevice().Run();
  EXPECT_TRUE(*snapshots_->Copied(*place));
  const Result<DeviceSnapshots::Copy> copy = snapshots_->Take(*place);
  ASSERT_TRUE(copy);
  EXPECT_THAT(copy->bytes.first(30), ::testing::ElementsAreArray(before));
  EXPECT_EQ(first_, behind);
  snapshots_->Release(*place);
}

TEST_F(DeviceSnapshotTest, TwoPlacesThenNoneUntilOneIsReleased) {
  const Result<int> one = Begin(), two = Begin();
  ASSERT_TRUE(one && two);
  EXPECT_NE(*one, *two);
  const Result<int> three = Begin();
  ASSERT_FALSE(three);
  EXPECT_EQ(three.error().code(), Code::kUnavailable);
  ASSERT_TRUE(snapshots_->Take(*one));
  EXPECT_FALSE(Begin());  // it is still being read
  snapshots_->Release(*one);
  const Result<int> again = Begin();
  ASSERT_TRUE(again);
  EXPECT_EQ(*again, *one);
}

TEST_F(DeviceSnapshotTest, PlaceOfACopyThatFailedIsFreeAgain) {
  TheHostDevice().failures["copy"] = DD2_DEVICE_FAILED;
  const Result<int> failed = Begin();
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().code(), Code::kInternal);
  EXPECT_TRUE(Begin());
  EXPECT_TRUE(Begin());
}

TEST_F(DeviceSnapshotTest, MoreThanAPlaceHolds) {
  second_ = Bytes(71, 2);
  const Result<int> place = Begin();
  ASSERT_FALSE(place);
  EXPECT_EQ(place.error().code(), Code::kInvalidArgument);
}

TEST(DeviceSnapshotsCreate, GivesBackWhatItHadWhenMemoryEnds) {
  ResetHostDevice();
  TheHostDevice().failures["allocate"] = DD2_DEVICE_OUT_OF_MEMORY;
  const auto snapshots = DeviceSnapshots::Create(HostDeviceApi(), 100);
  ASSERT_FALSE(snapshots);
  EXPECT_EQ(snapshots.error().code(), Code::kResourceExhausted);
  EXPECT_EQ(TheHostDevice().streams, 0);
  EXPECT_EQ(TheHostDevice().events, 0);
}

}  // namespace
}  // namespace dd2
