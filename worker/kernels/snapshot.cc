#include "worker/kernels/snapshot.h"

#include <chrono>
#include <string>
#include <thread>

#include "common/check.h"
#include "worker/kernels/device.h"

namespace dd2 {
namespace {

// A copy takes milliseconds; nobody needs to know to the microsecond that it is made.
constexpr std::chrono::microseconds kPoll{100};

}  // namespace

Result<std::unique_ptr<DeviceSnapshots>> DeviceSnapshots::Create(const Dd2DeviceApi& api,
                                                                 std::size_t bytes) {
  DD2_CHECK(bytes > 0);
  std::unique_ptr<DeviceSnapshots> snapshots(new DeviceSnapshots(api));
  snapshots->capacity_ = bytes;
  DD2_TRY(snapshots->Allocate());
  return snapshots;
}

Status DeviceSnapshots::Allocate() {
  DD2_TRY(DeviceStatus(api_, api_.make_stream(&side_)));
  DD2_TRY(DeviceStatus(api_, api_.make_event(0, &computed_)));
  for (Place& place : places_) {
    DD2_TRY(DeviceStatus(api_, api_.allocate_pinned(capacity_, &place.memory)));
    DD2_TRY(DeviceStatus(api_, api_.make_event(0, &place.copied)));
  }
  return {};
}

DeviceSnapshots::~DeviceSnapshots() {
  if (side_ != nullptr) api_.wait_stream(side_);
  for (const Place& place : places_) {
    if (place.copied != nullptr) api_.end_event(place.copied);
    if (place.memory != nullptr) api_.release_pinned(place.memory);
  }
  if (computed_ != nullptr) api_.end_event(computed_);
  if (side_ != nullptr) api_.end_stream(side_);
}

Result<int> DeviceSnapshots::Begin(std::span<const DevicePiece> pieces, Dd2Stream compute) {
  std::size_t bytes = 0;
  for (const DevicePiece& piece : pieces) bytes += piece.bytes;
  if (bytes > capacity_) {
    return Error(Code::kInvalidArgument, "a snapshot of " + std::to_string(bytes) +
                                             " bytes does not fit into a place of " +
                                             std::to_string(capacity_));
  }
  for (int number = 0; number < static_cast<int>(places_.size()); ++number) {
    Place& place = places_[static_cast<std::size_t>(number)];
    if (place.state != State::kFree) continue;
    const Status begun = BeginCopies(place, pieces, compute);
    if (!begun) {
      api_.wait_stream(side_);  // some may be under way into a place that is to stay free
      return begun.error();
    }
    place.bytes = bytes;
    place.state = State::kCopying;
    return number;
  }
  return Error(Code::kUnavailable,
               "both places for snapshots are in use: release one when it is written");
}

Status DeviceSnapshots::BeginCopies(const Place& place, std::span<const DevicePiece> pieces,
                                    Dd2Stream compute) {
  DD2_TRY(DeviceStatus(api_, api_.record(computed_, compute)));
  DD2_TRY(DeviceStatus(api_, api_.hold(side_, computed_)));
  auto* to = static_cast<std::byte*>(place.memory);
  for (const DevicePiece& piece : pieces) {
    DD2_TRY(DeviceStatus(api_, api_.copy(to, piece.d_memory, piece.bytes, side_)));
    to += piece.bytes;
  }
  return DeviceStatus(api_, api_.record(place.copied, side_));
}

Status DeviceSnapshots::HoldUntilCopied(Dd2Stream compute) {
  for (const Place& place : places_) {
    if (place.state != State::kCopying) continue;
    DD2_TRY(DeviceStatus(api_, api_.hold(compute, place.copied)));
  }
  return {};
}

Result<bool> DeviceSnapshots::Copied(int place) {
  const Place& at = places_.at(static_cast<std::size_t>(place));
  DD2_CHECK(at.state != State::kFree);
  const Dd2DeviceCode code = api_.passed(at.copied);
  if (code == DD2_DEVICE_BUSY) return false;
  DD2_TRY(DeviceStatus(api_, code));
  return true;
}

Result<DeviceSnapshots::Copy> DeviceSnapshots::Take(int place) {
  while (true) {
    DD2_TRY_ASSIGN(const bool copied, Copied(place));
    if (copied) break;
    std::this_thread::sleep_for(kPoll);
  }
  Place& at = places_.at(static_cast<std::size_t>(place));
  at.state = State::kTaken;
  Copy copy;
  copy.bytes = {static_cast<const std::byte*>(at.memory), at.bytes};
  copy.hash = Hash128(copy.bytes);
  return copy;
}

void DeviceSnapshots::Release(int place) {
  Place& at = places_.at(static_cast<std::size_t>(place));
  DD2_CHECK(at.state == State::kTaken);
  at.state = State::kFree;
}

}  // namespace dd2
